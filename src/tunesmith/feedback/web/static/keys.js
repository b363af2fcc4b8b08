// The page by keyboard alone. Plain keys rank and a modified key submits, so that no slip sends a thing.

import { LETTERS } from "./card.js";

const PLAIN = { t: "tie", x: "unsafe", u: "unfold", backspace: "remove", delete: "remove" }; // of the card in focus
const PAGE = { z: "undo", n: "allBad", p: "previous", s: "skip", "?": "help" };

// page: cardOf(letter), focused(), act(name, id, ...), order(), isOpen().
export function listenToKeys(page) {
  document.addEventListener("keydown", (event) => {
    if (!page.isOpen() || event.isComposing) return;
    const name = actionOf(event, page);
    if (!name) return;
    event.preventDefault();
    page.act(...name);
  });
}

function actionOf(event, page) {
  const key = event.key.toLowerCase();
  if (key === "enter" && (event.ctrlKey || event.metaKey)) return ["submit"];
  if (event.ctrlKey || event.metaKey || isWriting(event.target)) return null;
  const focused = page.focused();
  if (key === "arrowup" || key === "arrowdown") {
    const step = key === "arrowup" ? -1 : 1;
    if (event.altKey) return focused && [step < 0 ? "up" : "down", focused];
    return ["focus", neighbour(page.order(), focused, step)];
  }
  if (event.altKey) return null;
  const answer = page.idOf(letterOf(event));
  if (answer) return [event.shiftKey ? "tieWithLast" : "rank", answer];
  if (PAGE[key]) return [PAGE[key]];
  if (focused && /^[1-9]$/.test(key)) return ["place", focused, Number(key) - 1];
  return focused && PLAIN[key] ? [PLAIN[key], focused] : null;
}

// By the letter that is written; where a keyboard writes other letters, by the key's place on it.
function letterOf(event) {
  const letter = event.key.toUpperCase();
  if (LETTERS.includes(letter) && letter.length === 1) return letter;
  return /^[\x00-\x7f]*$/.test(event.key) ? "" : (event.code.match(/^Key([A-I])$/)?.[1] ?? "");
}

function isWriting(node) {
  return node.matches?.("textarea, select, input:not([type=checkbox]):not([type=radio])");
}

function neighbour(order, focused, step) {
  const at = order.indexOf(focused);
  if (at < 0) return step > 0 ? order[0] : order.at(-1);
  return order[Math.max(0, Math.min(order.length - 1, at + step))];
}
