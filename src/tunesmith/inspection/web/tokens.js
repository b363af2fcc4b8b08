// The text as tokens, and the numbers of the chosen one.

export function showTokens() {
  $("lead").append("“", make("span", { className: "word" }, plain(content.text)), "” in ",
    make("b", { className: "one" }, content.names[0]));
  if (content.names[1]) $("lead").append(" and, beside it, ", make("b", { className: "two" }, content.names[1]));
  $("notes").append(...content.notes.map((note) => make("li", {}, note)));
  const shown = content.alike ? models.slice(0, 1) : models;
  shown.forEach((model, at) => {
    const count = `${model.tokens.length} tokens, ${model.perToken.toFixed(1)} characters of text to a token`;
    if (model.source) {
      $("tokens").append(make("p", { className: "soft" }, `${model.name} reads ${model.source.length} tokens`),
        row(model.source.map((token, place) => chip("span", token, place))));
    }
    $("tokens").append(make("p", { className: "soft" }, `${content.alike ? content.names.join(" and ") : model.name}${model.source ? ", writing" : ""}: ${count}`));
    const chips = model.tokens.map((token, place) => chip(at === 0 ? "button" : "span", token, place));
    $("tokens").append(row(chips));
    if (at === 0) {
      const roving = rove(chips, 1, choosePlace);
      whenChosen((place) => roving.show(place));
    }
  });
  whenChosen(showToken);
  whenChosen(showNumbers);
}

const row = (chips) => make("div", { className: "tokens", role: "group", "aria-label": "Tokens" }, ...chips);

function chip(tag, token, place) {
  const colour = token.special ? "special" : `c${place % 4}`;
  return make(tag, { className: `token ${colour}`, title: `bytes ${token.data}` },
    plain(token.text) || "∅", make("small", {}, String(token.id)));
}

function showToken(place) {
  const token = models[0].tokens[place];
  $("token").replaceChildren(`Token ${place}: `, make("code", {}, plain(token.text)), `, id ${token.id}, spelled `,
    make("code", {}, plain(token.piece)), `, bytes ${token.data || "none"}`,
    token.special ? "; special, it stands for no text" : "");
}

function showNumbers(place) {
  $("numbers").replaceChildren(...models.map((model, at) => {
    const own = numbersOf(model, place);
    const title = make("h3", { className: STYLES[at] }, model.name);
    return own ? make("div", {}, title, ...own) : make("div", {}, title, make("p", { className: "soft" },
      "Not on this page: only the last tokens have their numbers here."));
  }));
}

function numbersOf(model, place) {
  const at = Math.min(place, model.tokens.length - 1);
  if (at < model.first) return null;
  const own = model.numbers.own[model.tokens[at].id];
  const position = model.numbers.positions[at - model.first];
  const near = own.near.map(([text, cosine]) => make("li", {}, make("span", { className: "word" }, plain(text)),
    make("span", { className: "soft" }, ` ${cosine.toFixed(2)}`)));
  const parts = [...strip(own, "Its embedding"), make("ul", { className: "near", "aria-label": "Nearest words by cosine" }, ...near)];
  return position ? [...parts, ...strip(position, `Its place, ${at}`)]
    : [...parts, make("p", { className: "soft" }, `Its place: ${model.numbers.note}.`)];
}

function strip(vector, what) {
  const steps = new Int8Array(bytesOf(vector.steps).buffer);
  const canvas = make("canvas", { className: "strip", role: "img",
    "aria-label": `${what}: ${steps.length} numbers as colours` });
  paint(canvas, Array.from(steps, (step) => step / 127), 1, steps.length, coloursNow());
  const says = `${what}: ${steps.length} numbers between ±${vector.largest.toFixed(3)}, length ${vector.norm.toFixed(3)}`;
  return [make("p", {}, says), canvas];
}
