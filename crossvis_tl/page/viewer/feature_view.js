// The feature view: one feature at a time, its panels in the columns of the layout.

const PANELS = {
  FeatureTables: featureTables, ActsHistogram: actsHistogram, LogitsTable: logitsTable, LogitsHistogram: logitsHistogram,
  Sequences: sequences, Prompt: promptPanel, DecoderNorms: decoderNorms, DecoderCosine: decoderCosine,
  SiteLogits: siteLogits, ...EXTRA,
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
const scaling = (found) => {
  const short = (x) => (x == null ? "–" : num(x, 2));
  return found && ["errors", "reconstructions"].map((what, i) =>
    el("div", el("dt", { title: "arXiv 2504.02922: near 0, only the second model has it; near 1, both do" }, `ν on ${what}`),
      el("dd", field(`nu-${what}`, short(found.nu[i])), interval(found.nu_low[i], found.nu_high[i], short),
        el("small", { title: "how much of the feature each model's activations hold: its beta" },
          ` β ${short(found.beta_first[i])} / ${short(found.beta_second[i])}`))));
};

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
  drawShades(ctx);
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

let shownHash = "#"; // what the address would say: inside an iframe there is none

/** Keep the address in step. */
const writeAddress = (hash, isNewEntry = false) => {
  shownHash = `#${hash}`;
  const address = `${location.href.split("#")[0]}#${hash}`;
  try {
    history[isNewEntry ? "pushState" : "replaceState"](null, "", address);
  } catch { /* about:srcdoc */ }
};

/** Previous, next, and where we are -> {node, update}. `all` goes back from an order of the map to that of the page. */
const stepper = (step, all) => {
  const button = (by, sign, action) => el("button.button", {
    data: { action }, "aria-label": `${action} feature`, on: { click: () => step(by) },
  }, sign);
  const [previous, next] = [button(-1, "←", "previous"), button(1, "→", "next")];
  const place = field("place", "", "span.place");
  const whole = el("button.button", { data: { action: "all" }, on: { click: all } }, `All ${count(PLACE.size)}`);
  const update = (at, of, isOwn) => {
    const kind = isOwn ? "" : of < PLACE.size ? " (filtered)" : " (sorted)";
    place.textContent = `${count(at + 1)} of ${count(of)}${kind}`;
    previous.disabled = at === 0;
    next.disabled = at === of - 1;
    whole.hidden = isOwn;
  };
  return { node: el("div.steps", previous, place, next, whole), update };
};

/** The feature view, with the map if there is one -> {nodes, step, find, escape, map, start}. */
const featureView = () => {
  const ids = HEAD.features.id;
  const screen = el("div");
  const announce = el("p.unseen", { "aria-live": "polite" });
  let order = ids; // of previous and next: that of the page, or the map's
  let asked = null; // what is on the screen or being read: an id, or "map"
  let seen = null; // the feature shown last
  let ctx = null;

  /** Put one of the two screens on the page. */
  const put = (isMap, node, said, title) => {
    hideTip();
    [bar.hidden, key.hidden] = [isMap, isMap];
    if (map) map.bar.hidden = !isMap;
    screen.replaceChildren(node);
    announce.textContent = said;
    document.title = `${title} · ${HEAD.title}`;
  };
  const place = () => steps.update(order.indexOf(seen), order.length, order === ids);
  const show = async (id) => {
    if (id === asked) return;
    asked = seen = id;
    if (!order.includes(id)) order = ids;
    const made = await readArticle(id, (read) => featureArticle(read, null, `${HEAD.layout.height}px`));
    if (asked !== id) return; // another was asked for meanwhile
    ctx = made.ctx;
    put(false, made.node, `Feature ${id} ${record(id).label}`, `#${id}`);
    place();
  };
  const showMap = () => {
    if (asked === "map") return;
    asked = "map";
    put(true, map.node, `Map of ${count(ids.length)} features`, "Map");
    map.reveal(seen);
  };
  const go = (id, isNewEntry = true) => {
    writeAddress(`f=${id}`, isNewEntry);
    return show(id);
  };
  const goFromMap = (id) => {
    order = map.order();
    return go(id);
  };
  const goMap = (isNewEntry = true) => {
    writeAddress("map", isNewEntry);
    showMap();
  };
  const leave = () => go(seen ?? HEAD.first);
  const step = (by) => {
    if (asked === "map") return map.step(by);
    const to = order[order.indexOf(seen) + by];
    if (to !== undefined) go(to, false);
  };
  const escape = () => {
    dismissTip();
    if (asked === "map" && !map.clear() && seen != null) leave();
  };

  const steps = stepper(step, () => {
    order = ids;
    place();
  });
  const jump = jumpBox(() => seen, go);
  const map = HAS_MAP ? featureMap(goFromMap, leave) : null;
  const redraw = () => ctx && drawLoss(ctx);
  const toMap = map
    && el("button.button", { data: { action: "map" }, on: { click: () => goMap() } }, "Map ", el("kbd", "m"));
  const bar = el("nav.bar", { "aria-label": "Features" },
    toMap, steps.node, jump.node, modelChoice(redraw), copyButton(), helpButton());
  const key = legend();
  listen("click", (event) => {
    const link = event.target.closest?.("[data-link]");
    if (!link || event.ctrlKey || event.metaKey || event.shiftKey) return;
    event.preventDefault();
    (asked === "map" ? goFromMap : go)(Number(link.dataset.link));
  });
  window.addEventListener("popstate", () => {
    if (map && location.hash === "#map") showMap();
    else if (idInAddress() != null) show(idInAddress());
  });
  const start = () => {
    const id = idInAddress();
    if (map && id == null && (HEAD.open_map || location.hash === "#map")) goMap(false);
    else go(id ?? HEAD.first, false);
  };
  return {
    nodes: [bar, map?.bar, announce, el("main", key, screen)], step, escape, start,
    find: () => (asked === "map" ? map.find() : jump.focus()),
    map: map && (() => (asked === "map" ? leave() : goMap())),
  };
};
