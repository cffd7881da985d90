// The map's scatter: the ways to point at dots, to open them and to draw a box around some.

const WAYS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

/** How far a dot is for an arrow key: aside of its way counts more; Infinity behind. */
const strayOf = ([right, down]) => (dx, dy) => {
  const ahead = dx * right + dy * down;
  return ahead > 1 ? ahead + 3 * Math.abs(dx * down + dy * right) : Infinity;
};

/**
 * The scatter -> {node, draw, set, point}. `open(place)` is called for the dot chosen, `boxed(box)` with the box drawn,
 * as {x: [low, high], y} on axes from 0 to 1, or null. `card(place)` makes what is shown beside a dot.
 */
const scatter = ({ open, boxed, card }) => {
  const canvas = el("canvas");
  const frame = el("svg:svg", { "aria-hidden": "true" });
  const [ring, band] = [el("div.ring", { hidden: true }), el("div.band", { hidden: true })];
  const node = el("div.plot", {
    tabindex: 0, role: "application", data: { ownKeys: "" },
    "aria-label": "Scatter of the features in the table. Arrow keys go from dot to dot, Enter opens one.",
  }, frame, canvas, band, ring);
  const look = {}; // see map_draw.js; with `box` and `rest`, the dot that is ringed when none is pointed at
  let at = null; // pixels
  let [pointed, drag, held] = [null, false, {}]; // the dot; whether a button is down; the press last begun

  const spot = (place) => [at.left(look.x.at[place]), at.top(look.y.at[place])];
  const mark = () => {
    const place = pointed ?? look.rest;
    ring.hidden = place == null || !at;
    if (ring.hidden) return;
    node.dataset.pointed = HEAD.features.id[place];
    [ring.style.left, ring.style.top] = spot(place).map((x) => `${x}px`);
  };
  const placeBand = (box) => {
    look.box = box;
    band.hidden = !box;
    if (!box) return;
    const [left, right, bottom, top] = [...box.x.map(at.left), ...box.y.map(at.top)];
    const edges = { left, top, width: right - left, height: bottom - top };
    for (const [name, value] of Object.entries(edges)) band.style[name] = `${value}px`;
  };
  const set = (change) => Object.assign(look, change);

  /** Draw again: new data, another size, other colours. */
  const draw = () => {
    const { clientWidth: width, clientHeight: height } = node;
    if (!width) return;
    at = pixels(width, height);
    const [styles, pen] = [getComputedStyle(node), canvas.getContext("2d")];
    Object.assign(canvas, { width: width * devicePixelRatio, height: height * devicePixelRatio });
    pen.scale(devicePixelRatio, devicePixelRatio);
    frame.replaceChildren(...plotFrame(look, at));
    drawDots(pen, look, at, (name) => styles.getPropertyValue(name));
    placeBand(look.box);
    mark();
  };

  /** Point at a dot, with its card if wanted, or at none. */
  const point = (place, withCard = false) => {
    pointed = place;
    mark();
    if (withCard && place != null) showTip(ring, card(place));
    else hideTip();
  };

  /** Of the shown dots the one of least `cost(dx, dy)` from a point, if below `limit`. */
  const nearest = ([x, y], cost, limit = Infinity) => {
    let best = null;
    for (const place of look.shown) {
      const far = cost(at.left(look.x.at[place]) - x, at.top(look.y.at[place]) - y);
      if (far < limit) [best, limit] = [place, far];
    }
    return best;
  };
  const pointer = ({ clientX, clientY }) => {
    const { left, top } = node.getBoundingClientRect();
    return [clientX - left, clientY - top];
  };
  const under = (event) => nearest(pointer(event), Math.hypot, 14);
  const boxAround = (...ends) => {
    const [one, other] = ends.map(at.back);
    const [x, y] = one.map((value, i) => [value, other[i]].sort((a, b) => a - b));
    return { x, y };
  };
  const on = (type, listener) => node.addEventListener(type, listener);

  on("pointerdown", (event) => {
    if (event.button) return;
    [drag, held] = [true, { from: pointer(event), isBox: false, was: pointed, isTouch: event.pointerType === "touch" }];
    canvas.setPointerCapture(event.pointerId);
  });
  on("pointermove", (event) => {
    const to = pointer(event);
    if (drag) held.isBox ||= Math.hypot(to[0] - held.from[0], to[1] - held.from[1]) > 5;
    const isBox = drag && held.isBox;
    const found = isBox ? null : under(event);
    if (found !== pointed || (found != null && tip.hidden)) point(found, true);
    if (isBox) placeBand(boxAround(held.from, to));
  });
  on("pointerup", () => {
    if (drag && held.isBox) boxed(look.box);
    drag = false;
  });
  on("click", (event) => { // after the pointer left, if it is a finger; that is shown the card first
    const found = under(event);
    if (held.isBox) return;
    if (found == null) boxed(null);
    else if (held.isTouch && held.was !== found) point(found, true);
    else open(found);
  });
  on("pointercancel", () => {
    drag = false;
    boxed(null);
  });
  on("pointerleave", () => drag || held.isTouch || point(null));
  on("blur", () => point(null));
  on("keydown", (event) => {
    if (event.key === "Enter" && pointed != null) open(pointed);
    if (!WAYS[event.key] || !look.shown.length) return;
    event.preventDefault();
    const from = pointed ?? look.rest ?? look.shown[0];
    point(pointed == null ? from : nearest(spot(from), strayOf(WAYS[event.key])) ?? from, true);
  });

  new ResizeObserver(draw).observe(node);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  return { node, draw, set, point };
};
