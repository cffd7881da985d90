// Histograms and bars, drawn by hand.

const BOX = { width: 320, height: 148, left: 36, right: 8, top: 16, bottom: 20 };

/** At most about `parts` round steps inside [low, high]. */
const ticks = (low, high, parts) => {
  const rough = (high - low) / parts;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = power * [1, 2, 5, 10].find((factor) => factor * power >= rough * 0.999);
  const first = Math.ceil(low / step - 1e-9);
  const steps = Math.min(Math.floor(high / step + 1e-9) - first + 1, 12);
  return Array.from({ length: Math.max(steps, 0) }, (_, i) => (first + i) * step);
};

/** A tick's label: 0.05, 600, 12K. */
const tickLabel = (x) =>
  minus(Math.abs(x) < 1e4 ? String(+x.toPrecision(4)) : x.toLocaleString("en-US", { notation: "compact" }));

/** From data to places in the drawing: {x, y, low, high, most}. */
const scales = ({ heights, low, high }) => {
  const [from, to] = high > low ? [low, high] : [low - 0.5, low + 0.5];
  const most = Math.max(largest(heights), 1);
  const width = BOX.width - BOX.left - BOX.right;
  const depth = BOX.height - BOX.top - BOX.bottom;
  const clamp = (value) => Math.min(Math.max((value - from) / (to - from), 0), 1);
  return {
    low: from, high: to, most,
    x: (value) => +(BOX.left + width * clamp(value)).toFixed(2),
    y: (value) => +(BOX.height - BOX.bottom - (depth * value) / most).toFixed(2),
  };
};

/** Grid lines and labels of both axes. */
const axes = ({ x, y, low, high, most }) => {
  const floor = BOX.height - BOX.bottom;
  const across = ticks(low, high, 8);
  const up = ticks(0, most, 5).filter(Number.isInteger);
  return [
    ...up.map((value) => el("svg:path.grid", { d: `M${BOX.left} ${y(value)}H${BOX.width - BOX.right}` })),
    ...up.map((value) => el("svg:text.end", { x: BOX.left - 5, y: y(value) + 3.5 }, tickLabel(value))),
    ...across.map((value) => el("svg:path.grid", { d: `M${x(value)} ${BOX.top}V${floor + 3}` })),
    ...across.map((value) => el("svg:text.middle", { x: x(value), y: BOX.height - 5 }, tickLabel(value))),
  ];
};

/** A bar for each bin that is not empty, high enough that a single token can be seen. */
const bars = (histogram, scale, isSigned) => {
  const size = (scale.high - scale.low) / histogram.heights.length;
  return histogram.heights.map((height, i) => {
    if (!height) return null;
    const [start, end] = [scale.low + i * size, scale.low + (i + 1) * size];
    const [x, y] = [scale.x(start), Math.min(scale.y(height), scale.y(0) - 0.7)];
    const name = !isSigned ? "svg:rect" : start + end < 0 ? "svg:rect.negative" : "svg:rect.positive";
    return el(name, { x, y, width: Math.max(scale.x(end) - x - 0.4, 0.3), height: scale.y(0) - y });
  });
};

/** The line at a value, with its label on the side where there is room. */
const markLine = (scale, value, label) => {
  const [x, left] = [scale.x(value), value > (scale.low + scale.high) / 2];
  return [
    el("svg:path.line", { d: `M${x} ${BOX.top - 4}V${BOX.height - BOX.bottom}` }),
    el(left ? "svg:text.strong.end" : "svg:text.strong", { x: x + (left ? -4 : 4), y: BOX.top - 5 }, label),
  ];
};

/**
 * A histogram -> {node, mark}. `mark(value, label)` draws the line at a value; `mark()` takes it back to `rest`, the
 * {value, label} shown when nothing is pointed at, if any.
 */
const histogramChart = (histogram, { name, unit, isSigned = false, rest = null }) => {
  const scale = scales(histogram);
  const total = histogram.heights.reduce((sum, height) => sum + height, 0);
  const peak = histogram.heights.indexOf(largest(histogram.heights));
  const size = (scale.high - scale.low) / histogram.heights.length;
  const most = `most between ${num(scale.low + peak * size)} and ${num(scale.low + (peak + 1) * size)}`;
  const label = `${name}: ${count(total)} values from ${num(histogram.low)} to ${num(histogram.high)}, ${most}`;
  const line = el("svg:g");
  const mark = (value = rest?.value, text = rest?.label) => {
    line.replaceChildren(...(value == null ? [] : markLine(scale, value, text)));
    line.dataset.value = value ?? "";
  };
  mark();
  const drawing = [...axes(scale), ...bars(histogram, scale, isSigned), line];
  const view = `0 0 ${BOX.width} ${BOX.height}`;
  const svg = el("svg:svg.chart", { viewBox: view, role: "img", "aria-label": label }, drawing);
  return { node: el("div.drawn", svg, binTable(histogram, scale, name, unit)), mark };
};

/** The same numbers as a table, for those who cannot see bars. Empty bins are left out. */
const binTable = ({ heights }, { low, high }, name, unit) => {
  const edge = (i) => num(low + ((high - low) * i) / heights.length);
  const rows = heights.map((height, i) => height > 0 && [`${edge(i)} to ${edge(i + 1)}`, count(height)]).filter(Boolean);
  const made = table("table", [unit, "count"], rows);
  made.prepend(el("caption", name));
  return el("div.unseen", made);
};

/** A bar for a share of the longest, beside a number that is printed. */
const gauge = (share, model) => el("div.gauge", { data: { model: model % 4 }, vars: { "--share": share } });
