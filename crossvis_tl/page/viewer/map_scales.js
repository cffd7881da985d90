// The map's numbers: where a measure puts each feature on an axis, and which colour and shape it gives it.

const STRIP = 0.06; // of an axis, for features without a value or with none that a log scale can show
const GLYPHS = [...MARKS, "▼", "○"]; // as `drawGlyph` draws them, in the colours --c0 to --c5
const RING = 5; // of GLYPHS: no class, no value
const RAMP = 5; // colours of a measure, --r0 to --r4

/** All measures of the page, each with `show`, which writes a value with its unit. */
const allMeasures = () => {
  const { density, max, measures } = HEAD.features;
  const own = [
    { name: "density", label: "density", values: density, show: percent, help: "Share of tokens it fires on." },
    { name: "max", label: "max activation", values: max, help: "Its largest activation, in the dictionary's units." },
  ];
  return [...own.map((measure) => ({ scale: "log", ...measure })), ...measures].map((measure) => {
    const isWhole = measure.scale === "linear" && measure.values.every((x) => x == null || Number.isInteger(x));
    return { isWhole, show: isWhole ? (x) => minus(String(x ?? "–")) : num, ...measure };
  });
};

/**
 * An axis -> {label, at: place -> 0 to 1, start: where values begin, ticks: [{at, text}], apart: what is in the strip
 * before `start`, bins: of its histogram, ends: least and largest value}. Whole numbers get a band each, in which
 * features lie side by side: `step`, the same each time, spreads them evenly.
 */
const mapAxis = ({ name, label, values, scale, isWhole }, step) => {
  const isLog = scale === "log";
  const turn = (x) => (x == null || (isLog && x <= 0) ? null : isLog ? Math.log10(x) : x);
  const turned = values.map(turn);
  const known = turned.filter((x) => x != null);
  const [least, most] = [Math.min, Math.max].map((pick) => known.reduce((a, b) => pick(a, b), known[0] ?? 0));
  const pad = isWhole ? 0.5 : (most - least) * 0.03 || 0.5;
  const [low, span] = [least - pad, most - least + 2 * pad];
  const start = known.length < values.length ? STRIP : 0;
  const onAxis = (x) => start + ((1 - start) * (x - low)) / span;
  const spread = (place) => ((place + 1) * step) % 1;
  const at = turned.map((x, place) =>
    x == null ? STRIP * (0.1 + 0.75 * spread(place)) : onAxis(isWhole ? x + (spread(place) - 0.5) * 0.66 : x));
  const back = (x) => (isLog ? 10 ** x : x);
  const round = ticks(low, low + span, 8).map((x) => (isLog ? +back(x).toPrecision(1) : x));
  const text = (x) => (name === "density" ? `${tickLabel(x * 100)}%` : tickLabel(x));
  const lines = [...new Set(round)].map((x) => ({ at: onAxis(turn(x)), text: text(x), isWhole: Number.isInteger(x) }));
  const isEmpty = values.includes(null);
  return {
    at, start, ends: [least, most].map(back), label: isLog ? `${label}, log scale` : label,
    ticks: lines.filter((line) => line.at >= start && line.at <= 1 && (line.isWhole || !isWhole)),
    apart: start && (!isLog ? "none" : isEmpty ? "0, none" : "0"), bins: isWhole ? Math.min(span, 60) : 60,
  };
};

/** The classes -> [{name, color, glyph}], none last. One named after a model has that model's colour and mark. */
const allClasses = () => {
  const names = [...new Set(HEAD.features.class)].sort((a, b) => (a == null) - (b == null));
  const owner = (name) => HEAD.models.findIndex((model) => SEVERAL && name.endsWith(` ${model}`));
  let next = SEVERAL ? 2 : 0;
  return names.map((name) => {
    const own = name == null ? RING : owner(name);
    const glyph = own >= 0 ? own % GLYPHS.length : next++ % RING;
    return { name, color: `--c${glyph}`, glyph, size: 1 };
  });
};

/** The looks of dots by class -> {kinds: place -> which look, looks: [{color, glyph, size}], key: nodes}. */
const looksByClass = (classes) => ({
  kinds: HEAD.features.class.map((name) => classes.findIndex((look) => look.name === name)), looks: classes, key: [],
});

/** The looks by a measure: the larger, the stronger and bigger; what has none is a ring. */
const looksByMeasure = (measure) => {
  const { at, start, ends, apart } = mapAxis({ ...measure, isWhole: false }, 0);
  const shades = Array.from({ length: RAMP }, (_, i) => ({ color: `--r${i}`, glyph: 0, size: 0.8 + i * 0.12 }));
  const none = { color: `--c${RING}`, glyph: RING, size: 0.8 };
  const kind = (x) => (x < start ? RAMP : Math.min(Math.floor(((x - start) / (1 - start)) * RAMP), RAMP - 1));
  const [low, high] = ends.map((x) => measure.show(x));
  const key = [low, el("i", shades.map(({ color }) => el("i", { vars: { background: `var(${color})` } }))), high];
  if (apart) key.push(el("span", glyphMark(none), apart));
  return { kinds: at.map(kind), looks: [...shades, none], key };
};

/** The mark of a look, for text. */
const glyphMark = ({ color, glyph }) =>
  el("span.mark", { vars: { color: `var(${color})` }, "aria-hidden": "true" }, GLYPHS[glyph]);
