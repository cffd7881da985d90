// The prompt view: the features that score highest at a chosen token of a prompt, by a chosen metric.

const METRICS = {
  act_quantile: ["Activation quantile", "highest by activation quantile on this token"],
  act_size: ["Activation", "highest by activation on this token"],
  loss_effect: ["Loss effect", "that help most to predict this token, by firing on the token before"],
};

/** The token whose activation a metric is about: for loss effects the one before. */
const firingPosition = (metric, position) => (metric === "loss_effect" ? position - 1 : position);

/** One feature of a prompt view: its score above its panels. */
const promptArticle = (ctx, score, { metric, position }) => {
  const { prompt } = ctx;
  const at = firingPosition(metric, position);
  if (at >= 0) ctx.rest = { value: prompt.a[at], label: `${quoted(prompt.t[at])} ${num(prompt.a[at])}` };
  const made = featureArticle(ctx, el("p", `${METRICS[metric][0]} = `, field("score", score)), "none");
  made.node.querySelectorAll("[data-panel=Prompt] [data-token]")[position]?.classList.add("here");
  return made;
};

/** A prompt's tokens as buttons -> {node, buttons}. A bar under each says how much fires there. */
const positionButtons = ({ tokens }, choose) => {
  const buttons = tokenTexts(tokens).map((text, position) => el("button.token", {
    data: { position }, "aria-label": `position ${position}: ${tokenText(tokens[position])}`,
    on: { click: () => choose(position) },
  }, ...spellIn(text)));
  return { node: el("div.prompt", { role: "group", "aria-label": "Token of the prompt" }, buttons), buttons };
};

/** The prompt, metric, scope and position in the address, where they exist. */
const choiceInAddress = () => {
  const { metric, each, scopes } = HEAD.prompts;
  const asked = new URLSearchParams(location.hash.slice(1));
  const [prompt, position, scope] = ["prompt", "p", "s"].map((name) => Number(asked.get(name) ?? 0));
  const known = each[prompt] && Object.hasOwn(each[prompt].scores, asked.get("m") ?? "")
    && position in each[prompt].tokens && scope in scopes;
  return known ? { prompt, metric: asked.get("m"), scope, position }
    : { prompt: 0, metric, scope: 0, position: each[0].position };
};

/** What is said where no feature scores. */
const nothingFires = ({ prompt, metric, scope, position }) => {
  const { each, scopes } = HEAD.prompts;
  const at = firingPosition(metric, position);
  const whose = scope ? ` of “${scopes[scope]}”` : "";
  const silent = each[prompt].scores[metric].flat(2).length === 0;
  return field("nothing", silent ? "No feature on this page fires on any token of this prompt."
    : at < 0 ? "Nothing predicts the first token, so no feature has a loss effect on it."
    : `No feature${whose} on this page fires on ${quoted(each[prompt].tokens[at])} at position ${at}.`, "p.none");
};

/** The prompt view -> {nodes, step, start}. */
const promptView = () => {
  const { each, scopes } = HEAD.prompts;
  const features = el("div.features");
  const caption = el("p.caption", { "aria-live": "polite" });
  const holder = el("div");
  let state = choiceInAddress();
  let shownFeatures = [];
  let positions = null;

  const show = async () => {
    const asked = state;
    const { tokens, scores } = each[asked.prompt];
    const best = scores[asked.metric][asked.scope][asked.position];
    const made = await Promise.all(best.map(([id, score]) =>
      readArticle(id, (ctx) => promptArticle(ctx, score, asked), asked.prompt)));
    if (asked !== state) return; // another was asked for meanwhile
    hideTip();
    if (holder.dataset.prompt !== String(asked.prompt)) {
      positions = positionButtons(each[asked.prompt], (position) => choose({ position }));
      holder.replaceChildren(positions.node);
      holder.dataset.prompt = asked.prompt;
    }
    shownFeatures = made.map(({ ctx }) => ctx).filter(Boolean);
    features.replaceChildren(...(made.length ? made.map(({ node }) => node) : [nothingFires(asked)]));
    features.dataset.shown = `${asked.metric} ${asked.position}`;
    features.scrollLeft = 0;
    const whose = asked.scope ? ` of ${scopes[asked.scope]}` : "";
    caption.textContent =
      `Features${whose} ${METRICS[asked.metric][1]}: ${quoted(tokens[asked.position])}, position ${asked.position}`;
    press(positions.buttons, asked.position);
  };
  const choose = (change) => {
    state = { ...state, ...change };
    const { prompt, metric, scope, position } = state;
    writeAddress(`m=${metric}&p=${position}${scope ? "&s=" + scope : ""}${prompt ? "&prompt=" + prompt : ""}`);
    return show();
  };
  const step = (by) => {
    const position = state.position + by;
    if (position in each[state.prompt].tokens) choose({ position });
  };

  const names = Object.keys(each[0].scores);
  const options = names.map((metric) => [METRICS[metric][0], { metric }]);
  const metrics = choice("Metric", options, names.indexOf(state.metric), (i) => choose({ metric: names[i] }));
  const texts = each.map(({ tokens }, i) => `${i + 1}. ${tokens.map(tokenText).join("").slice(0, 60)}`);
  const prompts = each.length > 1
    && dropDown("Prompt", texts, state.prompt, (prompt) => choose({ prompt, position: each[prompt].position }));
  const parts = scopes.length > 1 && dropDown("Features of", scopes, state.scope, (scope) => choose({ scope }));
  const redraw = () => shownFeatures.forEach(drawLoss);
  const bar = el("nav.bar", { "aria-label": "Prompt" }, prompts, metrics, parts, modelChoice(redraw), copyButton(), helpButton());
  return { nodes: [bar, el("main", holder, legend(), caption, features)], step, start: () => choose({}) };
};
