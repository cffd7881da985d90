// Finding a feature by number or label: a text field with a list of matches under it.

const LISTED = 50;

/** Ids that match a query, best first; without one, the current feature's neighbours. */
const matches = (query, current) => {
  const { id: ids, label: labels } = HEAD.features;
  const wanted = query.trim().toLowerCase().replace(/^#/, "");
  if (!wanted) return ids.slice(Math.max(PLACE.get(current) - 3, 0)).slice(0, LISTED);
  const begins = ids.filter((id) => String(id).startsWith(wanted)).sort((a, b) => a - b);
  const labelled = ids.filter((id, i) => !String(id).startsWith(wanted) && labels[i].toLowerCase().includes(wanted));
  return [...begins, ...labelled].slice(0, LISTED);
};

/** One match. */
const matchOption = (id) => {
  const { label, density, max, class: name } = record(id);
  return el("li", { id: `option-${id}`, role: "option", data: { optionId: id } },
    el("b", `#${id}`), el("span.label", label || name || ""),
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
  list.replaceChildren(...(found.length ? found : [el("li.none", "No feature has this number or label.")]));
  list.hidden = false;
  input.setAttribute("aria-expanded", true);
  selectOption(input, found.find(({ dataset }) => !input.value && Number(dataset.optionId) === current) ?? found[0]);
};

/** The field and its list. `current()` is the id shown, `go` opens another. */
const jumpBox = (current, go) => {
  const list = el("ul", { id: "matches", role: "listbox", "aria-label": "Features", hidden: true });
  const input = el("input", {
    role: "combobox", placeholder: "Find a feature", "aria-label": "Find a feature by number or label",
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
