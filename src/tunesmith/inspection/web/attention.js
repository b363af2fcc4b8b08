// Attention: every head as a thumbnail, one of them as a field and as arcs, what it looks at in words.

const SIDES = { own: "tokens to tokens", source: "source to source", cross: "tokens to source" };
const state = { model: 0, side: "own", layer: 0, head: 0, rollout: false };
const fields = new Map();

export function showAttention() {
  $("caveat-attention").textContent = content.caveats.attention;
  const sides = Object.keys(models[0].attention);
  if (!sides.length) {
    $("attention").append(make("p", {}, "Attention is not on this page; the notes above say why."));
    return;
  }
  const both = models.length === 2 && content.alike && sides.every((side) => models[0].attention[side].layers === models[1].attention[side]?.layers
    && models[0].attention[side].heads === models[1].attention[side]?.heads);
  const names = [...content.names, ...(both ? ["difference"] : [])];
  const bar = make("div", { className: "controls" });
  if (names.length > 1) bar.append(choice("model", names, (at) => { state.model = at; showHeads(); }));
  if (sides.length > 1) bar.append(choice("attention of", sides.map((side) => SIDES[side]), (at) => { state.side = sides[at]; showHeads(); }));
  bar.append(choice("show", ["one head", "rollout: all layers together"], (at) => { state.rollout = at === 1; showHead(); }));
  $("attention").append(bar, make("div", { id: "heads", role: "group", "aria-label": "Heads, a row for each layer" }),
    make("p", { id: "head", "aria-live": "polite" }), make("div", { className: "looking" },
      make("div", {}, make("canvas", { id: "heat", role: "img" }), make("p", { className: "soft" }, "A row for each token that looks, a column for each that is looked at.")),
      make("div", {}, make("ul", { id: "looks", className: "near", "aria-live": "polite", "aria-label": "What the chosen token looks at" }), make("div", { id: "arcs", className: "arcs", tabIndex: 0, role: "region", "aria-label": "Arcs" }))));
  whenChosen(showHead);
  showHeads();
}

/** Weights of all heads of what is chosen, in [-1, 1], and their sizes. */
function field(from = "attention") {
  const name = `${from} ${state.model} ${state.side}`;
  if (!fields.has(name)) fields.set(name, decode(from));
  return fields.get(name);
}

function decode(from) {
  const each = models.map((model) => (from === "attention" ? model.attention[state.side] : model.rollout));
  if (state.model < models.length) {
    const one = each[state.model];
    return { ...one, values: Float32Array.from(bytesOf(one.steps), (step) => step / 255) };
  }
  const [tuned, base] = each.map(({ steps }) => bytesOf(steps));
  return { ...each[0], values: Float32Array.from(tuned, (step, at) => (step - base[at]) / 255) };
}

export function showHeads() {
  const all = field();
  const size = all.rows * all.columns;
  const buttons = [];
  const grid = $("heads");
  if (!grid) return;
  grid.className = "heads";
  grid.style.gridTemplateColumns = `2.2em repeat(${all.heads}, minmax(26px, 44px))`;
  const parts = [];
  for (let layer = 0; layer < all.layers; layer += 1) {
    parts.push(make("span", { className: "label" }, String(layer + 1)));
    for (let head = 0; head < all.heads; head += 1) {
      const canvas = make("canvas", {});
      const at = (layer * all.heads + head) * size;
      paint(canvas, all.values.slice(at, at + size), all.rows, all.columns, coloursNow());
      const button = make("button", { type: "button", title: `layer ${layer + 1}, head ${head + 1}`,
        "aria-label": `layer ${layer + 1}, head ${head + 1}` }, canvas);
      buttons.push(button);
      parts.push(button);
    }
  }
  grid.replaceChildren(...parts);
  const roving = rove(buttons, all.heads, (at) => {
    [state.layer, state.head] = [Math.floor(at / all.heads), at % all.heads];
    showHead();
  });
  state.layer = Math.min(state.layer, all.layers - 1);
  state.head = Math.min(state.head, all.heads - 1);
  roving.show(state.layer * all.heads + state.head);
  showHead();
}

/** The tokens of rows and columns; of a long text each stands for the field that begins with it. */
function labels(all, side) {
  const model = models[Math.min(state.model, models.length - 1)];
  const [rows, columns] = [side === "source" ? model.source : model.tokens, side === "own" ? model.tokens : model.source];
  const some = (tokens, count) => Array.from({ length: count }, (_, at) => {
    const text = plain(tokens[Math.floor((at * tokens.length) / count)].text);
    return count < tokens.length ? `${text}…` : text;
  });
  return { rows: some(rows, all.rows), columns: some(columns, all.columns), length: rows.length };
}

function showHead() {
  const all = field(state.rollout ? "rollout" : "attention");
  const side = state.rollout ? all.side : state.side;
  const [layer, head] = state.rollout ? [0, 0] : [state.layer, state.head];
  const size = all.rows * all.columns;
  const at = (layer * all.heads + head) * size;
  const values = all.values.slice(at, at + size);
  const { rows, columns, length } = labels(all, side);
  const looking = side === "source" ? 0 : Math.min(all.rows - 1, Math.floor((chosen.place * all.rows) / length));
  const name = state.model < models.length ? content.names[state.model] : "difference";
  const what = state.rollout ? "rollout through all layers" : `layer ${layer + 1}, head ${head + 1}`;
  $("head").replaceChildren(make("b", {}, `${name}, ${what}`));
  paintField(values, all, looking, what);
  const row = values.slice(looking * all.columns, (looking + 1) * all.columns);
  listLooks(rows[looking], columns, row);
  $("arcs").replaceChildren(arcs(rows, columns, values, looking));
}

function paintField(values, all, looking, what) {
  const cell = Math.max(2, Math.floor(420 / Math.max(all.rows, all.columns)));
  const small = make("canvas", {});
  paint(small, values, all.rows, all.columns, coloursNow());
  const heat = $("heat");
  [heat.width, heat.height] = [all.columns * cell, all.rows * cell];
  heat.setAttribute("aria-label", `${what}: ${all.rows} rows, ${all.columns} columns; the chosen row is written out beside it`);
  const pen = heat.getContext("2d");
  pen.imageSmoothingEnabled = false;
  pen.drawImage(small, 0, 0, heat.width, heat.height);
  pen.strokeStyle = getComputedStyle(document.documentElement).getPropertyValue("--two");
  pen.lineWidth = 2;
  pen.strokeRect(1, looking * cell + 1, heat.width - 2, cell - 2);
}

function listLooks(from, columns, row) {
  const order = [...row.keys()].sort((one, other) => Math.abs(row[other]) - Math.abs(row[one])).slice(0, 6);
  const found = order.filter((at) => Math.abs(row[at]) > 0.004);
  const items = found.map((at) => make("li", {}, make("span", { className: "word" }, columns[at]),
    make("span", { className: "soft" }, state.model < models.length ? ` ${percent(row[at])}` : ` ${signed(100 * row[at], 1)}`)));
  $("looks").replaceChildren(make("li", {}, make("span", { className: "word" }, from), " looks at"), ...items);
}

/** Tokens that look on the left, what they look at on the right; only the chosen one's arcs are strong. */
function arcs(rows, columns, values, looking) {
  const [step, width, wide] = [20, 520, 14];
  const height = step * Math.max(rows.length, columns.length) + 8;
  const picture = draw("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": "Arcs from each token to what it looks at" });
  const y = (at) => step * (at + 0.7);
  const clip = (text) => (text.length > wide ? `${text.slice(0, wide - 1)}…` : text);
  rows.forEach((_, from) => columns.forEach((__, to) => {
    const weight = values[from * columns.length + to];
    const size = Math.abs(weight);
    if (size < (from === looking ? 0.01 : 0.15)) return;
    picture.append(draw("path", { class: weight < 0 ? "arc minus" : "arc", "stroke-width": (0.5 + 5 * size).toFixed(2),
      "stroke-opacity": (from === looking ? Math.min(1, 0.2 + size) : 0.1 * size + 0.04).toFixed(2),
      d: `M 150 ${y(from)} C 230 ${y(from)}, 290 ${y(to)}, 370 ${y(to)}` }));
  }));
  const bold = (at) => (at === looking ? "700" : "400");
  rows.forEach((text, at) => picture.append(draw("text", { x: 142, y: y(at) + 4, "text-anchor": "end", "font-weight": bold(at) }, clip(text))));
  columns.forEach((text, at) => picture.append(draw("text", { x: 378, y: y(at) + 4 }, clip(text))));
  return picture;
}
