// Dragging a card by its handle, by mouse, pen or finger. Elsewhere a finger scrolls the page as ever.

const EDGE = 90; // pixels from the window's edge at which the page scrolls along
const TIE_FROM = 0.3; // the part of a level in its middle that ties
const TIE_TO = 0.7;

// `drop` gets {place: n} (counted without the card), {tie: id} or {unranked: true}.
export function makeDraggable(handle, card, ranked, unranked, drop) {
  handle.addEventListener("pointerdown", (event) => {
    if (event.button !== 0) return;
    event.preventDefault();
    const grip = handle.getBoundingClientRect().top - card.getBoundingClientRect().top + handle.offsetHeight / 2;
    const drag = { card, ranked, unranked, grip, y: event.clientY, target: null, over: false };
    const stop = (isDrop) => {
      if (drag.over) return;
      drag.over = true;
      const { target } = drag;
      mark(drag, null);
      card.classList.remove("dragged");
      card.style.transform = "";
      document.body.classList.remove("dragging");
      for (const [name, listener] of Object.entries(listeners)) handle.removeEventListener(name, listener);
      document.removeEventListener("keydown", onKey, true);
      if (isDrop && target) drop(target);
    };
    const listeners = {
      pointermove: (move) => {
        drag.y = move.clientY;
        follow(drag);
      },
      pointerup: () => stop(true),
      pointercancel: () => stop(false),
    };
    const onKey = (press) => {
      if (press.key !== "Escape") return;
      press.stopPropagation();
      stop(false);
    };
    handle.setPointerCapture(event.pointerId);
    for (const [name, listener] of Object.entries(listeners)) handle.addEventListener(name, listener);
    document.addEventListener("keydown", onKey, true);
    card.classList.add("dragged");
    document.body.classList.add("dragging"); // long answers shrink, so that every place is near
    follow(drag);
    scrollAlong(drag);
  });
}

function follow(drag) {
  const level = drag.card.parentElement.getBoundingClientRect();
  drag.card.style.transform = `translateY(${drag.y - level.top - drag.card.offsetTop - drag.grip}px)`;
  mark(drag, findTarget(drag));
}

function scrollAlong(drag) {
  if (drag.over) return;
  const below = drag.y - (innerHeight - EDGE);
  const above = EDGE - drag.y;
  const step = below > 0 ? below / 5 : above > 0 ? -above / 5 : 0;
  if (step) {
    scrollBy(0, step);
    follow(drag);
  }
  requestAnimationFrame(() => scrollAlong(drag));
}

function findTarget({ card, ranked, unranked, y }) {
  if (y >= unranked.closest("section").getBoundingClientRect().top) return { unranked: true, node: unranked };
  let place = 0;
  let last = null;
  for (const level of ranked.children) {
    const others = [...level.querySelectorAll(".card")].filter((other) => other !== card);
    if (!others.length) continue;
    const box = level.getBoundingClientRect();
    const part = (y - box.top) / box.height;
    if (part < TIE_FROM) return { place, node: level, side: "before" };
    if (part < TIE_TO) return { tie: others[0].dataset.id, node: level, side: "tie" };
    place += 1;
    last = level;
  }
  return { place, node: last ?? ranked, side: last ? "after" : "inside" };
}

function mark(drag, target) {
  if (drag.target) drag.target.node.classList.remove("drop-before", "drop-tie", "drop-after", "drop-inside");
  drag.target = target;
  if (target) target.node.classList.add(`drop-${target.side ?? "inside"}`);
}
