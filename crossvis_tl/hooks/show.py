"""The hook table as a terminal or another program reads it."""

import json
import re
from collections.abc import Iterator, Sequence

from rich.text import Text

from crossvis_tl.hooks.record import TRANSFORM_WORDS, Hook

LAYER = re.compile(r"(?<=\.)(\d+)(?=\.|$)")
STATUS_STYLE = {"exact": "", "transformed": "yellow", "absent": "dim"}


def as_json(rows: Sequence[Hook]) -> str:
    return json.dumps([row.as_dict() for row in rows], indent=1)


def details(row: Hook) -> Text:
    """One row, a line for each thing known."""
    parts = [
        ("TransformerLens", row.name),
        ("HuggingFace", row.hf_name),
        ("status", row.status),
        ("made from", " and ".join(row.reads) if row.transform != "none" else None),
        ("by", TRANSFORM_WORDS[row.transform] or None),
        ("width", row.width),
        ("note", row.note or None),
    ]
    return Text("\n".join(f"{name:<16}{value}" for name, value in parts if value is not None))


def table_lines(rows: Sequence[Hook], *, collapse: bool) -> Iterator[Text]:
    """The rows in columns, the notes under them; with `collapse`, layers that are alike stand in one row, with {L}.

    Lines are as long as they are: a name that was cut could not be copied.
    """
    notes: dict[str, int] = {}
    cells = [("TransformerLens", "HuggingFace", "status", "width")]
    styles = ["bold"]
    for row, layers in _collapsed(rows) if collapse else [(row, "") for row in rows]:
        mark = f" [{notes.setdefault(_general(row.note), len(notes) + 1)}]" if row.note else ""
        status = row.transform if row.status == "transformed" else row.status
        name, place = _name(row, collapse) + layers, _place(row, collapse)
        cells.append((name, place, status + mark, str(row.width or "")))
        styles.append(STATUS_STYLE[row.status])
    widths = [max(len(cell[i]) for cell in cells) for i in range(4)]
    for cell, style in zip(cells, styles, strict=True):
        yield Text("  ".join(part.ljust(width) for part, width in zip(cell, widths, strict=True)).rstrip(), style=style)
    for note, number in notes.items():
        yield Text(f"[{number}] {note}")


def _collapsed(rows: Sequence[Hook]) -> Iterator[tuple[Hook, str]]:
    """Rows that differ in their layer alone, once, with the layers where not all have them."""
    n_layers = len({row.layer for row in rows if row.layer is not None})
    found: dict[tuple, list[Hook]] = {}
    for row in rows:
        key = (_general(str(row.name)), _general(str(row.hf_name)), row.status, row.transform, _general(row.note))
        found.setdefault(key, []).append(row)
    for same in found.values():
        layers = [row.layer for row in same if row.layer is not None]
        some = bool(layers) and len(layers) < n_layers
        yield same[0], f" (layers {', '.join(map(str, layers))})" if some else ""


def _general(text: str) -> str:
    return LAYER.sub("{L}", text)


def _name(row: Hook, collapse: bool) -> str:
    name = " + ".join(row.reads) if len(row.reads) > 1 else row.name or "-"
    return _general(name) if collapse else name


def _place(row: Hook, collapse: bool) -> str:
    place = row.hf_name or "-"
    return _general(place) if collapse else place
