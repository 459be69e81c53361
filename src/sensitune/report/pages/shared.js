// What every page's script starts from: its data, numbers in words, and charts in the reader's colours.
const data = JSON.parse(document.getElementById("data").textContent);
const at = (id) => document.getElementById(id);
const number = (value) => value.toLocaleString("en-US");
const short = (value) => value < 1000 ? String(value) : value < 1e6 ? (value / 1e3).toPrecision(value < 1e4 ? 2 : 3) + "k" : (value / 1e6).toPrecision(3) + "M";
const WORDS = { structured: "module", vector: "whole", sparse: "single values", always: "always" };
const LETTERS = { structured: "M", vector: "W", sparse: "S", always: "A" };
const HEIGHT = { sparse: 1, vector: 2, always: 3, structured: 4 };
const LETTERS_MEAN = "M: a module; W: whole vectors; S: single values; A: always trained; an empty cell is frozen.";

function look() {
  const style = getComputedStyle(document.documentElement);
  const ink = style.getPropertyValue("--ink").trim(), rule = style.getPropertyValue("--rule").trim();
  const dark = matchMedia("(prefers-color-scheme: dark)").matches;
  const words = { labelColor: ink, titleColor: ink };
  const config = {
    background: null, axis: { ...words, gridColor: rule, domainColor: rule, tickColor: rule }, legend: words,
    view: { stroke: null }, font: "system-ui, sans-serif", text: { color: ink }, rule: { color: ink },
  };
  return { actions: false, renderer: "svg", config, tooltip: { theme: dark ? "dark" : "light" } };
}

// Rows are there from the start: an empty chart has no size.
const embed = async (id, spec, rows) => {
  const filled = structuredClone(spec);
  if (rows) filled.datasets = { rows };
  return (await window.vegaEmbed(at(id), filled, look())).view;
};

function cellsOf(known, tuned) {  // by block and operation; a cell is there if one of the known sites is
  const found = new Map();
  const cell = (site) => {
    const key = JSON.stringify([site.block, site.operation]);
    if (!found.has(key)) {
      found.set(key, { block: site.block, operation: site.operation, place: data.operations.indexOf(site.operation), params: 0, rank: 0, sensitive: 0, stays: 0, rated: 0, ways: [] });
    }
    return found.get(key);
  };
  for (const site of known) cell(site).sensitive += site.sensitive || 0;
  for (const site of tuned) {
    const one = cell(site);
    one.params += site.params;
    one.rank = Math.max(one.rank, site.rank);
    if (site.stays !== undefined) {
      one.stays += site.stays * site.params;
      one.rated += site.params;
    }
    if (!one.ways.includes(site.how)) one.ways.push(site.how);
  }
  return [...found.values()].map((one) => ({
    ...one,
    how: one.ways.map((way) => WORDS[way]).join(", ") || "frozen",
    letters: one.ways.map((way) => LETTERS[way]).join(""),
    height: Math.max(0, ...one.ways.map((way) => HEIGHT[way])),
  }));
}

const cellRow = (values, isNumber, isName) => {
  const row = document.createElement("tr");
  values.forEach((value, index) => {
    const field = row.insertCell();
    field.textContent = value;
    if (isNumber(index)) field.className = "number";
    else if (isName(index)) field.className = "wrap";
  });
  return row;
};

// What the pointer is over and what was clicked in one chart, told to all of them; the lists do the same by keyboard.
function link(views, { pick, over }) {
  for (const view of views) {
    view.addEventListener("click", (_, item) => {
      const cell = item && item.datum;
      if (cell && cell.operation !== undefined && cell.block !== undefined) pick(cell.block, cell.operation);
    });
    view.addSignalListener("over", (_, found) => over(found.block ? found.block[0] : null, found.operation ? found.operation[0] : null));
  }
}

const signals = (views, values) => {
  for (const view of views) {
    for (const [name, value] of Object.entries(values)) view.signal(name, value);
    view.runAsync();
  }
};

function hovering(views, body) {  // a row of the table and a cell of the charts point at one another
  const over = (block, operation) => {
    signals(views(), { over_block: block, over_operation: operation });
    for (const row of body.rows) row.classList.toggle("over", row.dataset.block === block && row.dataset.operation === operation);
  };
  body.addEventListener("pointerover", (event) => {
    const row = event.target.closest("tr");
    if (row) over(row.dataset.block, row.dataset.operation);
  });
  body.addEventListener("pointerleave", () => over(null, null));
  return over;
}

const whenColoursChange = (draw) => matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
