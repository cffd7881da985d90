// The panels of a feature, one function each: (ctx, config) -> element, or null for nothing to show.

const ON_PAGE = HEAD.view === "feature"; // in a prompt view no single feature can be opened

/** A feature's number, as a link where the page has it. */
const featureLink = (id) =>
  ON_PAGE && PLACE.has(id) ? el("a", { href: `#f=${id}`, data: { link: id } }, `#${id}`) : `#${id}`;

const featureRow = (link) => ([id, label, pearson, cosine]) =>
  [[link(id), label && el("span.label", { title: label }, ` ${label}`)], signed(pearson), signed(cosine)];

/** The small tables: title, headings, cells of a row. Features of B are not on the page. */
const SMALL_TABLES = {
  neuron_alignment: ["Neuron alignment", ["Neuron", "Value", "% of L1"],
    ([index, value, share]) => [String(index), signed(value), percent(share, 1)]],
  correlated_neurons: ["Correlated neurons", ["Neuron", "Pearson", "Cosine"],
    ([index, pearson, cosine]) => [String(index), signed(pearson), signed(cosine)]],
  correlated_features: ["Correlated features", ["Feature", "Pearson", "Cosine"], featureRow(featureLink)],
  correlated_b_features: ["Correlated features of B", ["Feature", "Pearson", "Cosine"], featureRow((id) => `#${id}`)],
};

const featureTables = ({ data }, config) => {
  const names = Object.keys(SMALL_TABLES).filter((name) => data.tables[name] && config[`${name}_table`] !== false);
  const parts = names.map((name) => {
    const [title, headings, cells] = SMALL_TABLES[name];
    const rows = data.tables[name].slice(0, config.n_rows ?? Infinity).map(cells);
    return el("div.small-table", { data: { table: name } }, el("h3", title), table("table", headings, rows));
  });
  return parts.length ? panel("FeatureTables", null, parts) : null;
};

const actsHistogram = (ctx) => {
  const histogram = ctx.data.acts_histogram;
  if (!histogram) return panel("ActsHistogram", "Activations", neverFired());
  const chart = histogramChart(histogram, { name: "Histogram of activations", unit: "activation", rest: ctx.rest });
  ctx.listeners.push((cell) => {
    if (cell) chart.mark(cell.seq.a[cell.at], `${quoted(cell.seq.t[cell.at])} ${num(cell.seq.a[cell.at])}`);
    else chart.mark();
  });
  return panel("ActsHistogram", el("span", "Activations ", el("small", "tokens by activation")), chart.node);
};

const neverFired = () => el("p.none", field("never-fired", "Never fired on these tokens.", "span"));

/** One side of a logits table: tokens on shades of their size. */
const logitsSide = (title, side, pairs) => {
  const most = largest(pairs.map(([, value]) => Math.abs(value))) || 1;
  const shade = (value) => ({ class: side, vars: { "--shade": Math.abs(value) / most } });
  const rows = pairs.map(([token, value]) => row([chip(token, shade(value)), signed(value, 2)]));
  return el("table.logits", { data: { side } }, el("caption", title), el("tbody", rows));
};

/** The models' parts side by side, under names if there are several. */
const perModel = (ctx, part) =>
  el("div.per-model", ctx.data.logits.map((logits) =>
    el("div", { data: { logits: logits.model } },
      SEVERAL && el("h4", modelMark(logits.model), logits.name), part(logits))));

const logitsTable = (ctx, config) => {
  const note = ctx.data.logits_note;
  if (!ctx.data.logits.length) return panel("LogitsTable", "Logits", el("p.none", note ?? "Logits were not computed."));
  const rows = config.n_rows ?? Infinity;
  const sides = perModel(ctx, ({ top, bottom }) => el("div.sides",
    logitsSide("Negative logits", "negative", bottom.slice(0, rows)),
    logitsSide("Positive logits", "positive", top.slice(0, rows))));
  return panel("LogitsTable", null, sides, note && el("p.note", note));
};

const logitsHistogram = (ctx) => {
  if (!ctx.data.logits.some((logits) => logits.histogram)) return null;
  const one = ({ model, name, histogram }) => {
    if (!histogram) return el("p.none", "No histogram.");
    const title = `Histogram of the feature's direct logits${SEVERAL ? " in " + name : ""}`;
    const chart = histogramChart(histogram, { name: title, unit: "logit", isSigned: true });
    ctx.listeners.push((cell) => {
      const logit = cell?.seq.e[model]?.logit?.[cell.at];
      if (logit == null) chart.mark();
      else chart.mark(logit, `${quoted(cell.seq.t[cell.at])} ${signed(logit)}`);
    });
    return chart.node;
  };
  return panel("LogitsHistogram", el("span", "Direct logits ", el("small", "vocabulary by logit")), perModel(ctx, one));
};
