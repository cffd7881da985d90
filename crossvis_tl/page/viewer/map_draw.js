// Drawing the map's scatter: dots and the histograms along its edges on a canvas, axes as SVG.
// A look is {x, y: axes, kinds: place -> which of the looks, looks: [{color, glyph, size}], shown: places}.

const EDGE = { left: 74, right: 46, top: 46, bottom: 46 };
const MANY = 1200; // from here on dots are smaller and see-through
const CORNERS = [
  null, [-.85, -.85, .85, -.85, .85, .85, -.85, .85], [0, -1.15, 1.1, .8, -1.1, .8], [0, -1.2, 1.2, 0, 0, 1.2, -1.2, 0],
  [0, 1.15, 1.1, -.8, -1.1, -.8],
]; // of each glyph, as x, y, x, y ...; null and none: round

/** The outline of a dot around a point. */
const drawGlyph = (pen, glyph, x, y, r) => {
  const corners = CORNERS[glyph];
  pen.beginPath();
  if (!corners) pen.arc(x, y, r, 0, 7);
  else for (let i = 0; i < corners.length; i += 2) pen.lineTo(x + corners[i] * r, y + corners[i + 1] * r);
  pen.closePath();
};

/** From axes, 0 to 1, to pixels of a plot of some size, and back. */
const pixels = (width, height) => {
  const [across, up] = [width - EDGE.left - EDGE.right, height - EDGE.top - EDGE.bottom];
  const part = (x) => Math.min(Math.max(x, 0), 1);
  return {
    across, up, left: (at) => EDGE.left + at * across, top: (at) => EDGE.top + (1 - at) * up,
    back: ([x, y]) => [part((x - EDGE.left) / across), part(1 - (y - EDGE.top) / up)],
  };
};

/** Counts of the shown dots along one axis, in their colours: `bar(from, to, base, length)` draws a piece of one. */
const drawHeap = (pen, { shown, kinds, looks }, { at, start, bins }, color, bar) => {
  const counts = Array.from({ length: bins }, () => [0]); // all, then each kind
  for (const place of shown) {
    const bin = counts[Math.min(Math.floor(((at[place] - start) / (1 - start)) * bins), bins - 1)] ?? [];
    for (const i of [0, kinds[place] + 1]) bin[i] = (bin[i] ?? 0) + 1;
  }
  const unit = (EDGE.top - 10) / (largest(counts.map(([all]) => all)) || 1);
  const edge = (i) => start + (i * (1 - start)) / bins;
  pen.globalAlpha = 0.75;
  counts.forEach(([, ...bin], i) => bin.reduce((base, n = 0, kind) => {
    pen.fillStyle = color(looks[kind].color);
    bar(edge(i), edge(i + 0.9), base * unit, n * unit);
    return base + n;
  }, 0));
};

/** Dots that are left out as faint specks, then the others, then the heaps along the edges. */
const drawDots = (pen, look, { left, top }, color) => {
  const { shown, kinds, looks, x, y } = look;
  const [ground, styles, isIn] = [color("--card"), looks.map((each) => color(each.color)), new Set(shown)];
  const [radius, alpha] = shown.length > 4000 ? [2.3, 0.55] : shown.length > MANY ? [3, 0.7] : [4, 0.9];
  pen.globalAlpha = 0.45;
  pen.fillStyle = color("--soft");
  x.at.forEach((at, place) => isIn.has(place) || pen.fillRect(left(at) - 0.75, top(y.at[place]) - 0.75, 1.5, 1.5));
  pen.globalAlpha = alpha;
  for (const place of shown) {
    const [{ glyph, size }, style] = [looks[kinds[place]], styles[kinds[place]]];
    drawGlyph(pen, glyph, left(x.at[place]), top(y.at[place]), radius * size);
    [pen.fillStyle, pen.strokeStyle] = glyph === RING ? [ground, style] : [style, ground];
    pen.fill();
    if (glyph === RING || shown.length <= MANY) pen.stroke();
  }
  drawHeap(pen, look, x, color, (from, to, base, n) =>
    pen.fillRect(left(from), EDGE.top - 4 - base - n, left(to) - left(from), n));
  drawHeap(pen, look, y, color, (from, to, base, n) =>
    pen.fillRect(left(1) + 4 + base, top(to), n, top(from) - top(to)));
};

/** One axis: lines, numbers, and the strip of what has no place on it. */
const axisLines = ({ ticks: lines, apart }, anchor, line, place) =>
  [...lines, ...(apart ? [{ at: STRIP / 2, text: apart, edge: STRIP }] : [])].map(({ at, text, edge }) => [
    el(edge ? "svg:path.grid.apart" : "svg:path.grid", { d: line(edge ?? at) }),
    el(`svg:text.${anchor}`, place(at), text)]);

/** The frame of a plot, its axes and their names. */
const plotFrame = ({ x, y }, { across, up, left, top }) => [
  el("svg:path.grid", { d: `M${EDGE.left} ${EDGE.top}h${across}v${up}h${-across}z` }),
  axisLines(x, "middle", (at) => `M${left(at)} ${EDGE.top}v${up}`, (at) => ({ x: left(at), y: top(0) + 18 })),
  axisLines(y, "end", (at) => `M${EDGE.left} ${top(at)}h${across}`, (at) => ({ x: EDGE.left - 8, y: top(at) + 4 })),
  el("svg:text.middle.strong", { x: left(0.5), y: top(0) + 38 }, x.label),
  el("svg:text.middle.strong", { transform: `translate(16 ${top(0.5)}) rotate(-90)` }, y.label),
].flat(2);
