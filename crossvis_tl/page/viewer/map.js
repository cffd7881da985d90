// The feature map: a scatter of all features beside a table of them, both filtered by a search, classes and a box.

/** What is shown beside a dot: the feature, its numbers and tokens. */
const dotCard = (place, measures, classes) => {
  const { id, label, class: kinds, tokens } = HEAD.features;
  const look = classes.find(({ name }) => name === kinds[place]);
  return [
    el("div.title", el("b", `#${id[place]}`), look.name != null && el("span", glyphMark(look), look.name)),
    label[place] && el("p.card-label", label[place]),
    el("dl.numbers", measures.map(({ label: name, values, show }) =>
      el("div", el("dt", name), el("dd", show(values[place]))))),
    tokens[place].length > 0 && el("p.fires", "fires on", tokens[place].slice(0, CHIPS).map((token) => chip(token))),
  ].filter(Boolean);
};

/** The measures of the axes and the colour, chosen where the layout names none -> {x, y, color}; no color: class. */
const mapDefaults = (measures, classes) => {
  const named = (name) => measures.find((measure) => measure.name === name);
  const { x, y, color } = HEAD.layout.map;
  const [across, up] = named("relative_norm") && named("cosine") ? ["relative_norm", "cosine"]
    : named("layer") ? ["layer", "density"] : ["density", "max"];
  const isPlain = classes.length === 1 && up !== "max"; // the axes leave a number to be shown by colour
  return {
    x: named(x) ?? named(across), y: named(y) ?? named(up), color: named(color) ?? (isPlain ? named("max") : null),
  };
};

/** Buttons that choose classes, with their counts -> {node, update}. Where none is chosen, all are shown. */
const classFilter = (classes, chosen, changed) => {
  const counts = classes.map(() => el("small"));
  const toggle = (name) => {
    if (!chosen.delete(name)) chosen.add(name);
    changed();
  };
  const buttons = classes.map((look, i) => el("button.button",
    { data: { class: look.name ?? "" }, on: { click: () => toggle(look.name) } },
    glyphMark(look), `${look.name ?? "no class"} `, counts[i]));
  const update = (found) => classes.forEach(({ name }, i) => {
    counts[i].textContent = count(found.filter((place) => HEAD.features.class[place] === name).length);
    buttons[i].setAttribute("aria-pressed", chosen.has(name));
  });
  return { node: classes.length > 1 && el("div.classes", { role: "group", "aria-label": "Classes" }, buttons), update };
};

/**
 * The map -> {node, bar, order, step, find, clear, reveal}. `open(id)` shows a feature, `leave()` the last one.
 * `order()`: ids as the table has them; `clear()`: whether there was something to clear.
 */
const featureMap = (open, leave) => {
  const { id: ids, class: kinds } = HEAD.features;
  const [measures, classes] = [allMeasures(), allClasses()];
  const every = ids.map((_, place) => place);
  const chosen = new Set();
  const axes = mapDefaults(measures, classes);
  const [status, key] = [el("p.status", { role: "status" }), el("span.ramp-key")];
  let [box, x, y] = [null, null, null];

  const isInBox = (place) => !box || [[x.at, box.x], [y.at, box.y]]
    .every(([at, [low, high]]) => at[place] >= low && at[place] <= high);
  const update = () => {
    const matched = search(input.value);
    const found = every.filter((place) => (!matched || matched.has(place)) && isInBox(place));
    const shown = chosen.size ? found.filter((place) => chosen.has(kinds[place])) : found;
    filter.update(found);
    table.show(shown, matched);
    plot.set({ shown, box });
    plot.draw();
    const part = shown.length < every.length ? `${count(shown.length)} of ` : "";
    status.textContent = `${part}${count(every.length)} features`;
    wipe.hidden = !(input.value || chosen.size || box);
  };
  const redraw = () => {
    [x, y, box] = [mapAxis(axes.x, 0.7548776662), mapAxis(axes.y, 0.5698402910), null];
    const look = axes.color ? looksByMeasure(axes.color) : looksByClass(classes);
    key.replaceChildren(...look.key);
    plot.set({ x, y, ...look });
    update();
  };
  const clear = () => {
    if (wipe.hidden) return false;
    if (!box) {
      input.value = "";
      chosen.clear();
    }
    box = null;
    update();
    return true;
  };

  const fieldKeys = {
    Enter: () => {
      const exact = [...search(input.value) ?? []].find(([, { rank }]) => rank === 0)?.[0];
      const place = table.places().includes(exact) ? exact : table.places()[0];
      if (place == null) return;
      input.blur();
      open(ids[place]);
    },
    Escape: () => clear() || input.blur(), ArrowDown: () => table.step(0),
  };
  const input = el("input", {
    placeholder: "Filter by number, label or token", "aria-label": "Filter features by number, label or token text",
    autocomplete: "off", data: { field: "search" }, on: { input: () => update(), keydown: (event) => {
      if (!fieldKeys[event.key]) return;
      event.preventDefault();
      fieldKeys[event.key]();
    } },
  });
  const wipe = el("button.button", { data: { action: "clear" }, on: { click: () => {
    while (clear());
  } } }, "Clear ", el("kbd", "Esc"));
  const back = el("button.button", { data: { action: "leave" }, on: { click: leave } });
  const filter = classFilter(classes, chosen, () => update());
  const plot = scatter({
    open: (place) => open(ids[place]), card: (place) => dotCard(place, measures, classes),
    boxed: (drawn) => {
      box = drawn;
      update();
    },
  });
  const table = mapTable(mapColumns(measures, classes), { sorted: update, point: plot.point });
  const names = measures.map(({ label }) => label);
  const pick = (label, axis, first = []) => el("label", label,
    dropDown(label, [...first, ...names], measures.indexOf(axes[axis]) + first.length, (i) => {
      axes[axis] = measures[i - first.length];
      redraw();
    }));
  const bar = el("nav.bar", { "aria-label": "Map", hidden: true },
    el("div.jump", input, el("kbd", "/")), status, wipe, back, copyButton(), helpButton());
  const node = el("section.map", { data: { map: "" }, "aria-label": "Map of features" }, filter.node,
    el("div.picture", el("div.axes", pick("vertical", "y"), pick("horizontal", "x"),
      pick("colour", "color", [classes.length > 1 ? "class" : "none"]), key), plot.node), table.node);
  redraw();
  return {
    node, bar, clear, step: table.step, find: () => input.focus(),
    order: () => (wipe.hidden && !table.isSorted() ? ids : table.places().map((place) => ids[place])),
    reveal: (id) => {
      back.replaceChildren(id == null ? "First feature " : `Back to #${id} `, el("kbd", "m"));
      plot.set({ rest: PLACE.get(id) });
      table.reveal(PLACE.get(id));
    },
  };
};
