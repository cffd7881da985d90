// Parts of the live view: asking Python (see live.py), reading its answers, the prompt's tokens, what fires on one.

const PAUSE = 150; // ms without a key after which what was typed is sent

/** Say something to Python. */
const tell = (message) => parent.postMessage(message, "*");

/** What is asked -> {now, soon, take}. Typing waits for the answer before; only the last one asked for is taken. */
const exchange = (question, changed) => {
  let [last, answered, waits, timer] = [0, 0, false, 0];
  const now = () => {
    clearTimeout(timer);
    waits = false;
    tell({ kind: "ask", seq: ++last, ...question() });
    changed(true);
  };
  const later = () => {
    if (last > answered) waits = true;
    else now();
  };
  const soon = () => {
    clearTimeout(timer);
    timer = setTimeout(later, PAUSE);
  };
  const take = (seq) => {
    if (seq !== last) return false;
    answered = last;
    changed(false);
    if (waits) now();
    return true;
  };
  return { now, soon, take };
};

const CALLED = new Map(); // labels of features, as Python said them
const TYPED = new Map(HEAD.token_ids.map((id, place) => [id, place]));

/** A token's place in the vocabulary, which grows by what is typed. */
const typedPlace = (id, text) => {
  if (!TYPED.has(id)) {
    TYPED.set(id, HEAD.vocabulary.push(text) - 1);
    HEAD.token_ids.push(id);
  }
  return TYPED.get(id);
};

/** An answer for drawing: the tokens' places, what fires at a position, and a feature's activation at each. */
const readAnswer = ({ ids, tokens, counted, fired, acts, whole, features, labels }) => {
  const texts = JSON.parse(tokens); // what is between us and Python carries no loose bytes
  features.forEach((feature, i) => CALLED.set(feature, labels[i]));
  const hits = ids.map(() => []);
  acts.token.forEach((at, i) => hits[at].push([acts.feature[i], acts.value[i]]));
  const of = (wanted) => hits.map((found) => found.find(([feature]) => feature === wanted)?.[1] ?? 0);
  return { t: ids.map((id, i) => typedPlace(id, texts[i])), counted, fired, whole, hits, of };
};

/** "#12 cats", the number and what it is called. */
const called = (feature) => {
  const label = PLACE.has(feature) ? record(feature).label : CALLED.get(feature);
  return [el("b", `#${feature}`), label && el("span.label", ` ${label}`)];
};

/** The prompt's tokens, for choosing one; `paint(acts, most)` shades them. */
const typedTokens = (t, listeners, choose) => {
  const seq = { t, a: t.map(() => 0), e: [], s: [], bold: null, row: null };
  const ctx = { prompt: seq, listeners };
  const cells = tokenTexts(t).map((text, at) => el("button.token", {
    tabindex: -1, data: { token: t[at], position: at }, on: { click: () => choose(at) },
  }, ...spellIn(text)));
  cells.forEach((cell, at) => CELLS.set(cell, { ctx, seq, at, below: true }));
  const paint = (acts, most) => cells.forEach((cell, at) => {
    seq.a[at] = acts[at];
    cell.dataset.act = acts[at];
    cell.style.setProperty("--shade", +Math.min(Math.abs(acts[at]) / (most || 1), 1).toFixed(3));
    cell.setAttribute("aria-label", `position ${at}: ${tokenText(t[at])}, activation ${num(acts[at])}`);
  });
  const mark = (chosen) => {
    press(cells, chosen);
    cells.forEach((cell, at) => cell.setAttribute("tabindex", at === chosen ? 0 : -1));
  };
  const node = el("div.tokens.typed", { role: "group", "aria-label": "Tokens of the prompt" }, cells);
  return { node, seq, paint, mark };
};

/** A feature that fires on the chosen token. */
const hitRow = ([feature, value], most, choose) =>
  el("li", el(`button.rank${PLACE.has(feature) ? "" : ".bare"}`, {
    tabindex: -1, data: { feature, act: value }, on: { click: () => choose(feature) },
  }, el("span.called", called(feature)), el("span.gauge", { vars: { "--share": Math.abs(value) / most } }),
  el("span", num(value))));

/** What fires on a token -> nodes. */
const hitList = ({ t, counted, fired, hits }, at, choose) => {
  const [found, where] = [hits[at], `${quoted(t[at])} at position ${at}`];
  if (!counted[at]) return [el("p.none", `${where} is masked, as in the dashboards.`)];
  if (!found.length) return [field("nothing", `No feature fires on ${where}.`, "p.none")];
  const most = largest(found.map(([, value]) => Math.abs(value)));
  const bare = found.some(([feature]) => !PLACE.has(feature));
  const said = [`${count(fired[at])} ${fired[at] === 1 ? "feature fires" : "features fire"}`,
    found.length < fired[at] && `the strongest ${found.length} are listed`, bare && "those in grey were not gathered"];
  return [el("h2", "On ", chip(t[at]), el("small", `${said.filter(Boolean).join("; ")}.`)),
    el("ul.ranks", { "aria-label": `Features that fire on ${where}` }, found.map((hit) => hitRow(hit, most, choose)))];
};

/** Let the arrow keys go through a list of features. */
const moveInHits = (event) => {
  const by = { ArrowDown: 1, ArrowUp: -1 }[event.key];
  const hits = [...event.currentTarget.querySelectorAll(".rank")];
  const next = by && hits[hits.indexOf(event.target) + by];
  if (!next) return;
  event.preventDefault();
  next.focus();
};
