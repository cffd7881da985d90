// Making elements and writing numbers. Text from the data enters the page as text nodes only.

const SVG = "http://www.w3.org/2000/svg";

/**
 * Make an element: "div", "div.class.another", or "svg:path.class" for a shape.
 * @param {string} name
 * @param {...(object|Node|string|null|Array)} parts first, if wanted, an object of attributes, where `data` sets
 *   data-*, `vars` CSS variables and `on` listeners; then children, strings becoming text; null is left out
 */
const el = (name, ...parts) => {
  const { data = {}, vars = {}, on = {}, ...attributes } = parts[0]?.constructor === Object ? parts.shift() : {};
  const [tag, ...classes] = name.split(".");
  const node = tag.startsWith("svg:") ? document.createElementNS(SVG, tag.slice(4)) : document.createElement(tag);
  if (classes.length) node.setAttribute("class", classes.join(" "));
  for (const [key, value] of Object.entries(attributes)) {
    if (value != null && value !== false) node.setAttribute(key, value === true ? "" : value);
  }
  Object.assign(node.dataset, data);
  for (const [key, value] of Object.entries(vars)) node.style.setProperty(key, value);
  for (const [type, listener] of Object.entries(on)) node.addEventListener(type, listener);
  node.append(...parts.flat(2).filter((child) => child != null && child !== false));
  return node;
};

/** Hear of an event anywhere on the page. */
const listen = (type, listener) => document.addEventListener(type, listener, true);

/** The largest of any count of numbers and 0. */
const largest = (numbers) => numbers.reduce((most, x) => (x > most ? x : most), 0);

const minus = (text) => text.replaceAll("-", "\u2212");

/** A number for reading: 0.123, 12.3, 3.2e−5; an en dash for none. */
const num = (x, digits = 3) => {
  if (x == null) return "–";
  const size = Math.abs(x);
  if (size !== 0 && (size < 0.5 * 10 ** -digits || size >= 1e6)) return minus(x.toExponential(1));
  return minus(x.toFixed(size >= 1000 ? Math.min(digits, 1) : digits));
};

/** The same with its sign always shown. */
const signed = (x, digits = 3) => (x > 0 ? "+" : "") + num(x, digits);

/** To two significant digits, which is what changes of log-probability are written with: +0.31, −0.025. */
const signed2 = (x) => (x > 0 ? "+" : "") + minus(Math.abs(x) < 1e-3 ? x.toExponential(0) : x.toPrecision(2));

/** A share as a percentage: 59.094%, 0.0021%. */
const percent = (x, digits = 3) => {
  if (x == null) return "–";
  const shown = x * 100;
  const small = shown !== 0 && Math.abs(shown) < 10 ** -digits;
  return minus(small ? shown.toPrecision(2) : shown.toFixed(digits)) + "%";
};

/** A count with separators: 131,072. */
const count = new Intl.NumberFormat("en-US").format; // made once: toLocaleString makes one each time

/** A value with a name that tests find it by. */
const field = (name, text, tag = "b") => el(tag, { data: { field: name } }, text);

/** A row of a table; what is not a cell yet becomes one. */
const row = (cells) => el("tr", cells.map((cell) => (/^T[DH]$/.test(cell?.tagName) ? cell : el("td", cell))));

/** A table. The first column is aligned left, the others, numbers, right. */
const table = (name, headings, rows) =>
  el(name, el("thead", row(headings.map((heading) => heading && el("th", { scope: "col" }, heading)))),
    el("tbody", rows.map(row)));

/** A panel of a feature. */
const panel = (name, title, ...children) =>
  el("section", { data: { panel: name } }, title && el("h3", title), ...children);
