// One choice (what is shown, reference, block, operation), shown by the maps of all entries and by the table.
const state = { metric: "params", reference: 0, block: "", operation: "", alike: false };
const entries = data.entries.map((entry) => {
  const tuned = entry.rows.map(([index, how, params, rank, variant]) => ({ ...data.sites[index], index, how, params, rank, variant }));
  return { label: entry.label, cells: cellsOf(data.sites, tuned), sites: new Map(tuned.map((site) => [site.index, site])) };
});
let views = [], drawn = "";

function cells(entry) {
  const reference = entries[state.reference].cells;
  return entry.cells.map((one, index) => {
    const more = one.params - reference[index].params;
    const [value, shown] = {
      params: [one.params, short(one.params)],
      difference: [more, more ? (more > 0 ? "+" : "−") + short(Math.abs(more)) : "="],
      how: [one.height, one.letters],
      rank: [one.rank, String(one.rank)],
    }[state.metric];
    return { block: one.block, operation: one.operation, place: one.place, params: one.params, how: one.how, value, shown };
  }).filter((one) => one.params > 0 || one.value !== 0).map((one) => one.value !== 0 || state.metric === "difference" ? one : { ...one, shown: "" });
}

const inWords = (site, reference) => {
  if (!site) return "–";
  const others = reference && reference !== site && reference.variant !== site.variant && reference.how === site.how && reference.params === site.params && reference.rank === site.rank;
  return `${WORDS[site.how]}${site.rank ? ` of rank ${site.rank}` : ""}: ${number(site.params)}${others ? " (other ones)" : ""}`;
};

function fillTable() {
  let tuned = 0, differing = 0;
  const rows = [];
  data.sites.forEach((site, index) => {
    if ((state.block && site.block !== state.block) || (state.operation && site.operation !== state.operation)) return;
    const found = entries.map((entry) => entry.sites.get(index));
    if (!found.some(Boolean)) return;
    tuned += 1;
    const alike = found.every((each) => each && each.variant === found[0].variant);
    if (!alike) differing += 1;
    if (alike && !state.alike) return;
    const row = cellRow([site.id, site.block, site.operation, ...found.map((each) => inWords(each, found[state.reference]))], () => false, () => false);
    Object.assign(row.dataset, { block: site.block, operation: site.operation });
    rows.push(row);
  });
  at("sites").replaceChildren(...rows);
  at("totals").textContent = `${number(differing)} of ${number(tuned)} sites that are tuned${state.block || state.operation ? " there" : ""} are tuned differently.`;
}

function show() {
  fillTable();
  at("legend").textContent = {
    params: "Trainable parameters; an empty cell has none. All maps share their colours.",
    difference: `Trainable parameters more (+) or fewer (−) than ${entries[state.reference].label}; =: as many.`,
    how: LETTERS_MEAN,
    rank: "The highest rank of a module in the cell.",
  }[state.metric];
  const rows = entries.map(cells);
  views.forEach((view, index) => view.data("rows", rows[index]));
  const top = Math.max(1e-9, ...rows.flat().map((row) => Math.abs(row.value)));
  signals(views, { picked_block: state.block || null, picked_operation: state.operation || null, top });
  for (const name of ["metric", "reference", "block", "operation"]) at(name).value = state[name];
  at("alike").checked = state.alike;
}

async function set(change) {
  Object.assign(state, change);
  if ((state.metric === "difference") !== (drawn === "difference")) await draw();
  else show();
}

const over = hovering(() => views, at("sites"));

async function draw() {
  drawn = state.metric === "difference" ? "difference" : "map";
  delete document.body.dataset.ready;
  views.forEach((view) => view.finalize());
  views = await Promise.all(entries.map((entry, index) => embed(`map-${index}`, data[drawn], cells(entry))));
  link(views, {
    pick: (block, operation) => set(state.block === block && state.operation === operation ? { block: "", operation: "" } : { block, operation }),
    over,
  });
  for (const [name, chart] of Object.entries(data.charts)) await embed(name, chart, data.accuracies);
  show();
  document.body.dataset.ready = "yes";
}

for (const name of ["metric", "block", "operation"]) at(name).addEventListener("change", (event) => set({ [name]: event.target.value }));
at("reference").addEventListener("change", (event) => set({ reference: Number(event.target.value) }));
at("alike").addEventListener("change", (event) => set({ alike: event.target.checked }));
at("all").addEventListener("click", () => set({ block: "", operation: "" }));
whenColoursChange(draw);
draw();
