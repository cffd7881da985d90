// The panels that need several sites: norms, cosines, logit lenses.

const EXTRA = {}; // what is in files that a page may do without (`build.py`)

/** A site among its like: the model or the layer alone, where that tells them apart. */
const shortLabel = ({ short, label }) => short ?? label;

/** The targets of a feature, in the order of its norms. */
const targetsOf = ({ norms, target_index: index }) => (index ?? norms.map((_, i) => i)).map((i) => HEAD.targets[i]);

/** Where a feature lies between two models: a scale from one to the other. */
const relativeNorm = (sites) =>
  el("div.relative",
    el("p", "Relative norm ", field("relative-norm", num(sites.relative_norm)),
      sites.class && [" · ", field("site-class", sites.class, "span")]),
    el("div.scale", { vars: { "--at": sites.relative_norm } }),
    el("div.ends", modelName(0), modelName(1)));

const decoderNorms = ({ data: { sites } }) => {
  if (!sites?.norms) return null;
  const most = largest(sites.norms) || 1;
  const note = sites.note ?? "norms in the producer's training units";
  const power = sites.norms.reduce((sum, norm) => sum + norm * norm, 0);
  const shares = power > 0 && sites.norms.map((norm) => percent((norm * norm) / power, 1));
  const rows = targetsOf(sites).map((target, i) => [
    el("th", { scope: "row" }, SEVERAL && modelMark(target.model), shortLabel(target)), el("td.wide", gauge(sites.norms[i] / most, target.model)),
    el("td", { data: { siteNorm: i } }, num(sites.norms[i])), ...(shares ? [shares[i]] : []),
  ]);
  return panel("DecoderNorms", "Decoder norms",
    el("div.scroll", table("table.norms", ["Site", "", "Norm", ...(shares ? ["Share of squares"] : [])], rows)),
    sites.relative_norm != null && SEVERAL && relativeNorm(sites),
    note && el("p.note", note));
};

/** One cell of the cosine matrix: blue above zero, red below, the number in both. */
const cosineCell = (value) =>
  el(value < 0 ? "td.negative" : "td.positive", { vars: { "--shade": Math.min(Math.abs(value), 1) } }, num(value, 2));

const decoderCosine = ({ data: { sites } }) => {
  const [targets, cosine] = [sites?.norms && targetsOf(sites), sites?.cosine];
  if (!targets || !cosine || cosine.length < 2) return null;
  if (cosine.length === 2) {
    const names = `between ${shortLabel(targets[0])} and ${shortLabel(targets[1])}`;
    return panel("DecoderCosine", "Decoder cosine",
      el("p.single", field("cosine", num(cosine[0][1])), names));
  }
  const labels = targets.map(shortLabel);
  const rows = cosine.map((values, i) => [el("th", { scope: "row" }, labels[i]), ...values.map(cosineCell)]);
  return panel("DecoderCosine", "Decoder cosine", el("div.scroll", table("table.matrix", ["", ...labels], rows)));
};

/** Tokens of one side of a lens, shaded by size; the numbers by pointer and focus. */
const lensTokens = (side, pairs, most) =>
  el("td", { data: { lens: side } }, pairs.map(([token, value]) => chip(token, {
    class: side, tabindex: 0, vars: { "--shade": Math.abs(value) / most }, data: { help: `${quoted(token)} ${signed(value)} logits` },
  })));

/** What each site's decoder row says by itself. */
const siteLogits = ({ data: { sites, logits } }, config) => {
  const lenses = sites?.lens ?? [];
  if (!lenses.some(Boolean)) return null;
  const rows = config.n_rows ?? Infinity;
  const cut = (pairs) => pairs.slice(0, rows);
  const most = largest(lenses.flatMap((lens) => (lens ? [...cut(lens.top), ...cut(lens.bottom)] : []))
    .map(([, value]) => Math.abs(value))) || 1;
  const best = largest(lenses.map((lens) => lens?.share ?? 0));
  const shared = lenses.some((lens) => lens?.share != null);
  const share = (part, of) => shared && el(of > 0 && of === best ? "td.best" : "td", { data: { lensShare: part } }, percent(of, 0));
  const lines = targetsOf(sites).map((target, i) => [
    el("th", { scope: "row" }, SEVERAL && modelMark(target.model), shortLabel(target)), share(i, lenses[i]?.share),
    ...(lenses[i] ? [lensTokens("positive", cut(lenses[i].top), most), lensTokens("negative", cut(lenses[i].bottom), most)]
      : [el("td.none", { colspan: 2 }, "writes no logits")]),
  ]);
  if (shared) {
    lines.push(...logits.map(({ model, top, bottom }) => {
      const all = [...cut(top), ...cut(bottom)];
      const own = largest(all.map(([, value]) => Math.abs(value))) || 1;
      return [el("th", { scope: "row" }, SEVERAL && modelMark(model), "sum"), el("td"), lensTokens("positive", cut(top), own), lensTokens("negative", cut(bottom), own)];
    }));
  }
  return panel("SiteLogits", el("span", "Logit lens by site ", shared && el("small", "share of the whole effect on logits")),
    el("div.scroll", table("table.lens", ["Site", shared && "Share", "Raised most", "Lowered most"].filter(Boolean),
      lines.map((cells) => cells.filter(Boolean)))));
};

let driver = null; // the source whose part of the activations is drawn, null for the whole
