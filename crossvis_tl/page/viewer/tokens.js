// Tokens as text. The text content of their elements is exactly the token; signs for what cannot be seen (↵ ⇥ U+200B)
// are drawn by the style sheet.

const UNSEEN = /^ +| +$|(?![\u200c\u200d])[\p{Cc}\p{Cf}\p{Zl}\p{Zp}\p{Cs}\u00a0]/gu;
const SIGNS = { "\n": "↵", "\t": "⇥", "\r": "␍", "\u00a0": "⍽" };

/** The text of a vocabulary entry. */
const tokenText = (token) => HEAD.vocabulary[token] ?? `(no token ${token})`;

const PART = /[\udc80-\udcff]/u; // a loose byte of a character that several tokens share, see vocabulary.py

/** The sign for a character that cannot be seen. */
const sign = (character) => {
  const code = character.codePointAt(0).toString(16).toUpperCase();
  return SIGNS[character] ?? (PART.test(character) ? `\\x${code.slice(2)}` : `U+${code.padStart(4, "0")}`);
};

/** The bytes of a text, loose ones among them. */
const bytesOf = (text) => [...text].flatMap((character) =>
  PART.test(character) ? [character.codePointAt(0) & 255] : [...new TextEncoder().encode(character)]);

/** Bytes as text, or null where a character is not whole. */
const decoded = (bytes) => {
  try {
    return new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(new Uint8Array(bytes));
  } catch {
    return null;
  }
};

/**
 * Texts of a run of tokens, with characters that are split over several of them put together: the first one shows the
 * whole, the others null.
 */
const tokenTexts = (tokens) => {
  const texts = tokens.map(tokenText);
  for (let at = 0; at < texts.length; at++) {
    let [bytes, end, whole] = [[], at, null];
    while (whole == null && end < texts.length && PART.test(texts[end])) {
      bytes = [...bytes, ...bytesOf(texts[end++])];
      whole = decoded(bytes);
    }
    if (whole == null) continue; // nothing loose, or the rest is cut off
    texts.fill(null, at, end);
    texts[at] = whole;
    at = end - 1;
  }
  return texts;
};

/** What is drawn of a token in a run: its text, or that the one before shows it. */
const spellIn = (text) =>
  text == null ? [el("span.sign", { data: { sign: "⋯" }, title: "the rest of the character before" })] : spell(text);

/** What `UNSEEN` found -> elements: a faint dot for each space, a sign for anything else. */
const unseen = (stretch) =>
  stretch[0] === " "
    ? [...stretch].map((space) => el("span.space", space))
    : [el("span.sign", { data: { sign: sign(stretch) } }, stretch)];

/** The nodes that spell a string, with what cannot be seen made visible. */
const spell = (text) => {
  const nodes = [];
  let end = 0;
  for (const { 0: stretch, index } of text.matchAll(UNSEEN)) {
    nodes.push(text.slice(end, index), ...unseen(stretch));
    end = index + stretch.length;
  }
  return [...nodes, text.slice(end)].filter((node) => node !== "");
};

/** A token by itself, as in tables and tooltips. */
const chip = (token, props = {}) =>
  el("span", { ...props, class: `token ${props.class ?? ""}` }, ...spell(tokenText(token)));

/** A token as plain text, for charts and labels. */
const quoted = (token) => {
  const text = tokenText(token).replace(UNSEEN, (stretch) => (stretch[0] === " " ? stretch : sign(stretch)));
  return `“${text.length > 18 ? text.slice(0, 17) + "…" : text}”`;
};
