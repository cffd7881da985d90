// The widget's front end: the page in an iframe, and messages carried between it and Python (see live.py).

const WAITING = "Waiting for the kernel. If nothing appears, run this cell again.";

/** The frame the page is in: it runs its own script and can reach nothing else. */
const makeFrame = () => {
  const frame = document.createElement("iframe");
  frame.setAttribute("sandbox", "allow-scripts");
  frame.title = "Features on a prompt";
  Object.assign(frame.style, { display: "block", width: "100%", border: "0" });
  return frame;
};

/** Draw one view of the widget -> what takes it down. */
const render = ({ model, el }) => {
  const view = `${Date.now()} ${Math.random()}`; // several views share a model, and each hears every answer
  const frame = makeFrame();
  const fit = () => {
    frame.style.height = `${model.get("height")}px`;
  };
  const fromPage = ({ source, data }) => {
    if (source && source === frame.contentWindow) model.send({ ...data, view });
  };
  const fromPython = (message) => {
    if (message?.view !== view) return;
    if (message.kind !== "page") frame.contentWindow?.postMessage(message, "*"); // its origin has no name
    else if (message.error) el.textContent = message.error;
    else {
      frame.srcdoc = message.html;
      el.replaceChildren(frame);
    }
  };
  fit();
  el.textContent = WAITING;
  window.addEventListener("message", fromPage);
  model.on("msg:custom", fromPython);
  model.on("change:height", fit);
  model.send({ kind: "page", view });
  return () => {
    window.removeEventListener("message", fromPage);
    model.off("msg:custom", fromPython);
    model.off("change:height", fit);
  };
};

export default { render };
