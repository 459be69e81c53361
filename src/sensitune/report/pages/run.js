// One choice (budget, what is shown, block, operation), shown by the map, the stacked blocks and the table alike.
const state = { step: data.own, metric: "params", block: "", operation: "" };
let views = [];

function sites(step = state.step) {
  return data.ladder[step].rows.map(([index, how, params, rank]) => ({ ...data.sites[index], how, params, rank }));
}

function cells() {
  const all = data.sites.reduce((sum, site) => sum + site.sensitive, 0);
  const stays = state.metric === "stays";
  return cellsOf(data.sites, sites(stays ? data.own : state.step)).map((one) => {
    const share = all ? 100 * one.sensitive / all : 0;
    const [value, shown] = {
      params: [one.params, short(one.params)],
      sensitive: [share, share < 0.05 ? "<0.1" : share.toFixed(1)],
      how: [one.height, one.letters],
      rank: [one.rank, String(one.rank)],
      stays: one.rated ? [100 * one.stays / one.rated, String(Math.round(100 * one.stays / one.rated))] : [0, ""],
    }[state.metric];
    return { block: one.block, operation: one.operation, place: one.place, params: one.params, how: one.how, value, shown };
  }).filter((one) => one.params > 0 || one.value > 0).map((one) => one.value > 0 || stays ? one : { ...one, shown: "" });
}

function fillTable() {
  const rows = sites().filter((site) => (!state.block || site.block === state.block) && (!state.operation || site.operation === state.operation));
  at("sites").replaceChildren(...rows.map((site) => {
    const values = [site.id, site.block, site.operation, WORDS[site.how], number(site.params), number(site.size), site.rank || "–"];
    if (data.has_sensitive) values.push(number(site.sensitive));
    if (data.has_stability) values.push(site.stays === undefined ? "–" : `${Math.round(100 * site.stays)} %`);
    const row = cellRow(values, (index) => index > 3, () => false);
    Object.assign(row.dataset, { block: site.block, operation: site.operation });
    return row;
  }));
  const total = data.ladder[state.step].total, own = data.ladder[data.own].total;
  const chosen = rows.reduce((sum, site) => sum + site.params, 0);
  const modules = rows.filter((site) => site.how === "structured").length;
  const where = state.block || state.operation ? `; chosen: ${number(chosen)} in ${rows.length} sites` : "";
  at("totals").textContent = `${number(total)} trainable parameters (${state.step === data.own ? "this run's budget" : `this run: ${number(own)}`}), ${modules} modules${where}.`;
}

function show() {
  fillTable();
  at("legend").textContent = {
    params: "Trainable parameters; an empty cell has none.",
    sensitive: "Percent of the most sensitive parameters that this run selected; does not depend on the slider.",
    how: LETTERS_MEAN,
    rank: "The highest rank of a module in the cell.",
    stays: "Percent of this run's parameters in the cell that one half of the batches alone would have tuned too; does not depend on the slider.",
  }[state.metric];
  const rows = cells();
  for (const view of views) view.data("rows", rows);
  signals(views, { picked_block: state.block || null, picked_operation: state.operation || null, top: Math.max(1e-9, ...rows.map((row) => row.value)) });
  at("block").value = state.block;
  at("operation").value = state.operation;
  at("metric").value = state.metric;
  const slider = at("budget");
  if (slider) {
    slider.value = state.step;
    slider.setAttribute("aria-valuetext", `${number(data.ladder[state.step].total)} trainable parameters`);
  }
}

function set(change) {
  Object.assign(state, change);
  show();
}

const over = hovering(() => views, at("sites"));

async function draw() {
  const rows = cells();
  views.forEach((view) => view.finalize());
  views = await Promise.all(["map", "stack"].map((name) => embed(name, data[name], rows)));
  link(views, {
    pick: (block, operation) => set(state.block === block && state.operation === operation ? { block: "", operation: "" } : { block, operation }),
    over,
  });
  await Promise.all(data.curves.map((curve, index) => embed(`curve-${index}`, curve)));
  if (data.confusion) await embed("confusion", data.confusion, data.answers);
  show();
  document.body.dataset.ready = "yes";
}

for (const name of ["metric", "block", "operation"]) at(name).addEventListener("change", (event) => set({ [name]: event.target.value }));
at("all").addEventListener("click", () => set({ block: "", operation: "" }));
if (at("budget")) {
  at("budget").addEventListener("input", (event) => set({ step: Number(event.target.value) }));
  at("own").addEventListener("click", () => set({ step: data.own }));
}
whenColoursChange(draw);
draw();
