"use strict";

// Plots: drawn from the JSON beside them as soon as they are in sight (what is folded has no size), anew where the
// colours change: what is nearly black on white is nearly white on black.
const source = document.getElementById("plots").textContent;
const settings = { responsive: true, displayModeBar: false };
const dragmode = matchMedia("(pointer: coarse)").matches ? false : "zoom"; // a finger that drags wants to scroll
const dark = matchMedia("(prefers-color-scheme: dark)");
const NIGHT = { "#333333": "#d9dce0", "#0072B2": "#4ea6dc", "#444444": "#b6bbc1", "#e7e7e7": "#33373d", "#222222": "#e4e6e9" };

function draw() {
  const painted = dark.matches ? source.replace(/#[0-9A-Fa-f]{6}/g, (colour) => NIGHT[colour] ?? colour) : source;
  for (const { id, data, layout } of JSON.parse(painted)) {
    const place = document.getElementById(id);
    if (place.closest("details:not([open])")) continue;
    const corpus = place.closest(".corpus");
    for (const trace of data) if (trace.meta) trace.visible = shown(corpus, trace.meta);
    Plotly.react(place, data, { ...layout, dragmode }, settings);
  }
}

// Filters: a model or a curve that is switched off in one figure is off in all figures of its corpus.
function checked(corpus, key) {
  const boxes = [...corpus.querySelectorAll(`input[data-${key}]`)];
  return { known: new Set(boxes.map((box) => box.dataset[key])), on: new Set(boxes.filter((box) => box.checked).map((box) => box.dataset[key])) };
}

function shown(corpus, { model, curve }) {
  const [models, curves] = [checked(corpus, "model"), checked(corpus, "curve")];
  return (!models.known.has(model) || models.on.has(model)) && (!curves.known.has(curve) || curves.on.has(curve));
}

document.addEventListener("change", ({ target }) => {
  const key = ["model", "curve"].find((name) => name in target.dataset);
  if (!key) return;
  const corpus = target.closest(".corpus");
  for (const box of corpus.querySelectorAll(`input[data-${key}]`)) {
    if (box.dataset[key] === target.dataset[key]) box.checked = target.checked;
  }
  draw();
});

// Tables: a click on a heading sorts, a second one the other way round; cells without a value come last.
function value(row, column) {
  const cell = row.cells[column];
  return cell.dataset.value === undefined ? cell.textContent.trim() : Number(cell.dataset.value);
}

function compare(a, b) {
  const [wordA, wordB] = [typeof a === "string", typeof b === "string"];
  if (wordA && wordB) return a.localeCompare(b, "en", { numeric: true });
  return wordA - wordB || a - b;
}

for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => head.querySelector("button").addEventListener("click", () => {
    const down = head.getAttribute("aria-sort") === "ascending";
    heads.forEach((other) => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    const rows = [...table.tBodies[0].rows];
    const empty = (row) => ["", "–"].includes(row.cells[column].textContent.trim());
    rows.sort((a, b) => empty(a) - empty(b) || compare(value(a, column), value(b, column)) * (down ? -1 : 1));
    table.tBodies[0].append(...rows);
  }));
}

for (const box of document.querySelectorAll("input.filter")) {
  box.addEventListener("input", () => {
    const words = box.value.toLowerCase().split(/\s+/).filter(Boolean);
    for (const row of box.closest("figure").querySelectorAll("tbody tr")) {
      const text = row.textContent.toLowerCase();
      row.hidden = !words.every((word) => text.includes(word));
    }
  });
}

document.addEventListener("toggle", draw, true);
dark.addEventListener("change", draw);
draw();
