// Tokens as text. The text content of their elements is exactly the token; signs for what cannot be seen (↵ ⇥ U+200B)
// are drawn by the style sheet.

const UNSEEN = /^ +| +$|(?![\u200c\u200d])[\p{Cc}\p{Cf}\p{Zl}\p{Zp}\p{Cs}\u00a0]/gu;
const SIGNS = { "\n": "↵", "\t": "⇥", "\r": "␍", "\u00a0": "⍽" };

/** The text of a vocabulary entry. */
const tokenText = (token) => HEAD.vocabulary[token] ?? `(no token ${token})`;

/** The sign for a character that cannot be seen. */
const sign = (character) =>
  SIGNS[character] ?? `U+${character.codePointAt(0).toString(16).toUpperCase().padStart(4, "0")}`;

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
