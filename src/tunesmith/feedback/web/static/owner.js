// The owner's page: numbers, fetched again every few seconds while somebody looks at them.

import { ask, offerSignOut } from "./api.js";
import { button, make } from "./text.js";

const $ = (id) => document.getElementById(id);
const EVERY = 10_000; // milliseconds
const percent = (value) => (value === null || value === undefined ? "–" : `${(100 * value).toFixed(1)} %`);
const number = (value, digits = 2) => (value === null || value === undefined ? "–" : value.toFixed(digits));
const count = (value) => value.toLocaleString("en");

let isFirst = true;

function fill(table, titles, rows, nothing) {
  table.replaceChildren();
  if (!rows.length) {
    table.append(make("caption", nothing, "soft"));
    return;
  }
  const head = make("tr");
  head.append(...titles.map((title, at) => make(title ? "th" : "td", title, at ? "" : "first")));
  table.append(head, ...rows.map((cells) => {
    const row = make("tr");
    row.append(...cells.map((cell, at) => {
      const node = make("td", "", at ? "" : "first");
      node.append(...[cell].flat());
      return node;
    }));
    return row;
  }));
}

function interval(one, show) {
  if (one.value === null) return "–";
  return one.low === null ? show(one.value) : `${show(one.value)}  [${show(one.low)}, ${show(one.high)}]`;
}

function showTiles({ progress }) {
  const tiles = [
    ["items", count(progress.items)],
    ["wait for people", count(progress.open_items)],
    ["rankings", count(progress.rankings)],
    ["skipped", count(progress.skips)],
    ["gold items ranked", count(progress.gold)],
    ["answers flagged unsafe", count(progress.unsafe)],
  ];
  $("tiles").replaceChildren(...tiles.map(([name, value]) => {
    const tile = make("div", "", "tile");
    tile.append(make("strong", value), make("span", name, "soft"));
    return tile;
  }));
}

function showPeople({ people, labelers }) {
  const me = document.body.dataset.name;
  const rows = people.map((person) => {
    const theirs = labelers[person.name] ?? {};
    const name = [make("strong", person.name)];
    if (person.role === "owner") name.push(" ", make("span", "owner", "mark"));
    if (person.kind === "simulated") name.push(" ", make("span", "simulated", "mark"));
    if (person.is_blocked) name.push(" ", make("span", "blocked", "mark bad"));
    const isMe = person.name === me;
    const block = isMe ? "" : button(person.is_blocked ? "Let in" : "Block", "", async () => {
      if (!person.is_blocked && !confirm(`Block ${person.name}? They are signed out at once. What they said stays.`)) return;
      await attempt(() => ask("PUT", `api/owner/people/${person.id}`, { is_blocked: !person.is_blocked }));
      refresh();
    }, "plain");
    return [
      name, count(theirs.ranked ?? 0), count(theirs.skipped ?? 0), theirs.median_seconds ? `${theirs.median_seconds.toFixed(0)} s` : "–",
      percent(theirs.agreement), percent(theirs.tie_rate), percent(theirs.gold),
      person.seen_at ? new Date(person.seen_at * 1000).toLocaleString() : "–", block,
    ];
  });
  fill($("people"), ["name", "ranked", "skipped", "median time", "agrees with others", "ties", "gold right", "last seen", ""], rows, "");
}

function showAgreement({ agreement, instructgpt }) {
  const asPercent = new Set(["pairwise agreement"]);
  fill($("agreement"), ["", "with 95 % interval", "items"], agreement.map((one) => [
    one.name,
    one.value === null ? make("span", one.why, "soft") : interval(one, asPercent.has(one.name) ? percent : number),
    count(one.num_items),
  ]), "");
  const known = Object.entries(instructgpt).map(([who, [value, error]]) => `${who} ${percent(value)} ± ${percent(error)}`);
  $("instructgpt").textContent = `For comparison, pairwise agreement among InstructGPT's people: ${known.join(", ")}.`;
}

function showBias({ bias }) {
  fill($("bias"), ["", "with 95 % interval", "of"], [
    ["the answer shown first wins", interval(bias.first, percent), count(bias.first.count)],
    ["the longer answer wins", interval(bias.longer, percent), count(bias.longer.count)],
    ["ties", interval(bias.ties, percent), count(bias.ties.count)],
  ], "");
}

function svg(tag, attributes, text = "") {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.textContent = text;
  return node;
}

// Strengths as points with their intervals; the table below says the same in numbers.
function showModels({ models }) {
  if (!models.length) {
    $("models").replaceChildren(make("p", "Two models must be compared before one can be called better.", "soft"));
    return;
  }
  const [low, high] = [Math.min(...models.map((one) => one.low)), Math.max(...models.map((one) => one.high))];
  const x = (value) => 240 + (440 * (value - low)) / (high - low || 1);
  const plot = svg("svg", { viewBox: `0 0 700 ${models.length * 26 + 8}`, class: "plot", "aria-hidden": "true" });
  if (low < 0 && high > 0) plot.append(svg("line", { x1: x(0), x2: x(0), y1: 0, y2: models.length * 26 + 8, class: "axis" }));
  models.forEach((one, at) => {
    const y = at * 26 + 17;
    const name = one.model.length > 32 ? `...${one.model.slice(-30)}` : one.model;
    plot.append(svg("text", { x: 0, y: y + 5 }, name));
    plot.append(svg("line", { x1: x(one.low), x2: x(one.high), y1: y, y2: y, class: "interval" }));
    plot.append(svg("circle", { cx: x(one.strength), cy: y, r: 5 }));
  });
  const table = make("table");
  fill(table, ["model", "strength", "95 % interval", "wins", "comparisons"], models.map((one) => [
    one.model, number(one.strength), `[${number(one.low)}, ${number(one.high)}]`, percent(one.win_rate), count(one.num_comparisons),
  ]), "");
  const scroll = make("div", "", "scroll");
  scroll.append(table);
  $("models").replaceChildren(plot, scroll);
}

function showDisagreements({ disagreements }) {
  fill($("disagreements"), ["prompt", "pairs in dispute", "people", ""], disagreements.map((one) => {
    const decide = make("a", one.is_adjudicated ? "Decided" : "Decide");
    decide.href = `rank?item=${one.item}`;
    return [one.prompt, percent(one.share), make("span", one.labelers.join(", "), "soft"), decide];
  }), "Nobody contradicts anybody.");
}

function showNext({ next }) {
  fill($("next"), ["prompt", "why now"], next.map((one) => [
    one.prompt, one.reason || make("span", "at random", "soft"),
  ]), "Everything that was asked is ranked, or somebody is at it.");
}

function showStudy({ study }) {
  const fields = $("study").elements;
  for (const name of ["title", "guidelines", "overlap", "lease_minutes"]) fields[name].value = study[name];
  fields.ratings.checked = study.ratings;
  fields.questions.value = study.questions.join("\n");
}

async function attempt(work) {
  try {
    const result = await work();
    $("problem").hidden = true;
    return result;
  } catch (error) {
    $("problem").hidden = false;
    $("problem").textContent = error.message;
    return null;
  }
}

async function refresh() {
  const numbers = await attempt(() => ask("GET", "api/owner/overview"));
  if (!numbers) return;
  for (const show of [showTiles, showPeople, showAgreement, showBias, showModels, showDisagreements, showNext]) show(numbers);
  if (isFirst) showStudy(numbers);
  isFirst = false;
  const left = numbers.num_left_out ? ` The numbers are of the latest rankings; ${count(numbers.num_left_out)} older ones are left out.` : "";
  $("snapshot").textContent = `After event ${numbers.snapshot}.${left}`;
}

async function invite(role) {
  const made = await attempt(() => ask("POST", "api/owner/invitations", { role }));
  if (!made) return;
  $("invitation").hidden = false;
  $("invitation-link").value = new URL(made.link, location.href).href;
  $("invitation-link").select();
}

$("invite").addEventListener("click", () => invite("labeler"));
$("invite-owner").addEventListener("click", () => invite("owner"));
$("copy").addEventListener("click", () => {
  $("invitation-link").select();
  navigator.clipboard?.writeText($("invitation-link").value);
});
$("study").addEventListener("submit", async (event) => {
  event.preventDefault();
  const fields = $("study").elements;
  const questions = fields.questions.value.split("\n").map((line) => line.trim()).filter(Boolean);
  const saved = await attempt(() => ask("PUT", "api/owner/study", {
    title: fields.title.value, guidelines: fields.guidelines.value, questions, ratings: fields.ratings.checked,
    overlap: Number(fields.overlap.value), lease_minutes: Number(fields.lease_minutes.value),
  }));
  $("study-saved").textContent = saved ? "Saved" : "";
});
setInterval(() => document.hidden || refresh(), EVERY);
document.addEventListener("visibilitychange", () => document.hidden || refresh());
offerSignOut();
refresh();
