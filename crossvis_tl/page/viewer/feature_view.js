// The feature view: one feature at a time, its panels in the columns of the layout.

const PANELS = {
  FeatureTables: featureTables, ActsHistogram: actsHistogram, LogitsTable: logitsTable, LogitsHistogram: logitsHistogram,
  Sequences: sequences, Prompt: promptPanel, DecoderNorms: decoderNorms, DecoderCosine: decoderCosine,
};

/** The panels of a feature in the layout's columns, without empty ones. */
const layoutColumns = (ctx) =>
  HEAD.layout.columns.map(({ width, components }) => {
    const panels = components.map(({ name, config }) => PANELS[name](ctx, config ?? {})).filter(Boolean);
    return panels.length ? el("div.column", { vars: width ? { "--width": `${width}px` } : {} }, panels) : null;
  });

/** The class of a feature; its help opens by pointer and by focus. */
const classChip = (name) =>
  name && (HEAD.class_help
    ? el("button.chip", { data: { field: "class", help: HEAD.class_help } }, name)
    : field("class", name, "span.chip"));

/** A 95 % interval, small. */
const interval = (low, high, show) =>
  low == null || high == null ? null : el("small", { title: "95 % interval, tokens taken as independent" },
    ` (${show(low)} to ${show(high)})`);

/** Latent scaling of two models: how much of the feature is in the first one too. */
const scaling = (found) =>
  found && ["errors", "reconstructions"].map((what, i) =>
    el("div", el("dt", { title: "arXiv 2504.02922: near 0, only the second model has it; near 1, both do" }, `ν on ${what}`),
      el("dd", field(`nu-${what}`, found.nu[i] == null ? "–" : num(found.nu[i], 2)),
        interval(found.nu_low[i], found.nu_high[i], (x) => num(x, 2)))));

/** Density, largest activation and class, in one line. */
const featureFacts = ({ density, max, class: name, data }) =>
  el("dl.numbers",
    el("div", el("dt", "density"), el("dd", field("density", percent(density)),
      data.density_interval && interval(...data.density_interval, (x) => percent(x, 2)))),
    el("div", el("dt", "max"), field("max", num(max), "dd")),
    scaling(data.scaling),
    name && el("div", el("dt", "class"), el("dd", classChip(name))));

const featureTitle = ({ id, label }) =>
  el("h2", field("id", `#${id}`, "span"), label && [" ", field("label", label, "span.label")]);

/** One feature, whole: its title, what stands under that, its numbers and panels. */
const featureArticle = (ctx, under, height) => {
  const node = el("article.feature", { data: { featureId: ctx.id } },
    el("div.top", featureTitle(ctx), under, featureFacts(ctx)),
    el("div.columns", { vars: { "--height": height } }, layoutColumns(ctx)));
  drawLoss(ctx);
  return { ctx, node };
};

/** Read a feature and make its article -> {ctx, node}; if that fails, the node says why. */
const readArticle = (id, make, prompt = null) =>
  payload(id).then((data) => make(makeContext(id, data, prompt))).catch((error) => ({ node: brokenArticle(id, error) }));

/** What is said where a feature cannot be read. */
const brokenArticle = (id, error) =>
  el("article.feature", { data: { featureId: id } },
    el("p.notice", { role: "alert" }, `Feature ${id} could not be read: ${error.message}.`));

/** The id in the address, if it is on the page. */
const idInAddress = () => {
  const id = Number(/^#f=(\d+)$/.exec(location.hash)?.[1]);
  return PLACE.has(id) ? id : null;
};

/** Keep the address in step; inside an iframe there is none, which is fine. */
const writeAddress = (hash, isNewEntry = false) => {
  const address = `${location.href.split("#")[0]}#${hash}`;
  try {
    history[isNewEntry ? "pushState" : "replaceState"](null, "", address);
  } catch { /* about:srcdoc */ }
};

/** Previous, next, and where we are -> {node, update}. */
const stepper = (step) => {
  const button = (by, sign, action) => el("button.button", {
    data: { action }, "aria-label": `${action} feature`, on: { click: () => step(by) },
  }, sign);
  const [previous, next] = [button(-1, "←", "previous"), button(1, "→", "next")];
  const place = field("place", "", "span.place");
  const update = (at, of) => {
    place.textContent = `${count(at + 1)} of ${count(of)}`;
    previous.disabled = at === 0;
    next.disabled = at === of - 1;
  };
  return { node: el("div.steps", previous, place, next), update };
};

/** The feature view -> {nodes, step, find, start}. */
const featureView = () => {
  const ids = HEAD.features.id;
  const main = el("main");
  const announce = el("p.unseen", { "aria-live": "polite" });
  let current = null;
  let ctx = null;

  const show = async (id) => {
    if (id === current) return;
    current = id;
    const made = await readArticle(id, (read) => featureArticle(read, null, `${HEAD.layout.height}px`));
    if (current !== id) return; // another was asked for meanwhile
    hideTip();
    ctx = made.ctx;
    main.replaceChildren(made.node);
    steps.update(PLACE.get(id), ids.length);
    announce.textContent = `Feature ${id} ${record(id).label}`;
    document.title = `#${id} · ${HEAD.title}`;
  };
  const go = (id, isNewEntry = true) => {
    writeAddress(`f=${id}`, isNewEntry);
    return show(id);
  };
  const step = (by) => {
    const to = ids[PLACE.get(current) + by];
    if (to !== undefined) go(to, false);
  };

  const steps = stepper(step);
  const jump = jumpBox(() => current, go);
  listen("click", (event) => {
    const link = event.target.closest?.("[data-link]");
    if (!link || event.ctrlKey || event.metaKey || event.shiftKey) return;
    event.preventDefault();
    go(Number(link.dataset.link));
  });
  window.addEventListener("popstate", () => idInAddress() != null && show(idInAddress()));
  const redraw = () => ctx && drawLoss(ctx);
  const bar = el("nav.bar", { "aria-label": "Features" }, steps.node, jump.node, modelChoice(redraw), helpButton());
  const start = () => go(idInAddress() ?? HEAD.first, false);
  return { nodes: [bar, legend(), announce, main], step, find: jump.focus, start };
};
