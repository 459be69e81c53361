// One column of the table (a task, a group, the mean), shown by both charts and the table of intervals.
let views = [];
const chosen = () => Number(at("column").value);

function rows() {
  return data.methods.map((method, place) => ({ ...method.columns[chosen()], label: method.label, params: method.params, place })).filter((row) => row.percent !== undefined);
}

function show() {
  const found = rows();
  for (const view of views) {
    view.data("rows", found);
    view.resize().runAsync();
  }
  at("intervals").replaceChildren(...found.map((row) => cellRow(
    [row.label, row.percent.toFixed(1), row.interval, row.of, row.params === null ? "–" : number(row.params)],
    (index) => [1, 2, 4].includes(index), (index) => index === 0,
  )));
}

async function draw() {
  views.forEach((view) => view.finalize());
  views = await Promise.all(Object.keys(data.charts).map((name) => embed(name, data.charts[name], rows())));
  show();
  document.body.dataset.ready = "yes";
}

at("column").addEventListener("change", show);
whenColoursChange(draw);
draw();
