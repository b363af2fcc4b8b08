// One answer on the page: its letter, its text, what can be done with it and what is asked of it.

import { makeDraggable } from "./drag.js";
import { button, isLong, make, showText } from "./text.js";

export const LETTERS = "ABCDEFGHI";

// act(name, id, ...) does what the person wants; see ACTIONS of rank.js.
export function makeCard(answer, letter, asked, lists, act) {
  const card = make("div", "", "card");
  card.id = `answer-${letter}`;
  card.dataset.id = answer.id;
  card.dataset.letter = letter;
  card.tabIndex = 0;
  const head = make("div", "", "card-head");
  const handle = make("span", "", "handle");
  handle.title = "Drag to rank";
  const place = make("span", "", "place");
  head.append(handle, make("strong", letter, "letter"), place, makeTools(answer.id, letter, act));
  const text = make("div", "", "text");
  if (answer.text.trim()) showText(text, answer.text);
  else text.append(make("p", "(an empty answer)", "soft"));
  card.append(head, text);
  if (isLong(answer.text)) card.append(makeFold(card, answer.text, act, answer.id));
  if (asked.ratings || asked.questions.length) card.append(makeExtras(answer.id, letter, asked, act));
  makeDraggable(handle, card, lists.ranked, lists.unranked, (target) => act("drop", answer.id, target));
  return card;
}

function makeTools(id, letter, act) {
  const tools = make("span", "", "tools");
  tools.append(
    button("Rank next", `Rank answer ${letter} next`, () => act("rank", id), "tool-rank"),
    button("↑", `Move answer ${letter} up`, () => act("up", id), "tool-up"),
    button("↓", `Move answer ${letter} down`, () => act("down", id), "tool-down"),
    button("Tie", `Tie answer ${letter} with the one above, or part them`, () => act("tie", id), "tool-tie"),
    button("Remove", `Take answer ${letter} out of the ranking`, () => act("remove", id), "tool-remove"),
    button("Unsafe", `Mark answer ${letter} as unsafe`, () => act("unsafe", id), "tool-unsafe"),
  );
  return tools;
}

function makeFold(card, text, act, id) {
  card.classList.add("folded");
  const label = () => (card.classList.contains("folded") ? `Show all ${text.length.toLocaleString("en")} characters` : "Fold");
  const fold = button(label(), "", () => {
    card.classList.toggle("folded");
    fold.textContent = label();
    fold.setAttribute("aria-expanded", String(!card.classList.contains("folded")));
  }, "plain fold");
  fold.setAttribute("aria-expanded", "false");
  return fold;
}

function makeExtras(id, letter, asked, act) {
  const extras = make("div", "", "extras");
  if (asked.ratings) {
    const choices = ["1", "2", "3", "4", "5", "6", "7"].map((value) => ({ label: value, value: Number(value) }));
    extras.append(makeChoice(`rating-${letter}`, "Overall, 1 (worst) to 7", choices, (value) => act("rate", id, value)));
  }
  asked.questions.forEach((question, number) => {
    const choices = [{ label: "Yes", value: true }, { label: "No", value: false }];
    extras.append(makeChoice(`question-${letter}-${number}`, question, choices, (value) => act("answer", id, number, value)));
  });
  return extras;
}

// One of several, which a second press takes back.
function makeChoice(name, title, choices, choose) {
  const group = make("fieldset", "", "choice");
  group.dataset.name = name;
  group.append(make("legend", title));
  for (const { label, value } of choices) {
    const one = button(label, "", () => {
      const isOn = one.getAttribute("aria-pressed") === "true";
      choose(isOn ? undefined : value);
    });
    one.dataset.value = JSON.stringify(value);
    one.setAttribute("aria-pressed", "false");
    group.append(one);
  }
  return group;
}

function showChoice(card, name, value) {
  const group = card.querySelector(`[data-name="${name}"]`);
  for (const one of group?.querySelectorAll("button") ?? []) {
    one.setAttribute("aria-pressed", String(one.dataset.value === JSON.stringify(value)));
  }
}

const ENDINGS = ["th", "st", "nd", "rd"];
export function ordinal(number) {
  return `${number}${ENDINGS[number] ?? "th"}`;
}

// Brings a card up to date with what was said of it.
export function showState(card, ranking, said, letterOf) {
  const { id, letter } = card.dataset;
  const at = ranking.levelOf(id);
  const others = at < 0 ? [] : ranking.levels[at].filter((other) => other !== id).map((other) => letterOf[other]);
  const place = at < 0 ? "" : `${ordinal(at + 1)}${others.length ? `, tied with ${others.sort().join(" and ")}` : ""}`;
  card.querySelector(".place").textContent = place;
  card.setAttribute("aria-label", `Answer ${letter}, ${place || "not ranked"}`);
  card.setAttribute("role", "group");
  card.classList.toggle("is-ranked", at >= 0);
  const isUnsafe = said.unsafe.includes(id);
  card.classList.toggle("is-unsafe", isUnsafe);
  card.querySelector(".tool-unsafe").setAttribute("aria-pressed", String(isUnsafe));
  card.querySelector(".tool-tie").setAttribute("aria-pressed", String(others.length > 0));
  card.querySelector(".tool-up").disabled = at === 0 && !others.length;
  card.querySelector(".tool-down").disabled = at === ranking.levels.length - 1 && !others.length;
  card.querySelector(".tool-tie").disabled = at === 0 && !others.length;
  showChoice(card, `rating-${letter}`, said.ratings[id]);
  for (const group of card.querySelectorAll("[data-name^=question]")) {
    const number = group.dataset.name.split("-")[2];
    showChoice(card, group.dataset.name, said.answers[id]?.[number]);
  }
}
