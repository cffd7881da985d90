// The map's table: every number of every feature, sorted by any column. Only the rows in view are there.

const ROW = 32; // pixels
const CHIPS = 6; // tokens in a row
const WORDS = new Intl.Collator(undefined, { numeric: true });

/** The columns -> [{name, label, width, of: place -> value to sort by, cell: (place, token) -> content, help, isText}].
 * Those that are empty for all features are left out. */
const mapColumns = (measures, classes) => {
  const { id: ids, label: labels, class: kinds, tokens } = HEAD.features;
  const link = (id) => el("a", { href: `#f=${id}`, tabindex: -1, data: { link: id } }, `#${id}`);
  const chips = (place, match) => [...new Set([match, ...tokens[place]])].filter((token) => token != null)
    .slice(0, CHIPS).map((token) => chip(token, { class: token === match ? "hit" : "" }));
  const kind = (place) => classes.find(({ name }) => name === kinds[place]);
  return [
    { name: "id", label: "Feature", width: 84, of: (place) => ids[place], cell: (place) => link(ids[place]) },
    { name: "label", label: "Label", width: labels.some(({ length }) => length > 20) ? 320 : 160, isText: true,
      of: (place) => labels[place] || null, cell: (place) => el("span", { title: labels[place] }, labels[place]) },
    { name: "tokens", label: "Fires on", width: 180, isText: true,
      help: "Tokens of its strongest examples, the most frequent first.", of: (place) => HEAD.vocabulary[tokens[place][0]],
      cell: (place, match) => el("div.chips", chips(place, match)) },
    { name: "class", label: "Class", width: 112, isText: true, help: HEAD.class_help, of: (place) => kinds[place],
      cell: (place) => [glyphMark(kind(place)), kinds[place] ?? "–"] },
    ...measures.map(({ values, show, ...measure }) => ({ ...measure, width: Math.max(measure.label.length * 7 + 36, 88),
      of: (place) => values[place], cell: (place) => show(values[place]) })),
  ].filter(({ of, isText }) => !isText || ids.some((_, place) => of(place) != null));
};

/** Places in the order of a column; what has no value comes last. */
const sortPlaces = (places, { column: { of, isText }, by }) => {
  const compare = isText ? WORDS.compare : (a, b) => a - b;
  const order = ([, a], [, b]) => (a == null) - (b == null) || (a == null ? 0 : by * compare(a, b));
  return places.map((place) => [place, of(place)]).sort(order).map(([place]) => place);
};

/** The table -> {node, show, places, isSorted, step, reveal}. `sorted()` is called for another order, `point(place)`
 * for the row under pointer or focus. */
const mapTable = (columns, { sorted, point }) => {
  const body = el("tbody");
  let [places, matched, active, sort] = [[], null, 0, null];

  /** One way, the other, and back to the index's order. */
  const sortBy = (column) => {
    const first = column.isText || column.name === "id" ? 1 : -1;
    const by = sort?.column !== column ? first : sort.by === first ? -first : null;
    sort = by && { column, by };
    heads.forEach((head, i) => head.setAttribute("aria-sort",
      column !== columns[i] || !by ? "none" : by > 0 ? "ascending" : "descending"));
    scroller.scrollTop = 0;
    sorted();
  };
  const heads = columns.map((column) => el(column.isText ? "th.text" : "th",
    { scope: "col", "aria-sort": "none", data: { column: column.name }, vars: { width: `${column.width}px` } },
    el("button", { data: column.help ? { help: column.help } : {}, on: { click: () => sortBy(column) } },
      column.label)));
  const width = columns.reduce((sum, column) => sum + column.width, 0);
  const sheet = el("table", { "aria-label": "Features", vars: { "--width": `${width}px` } },
    el("thead", el("tr", heads)), body);
  const scroller = el("div.sheet", { tabindex: -1, data: { ownKeys: "" }, on: { scroll: () => render(false) } }, sheet);

  const makeRow = (place, at) =>
    el("tr", { "aria-rowindex": at + 2, data: { mapRow: HEAD.features.id[place] } }, columns.map(({ cell, isText }) =>
      el(isText ? "td.text" : "td", cell(place, matched?.get(place)?.token))));
  const gap = (rows) => el("tr.gap", { "aria-hidden": "true", vars: { height: `${rows * ROW}px` } });

  /** Fill in the rows in view. The focus stays on the active one, or on the table while that is out of view. */
  const render = (isNew = true) => {
    const start = Math.max(Math.floor(scroller.scrollTop / ROW) - 8, 0);
    const end = Math.min(start + Math.ceil(scroller.clientHeight / ROW) + 18, places.length);
    if (!isNew && body.dataset.rows === `${start} ${end}`) return;
    const hadFocus = document.activeElement === scroller || body.contains(document.activeElement);
    const rows = places.slice(start, end).map((place, i) => makeRow(place, start + i));
    body.replaceChildren(gap(start), ...rows, gap(places.length - end));
    body.dataset.rows = `${start} ${end}`;
    const link = rows[active - start]?.querySelector("a");
    link?.setAttribute("tabindex", 0);
    if (hadFocus) (link ?? scroller).focus({ preventScroll: true });
  };

  /** Make a row the active one, in view, and focus it. */
  const activate = (at) => {
    if (!(at in places)) return;
    active = at;
    const [top, room] = [at * ROW, scroller.clientHeight - ROW * 2];
    scroller.scrollTop = Math.max(Math.min(scroller.scrollTop, top), top - room);
    render();
    body.querySelector("a[tabindex='0']")?.focus({ preventScroll: true });
  };
  /** Up or down from the focused row; without one, to the active one. */
  const step = (by) =>
    activate(body.contains(document.activeElement) ? Math.min(Math.max(active + by, 0), places.length - 1) : active);
  const show = (found, matches) => {
    [places, matched, active] = [sort ? sortPlaces(found, sort) : found, matches, 0];
    sheet.setAttribute("aria-rowcount", places.length + 1);
    render();
  };

  const pointAtRow = ({ target }) => point(PLACE.get(Number(target.closest("tr").dataset.mapRow)) ?? null);
  body.addEventListener("pointerover", pointAtRow);
  body.addEventListener("focusin", pointAtRow);
  body.addEventListener("pointerleave", () => point(null));
  body.addEventListener("click", ({ target }) =>
    target.closest("a") ?? target.closest("tr").querySelector("a")?.click());
  scroller.addEventListener("keydown", (event) => {
    const page = Math.max(Math.floor(scroller.clientHeight / ROW) - 2, 1);
    const by = { ArrowDown: 1, ArrowUp: -1, PageDown: page, PageUp: -page, Home: -Infinity, End: Infinity }[event.key];
    if (!by || sheet.tHead.contains(event.target)) return;
    event.preventDefault();
    step(by);
  });
  new ResizeObserver(() => render()).observe(scroller);
  return { node: scroller, show, places: () => places, isSorted: () => !!sort, step,
    reveal: (place) => activate(places.indexOf(place)) };
};
