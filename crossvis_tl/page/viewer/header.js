// What stands above the features: verdict, title, facts, legend, and the help.

const VERDICTS = { plausible: ["✓", "Plausible"], doubtful: ["!", "Doubtful"], implausible: ["✕", "Implausible"] };

/** FVU at each site, L0 and dead share. */
const fidelityTable = ({ sites, l0, dead }) => {
  const heads = [...sites.map(({ label }) => `FVU ${label}`), "L0", "Dead"];
  const fvus = sites.map(({ fvu }, i) => el("td", { data: { siteFvu: i } }, num(fvu)));
  return el("div.scroll", table("table", heads, [[...fvus, field("l0", num(l0, 1), "td"), field("dead", percent(dead, 1), "td")]]));
};

/** The banner, loud when the dictionary is implausible. */
const fidelityBanner = (fidelity) => {
  const [icon, word] = VERDICTS[fidelity.verdict];
  const role = fidelity.verdict === "implausible" ? "alert" : "region";
  return el("section.fidelity", { role, "aria-label": "Fidelity", data: { verdict: fidelity.verdict } },
    el("div.says",
      el("p.verdict", el("span.icon", { "aria-hidden": "true" }, icon), el("b", word)),
      el("p.headline", fidelity.headline), EXTRA.losses?.(fidelity),
      fidelity.warnings.length > 0 && el("ul", fidelity.warnings.map((warning) => el("li", warning)))),
    (EXTRA.quality ?? fidelityTable)(fidelity));
};

/** "resid_pre 4, resid_pre 8 and 3 more". */
const siteList = (sites) => {
  const labels = sites.map(({ label }) => label);
  return labels.length <= 4 ? labels.join(", ") : `${labels.slice(0, 3).join(", ")} and ${labels.length - 3} more`;
};

/** The small print. */
const factList = () => {
  const [reads, writes] = [siteList(HEAD.sources), siteList(HEAD.targets)];
  const facts = [...(reads === writes ? [["sites", reads]] : [["reads", reads], ["writes", writes]]), ...HEAD.facts];
  const list = el("dl.facts", facts.map(([name, text]) => text && el("div", el("dt", name), el("dd", text))));
  const masked = HEAD.facts.find(([name]) => name === "masked")?.[1];
  const about = el("details.about", el("summary", "About these numbers", masked && [" · masked: ", masked]), list);
  const wide = matchMedia("(min-width: 721px)"); // on a narrow screen they would fill the first one
  const follow = () => (about.open = wide.matches);
  wide.addEventListener("change", follow);
  follow();
  return about;
};

const KINDS = { sae: "Sparse autoencoder", crosscoder: "Crosscoder", clt: "Cross-layer transcoder",
  plt: "Transcoder" };

const pageHeader = () =>
  el("header.head", el("h1", HEAD.title),
    el("p.kind", KINDS[HEAD.kind], " of", HEAD.models.map((_, model) => [" ", modelName(model)])), factList());

/** Press one of some buttons. */
const press = (buttons, chosen) => buttons.forEach((button, i) => button.setAttribute("aria-pressed", i === chosen));

/** Buttons of which one is chosen. An option is what the button says, and its data attributes. */
const choice = (label, options, chosen, choose) => {
  const buttons = options.map(([content, data], i) => el("button", { data, on: { click: () => {
    press(buttons, i);
    choose(i);
  } } }, content));
  press(buttons, chosen);
  return el("div.choice", { role: "group", "aria-label": label }, buttons);
};

/** Pick one of many by a list. */
const dropDown = (label, names, chosen, choose) => {
  const select = el("select.button", { "aria-label": label, on: { change: () => choose(select.selectedIndex) } },
    names.map((name, i) => el("option", { value: i }, name)));
  select.selectedIndex = chosen;
  return select;
};

/** With several models: whose loss effects are drawn. */
const modelChoice = (redraw) => {
  if (!SEVERAL) return null;
  const models = HEAD.models.map((_, model) => [modelName(model), { lossModel: model }]);
  const pick = choice("Model whose loss effects are drawn", models, lossModel, (model) => {
    lossModel = model;
    redraw();
  });
  return el("div.pick", "Loss effect on", pick);
};

/** How to read the sequences. */
const legend = () => {
  const key = (name) => el(`span.${name}`);
  return el("p.legend",
    el("span", key("ramp"), "activation"), el("span", el("u", "largest"), " in its row"),
    el("span", key("key.helps"), "helps"), el("span", key("key.hurts"), "hurts"),
    el("span", "bars: effect of the feature at the token before on predicting this one, in nats; negative helps"));
};

const KEYS = [
  ["j or →", `next ${ON_PAGE ? "feature" : "token"}`], ["k or ←", `previous ${ON_PAGE ? "feature" : "token"}`],
  ...(ON_PAGE ? [["/", "find features by number, label or token; a token's leading space counts: “ return”"]] : []),
  ...(HAS_MAP ? [
    ["m", "the map of all features, and back"],
    ["↑ ↓", "in the map's table or among its dots; Enter opens one"],
    ["drag", "a box in the map keeps the dots inside it"],
  ] : []),
  ["Tab", "into the sequences; then arrow keys from token to token"],
  ["c", "copy the link to what is shown"], ["Esc", `close what is open${HAS_MAP ? "; in the map: clear the filter, then go back" : ""}`], ["?", "this help"],
];
const READING = [
  "A token's shade is the feature's activation on it, relative to the largest shown. The number before a row is that of its bold token.",
  "The bar under a token is the loss effect, in nats: how much worse it is predicted because the feature fired on the token before. Raised and lowered tokens are changes in log-probability of that prediction.",
  "A faint dot is a leading space, ↵ a line break, ⇥ a tab.",
];

/** The help, a dialog. */
const helpDialog = () => {
  const keys = KEYS.map(([key, what]) => el("div", el("dt", el("kbd", key)), el("dd", what)));
  return el("dialog", { id: "help", "aria-label": "Help" },
    el("h2", "Keys, and how to read this page"), el("dl", keys),
    READING.map((line) => el("p", line)),
    el("form", { method: "dialog" }, el("button.button", "Close")));
};

/** The address of what is shown; inside a notebook only its end. */
const shownLink = () => (/^(file|https?):/.test(location.protocol) ? location.href : shownHash);

/** Put a text on the clipboard, by the old way where a browser refuses the new one -> whether it is there. */
const toClipboard = async (text) => {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    const [focused, area] = [document.activeElement, el("textarea.unseen")];
    area.value = text;
    document.body.append(area);
    area.select();
    const done = document.execCommand("copy");
    area.remove();
    focused?.focus({ preventScroll: true });
    return done;
  }
};

/** Copy the link to what is shown, and say so. */
const copyLink = async () => {
  const button = document.querySelector("nav:not([hidden]) > [data-action=copy]");
  button.textContent = (await toClipboard(shownLink())) ? "Copied" : "Not copied";
  setTimeout(() => (button.textContent = "Copy link"), 1500);
};

const copyButton = () =>
  el("button.button.copy", { data: { action: "copy" }, "aria-live": "polite", on: { click: copyLink } }, "Copy link");

const helpButton = () =>
  el("button.button.round", { data: { action: "help" }, "aria-label": "Help", on: { click: openHelp } }, "?");

const openHelp = () => {
  hideTip();
  document.getElementById("help").showModal();
};
