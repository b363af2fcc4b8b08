// What each layer would say, the answer word by word, and where weights changed.

export function showLens() {
  const speaking = models.filter((model) => model.lens.length);
  if (!speaking.length) return;
  $("part-lens").hidden = false;
  $("caveat-lens").textContent = `Each layer's states go through the model's own last norm and head. ${content.caveats.lens}`;
  const place = make("div", { className: "scroll", tabIndex: 0, role: "region", "aria-label": "Words by layer and token" });
  const show = (at) => { place.replaceChildren(lensTable(speaking[at])); markColumn(chosen.place); };
  if (speaking.length > 1) {
    $("lens").append(make("div", { className: "controls" }, choice("model", speaking.map(({ name }) => name), show)));
  }
  $("lens").append(place);
  show(0);
  whenChosen(markColumn);
}

function lensTable(model) {
  const tokens = model.tokens.slice(model.first);
  const head = tokens.map((token, at) => {
    const cell = make("th", { scope: "col", title: plain(token.text) }, plain(token.text));
    cell.dataset.place = at + model.first;
    return cell;
  });
  const layers = model.lens.map((words, layer) => {
    const cells = words.map(([text, share]) => {
      const word = make("span", { title: `${plain(text)} ${percent(share)}` }, plain(text) || "∅");
      word.style.background = `rgba(var(--heat), ${(0.5 * share).toFixed(3)})`;
      return make("td", {}, word);
    });
    return make("tr", {}, make("th", { scope: "row" }, layer === 0 ? "words" : String(layer)), ...cells);
  });
  return make("table", { className: "lens" }, make("thead", {}, make("tr", {}, make("th", { scope: "col" }, "layer"), ...head)),
    make("tbody", {}, ...layers.reverse()));
}

function markColumn(place) {
  for (const cell of document.querySelectorAll(".lens thead th[data-place]")) {
    cell.classList.toggle("chosen", Number(cell.dataset.place) === place);
  }
}

export function showSaid() {
  if (!content.said.length) return;
  $("part-said").hidden = false;
  const names = content.names;
  const head = ["token", ...names.map((name) => name.split("/").pop()), ...(names.length === 2 ? ["difference"] : [])];
  const row = (title, values) => make("tr", {}, make("td", {}, title), ...values.map((value) => make("td", {}, value.toFixed(2))),
    ...(values.length === 2 ? [make("td", {}, signed(values[0] - values[1], 2))] : []));
  const rows = content.said.map((one) => row(make("span", { className: "word" }, plain(one.token.text)), one.logprobs));
  const sums = names.map((_, at) => content.said.reduce((sum, one) => sum + one.logprobs[at], 0));
  $("said").append(make("table", {}, make("thead", {}, make("tr", {}, ...head.map((title) => make("th", { scope: "col" }, title)))),
    make("tbody", {}, ...rows, row(make("b", {}, "in all"), sums))));
}

export function showChanges() {
  if (!content.changes.length) return;
  $("part-changes").hidden = false;
  const kindOf = ({ name, layer }) => name.replace(new RegExp(`^.*?\\.${layer}\\.`), "").replace(/\.weight$/, "");
  const inLayers = content.changes.filter(({ layer }) => layer !== null);
  const outside = content.changes.filter(({ layer }) => layer === null);
  const kinds = [...new Set(inLayers.map(kindOf))].filter((kind) => inLayers.some((one) => one.relative > 0 && kindOf(one) === kind));
  const most = Math.max(1e-12, ...content.changes.map(({ relative }) => relative));
  const still = content.changes.filter(({ relative }) => relative === 0).length;
  const cell = (change) => {
    if (!change) return make("td", {}, "");
    const size = change.relative === null ? "was 0" : change.relative ? `${(100 * change.relative).toFixed(2)} %` : "0";
    const made = make("td", {}, size, change.relative && change.rank !== null ? ` (${change.rank.toFixed(1)})` : "");
    made.style.background = `rgba(var(--heat), ${(0.3 * change.relative / most).toFixed(3)})`;
    return made;
  };
  const layers = [...new Set(inLayers.map(({ layer }) => layer))].sort((one, other) => one - other);
  const rows = layers.map((layer) => make("tr", {}, make("th", { scope: "row" }, String(layer + 1)),
    ...kinds.map((kind) => cell(inLayers.find((one) => one.layer === layer && kindOf(one) === kind)))));
  const others = outside.filter(({ relative }) => relative > 0)
    .map((one) => make("tr", {}, make("th", { scope: "row" }, one.name), cell(one)));
  const head = make("tr", {}, make("th", { scope: "col" }, "layer"), ...kinds.map((kind) => make("th", { scope: "col" }, kind)));
  $("changes").append(make("table", {}, make("thead", {}, head), make("tbody", {}, ...rows, ...others)),
    make("p", { className: "soft" }, `${still} of ${content.changes.length} weights are as they were.`));
}
