// Finding a feature by number, label or token: a text field with a list of matches under it.

const LISTED = 50;

/** Matches of a query, best first; without one, the current feature and its neighbours -> [{id, token}]. */
const matches = (query, current) => {
  const found = search(query.trim() && query);
  const near = () => HEAD.features.id.slice(Math.max(PLACE.get(current) - 3, 0)).map((id) => ({ id, token: null }));
  return (found ? bestFirst(found) : near()).slice(0, LISTED);
};

/** One match, with the token that matched where it is for that. */
const matchOption = ({ id, token }) => {
  const { label, density, max, class: name } = record(id);
  return el("li", { id: `option-${id}`, role: "option", data: { optionId: id } },
    el("b", `#${id}`), el("span.label", label || name || ""),
    token != null && el("span.fires", "fires on", chip(token, { class: "hit" })),
    el("span.stats", max > 0 ? `${percent(density, 2)} · max ${num(max, 2)}` : "dead"));
};

/** Make an option the one that Enter opens. */
const selectOption = (input, option) => {
  if (!option) return;
  option.parentElement.querySelector("[aria-selected]")?.removeAttribute("aria-selected");
  option.setAttribute("aria-selected", true);
  option.scrollIntoView({ block: "nearest" });
  input.setAttribute("aria-activedescendant", option.id);
};

/** Fill the list with what matches, or say that nothing does. */
const fillMatches = (input, list, current) => {
  const found = matches(input.value, current).map(matchOption);
  list.replaceChildren(...(found.length ? found : [el("li.none", "No feature has this number, label or token.")]));
  list.hidden = false;
  input.setAttribute("aria-expanded", true);
  selectOption(input, found.find(({ dataset }) => !input.value && Number(dataset.optionId) === current) ?? found[0]);
};

/** The field and its list. `current()` is the id shown, `go` opens another. */
const jumpBox = (current, go) => {
  const list = el("ul", { id: "matches", role: "listbox", "aria-label": "Features", tabindex: -1, hidden: true });
  const input = el("input", {
    role: "combobox", placeholder: "Find a feature", "aria-label": "Find a feature by number, label or token text",
    "aria-controls": "matches", "aria-expanded": "false", autocomplete: "off", data: { field: "jump" },
  });
  const open = () => fillMatches(input, list, current());
  const close = () => {
    input.value = "";
    input.blur();
    list.hidden = true;
    input.setAttribute("aria-expanded", false);
  };
  const choose = (option) => {
    if (!option) return;
    close();
    go(Number(option.dataset.optionId));
  };
  const selected = () => list.querySelector("[aria-selected]");
  const keys = {
    ArrowDown: () => selectOption(input, selected()?.nextElementSibling),
    ArrowUp: () => selectOption(input, selected()?.previousElementSibling),
    Enter: () => choose(selected()), Escape: close,
  };
  input.addEventListener("focus", open);
  input.addEventListener("input", open);
  input.addEventListener("blur", close);
  input.addEventListener("keydown", (event) => {
    if (!keys[event.key]) return;
    event.preventDefault();
    keys[event.key]();
  });
  list.addEventListener("mousedown", (event) => {
    event.preventDefault();
    choose(event.target.closest("[data-option-id]"));
  });
  return { node: el("div.jump", input, el("kbd", "/"), list), focus: () => input.focus() };
};
