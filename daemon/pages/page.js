// Keeps the page true: asks for its words once a second and puts them in their places. Text only, never markup.
"use strict";

const EVERY_MS = 1000;
const PATIENCE_MS = 3000; // without an answer for so long, what the page shows is no longer the truth
const SVG = "http://www.w3.org/2000/svg";

const place = (id) => document.getElementById(id);
let heard = Date.now();
let series = [];

function put(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

function tone(element, word) {
  if (word) element.dataset.tone = word;
  else delete element.dataset.tone;
}

// As many children as there are items, each brought up to date; nodes stay, so that a selection or a scroll survives.
function list(parent, items, make, fill) {
  while (parent.children.length > items.length) parent.lastElementChild.remove();
  while (parent.children.length < items.length) parent.append(make());
  items.forEach((item, index) => fill(parent.children[index], item));
}

function element(name, ...children) {
  const made = document.createElement(name);
  made.append(...children);
  return made;
}

function fillCell(cell, { text, tone: word, bar }) {
  let meter = cell.querySelector("svg");
  if (bar === null) {
    meter?.remove();
  } else {
    if (!meter) {
      meter = document.createElementNS(SVG, "svg");
      meter.append(document.createElementNS(SVG, "rect"));
      for (const [name, value] of [["class", "share"], ["viewBox", "0 0 100 8"], ["preserveAspectRatio", "none"], ["aria-hidden", "true"]]) {
        meter.setAttribute(name, value);
      }
      meter.firstChild.setAttribute("height", "8");
      cell.prepend(meter);
    }
    meter.querySelector("rect").setAttribute("width", bar);
  }
  put(cell.querySelector("span"), text);
  tone(cell, word);
}

function fillTable({ id, columns, rows, empty, note }) {
  const section = place(id);
  section.querySelector(".scroll").hidden = rows.length === 0;
  section.querySelector(".empty").hidden = rows.length > 0;
  put(section.querySelector(".empty"), empty);
  section.querySelector(".more").hidden = !note;
  put(section.querySelector(".more"), note);
  list(section.querySelector("tbody"), rows, () => element("tr"), (row, cells) => {
    list(row, cells, () => element("td", element("span")), fillCell);
    columns.forEach((column, index) => row.children[index].classList.toggle("number", column.number));
  });
}

function newCard() {
  const card = element("div", element("dt"), element("dd"), element("dd"));
  card.className = "card";
  card.children[1].className = "value";
  card.children[2].className = "note";
  return card;
}

function fillChart({ top, lines }) {
  put(place("top"), top);
  series = lines;
  for (const { name, now, path, area } of lines) {
    put(document.querySelector(`.legend [data-line="${name}"] dd`), now);
    document.querySelector(`.line[data-line="${name}"] .stroke`).setAttribute("d", path);
    document.querySelector(`.line[data-line="${name}"] .area`).setAttribute("d", area);
  }
}

function show(page) {
  put(place("answer"), page.headline.answer);
  put(place("because"), page.headline.because);
  tone(place("hero"), page.headline.tone);
  document.title = `${page.headline.answer} · Outrider`;
  put(place("state"), page.state);
  place("state").dataset.state = page.state;
  put(place("about"), page.about);
  put(place("at"), page.at);
  place("notices").hidden = page.notices.length === 0;
  list(place("notices"), page.notices, () => element("li"), put);
  list(place("cards"), page.cards, newCard, (card, words) => {
    put(card.children[0], words.name);
    put(card.children[1], words.value);
    put(card.children[2], words.note);
    tone(card, words.tone);
  });
  fillChart(page.chart);
  page.tables.forEach(fillTable);
}

function admitSilence() {
  const silent = Date.now() - heard;
  const stale = silent > PATIENCE_MS;
  document.body.classList.toggle("is-stale", stale);
  place("stale").hidden = !stale;
  if (!stale) return;
  put(place("stale"), `The daemon does not answer. What you see is ${Math.round(silent / 1000)} seconds old.`);
  document.title = "No answer · Outrider";
}

async function ask() {
  if (document.hidden) return;
  try {
    const answer = await fetch("/api/page", { cache: "no-store", signal: AbortSignal.timeout(PATIENCE_MS) });
    if (answer.status === 401) return location.reload(); // the session has ended: the form comes
    if (answer.ok) {
      show(await answer.json());
      heard = Date.now();
    }
  } catch (trouble) {
    if (!(trouble instanceof TypeError || trouble instanceof DOMException)) throw trouble; // not the network: a bug of ours
  }
  admitSilence();
}

async function follow() {
  for (;;) {
    await ask().catch(reportError);
    await new Promise((wake) => setTimeout(wake, EVERY_MS));
  }
}

// Under the pointer or the finger: what each line was in that second.
place("chart").addEventListener("pointermove", (event) => {
  if (series.length === 0) return;
  const drawing = place("chart").querySelector("svg");
  const { left, width } = drawing.getBoundingClientRect();
  const seconds = Number(place("chart").dataset.seconds);
  const index = Math.min(seconds - 1, Math.max(0, Math.round(((event.clientX - left) / width) * (seconds - 1))));
  const { width: wide, height } = drawing.viewBox.baseVal;
  place("cursor").setAttribute("d", `M${(index / (seconds - 1)) * wide} 0V${height}`);
  put(place("readout"), `${seconds - index} s ago: ${series.map(({ name, values }) => `${values[index]} ${name}`).join(", ")}`);
});
place("chart").addEventListener("pointerleave", () => {
  place("cursor").setAttribute("d", "");
  put(place("readout"), "");
});
document.addEventListener("visibilitychange", ask);
follow();
