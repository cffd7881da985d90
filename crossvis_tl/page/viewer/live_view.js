// The live view: a prompt is typed, Python says what fires on it, and any feature colours its tokens.

const LIVE_KEYS = [["/", "to the prompt"], ["Enter", "in the prompt: run it now; Shift+Enter for a new line"],
  ["↑ ↓", "in the list of features: from one to the next"]];
const STRONGEST = "The feature that fires most on the chosen token, whichever that is.";
const NOT_GATHERED = " was not gathered: name it in cfg.features for a dashboard.";
const INVITATION = "Type a prompt. Any feature colours its tokens; those that fire on a token are listed under it.";

/** The dashboard of a feature -> {node, show, take}: asked for once, and shown unless another was meanwhile. */
const liveArticle = (read) => {
  let [wanted, drawn] = [null, null];
  const holder = el("div");
  const losses = modelChoice(() => drawn && drawLoss(drawn));
  const say = (...nodes) => {
    holder.replaceChildren(...nodes);
    read((drawn = null));
  };
  const draw = async (feature) => {
    const made = await readArticle(feature, (ctx) => featureArticle(Object.assign(ctx, { rest: {} }), null, "none"));
    if (feature !== wanted) return;
    holder.replaceChildren(el("div.over", legend(), losses ?? ""), made.node);
    read((drawn = made.ctx ?? null));
  };
  const show = (feature) => {
    if (feature === wanted) return;
    wanted = feature;
    if (feature == null) say();
    else if (!PLACE.has(feature)) say(el("p.none.bare", called(feature), NOT_GATHERED));
    else if (document.getElementById(`f${feature}`)) draw(feature);
    else tell({ kind: "open", feature });
  };
  const take = ({ feature, packed, error }) => {
    if (packed) document.body.append(el("script", { type: "t", id: `f${feature}` }, packed));
    if (feature !== wanted) return;
    if (packed) draw(feature);
    else say(brokenArticle(feature, { message: error }));
  };
  return { node: holder, show, take };
};

/** Where a prompt is typed -> {node, text, say}. */
const promptField = (now, soon) => {
  const said = el("p.said", { id: "said", role: "status" }, "Waiting for the kernel…");
  const keydown = (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    now();
  };
  const text = el("textarea", {
    rows: 1, placeholder: "Type a prompt", spellcheck: "false", "aria-label": "Prompt", "aria-describedby": "said",
    on: { input: soon, keydown },
  });
  const say = (words, isError = false) => {
    said.textContent = words;
    said.classList.toggle("error", isError);
  };
  return { node: el("section.ask", { "aria-label": "Text to run" }, text, said), text, say };
};

/** What the prompt can be coloured by -> {node, draw}: any feature, the pinned ones, or the strongest at a token. */
const colourBar = (choose) => {
  const box = el("input", {
    placeholder: "Colour by feature #", "aria-label": "Colour by feature, its number or label", autocomplete: "off",
    on: { keydown: ({ key }) => key === "Enter" && box.value.trim() && tell({ kind: "find", text: box.value }) },
  });
  const chips = el("div.choice.colours", { role: "group", "aria-label": "Coloured by" });
  let pinned = {}; // what a press of the button chooses
  const pin = el("button.button", { data: { action: "pin" }, on: { click: () => choose(pinned) } });
  const draw = ({ feature, pins }, shown) => {
    const all = [null, ...pins, ...(feature == null || pins.includes(feature) ? [] : [feature])];
    const button = (one) => el("button", {
      data: { colour: one ?? "strongest", ...(one == null && { help: STRONGEST }) },
      on: { click: () => choose({ feature: one }) },
    }, one == null ? "Strongest here" : called(one));
    chips.replaceChildren(...all.map(button));
    press([...chips.children], all.indexOf(feature));
    const isPinned = pins.includes(shown);
    pin.hidden = shown == null;
    pin.textContent = isPinned ? "Unpin" : "Pin";
    pinned = { feature: shown, pins: isPinned ? pins.filter((one) => one !== shown) : [...pins, shown] };
  };
  const node = el("nav.bar", { "aria-label": "Colour" }, el("div.jump", box), chips, pin, helpButton());
  return { node, draw, clear: () => (box.value = "") };
};

/** How many of the tokens a feature fires on, and what its shades mean. */
const shadeKey = (feature, acts, most, here) => feature != null && [
  el("span", called(feature), ` fires on ${acts.filter(Boolean).length} of ${acts.length} tokens`),
  el("span", el("span.ramp"), `0 to ${num(most)}, its largest ${most > here ? "in the data" : "here"}`)];

/** The tokens, their colours and what fires on the chosen one -> {nodes, draw, read, clear}. */
const promptDesk = (choose) => {
  const holder = el("div", { data: { panel: "Typed" } });
  const key = el("p.legend");
  const list = el("section", { data: { panel: "Firing" }, on: { keydown: moveInHits } });
  let [tokens, article, rest] = [null, null, () => {}];

  const listeners = [(cell) => article?.listeners.forEach((show) => show(cell))];
  const dashboard = liveArticle((ctx) => {
    article = ctx;
    rest();
  });
  const drawList = (answer, at, feature) => {
    const hadFocus = list.contains(document.activeElement);
    list.replaceChildren(...hitList(answer, at, (one) => choose({ feature: one })));
    const hits = [...list.querySelectorAll(".rank")];
    const chosen = hits.findIndex(({ dataset }) => Number(dataset.feature) === feature);
    press(hits, chosen);
    const enter = hits[Math.max(chosen, 0)];
    enter?.setAttribute("tabindex", 0);
    if (hadFocus) enter?.focus();
  };
  const read = ({ t }) => {
    if (tokens?.seq.t.join() === t.join()) return;
    hideTip();
    tokens = typedTokens(t, listeners, (at) => choose({ at }));
    holder.replaceChildren(tokens.node);
  };
  const clear = () => {
    tokens = null;
    for (const node of [key, list]) node.replaceChildren();
    holder.replaceChildren(field("nothing", INVITATION, "p.none"));
  };
  const draw = (answer, at, feature) => {
    dashboard.show(feature);
    if (!tokens) return;
    const acts = answer.of(feature);
    const here = largest(acts.map(Math.abs));
    const most = Math.max(here, PLACE.has(feature) ? record(feature).max : 0);
    tokens.paint(acts, most);
    tokens.mark(at);
    key.replaceChildren(...(shadeKey(feature, acts, most, here) || []));
    drawList(answer, at, feature);
    rest = () => { // the chosen token's place in the dashboard's histogram
      if (article) Object.assign(article.rest, { value: acts[at], label: `${quoted(answer.t[at])} ${num(acts[at])}` });
      listeners[0](null);
    };
    rest();
  };
  const node = el("main", holder, key, el("div.desk", list, dashboard.node));
  clear();
  return { node, draw, read, clear, take: dashboard.take };
};

/** The live view -> {nodes, step, find, start}. */
const liveView = () => {
  KEYS.push(...LIVE_KEYS);
  let [answer, summary] = [null, ""];
  let state = { feature: null, pins: [], at: null }; // null: the strongest feature, the last token
  const at = () => Math.min(state.at ?? Infinity, answer.t.length - 1);
  const shown = () => state.feature ?? answer?.hits[at()]?.[0]?.[0] ?? null;
  const draw = () => {
    bar.draw(state, shown());
    desk.draw(answer, answer && at(), shown());
  };
  const choose = (change) => {
    state = { ...state, ...change };
    const { feature } = state;
    if (answer && !answer.whole && feature != null && !PLACE.has(feature)) asks.now(); // not all of it need be here
    draw();
  };
  const asks = exchange(
    () => ({ text: prompt.text.value, feature: state.feature, pins: state.pins }),
    (busy) => desk.node.setAttribute("aria-busy", busy));
  const prompt = promptField(asks.now, asks.soon);
  const desk = promptDesk(choose);
  const bar = colourBar(choose);
  const step = (by) => {
    if (answer?.hits[at() + by]) choose({ at: at() + by });
  };
  const say = (words, isError) => {
    prompt.say(words, isError);
    desk.node.classList.toggle("stale", isError);
  };

  const heard = {
    start: ({ text, feature, pins }) => {
      say("", false);
      prompt.text.value ||= text;
      choose({ feature, pins });
      if (prompt.text.value) asks.now();
    },
    answer: (message) => {
      if (!asks.take(message.seq)) return;
      if (message.error) {
        say(message.error, true);
        return;
      }
      answer = readAnswer(message);
      const { t, fired } = answer;
      if (t.length) desk.read(answer);
      else desk.clear();
      const mean = fired.reduce((sum, n) => sum + n, 0) / t.length;
      summary = t.length ? `${count(t.length)} tokens, ${num(mean, 1)} features a token` : "";
      say(summary, false);
      draw();
    },
    found: ({ feature, label, error }) => {
      prompt.say(error ?? summary, Boolean(error));
      if (error) return;
      CALLED.set(feature, label);
      bar.clear();
      choose({ feature });
    },
    dashboard: desk.take,
  };
  window.addEventListener("message", ({ source, data }) => {
    if (source === parent && Object.hasOwn(heard, data?.kind)) heard[data.kind](data);
  });
  const start = () => {
    const help = document.getElementById("help");
    help.querySelector("form").addEventListener("click", (event) => { // a sandbox forbids to send forms, this one too
      event.preventDefault();
      help.close();
    });
    draw();
    tell({ kind: "hello" });
  };
  return { nodes: [prompt.node, bar.node, desk.node], step, find: () => prompt.text.focus(), start };
};
