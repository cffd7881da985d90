// The page's data: the head is read at once, a feature when it is shown.

/** @type {object} see contract.py, Head */
const HEAD = JSON.parse(document.getElementById("head").textContent);
const SEVERAL = HEAD.models.length > 1; // models
const PLACE = new Map(HEAD.features.id.map((id, place) => [id, place]));
const MARKS = ["●", "■", "▲", "◆"]; // one shape a model, so that colour is not all that tells them apart
const KEPT = 60; // inflated features kept in memory

const parsed = new Promise((resolve) => {
  if (document.readyState !== "loading") resolve();
  else document.addEventListener("DOMContentLoaded", () => resolve(), { once: true });
});
const inflated = new Map();

/** What the index knows of a feature: {id, label, density, max, class}. */
const record = (id) => {
  const place = PLACE.get(id);
  return Object.fromEntries(Object.entries(HEAD.features).map(([name, column]) => [name, column[place]]));
};

/** The feature's tag, as soon as the file has been read that far. */
const payloadTag = async (id) => {
  const early = document.getElementById(`f${id}`);
  if (early?.nextElementSibling) return early;
  await parsed;
  return document.getElementById(`f${id}`);
};

/** Base64 of a zlib stream of JSON -> its value. */
const inflate = async (text) => {
  if (!("DecompressionStream" in window)) {
    throw new Error("this browser cannot inflate data; Chrome 80, Firefox 113, Safari 16.4 and later can");
  }
  const packed = Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
  return new Response(new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"))).json();
};

/** A feature's data, see contract.py, FeaturePayload. The ones seen last are kept. */
const payload = async (id) => {
  const data = inflated.get(id) ?? (await inflate((await payloadTag(id)).textContent));
  inflated.delete(id);
  inflated.set(id, data);
  if (inflated.size > KEPT) inflated.delete(inflated.keys().next().value);
  return data;
};

/**
 * All that the panels of one shown feature share. `listeners` are called with the token under the pointer or focus,
 * or null; `cells` are the token elements; shades are relative to `maxAct` and `maxLoss` (one a model).
 */
const makeContext = (id, data) => {
  const all = data.groups.flatMap((group) => group.sequences).concat(data.prompt ?? []);
  const losses = (model) => all.flatMap((seq) => seq.e[model]?.loss ?? []).map(Math.abs);
  return {
    ...record(id), data, listeners: [], cells: [],
    maxAct: largest(all.flatMap((seq) => seq.a.map(Math.abs))), maxLoss: HEAD.models.map((_, model) => largest(losses(model))),
  };
};

/** The shape and colour that stand for a model. */
const modelMark = (model) =>
  el("span.mark", { data: { model: model % 4 }, "aria-hidden": "true" }, MARKS[model % 4]);

/** A model's name, behind its mark where there are several. */
const modelName = (model) =>
  el("span.model", SEVERAL && modelMark(model), HEAD.models[model]);
