// The prompt view: the features that score highest at a chosen token of the prompt, by a chosen metric.

const METRICS = {
  act_quantile: ["Activation quantile", "highest by activation quantile on this token"],
  act_size: ["Activation", "highest by activation on this token"],
  loss_effect: ["Loss effect", "that help most to predict this token, by firing on the token before"],
};

/** The token whose activation a metric is about: for loss effects the one before. */
const firingPosition = (metric, position) => (metric === "loss_effect" ? position - 1 : position);

/** One feature of a prompt view: its score above its panels. */
const promptArticle = (ctx, score, { metric, position }) => {
  const { prompt } = ctx.data;
  const at = firingPosition(metric, position);
  if (at >= 0) ctx.rest = { value: prompt.a[at], label: `${quoted(prompt.t[at])} ${num(prompt.a[at])}` };
  const made = featureArticle(ctx, el("p", `${METRICS[metric][0]} = `, field("score", score)), "none");
  made.node.querySelectorAll("[data-panel=Prompt] [data-token]")[position]?.classList.add("here");
  return made;
};

/** The prompt's tokens as buttons -> {node, update}. */
const positionButtons = (choose) => {
  const buttons = HEAD.prompt.tokens.map((token, position) => el("button.token", {
    data: { position }, "aria-label": `position ${position}: ${tokenText(token)}`,
    on: { click: () => choose(position) },
  }, ...spell(tokenText(token))));
  const node = el("div.prompt", { role: "group", "aria-label": "Token of the prompt" }, buttons);
  return { node, update: (position) => press(buttons, position) };
};

/** The metric and position in the address, where they exist. */
const choiceInAddress = () => {
  const { metric, position, scores, tokens } = HEAD.prompt;
  const [, name, place] = /^#m=(\w+)&p=(\d+)$/.exec(location.hash) ?? [];
  const known = Object.hasOwn(scores, name ?? "") && Number(place) < tokens.length;
  return known ? { metric: name, position: Number(place) } : { metric, position };
};

/** What is said where no feature scores. */
const nothingFires = ({ metric, position }) => {
  const at = firingPosition(metric, position);
  return field("nothing", at < 0
    ? "Nothing predicts the first token, so no feature has a loss effect on it."
    : `No feature on this page fires on ${quoted(HEAD.prompt.tokens[at])} at position ${at}.`, "p.none");
};

/** The prompt view -> {nodes, step, start}. */
const promptView = () => {
  const { scores, tokens } = HEAD.prompt;
  const features = el("div.features");
  const caption = el("p.caption", { "aria-live": "polite" });
  let state = choiceInAddress();
  let shownFeatures = [];

  const show = async () => {
    const asked = state;
    const best = scores[asked.metric][asked.position];
    const made = await Promise.all(best.map(([id, score]) => readArticle(id, (ctx) => promptArticle(ctx, score, asked))));
    if (asked !== state) return; // another was asked for meanwhile
    hideTip();
    shownFeatures = made.map(({ ctx }) => ctx).filter(Boolean);
    features.replaceChildren(...(made.length ? made.map(({ node }) => node) : [nothingFires(asked)]));
    features.dataset.shown = `${asked.metric} ${asked.position}`;
    features.scrollLeft = 0;
    caption.textContent = `Features ${METRICS[asked.metric][1]}: ${quoted(tokens[asked.position])}, position ${asked.position}`;
    positions.update(asked.position);
  };
  const choose = (change) => {
    state = { ...state, ...change };
    writeAddress(`m=${state.metric}&p=${state.position}`);
    return show();
  };
  const step = (by) => {
    const position = state.position + by;
    if (position >= 0 && position < tokens.length) choose({ position });
  };

  const positions = positionButtons((position) => choose({ position }));
  const names = Object.keys(scores);
  const options = names.map((metric) => [METRICS[metric][0], { metric }]);
  const metrics = choice("Metric", options, names.indexOf(state.metric), (i) => choose({ metric: names[i] }));
  const redraw = () => shownFeatures.forEach(drawLoss);
  const bar = el("nav.bar", { "aria-label": "Prompt" }, metrics, modelChoice(redraw), helpButton());
  return { nodes: [bar, el("main", positions.node, legend(), caption, features)], step, start: () => choose({}) };
};
