// What all parts share. Words of models and people become text nodes, never markup.

export const $ = (id) => document.getElementById(id);
export const content = JSON.parse($("content").textContent);
export const models = content.models;
export const STYLES = ["one", "two"];

/** An element with properties, its class, and children; strings become text. */
export function make(tag, properties = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name in node && name !== "list") node[name] = value;
    else node.setAttribute(name, value);
  }
  node.append(...children);
  return node;
}

export function draw(tag, properties = {}, ...children) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(properties)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

export function bytesOf(text) {
  return Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
}

/** Breaks, blanks that nothing stands behind, and what turns the direction of writing, so that they can be seen. */
export function plain(text) {
  const seen = text.replace(/\n/g, "⏎").replace(/\t/g, "⇥").replace(/ +$/, (blanks) => "␣".repeat(blanks.length));
  return seen.replace(/[\u0000-\u001f\u007f-\u00a0\u00ad\u2000-\u200f\u2028-\u202f\u205f-\u2069\ufeff]/g,
    (letter) => `\\u${letter.charCodeAt(0).toString(16).padStart(4, "0")}`);
}

export const percent = (share) => `${(100 * share).toFixed(1)} %`;
export const signed = (value, places) => `${value < 0 ? "" : "+"}${value.toFixed(places)}`;

/** A row of buttons of which one is chosen: one stop of the Tab key, the arrow keys go on from there. */
export function rove(buttons, width, choose) {
  let at = 0;
  const turn = (next, focus) => {
    buttons[at].tabIndex = -1;
    buttons[at].setAttribute("aria-pressed", "false");
    at = next;
    buttons[at].tabIndex = 0;
    buttons[at].setAttribute("aria-pressed", "true");
    if (focus) buttons[at].focus();
  };
  buttons.forEach((button, number) => {
    button.tabIndex = -1;
    button.setAttribute("aria-pressed", "false");
    button.addEventListener("click", () => { turn(number, true); choose(number); });
    button.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: width, ArrowUp: -width }[event.key];
      let next = step === undefined ? undefined : number + step;
      if (event.key === "Home") next = 0;
      if (event.key === "End") next = buttons.length - 1;
      if (next === undefined || next < 0 || next >= buttons.length) return;
      event.preventDefault();
      turn(next, true);
      choose(next);
    });
  });
  return { show: (number) => turn(number, false) };
}

export function choice(label, options, change) {
  const select = make("select", {}, ...options.map((text, at) => make("option", { value: String(at) }, text)));
  select.addEventListener("change", () => change(Number(select.value)));
  return make("label", {}, label, select);
}

const listeners = [];
export const chosen = { place: content.place };
export const whenChosen = (call) => listeners.push(call);
export function choosePlace(place) {
  chosen.place = place;
  for (const call of listeners) call(place);
}

/** The colours of more and of less, as light or dark wants them now. */
export function coloursNow() {
  const style = getComputedStyle(document.documentElement);
  const triple = (name) => style.getPropertyValue(name).split(",").map(Number);
  return { more: triple("--heat"), less: triple("--less") };
}

/** Paints rows x columns of values in [-1, 1]; the paler the nearer to 0. */
export function paint(canvas, values, rows, columns, colours) {
  canvas.width = columns;
  canvas.height = rows;
  const picture = new ImageData(columns, rows);
  values.forEach((value, at) => {
    const colour = value < 0 ? colours.less : colours.more;
    picture.data.set([...colour, Math.round(255 * Math.sqrt(Math.min(1, Math.abs(value))))], 4 * at);
  });
  canvas.getContext("2d").putImageData(picture, 0, 0);
}
