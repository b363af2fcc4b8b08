// Texts and tokens as points, and what each token counts for.

const SIZE = 360;

export function showCounts() {
  const found = models.filter((model) => model.occlusion);
  if (!found.length) return;
  const most = Math.max(1e-9, ...found.flatMap((model) => model.occlusion.values.map(Math.abs)));
  const unit = found[0].unit === "nats" ? "how many nats less likely the likeliest word is without it, red where it is more likely"
    : "how far the mean of the last states turns without it (1 - cosine)";
  $("occlusion").append(make("h3", {}, "A second opinion: leaving each token out"), make("p", { className: "soft" }, `What a token counts for: ${unit}.`));
  const columns = found.map((model, at) => {
    const tokens = model.occlusion.side === "own" ? model.tokens : model.source;
    const rows = tokens.flatMap((token, place) => {
      const value = model.occlusion.values[place];
      const bar = make("span", { className: `bar b${at}${value < 0 ? " minus" : ""}` });
      bar.style.width = `${(100 * Math.abs(value)) / most}%`;
      return [make("span", { className: "word" }, plain(token.text)), bar, make("span", {}, value.toFixed(2))];
    });
    return make("div", {}, make("h3", { className: STYLES[at] }, model.name), make("div", { className: "counts" }, ...rows));
  });
  $("occlusion").append(make("div", { className: "models" }, ...columns));
}

export function showMaps() {
  const kinds = [];
  const texts = content.texts;
  if (texts) kinds.push({ title: `Texts of ${texts.source}${texts.note ? `, ${texts.note}` : ""}`, names: texts.texts, labels: texts.labels, maps: texts.maps });
  if (models.every((model) => model.map)) {
    kinds.push({ title: "The tokens of this text, by their last states", each: models.map((model) => model.tokens.map(({ text }) => text)),
      names: models[0].tokens.map(({ text }) => text), labels: [], maps: models.map(({ map }) => map) });
  }
  if (!kinds.length) return;
  $("part-maps").hidden = false;
  $("maps").append(...kinds.map(kindOfMap));
}

function kindOfMap({ title, names, each, labels, maps }) {
  const known = [...new Set(labels)].sort();
  const colourOf = (at) => (labels.length ? Math.min(7, known.indexOf(labels[at])) : 0);
  const said = make("p", { "aria-live": "polite" });
  const drawn = maps.map((map) => map.points.map((_, at) => draw("circle", { r: names.length > 100 ? 3.5 : 5.5, class: `point k${colourOf(at)}` })));
  const choose = (at) => {
    drawn.forEach((points) => points.forEach((point, other) => point.classList.toggle("chosen", other === at)));
    drawn.forEach((points) => points[at]?.parentNode?.append(points[at]));
    said.replaceChildren(`${at + 1} of ${names.length}: `, make("span", { className: "word" }, plain(names[at])),
      labels.length ? make("span", { className: "soft" }, ` ${plain(labels[at])}`) : "");
  };
  const input = make("input", { type: "range", min: 1, max: names.length, step: 1 });
  input.value = 1;
  input.addEventListener("input", () => choose(Number(input.value) - 1));
  const pictures = maps.map((map, at) => {
    drawn[at].forEach((point, place) => point.addEventListener("pointerenter", () => { if (place < names.length) { input.value = place + 1; choose(place); } }));
    const shares = map.explained.map(percent).join(" and ");
    return make("div", {}, make("h3", { className: STYLES[at] }, content.names[at]), picture(map, drawn[at], each?.[at]),
      make("p", { className: "soft" }, shares ? `The axes hold ${shares} of the variance (PCA).` : "t-SNE: only who is near whom means something."));
  });
  const key = known.slice(0, 8).map((label, at) => make("li", {}, draw("svg", { viewBox: "0 0 12 12", "aria-hidden": "true" },
    draw("circle", { cx: 6, cy: 6, r: 5, class: `k${at}` })), known.length > 8 && at === 7 ? "all others" : plain(label)));
  const made = make("div", {}, make("h3", {}, plain(title)), make("ul", { className: "key" }, ...key),
    make("div", { className: "controls" }, make("label", {}, "go through them", input)), said, make("div", { className: "models" }, ...pictures));
  choose(0);
  return made;
}

/** Both axes in the same unit, so that distances can be seen. */
function picture(map, points, texts) {
  const [xs, ys] = [0, 1].map((axis) => map.points.map((point) => point[axis] ?? 0));
  const [lowX, lowY] = [Math.min(...xs), Math.min(...ys)];
  const extent = Math.max(Math.max(...xs) - lowX, Math.max(...ys) - lowY) || 1;
  const [padX, padY] = [(extent - Math.max(...xs) + lowX) / 2, (extent - Math.max(...ys) + lowY) / 2];
  const x = (value) => 24 + ((value - lowX + padX) / extent) * (SIZE - 72);
  const y = (value) => SIZE - 24 - ((value - lowY + padY) / extent) * (SIZE - 48);
  const made = draw("svg", { viewBox: `0 0 ${SIZE} ${SIZE}`, role: "img", "aria-label": `${points.length} points` },
    draw("rect", { x: 1, y: 1, width: SIZE - 2, height: SIZE - 2, fill: "none", class: "axis" }));
  points.forEach((point, at) => {
    point.setAttribute("cx", x(xs[at]).toFixed(1));
    point.setAttribute("cy", y(ys[at]).toFixed(1));
    if (texts && texts.length <= 40) {
      made.append(draw("text", { x: (x(xs[at]) + 8).toFixed(1), y: (y(ys[at]) + 4).toFixed(1) }, plain(texts[at]).slice(0, 12)));
    }
  });
  made.append(...points);
  return made;
}
