// Finding features by number, label or the text of a token they fire on, without inflating any.

const HAS_MAP = HEAD.view === "feature" && HEAD.layout.map != null;

/**
 * Features that match a query -> Map of place to {rank, token}, or null if nothing is asked. Spaces count for tokens
 * (" return") and not for labels; a line break is typed ↵ or \n. `rank`: 0 the number itself, 1 it begins so, 2 label,
 * 3 a token just so, 4 in a token. `token` is the one that matches, if any.
 */
const search = (query) => {
  if (!query) return null;
  const { id: ids, label: labels, tokens } = HEAD.features;
  const text = query.replace(/\\n|↵/g, "\n").replace(/\\t|⇥/g, "\t").toLowerCase();
  const wanted = query.trim().toLowerCase();
  const number = /^#?(\d+)$/.exec(wanted)?.[1];
  const words = HEAD.vocabulary.map((word) => word.toLowerCase());
  const found = new Map();
  ids.forEach((id, place) => {
    const hits = tokens[place].filter((token) => words[token].includes(text));
    const token = hits.find((hit) => words[hit] === text) ?? hits[0] ?? null;
    const ranks = [String(id) === number, number && String(id).startsWith(number),
      wanted && labels[place].toLowerCase().includes(wanted), words[token] === text, token != null];
    const rank = ranks.findIndex(Boolean);
    if (rank >= 0) found.set(place, { rank, token });
  });
  return found;
};

/** What `search` found, best first -> [{id, token}], with the token only where nothing else matches. */
const bestFirst = (found) => {
  const ids = HEAD.features.id;
  const order = ([a, one], [b, other]) => one.rank - other.rank || (one.rank < 2 ? ids[a] - ids[b] : a - b);
  return [...found].sort(order).map(([place, { rank, token }]) => ({ id: ids[place], token: rank > 2 ? token : null }));
};
