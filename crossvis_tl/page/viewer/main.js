// Start: build the page, then listen.

/** Whether a key typed here is text, an arrow that moves inside a control, or the help's, wherever its focus is. */
const isTyping = (target) => document.querySelector("dialog[open]") !== null
  || (target instanceof Element && target.closest("input, select, textarea") !== null);

/** Keys of the whole page. */
const listenForKeys = (view) => {
  const keys = {
    j: () => view.step(1), ArrowRight: () => view.step(1), k: () => view.step(-1), ArrowLeft: () => view.step(-1),
    "/": view.find, m: view.map, "?": openHelp, c: HEAD.view !== "live" && copyLink, Escape: view.escape ?? dismissTip,
  };
  listen("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || isTyping(event.target)) return;
    const cell = event.target.closest?.("[data-token]");
    if (/^(Arrow|Enter$)/.test(event.key) && event.target.closest?.("[data-own-keys]")) return;
    const moves = cell && /^(Arrow|Home$|End$)/.test(event.key);
    if (!moves && !keys[event.key]) return;
    event.preventDefault();
    if (moves) moveInTokens(cell, event.key);
    else keys[event.key]();
  });
};

const main = () => {
  const view = HEAD.view === "live" ? liveView() : HEAD.view === "prompt" ? promptView() : featureView();
  const banner = HEAD.fidelity && fidelityBanner(HEAD.fidelity);
  const app = el("div", { id: "app", data: { view: HEAD.view } }, banner, pageHeader(), view.nodes, helpDialog());
  document.getElementById("app").replaceWith(app);
  listenForTips();
  listenForKeys(view);
  view.start();
};

main();
