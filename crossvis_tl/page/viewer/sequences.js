// Sequences: tokens shaded by activation, over bars for the loss effect, in rows and groups.

const LONG = 48; // a row of more tokens is wrapped
let lossModel = 0; // the model whose loss effects are drawn

/** One token of a sequence. */
const tokenCell = (ctx, seq, at, text, { peak, below, rows }) => {
  const cell = el(`span.token${at === seq.bold ? ".bold" : ""}${at === peak ? ".peak" : ""}`, {
    role: "listitem", tabindex: -1,
    data: { token: seq.t[at], act: seq.a[at] },
  }, ...spellIn(text));
  CELLS.set(cell, { ctx, seq, at, below, rows });
  ctx.cells.push(cell);
  return cell;
};

/** Where a sequence is largest; -1 if it never fires. */
const peakOf = (seq) => {
  const most = largest(seq.a);
  return most > 0 ? seq.a.indexOf(most) : -1;
};

/** The tokens of a sequence, one row that wraps only if it is long. */
const tokenRow = (ctx, seq, label, { below = true, rows = Infinity, wrap = false } = {}) => {
  const look = { peak: peakOf(seq), below, rows };
  const kind = wrap || seq.t.length > LONG ? "div.tokens.wrap" : "div.tokens";
  return el(kind, { role: "list", "aria-label": label }, tokenTexts(seq.t).map((text, at) => tokenCell(ctx, seq, at, text, look)));
};

/** A sequence behind the activation it is listed for. */
const sequenceRow = (ctx, seq, look) =>
  el("div.row", el("span.act", num(seq.a[seq.bold ?? peakOf(seq)] ?? 0, 2)),
    tokenRow(ctx, seq, placeOf(seq, seq.bold ?? 0) ?? "sequence", look));

/** No more tokens around a sequence's own one than a layout asks for. */
const trimmed = (seq, [before, after] = [Infinity, Infinity]) => {
  const start = Math.max((seq.bold ?? 0) - before, 0);
  const end = (seq.bold ?? 0) + after + 1;
  if (seq.bold == null || (start === 0 && end >= seq.t.length)) return seq;
  const cut = (column) => column.slice(start, end);
  const cutAll = (effect) => Object.fromEntries(Object.entries(effect).map(([name, column]) => [name, cut(column)]));
  return { ...seq, t: cut(seq.t), a: cut(seq.a), bold: seq.bold - start, e: seq.e.map(cutAll), s: seq.s.map(cut) };
};

/** The groups a layout asks for: a prompt's page shows fewer examples than were gathered. */
const askedFor = (groups, config) => {
  const sizes = { Interval: config.n_quantiles === 0 ? 0 : config.quantile_group_size, "Random activations": config.random_group_size };
  return groups.map((group) => {
    const size = group.title in sizes ? sizes[group.title] : config.top_acts_group_size;
    const some = group.sequences.slice(0, size ?? Infinity).map((seq) => trimmed(seq, config.buffer));
    return size === 0 ? null : { ...group, sequences: some };
  }).filter(Boolean);
};

/** Interval and share of a group, in words. */
const groupFacts = ({ low, high, share }, ctx, first) =>
  [
    low != null && high != null ? `${num(low)} to ${num(high)}` : first && `max ${num(ctx.max)}`,
    share != null && `contains ${percent(share)} of tokens`,
  ].filter(Boolean).join(" · ");

const sequenceGroup = (ctx, group, first, look) =>
  el("section",
    el("h3", group.title, el("small", groupFacts(group, ctx, first))),
    group.sequences.length ? group.sequences.map((seq) => sequenceRow(ctx, seq, look))
      : el("p.none", "No tokens in this interval."));

/** Groups into columns, as sae_vis stacks them. */
const stacks = (groups, mode) => {
  const size = { "stack-quantiles": groups.length, "stack-none": 3 }[mode];
  if (!size) return [groups];
  const columns = [groups.slice(0, 1)];
  for (let i = 1; i < groups.length; i += size) columns.push(groups.slice(i, i + size));
  return columns;
};

/** Let Tab reach one token of a panel; arrow keys reach the others. */
const enterableByTab = (node) => {
  const first = node.querySelector(".bold, .peak") ?? node.querySelector("[data-token]");
  first?.setAttribute("tabindex", "0");
  return node;
};

const sequences = (ctx, config) => {
  const groups = askedFor(ctx.data.groups, config);
  if (!groups.length) return panel("Sequences", null, el("div", el("h3", "Top activations"), neverFired()));
  const look = { below: config.hover_below !== false, rows: config.top_logits_hoverdata };
  const section = (group) => sequenceGroup(ctx, group, group === groups[0], look);
  const columns = stacks(groups, config.stack_mode).map((column) => el("div.stack", column.map(section)));
  return enterableByTab(panel("Sequences", null, columns));
};

const promptPanel = (ctx) =>
  ctx.prompt && enterableByTab(panel("Prompt", null, tokenRow(ctx, ctx.prompt, "prompt", { wrap: true })));

/** Draw the loss effects of the chosen model under a feature's tokens. */
const drawLoss = (ctx) => {
  for (const cell of ctx.cells) {
    const { seq, at } = CELLS.get(cell);
    const loss = seq.e[lossModel]?.loss?.[at] ?? 0;
    const size = ctx.maxLoss[lossModel] ? Math.abs(loss) / ctx.maxLoss[lossModel] : 0;
    cell.classList.toggle("helps", loss < 0 && size > 0.02);
    cell.classList.toggle("hurts", loss > 0 && size > 0.02);
    cell.style.setProperty("--loss", (0.25 + 0.75 * size).toFixed(2));
  }
};

/** Shade a feature's tokens by its activation, or by what one source adds to it; some fire below zero. */
const drawShades = (ctx) => {
  for (const cell of ctx.cells) {
    const { seq, at } = CELLS.get(cell);
    const share = driver == null || !seq.s.length ? 1 : seq.s[driver][at];
    cell.style.setProperty("--shade", +Math.min(Math.abs(seq.a[at] * share) / (ctx.maxAct || 1), 1).toFixed(3));
    cell.classList.toggle("against", share < 0);
  }
};

/** Move the focus from a token: along its row, or to the rows above and below. */
const moveInTokens = (cell, key) => {
  const root = cell.closest("[data-panel]");
  const rows = [...root.querySelectorAll(".tokens")];
  const cells = [...cell.parentElement.children];
  const [at, line] = [cells.indexOf(cell), rows.indexOf(cell.parentElement)];
  const along = { ArrowLeft: at - 1, ArrowRight: at + 1, Home: 0, End: cells.length - 1 };
  const to = rows[{ ArrowUp: line - 1, ArrowDown: line + 1 }[key] ?? line];
  const next = key in along ? cells[along[key]] : to?.children[Math.min(at, to.children.length - 1)];
  if (!next) return;
  root.querySelectorAll("[data-token][tabindex='0']").forEach((node) => node.setAttribute("tabindex", "-1"));
  next.setAttribute("tabindex", "0");
  next.focus();
};
