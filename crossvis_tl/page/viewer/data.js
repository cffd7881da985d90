// The page's data: the head is read at once, a feature when it is shown.

/** @type {object} see contract.py, Head */
const HEAD = JSON.parse(document.getElementById("head").textContent);
const SEVERAL = HEAD.models.length > 1; // models
const PLACE = new Map(HEAD.features.id.map((id, place) => [id, place]));
const MARKS = ["●", "■", "▲", "◆"]; // one shape a model, so that colour is not all that tells them apart
const KEPT = 60; // inflated features kept in memory

const inflated = new Map();

/** What the index knows of a feature: {id, label, density, max, class}. */
const record = (id) => {
  const place = PLACE.get(id);
  const { label, density, max, class: kind } = HEAD.features;
  return { id, label: label[place], density: density[place], max: max[place], class: kind[place] };
};

/** The feature's tag, as soon as the file has been read that far. */
const payloadTag = async (id) => {
  for (;;) {
    const tag = document.getElementById(`f${id}`);
    if (tag?.nextElementSibling || document.readyState !== "loading") return tag;
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
};

const TAKEN = { "\u0080": 0, "\u0081": 13, "\u0082": 60 }; // see encode.py

/** Text of seven bits a character -> bytes. */
const fromSevenBits = (text) => {
  const bytes = new Uint8Array((text.length * 7) >> 3);
  let [held, count, at] = [0, 0, 0];
  for (const character of text) {
    held = ((held << 7) | (TAKEN[character] ?? character.charCodeAt(0))) & 0x3fff;
    count += 7;
    if (count < 8) continue;
    count -= 8;
    bytes[at++] = (held >> count) & 255;
  }
  return bytes;
};

/** A column of whole numbers out of the bytes behind the JSON, see encode.py. */
const wholeNumbers = (bytes, start, count, signed) => {
  const width = Math.abs(signed);
  return Array.from({ length: count }, (_, i) => {
    let x = 0;
    for (let plane = width - 1; plane >= 0; plane--) x = x * 256 + bytes[start + plane * count + i];
    return signed > 0 ? x : x % 2 ? -(x + 1) / 2 : x / 2;
  });
};

/** JSON with columns behind it -> its value. */
const readColumns = (bytes) => {
  const end = bytes.indexOf(10);
  let at = end + 1;
  return JSON.parse(new TextDecoder().decode(bytes.subarray(0, end)), (_, value) => {
    if (!value?.$) return value;
    const [count, width] = value.$;
    const column = wholeNumbers(bytes, at, count, width);
    at += count * Math.abs(width);
    return column;
  });
};

/** The text of a feature's tag -> its value. */
const inflate = async (text) => {
  if (!("DecompressionStream" in window)) {
    throw new Error("this browser cannot inflate data; Chrome 103, Firefox 113, Safari 16.4 and later can");
  }
  const stream = new Response(fromSevenBits(text)).body.pipeThrough(new DecompressionStream("deflate-raw"));
  return readColumns(new Uint8Array(await new Response(stream).arrayBuffer()));
};

const NO_EFFECT = -1; // in place of a probability, see pack.py

/** A column of numbers, see pack.py. */
const numbers = ([places, whole]) => whole.map((x) => x / 10 ** places);

/** Tokens raised or lowered at each token: null, or pairs of token and change. */
const movedPairs = ({ n, of, id, v, part }) => {
  const largests = numbers(v);
  let [at, list, other] = [0, 0, 0];
  return n.map((count) => {
    if (!count) return null;
    const most = largests[list++];
    return Array.from({ length: Math.abs(count) }, (_, i) =>
      [of[id[at++]], count > 0 && !i ? most : (most * part[other++]) / 50]);
  });
};

/** One model's effects along all tokens. */
const effectColumns = (effect, tokens) => {
  const logits = numbers(effect.logit);
  const own = new Map();
  for (const token of tokens) if (!own.has(token)) own.set(token, logits[own.size]);
  const spread = (column, none) => {
    let at = 0;
    return effect.p.map((p) => (p === NO_EFFECT ? none : column[at++]));
  };
  return {
    logit: tokens.map((token) => own.get(token)), p: effect.p.map((p) => (p < 0 ? null : p / 100)),
    loss: spread(numbers(effect.loss), 0), up: spread(movedPairs(effect.up), null), down: spread(movedPairs(effect.down), null),
  };
};

/** Each source's share at each token, from those of the tokens that fire. */
const shareColumns = (sources, acts) =>
  sources.map((column) => {
    const shares = numbers(column);
    let at = 0;
    return acts.map((act) => (act ? shares[at++] : 0));
  });

/** Sequences out of their columns, see contract.py, TokenSequence. */
const unpack = (packed) => {
  if (!packed) return [];
  const acts = numbers(packed.a);
  const effects = packed.e.map((effect) => effectColumns(effect, packed.t));
  const shares = shareColumns(packed.s ?? [], packed.a[1]);
  let end = 0;
  return packed.n.map((length, i) => {
    const start = end;
    end += length;
    const cut = (column) => column.slice(start, end);
    return {
      t: cut(packed.t), a: cut(acts), bold: packed.bold[i], row: packed.row[i], pos: packed.pos[i], doc: packed.doc?.[i],
      e: effects.map((effect) => Object.fromEntries(Object.entries(effect).map(([name, column]) => [name, cut(column)]))),
      s: shares.map(cut),
    };
  });
};

/** A feature as it is written -> contract.py, FeaturePayload. */
const unpackFeature = (packed) => {
  const pairs = ([tokens, ...column]) => numbers(column).map((value, i) => [tokens[i], value]);
  const logits = packed.logits.map((one) => ({ ...one, top: pairs(one.top), bottom: pairs(one.bottom) }));
  const examples = unpack(packed.examples);
  const { title, low, high, share, n } = packed.groups;
  let end = 0;
  const groups = n.map((length, i) => ({
    title: title[i], low: low[i], high: high[i], share: share[i], sequences: examples.slice(end, (end += length)),
  }));
  return { ...packed, logits, groups, prompts: unpack(packed.prompts) };
};

/** A feature's data, see contract.py, FeaturePayload. The ones seen last are kept. */
const payload = async (id) => {
  const data = inflated.get(id) ?? unpackFeature(await inflate((await payloadTag(id)).textContent));
  inflated.delete(id);
  inflated.set(id, data);
  if (inflated.size > KEPT) inflated.delete(inflated.keys().next().value);
  return data;
};

/**
 * All that the panels of one shown feature share. `listeners` are called with the token under the pointer or focus,
 * or null; `cells` are the token elements; shades are relative to `maxAct` and `maxLoss` (one a model).
 */
const makeContext = (id, data, prompt = null) => {
  const all = data.groups.flatMap((group) => group.sequences).concat(data.prompts[prompt] ?? []);
  const losses = (model) => all.flatMap((seq) => seq.e[model]?.loss ?? []).map(Math.abs);
  return {
    ...record(id), data, prompt: data.prompts[prompt], listeners: [], cells: [],
    maxAct: largest(all.flatMap((seq) => seq.a.map(Math.abs))), maxLoss: HEAD.models.map((_, model) => largest(losses(model))),
  };
};

/** The shape and colour that stand for a model. */
const modelMark = (model) =>
  el("span.mark", { data: { model: model % 4 }, "aria-hidden": "true" }, MARKS[model % 4]);

/** A model's name, behind its mark where there are several. */
const modelName = (model) =>
  el("span.model", SEVERAL && modelMark(model), HEAD.models[model]);
