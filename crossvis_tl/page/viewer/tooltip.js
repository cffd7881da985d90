// What is shown beside the token under the pointer or the focus.

/** @type {WeakMap<Element, {ctx: object, seq: object, at: number, below: boolean}>} */
const CELLS = new WeakMap();
const tip = el("div.tip", { id: "tip", role: "tooltip", hidden: true });
let shown = null; // the element the tooltip belongs to
let dismissed = null; // the focused element whose tooltip was closed with Esc

/** A short table of tokens raised or lowered. */
const movedTokens = (title, pairs, rows) =>
  el("table", el("caption", title),
    el("tbody", (pairs ?? []).slice(0, rows).map(([token, change]) => row([chip(token), signed2(change)]))));

/** What the feature does to one model's prediction of a token. */
const effectPart = (effect, model, at, rows) => {
  const loss = effect.loss?.[at];
  if (loss == null) return null;
  const [up, down, logit, p] = [effect.up?.[at], effect.down?.[at], effect.logit?.[at], effect.p?.[at]];
  return el("div.effect", { data: { effect: model } },
    SEVERAL && el("div", modelName(model)),
    el("div.pair", el("span", "Loss effect"),
      field("loss", `${signed(loss)} nats`), el("i", loss < 0 ? "helps" : loss > 0 ? "hurts" : "no effect")),
    p != null && el("div.pair", el("span", "Probability"), field("probability", p < 0.005 ? "< 0.5%" : percent(p, 0))),
    logit != null && el("div.pair", el("span", "Direct logit"), field("logit", signed(logit))),
    (up?.length || down?.length) && el("div.sides",
      movedTokens("Raised most", up, rows), movedTokens("Lowered most", down, rows)));
};

/** Where a token of a sequence stands in the data. */
const placeOf = ({ row, pos, bold, doc }, at) =>
  row == null ? null : [
    doc != null && doc !== row && `document ${count(doc)}`, `sequence ${count(row)}`,
    pos != null && `position ${count(pos + at - (bold ?? 0))}`,
  ].filter(Boolean).join(", ");

/** What each source adds to an activation, in shares of the pre-activation. */
const drivenPart = (seq, at) => {
  if (!seq.s?.length || !seq.a[at]) return null;
  const shares = seq.s.map((column) => column[at]);
  const bias = 1 - shares.reduce((sum, share) => sum + share, 0);
  const named = HEAD.sources.map((source, s) => [[SEVERAL && modelMark(source.model), shortLabel(source)], shares[s], s]);
  return el("div.pair", el("span", "Driven by"), [...named, [["bias"], bias, "bias"]].map(([name, share, s]) =>
    el("span.driven", { data: { driven: s } }, name, " ", el("b", percent(share, 0)))));
};

/** The tooltip's content for a token. */
const tokenCard = ({ ctx, seq, at, rows }) => {
  const token = seq.t[at];
  const place = seq === ctx.prompt ? `position ${at}` : placeOf(seq, at);
  const effects = seq.e.map((effect, model) => effectPart(effect, model, at, rows)).filter(Boolean);
  return [
    el("div.title", chip(token, { data: { field: "text" } }),
      el("span", "id ", field("token-id", String(HEAD.token_ids[token]), "span"))),
    el("div.pair", el("span", "Activation"), field("activation", num(seq.a[at])), place && el("i", place)),
    drivenPart(seq, at),
    effects.length > 0 && el("div.why", "Predicting this token, by the feature on the token before:"),
    effects.length > 0 && el("div.effects", effects),
  ].filter(Boolean);
};

/** Put the tooltip below or above what it belongs to, inside the window. */
const placeTip = () => {
  const [box, { width, height }] = [shown.getBoundingClientRect(), tip.getBoundingClientRect()];
  const [above, under] = [box.top - height - 6, box.bottom + 6];
  const fitsUnder = under + height <= innerHeight - 8;
  const wantsUnder = CELLS.get(shown)?.below ?? true;
  const top = (wantsUnder && fitsUnder) || above < 8 ? Math.min(under, innerHeight - height - 8) : above;
  const left = Math.min(box.left + box.width / 2 - width / 2, innerWidth - width - 8);
  tip.style.left = `${Math.round(Math.max(left, 8))}px`;
  tip.style.top = `${Math.round(Math.max(top, 8))}px`;
};

/** Show nodes beside an element. */
const showTip = (anchor, nodes) => {
  hideTip();
  shown = anchor;
  tip.replaceChildren(...nodes);
  tip.hidden = false;
  placeTip();
  anchor.setAttribute("aria-describedby", "tip");
  const cell = CELLS.get(anchor);
  cell?.ctx.listeners.forEach((show) => show(cell));
};

/** Take the tooltip and the lines in the charts away. */
const hideTip = () => {
  if (!shown) return;
  shown.removeAttribute("aria-describedby");
  CELLS.get(shown)?.ctx.listeners.forEach((show) => show(null));
  shown = null;
  tip.hidden = true;
};

/** Show what belongs to an element, if anything does: a token's card or a help text. */
const pointAt = (target) => {
  const anchor = target instanceof Element ? target.closest("[data-token], [data-help]") : null;
  if (anchor === shown) return;
  if (!anchor) hideTip();
  else if (CELLS.has(anchor)) showTip(anchor, tokenCard(CELLS.get(anchor)));
  else showTip(anchor, [el("p.help", anchor.dataset.help)]);
};

/** Close the tooltip until something else is pointed at. */
const dismissTip = () => {
  dismissed = document.activeElement;
  hideTip();
};

/** Pointer and focus say the same; without a pointer the focused token's card comes back. */
const listenForTips = () => {
  listen("pointerover", ({ target }) => pointAt(target));
  listen("pointerout", () => pointAt(document.activeElement === dismissed ? null : document.activeElement));
  listen("focusin", ({ target }) => {
    dismissed = null;
    pointAt(target);
  });
  listen("focusout", hideTip);
  listen("scroll", () => shown && placeTip());
  document.querySelector("main").append(tip); // a landmark, as all else
};
