// The next word: what a sampler would draw from, for any temperature and cut, worked out here.

const SHOWN = 10;
const settings = { temperature: content.sampling.temperature, topK: content.sampling.top_k, topP: content.sampling.top_p };
let stepped = null;

const floats = (text) => new Float32Array(bytesOf(text).buffer);

/** Probabilities of the words of a place, of all others as one mass, and the entropy in bits. */
export function shape(logits, others, { temperature, topK, topP }) {
  const order = [...logits.keys()].sort((one, other) => logits[other] - logits[one]);
  if (temperature === 0) return { shares: logits.map((_, at) => (at === order[0] ? 1 : 0)), rest: 0, entropy: 0 };
  const top = Math.max(logits[order[0]], ...others.map(([logit]) => logit));
  const weigh = (logit) => Math.exp((logit - top) / temperature);
  const shares = Float64Array.from(logits, weigh);
  let bins = others.map(([logit, count]) => [weigh(logit), count]);
  if (topK) {
    bins = [];
    for (const at of order.slice(topK)) shares[at] = 0;
  }
  const sum = () => shares.reduce((all, share) => all + share, 0) + bins.reduce((all, [share, count]) => all + share * count, 0);
  const total = sum();
  let before = 0;
  let full = false;
  for (const at of order) {
    if (before >= topP * total) { shares[at] = 0; full = true; } else before += shares[at];
  }
  if (full || before >= topP * total) bins = [];
  const left = sum();
  const bits = (share) => (share > 0 ? -share * Math.log2(share) : 0);
  let entropy = 0;
  shares.forEach((share, at) => { shares[at] = share / left; entropy += bits(shares[at]); });
  let rest = 0;
  for (const [share, count] of bins) { rest += (share * count) / left; entropy += count * bits(share / left); }
  return { shares: [...shares], rest, entropy };
}

export function showNext() {
  if (!content.speaking.length) {
    $("next").append(make("p", {}, `${content.names[0]} has no head for words, so it predicts none.`));
    return;
  }
  if (content.family === "encoder") $("title-next").textContent = "The masked word";
  $("next").append(controls(), make("p", { id: "where", "aria-live": "polite" }), make("div", { id: "words-place" }),
    make("p", { className: "soft" }, "The words are the 200 likeliest of each model; all others count as one mass, from a histogram "
      + "of their logits. A cut by top-p that falls among those keeps them whole."));
  whenChosen(() => { stepped = null; showWords(); });
}

function controls() {
  const most = Math.min(200, ...Object.values(content.next.places).map((place) => place.ids.length));
  return make("div", { className: "controls" },
    slider("temperature", "temperature", 0, 2, 0.05, (value) => value.toFixed(2)),
    slider("topK", "top-k (0: all)", 0, most, 1, String),
    slider("topP", "top-p", 0.01, 1, 0.01, (value) => value.toFixed(2)));
}

function slider(key, label, min, max, step, say) {
  const said = make("output", {}, say(settings[key]));
  const input = make("input", { type: "range", id: `set-${key}`, min, max, step });
  input.value = settings[key];
  input.addEventListener("input", () => {
    settings[key] = Number(input.value);
    said.textContent = say(settings[key]);
    showWords();
  });
  return make("label", {}, make("span", {}, `${label} `, said), input);
}

function showWords() {
  const isStep = stepped !== null;
  const source = isStep ? content.steps : content.next;
  const place = source.places[isStep ? stepped : chosen.place];
  const where = $("where");
  if (!place) {
    where.replaceChildren("Not on this page: only the last tokens have their next words here.");
    $("words-place").replaceChildren();
    return;
  }
  const before = models[content.speaking[0]].tokens[chosen.place];
  where.replaceChildren(content.family === "encoder" ? "In the place of " : "After ", make("code", {}, plain(before?.text ?? "")));
  if (isStep) {
    const back = make("button", { type: "button" }, "back");
    back.addEventListener("click", () => { stepped = null; showWords(); });
    where.append(make("code", {}, plain(content.next.vocabulary[stepped])), " ", back);
  }
  const each = place.logits.map((text, at) => shape([...floats(text)], place.others[at], settings));
  $("words-place").replaceChildren(table(place, each, source.vocabulary, isStep));
}

function table(place, each, vocabulary, isStep) {
  const best = new Set();
  for (const { shares } of each) {
    [...shares.keys()].sort((one, other) => shares[other] - shares[one]).slice(0, SHOWN)
      .filter((at) => shares[at] > 0).forEach((at) => best.add(at));
  }
  const rows = [...best].sort((one, other) => each[0].shares[other] - each[0].shares[one]);
  const names = content.speaking.map((at) => content.names[at]);
  const titles = names.map((name, at) => make("th", { className: STYLES[at], scope: "col", title: name }, name.split("/").pop()));
  const head = make("tr", {}, make("th", { scope: "col" }, "word"), ...titles,
    ...(names.length === 2 ? [make("th", { scope: "col" }, "difference")] : []), make("th", { className: "bars", scope: "col" }, "share"));
  const lines = rows.map((at) => line(wordOf(place.ids[at], vocabulary, isStep), each.map(({ shares }) => shares[at])));
  const rest = each.map((one, model) => Math.max(0, 1 - rows.reduce((sum, at) => sum + each[model].shares[at], 0)));
  const foot = [line("all others", rest), plainLine("entropy, bits", each.map(({ entropy }) => entropy.toFixed(2)))];
  if (place.true !== null) {
    foot.push(plainLine(`rank of ${plain(vocabulary[place.true] ?? models[0].tokens.find(({ id }) => id === place.true)?.text ?? "")}`,
      place.ranks.map((rank) => rank.toLocaleString("en"))));
  }
  const made = make("table", { id: "words" }, make("thead", {}, head), make("tbody", {}, ...lines, ...foot));
  return make("div", { className: "scroll", tabIndex: 0, role: "region", "aria-label": "Words and their shares" }, made);
}

/** A word that leads one step on, where the page has that step. */
function wordOf(id, vocabulary, isStep) {
  const text = plain(vocabulary[id]);
  const last = models[content.speaking[0]].tokens.length - 1;
  if (isStep || chosen.place !== last || !content.steps.places[id]) return make("span", { className: "word" }, text);
  const button = make("button", { type: "button", title: "What comes after it?" }, text);
  button.addEventListener("click", () => { stepped = id; showWords(); $("where").querySelector("button").focus(); });
  return button;
}

function line(word, shares) {
  const bars = shares.map((share, at) => {
    const bar = make("div", { className: `bar b${at}` });
    bar.style.width = `${100 * share}%`;
    return bar;
  });
  const changed = shares.length === 2 ? [make("td", {}, signed(100 * (shares[0] - shares[1]), 1))] : [];
  return make("tr", {}, make("td", {}, word), ...shares.map((share) => make("td", {}, percent(share))), ...changed,
    make("td", { className: "bars" }, ...bars));
}

function plainLine(title, cells) {
  const blank = cells.length === 2 ? [make("td", {})] : [];
  return make("tr", { className: "soft" }, make("td", {}, title), ...cells.map((cell) => make("td", {}, cell)), ...blank,
    make("td", { className: "bars" }));
}
