"use strict";
{
// One choice (budget, what is shown, block, operation), shown by the map, the stacked blocks and the table alike.
const data = JSON.parse(document.getElementById("data").textContent);
const at = (id) => document.getElementById(id);
const state = { step: data.own, metric: "params", block: "", operation: "" };
const WORDS = { structured: "module", vector: "whole", sparse: "single values", always: "always" };
const LETTERS = { structured: "M", vector: "W", sparse: "S", always: "A" };
const HEIGHT = { sparse: 1, vector: 2, always: 3, structured: 4 };
const number = (value) => value.toLocaleString("en-US");
const short = (value) => value < 1000 ? String(value) : value < 1e6 ? (value / 1e3).toPrecision(value < 1e4 ? 2 : 3) + "k" : (value / 1e6).toPrecision(3) + "M";
let views = [];

function sites() {
  return data.ladder[state.step].rows.map(([index, how, params, rank]) => ({ ...data.sites[index], how, params, rank }));
}

function cells() {
  const found = new Map();
  const cell = (site) => {
    const key = JSON.stringify([site.block, site.operation]);
    if (!found.has(key)) {
      found.set(key, { block: site.block, operation: site.operation, place: data.operations.indexOf(site.operation), params: 0, rank: 0, sensitive: 0, ways: [] });
    }
    return found.get(key);
  };
  for (const site of data.sites) cell(site).sensitive += site.sensitive;
  for (const site of sites()) {
    const one = cell(site);
    one.params += site.params;
    one.rank = Math.max(one.rank, site.rank);
    if (!one.ways.includes(site.how)) one.ways.push(site.how);
  }
  const all = data.sites.reduce((sum, site) => sum + site.sensitive, 0);
  return [...found.values()].map((one) => {
    const how = one.ways.map((way) => WORDS[way]).join(", ") || "frozen";
    const share = all ? 100 * one.sensitive / all : 0;
    const [value, shown] = {
      params: [one.params, short(one.params)],
      sensitive: [share, share < 0.05 ? "<0.1" : share.toFixed(1)],
      how: [Math.max(0, ...one.ways.map((way) => HEIGHT[way])), one.ways.map((way) => LETTERS[way]).join("")],
      rank: [one.rank, String(one.rank)],
    }[state.metric];
    return { block: one.block, operation: one.operation, place: one.place, params: one.params, how, value, shown };
  }).filter((one) => one.params > 0 || one.value > 0).map((one) => one.value > 0 ? one : { ...one, shown: "" });
}

function fillTable() {
  const rows = sites().filter((site) => (!state.block || site.block === state.block) && (!state.operation || site.operation === state.operation));
  at("sites").replaceChildren(...rows.map((site) => {
    const row = document.createElement("tr");
    const values = [site.id, site.block, site.operation, WORDS[site.how], number(site.params), number(site.size), site.rank || "–"];
    if (data.has_sensitive) values.push(number(site.sensitive));
    values.forEach((value, index) => {
      const field = row.insertCell();
      field.textContent = value;
      if (index > 3) field.className = "number";
    });
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
    how: "M: a module; W: whole vectors; S: single values; A: always trained; an empty cell is frozen.",
    rank: "The highest rank of a module in the cell.",
  }[state.metric];
  const rows = cells();
  for (const view of views) {
    view.data("rows", rows).signal("picked_block", state.block || null).signal("picked_operation", state.operation || null).runAsync();
  }
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

async function draw() {
  const style = getComputedStyle(document.documentElement);
  const ink = style.getPropertyValue("--ink").trim(), rule = style.getPropertyValue("--rule").trim();
  const dark = matchMedia("(prefers-color-scheme: dark)").matches;
  const words = { labelColor: ink, titleColor: ink };
  const config = { background: null, axis: { ...words, gridColor: rule, domainColor: rule, tickColor: rule }, legend: words, view: { stroke: null }, font: "system-ui, sans-serif" };
  const options = { actions: false, renderer: "svg", config, tooltip: { theme: dark ? "dark" : "light" } };
  const rows = cells();  // from the start: an empty chart has no size
  views.forEach((view) => view.finalize());
  const charts = await Promise.all(["map", "stack"].map((name) => window.vegaEmbed(at(name), { ...structuredClone(data[name]), datasets: { rows } }, options)));
  views = charts.map((chart) => chart.view);
  for (const view of views) {
    view.addEventListener("click", (_, item) => {
      const cell = item && item.datum;
      if (!cell || cell.operation === undefined || cell.block === undefined) return;
      const again = state.block === cell.block && state.operation === cell.operation;
      set(again ? { block: "", operation: "" } : { block: cell.block, operation: cell.operation });
    });
  }
  await Promise.all(data.curves.map((curve, index) => window.vegaEmbed(at(`curve-${index}`), structuredClone(curve), options)));
  show();
  document.body.dataset.ready = "yes";
}

at("metric").addEventListener("change", (event) => set({ metric: event.target.value }));
at("block").addEventListener("change", (event) => set({ block: event.target.value }));
at("operation").addEventListener("change", (event) => set({ operation: event.target.value }));
at("all").addEventListener("click", () => set({ block: "", operation: "" }));
if (at("budget")) {
  at("budget").addEventListener("input", (event) => set({ step: Number(event.target.value) }));
  at("own").addEventListener("click", () => set({ step: data.own }));
}
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
draw();
}
