// The labeler's page: one item at a time, what is said of it, and where it is sent.

import { ask, newKey, offerSignOut } from "./api.js";
import { LETTERS, makeCard, ordinal, showState } from "./card.js";
import { Drafts } from "./drafts.js";
import { listenToKeys } from "./keys.js";
import { Pace } from "./pace.js";
import { Ranking } from "./ranking.js";
import { sendUntilKept } from "./sender.js";
import { button, make, showText } from "./text.js";

const $ = (id) => document.getElementById(id);
const asked = { ratings: $("page").dataset.ratings === "yes", questions: JSON.parse($("page").dataset.questions) };
const lists = { ranked: $("ranked"), unranked: $("unranked") };
const NOTHING = { all_bad: false, unsafe: [], ratings: {}, answers: {}, comment: "" };
const pace = new Pace();
const drafts = new Drafts(document.body.dataset.name, (text) => { $("saved").textContent = text; }, onConflict);

let item = null; // in front of the person
let ranking = null;
let said = null; // beside the ranking
let undone = []; // states to go back to
let key = ""; // of the request that this answer will be sent by
let wasSent = false; // an attempt with this key may have arrived
let sending = null;
let isDirty = false;

// What can be done. Those in CHANGES change the answer, so that they can be undone and a draft is kept.

const CHANGES = {
  rank: (id) => ranking.rankNext(id),
  tieWithLast: (id) => ranking.tieWithLast(id),
  up: (id) => ranking.move(id, -1),
  down: (id) => ranking.move(id, 1),
  place: (id, place) => ranking.placeAt(id, place),
  tie: (id) => ranking.toggleTie(id),
  remove: (id) => ranking.remove(id),
  drop: (id, target) => {
    if (target.unranked) ranking.remove(id);
    else if (target.tie) ranking.tieWith(id, target.tie);
    else ranking.placeAt(id, target.place);
  },
  unsafe: (id) => { said.unsafe = said.unsafe.includes(id) ? said.unsafe.filter((one) => one !== id) : [...said.unsafe, id]; },
  rate: (id, value) => { said.ratings = withValue(said.ratings, id, value); },
  answer: (id, number, value) => {
    const its = withValue(said.answers[id] ?? {}, String(number), value);
    said.answers = withValue(said.answers, id, Object.keys(its).length ? its : undefined);
  },
  allBad: () => { said.all_bad = !said.all_bad; },
};
const ACTIONS = {
  focus: (id) => cardOf(id)?.focus(),
  unfold: (id) => cardOf(id)?.querySelector(".fold")?.click(),
  undo: () => undo(),
  submit: () => submit(),
  skip: () => $("skip-dialog").showModal(),
  help: () => $("help-dialog").showModal(),
  previous: () => openPrevious(),
};

function act(name, ...details) {
  if (!item || sending) return;
  if (!CHANGES[name]) return ACTIONS[name](...details);
  undone.push(stateNow());
  CHANGES[name](...details);
  onChange();
  if (ranking.ids.includes(details[0])) {
    cardOf(details[0]).focus({ preventScroll: name === "drop" });
    announce(details[0]);
  }
}

function withValue(mapping, name, value) {
  const { [name]: _, ...rest } = mapping;
  return value === undefined ? rest : { ...rest, [name]: value };
}

function stateNow() {
  return structuredClone({ ...ranking.content, ...said });
}

function setState({ levels, unranked, ...rest }) {
  if (!ranking.restore({ levels, unranked })) return;
  said = structuredClone(Object.fromEntries(Object.keys(NOTHING).map((name) => [name, rest[name] ?? NOTHING[name]])));
}

function undo() {
  if (!undone.length) return;
  setState(undone.pop());
  onChange();
  $("live").textContent = "Undone";
}

function onChange() {
  if (wasSent) [key, wasSent] = [newKey(), false]; // another answer than the one that was sent
  isDirty = true;
  show();
  drafts.keep(item, { at: Date.now(), ...stateNow(), seconds: pace.seconds, key });
}

function announce(id) {
  const at = ranking.levelOf(id);
  const ties = at < 0 ? 0 : ranking.levels[at].length - 1;
  const place = at < 0 ? "not ranked" : `${ordinal(at + 1)} of ${ranking.levels.length}${ties ? `, tied with ${ties} more` : ""}`;
  $("live").textContent = `${letterOf()[id]}: ${place}`;
}

// Showing

function cardOf(id) {
  return document.querySelector(`.card[data-id="${id}"]`);
}

function letterOf() {
  return Object.fromEntries(ranking.ids.map((id, at) => [id, LETTERS[at]]));
}

function show() {
  const cards = new Map([...document.querySelectorAll(".card")].map((card) => [card.dataset.id, card]));
  const active = document.activeElement;
  const level = (ids, number) => {
    const node = make("li", "", ids.length > 1 ? "level tied" : "level");
    if (number) node.append(make("span", String(number), "number"));
    node.append(...ids.map((id) => cards.get(id)));
    return node;
  };
  lists.ranked.replaceChildren(...ranking.levels.map((ids, at) => level(ids, at + 1)));
  lists.unranked.replaceChildren(...ranking.unranked.map((id) => level([id], 0)));
  if (active && active !== document.activeElement && active.isConnected) active.focus({ preventScroll: true });
  for (const card of cards.values()) showState(card, ranking, said, letterOf());
  $("nothing-ranked").hidden = ranking.levels.length > 0;
  $("unranked-section").hidden = ranking.unranked.length === 0;
  $("unranked-note").textContent = ranking.levels.length ? "counts as worse than all that are ranked" : "in random order";
  $("all-bad").checked = said.all_bad;
  if ($("comment").value !== said.comment) $("comment").value = said.comment;
  $("submit").disabled = !(ranking.levels.length || said.all_bad);
  $("undo").disabled = !undone.length;
}

function load(next, progress) {
  item = next;
  if (progress) showProgress(progress);
  $("done").hidden = item !== null;
  $("work").hidden = item === null;
  showProblem("");
  if (!item) return;
  ranking = new Ranking(item.answers.map((answer) => answer.id));
  [said, undone, key, wasSent, isDirty] = [structuredClone(NOTHING), [], newKey(), false, false];
  if (item.response) setState(item.response);
  const draft = drafts.read(item);
  if (draft?.levels && draft.unranked) {
    setState(draft);
    if (/^[0-9a-f]{32}$/.test(draft.key)) [key, wasSent] = [draft.key, true];
    isDirty = true;
  }
  pace.begin(Number(draft?.seconds) || 0);
  showPrompt();
  const cards = item.answers.map((answer, at) => makeCard(answer, LETTERS[at], asked, lists, act));
  lists.ranked.replaceChildren();
  lists.unranked.replaceChildren(...cards);
  show();
  $("saved").textContent = draft ? "Your draft is back" : "";
  showEditing();
  scrollTo(0, 0);
  $("prompt-title").focus({ preventScroll: true });
}

function showPrompt() {
  $("prompt").replaceChildren(...item.prompt.flatMap((turn) => {
    const text = make("div", "", `text turn turn-${turn.role}`);
    showText(text, turn.content);
    const isAlone = item.prompt.length === 1;
    return isAlone ? [text] : [make("p", turn.role, "role"), text];
  }));
}

function showProgress({ ranked, skipped, left }) {
  const isDeciding = new URLSearchParams(location.search).has("item");
  $("progress").max = Math.max(1, ranked + left);
  $("progress").value = ranked;
  const time = left && pace.median ? `, about ${describeMinutes(pace.median * left)}` : "";
  const skips = skipped ? `, ${skipped} skipped` : "";
  $("progress-text").textContent = `${ranked} ranked${skips}, ${left} left${time}`;
  $("previous").disabled = isDeciding || !(ranked + skipped);
}

function describeMinutes(seconds) {
  const minutes = Math.max(1, Math.round(seconds / 60));
  return minutes < 90 ? `${minutes} min` : `${(minutes / 60).toFixed(1)} h`;
}

function showEditing() {
  const words = {
    ranked: "You have ranked this item. Change it and submit again, or leave it as it is.",
    skipped: "You have skipped this item. You can rank it now.",
    aside: "You decide: what you submit here stands for this item, in place of what others said.",
    adjudicated: "You have decided this item. Change it and submit again, or leave it as it is.",
  };
  const banner = $("editing");
  banner.hidden = !words[item.state];
  banner.replaceChildren(words[item.state] ?? "");
  if (!banner.hidden) banner.append(" ", button("Back to the queue", "", () => takeNext(), "plain"));
  if (["aside", "adjudicated"].includes(item.state)) banner.append(" ", button("Make it a gold item", "", makeGold, "plain"));
}

// What the owner has ranked here becomes the test of those who rank this item.
async function makeGold() {
  const { levels, unranked } = ranking.content;
  try {
    await ask("PUT", `api/owner/gold/${item.id}`, { levels: unranked.length ? [...levels, unranked] : levels });
    $("saved").textContent = "Gold: whoever ranks this item is compared with it";
  } catch (error) {
    showProblem(error.message);
  }
}

function showProblem(message, ...more) {
  $("problem").hidden = !message;
  $("problem").replaceChildren(message, ...more);
}

// Sending

function submit() {
  if ($("submit").disabled) return;
  const response = { ...ranking.content, ...said };
  send("api/rankings", { response, seconds: pace.seconds });
}

async function send(address, content) {
  drafts.keep(item, { at: Date.now(), ...stateNow(), seconds: pace.seconds, key }); // with the key, should the page close
  clearTimeout(drafts.waiting?.timer);
  $("submit").classList.add("busy");
  $("work").inert = true;
  wasSent = true;
  const sent = item;
  sending = sendUntilKept(address, { item: item.id, version: item.version, key, ...content }, (message, tryNow) => {
    showProblem(message, " ", button("Try now", "", tryNow), " ", button("Go on editing", "", () => sending?.stop(), "plain"));
  });
  try {
    const reply = await sending.done;
    if (address === "api/rankings") pace.end();
    drafts.forget(sent);
    leaveDecision();
    load(reply.item, reply.progress);
    $("saved").textContent = "Saved";
    $("live").textContent = "Saved";
  } catch (error) {
    onRefused(error);
  } finally {
    sending = null;
    $("work").inert = false;
    $("submit").classList.remove("busy");
  }
}

function onRefused(error) {
  if (error.status === 409) return onConflict();
  if (error.status !== 401 && error.status !== 403) return showProblem(`Not saved: ${error.message}`);
  const link = make("a", "Sign in");
  link.href = "enter";
  link.target = "_blank";
  link.rel = "noopener";
  showProblem("You are not signed in any more. Your answer is kept in this browser. ", link, " in another tab, then ",
    button("reload this page", "", () => location.reload()));
}

async function onConflict() {
  const mine = stateNow();
  try {
    const { item: now } = await ask("GET", `api/items/${item.id}`);
    drafts.forget(item);
    item = now;
    [key, wasSent] = [newKey(), false];
    setState(mine);
    show();
    showEditing();
    showProblem("This item was answered meanwhile, in another tab perhaps. What you have here is kept: submit it to replace " +
      "that answer. ", button("Leave that answer and go on", "", () => takeNext(), "plain"));
  } catch (error) {
    showProblem(`Not saved: ${error.message}`);
  }
}

async function takeNext() {
  leaveDecision();
  try {
    const { item: next, progress } = await ask("POST", "api/next", {});
    load(next, progress);
  } catch (error) {
    if (error.isPassing) showProblem(`${error.message}. `, button("Try again", "", takeNext));
    else onRefused(error);
  }
}

async function openPrevious() {
  const before = item && ["ranked", "skipped"].includes(item.state) ? `&before=${item.version}` : "";
  try {
    await drafts.flush();
    const { items } = await ask("GET", `api/history?limit=1${before}`);
    if (!items.length) return void ($("live").textContent = "This is the first one");
    load((await ask("GET", `api/items/${items[0].item_id}`)).item);
  } catch (error) {
    showProblem(error.message);
  }
}

function leaveDecision() {
  if (location.search) history.replaceState(null, "", location.pathname);
}

async function begin() {
  const wanted = new URLSearchParams(location.search).get("item");
  if (!wanted) return takeNext();
  try {
    load((await ask("POST", `api/owner/items/${encodeURIComponent(wanted)}`, {})).item);
    $("previous").disabled = true;
  } catch (error) {
    onRefused(error);
  }
}

// The page's own parts

$("submit").addEventListener("click", () => act("submit"));
$("undo").addEventListener("click", () => act("undo"));
$("skip").addEventListener("click", () => act("skip"));
$("help").addEventListener("click", () => $("help-dialog").showModal());
$("previous").addEventListener("click", openPrevious);
$("look-again").addEventListener("click", openPrevious);
$("all-bad").addEventListener("change", () => act("allBad"));
$("comment").addEventListener("input", () => {
  said.comment = $("comment").value;
  onChange();
});
$("skip-dialog").addEventListener("close", () => {
  if ($("skip-dialog").returnValue !== "skip" || !item || sending) return;
  const other = $("skip-other").value.trim();
  send("api/skips", { reason: other || document.querySelector("[name=reason]:checked").value });
  $("skip-other").value = "";
});
for (const node of document.querySelectorAll("[data-text]")) showText(node, node.dataset.text);
const guidelines = $("guidelines");
if (guidelines) {
  const seen = `tunesmith-feedback guidelines ${$("page").dataset.guidelines}`;
  try {
    guidelines.open = !localStorage.getItem(seen);
    localStorage.setItem(seen, "yes");
  } catch {
    guidelines.open = true;
  }
}
addEventListener("beforeunload", (event) => {
  if (sending) event.preventDefault();
});
listenToKeys({
  act,
  isOpen: () => !document.querySelector("dialog[open]"),
  focused: () => document.activeElement?.closest(".card")?.dataset.id,
  order: () => ranking?.order ?? [],
  idOf: (letter) => (letter && ranking ? ranking.ids[LETTERS.indexOf(letter)] : undefined),
});
offerSignOut();
begin();
