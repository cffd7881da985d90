"""Descriptions of features that were made elsewhere (`label_files` says by whom), put to a dictionary's features."""

from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crossvis_tl.dictionary import Dictionary
from crossvis_tl.encoders import as_dictionary
from crossvis_tl.errors import short_list
from crossvis_tl.label_files import Row, pairs, read_rows

Find = Callable[[int | None, int], int | None]


@dataclass(frozen=True)
class Labels:
    """What was read of one place, `name`, before it is known of which dictionary's features."""

    name: str
    rows: list[Row]

    @classmethod
    def of(cls, given: "Labels | str | Path | Mapping[Any, str]") -> "Labels":
        """What was read already, what lies at a path, or {3: "dates"} and {"L3F7": "dates"} themselves. Errors as
        `load_labels`."""
        if isinstance(given, Labels):
            return given
        if isinstance(given, Mapping):
            return cls("labels", [row for row in pairs("labels", given) if row.text])
        return cls(str(given), read_rows(Path(given)))

    def on(self, known: Any = None, *, layer: int | str | None = None) -> dict[int, str]:
        """As `load_labels`."""
        rows = [row for row in self.rows if row.may_be_of(layer)]
        if self.rows and not rows:
            names = short_list(sorted({repr(row.layer) for row in self.rows}))
            raise ValueError(f"{self.name} describes no feature of layer {layer!r}; its layers are {names}")
        layered, find = _places(known)
        given = layer if isinstance(layer, int) else None
        placed = [(given if row.at is None else row.at, row) for row in rows]
        self._check_layers(placed, layered)
        best: dict[int, Row] = {}
        for at, row in placed:
            try:
                feature = find(at if layered else None, row.index)
            except ValueError as error:
                raise ValueError(f"{row.where}: {error}") from error
            if feature is not None and (feature not in best or row.rank > best[feature].rank):
                best[feature] = row
        return {feature: row.text for feature, row in best.items()}

    def _check_layers(self, placed: list[tuple[int | None, Row]], layered: bool) -> None:
        """ValueError where descriptions of different dictionaries would fall on the same features."""
        names: dict[int | None, dict[str, Row]] = defaultdict(dict)
        for at, row in placed:
            if row.layer is not None:
                names[at if layered else None].setdefault(row.layer, row)
        for at, found in names.items():
            name, row = next(iter(found.items()))
            if layered and at is None:
                raise ValueError(f"{row.where}: {name!r} says no number of a layer; give it with layer=")
            if len(found) > 1:
                which = short_list(map(repr, found))
                raise ValueError(
                    f"{self.name} describes features of {which}, which would fall on the same ones; say which is meant "
                    "with layer="
                )


def load_labels(path: str | Path, dictionary_or_data: Any = None, *, layer: int | str | None = None) -> dict[int, str]:
    """Descriptions that lie in a file or folder (of the kinds that `label_files` names) -> feature number -> text.

    `dictionary_or_data`: whose features they are of: a dictionary, whatever `SaeVisData.create` takes for one, or
    dashboards. A transcoder's features are found by layer and index; where no layer is named, an index is a number
    that runs through all layers, as on the page. Without it every index is taken for the feature's number.

    `layer`: take this layer's alone (a number, or the file's own name: "3-res-jb"), and where the file names none, the
    layer that its indices are in. Of several descriptions of one feature the best scored is taken, else the newest,
    else the first; what is empty describes nothing.

    FileNotFoundError, or ValueError naming the line for what cannot be read, features that the dictionary does not
    have, and descriptions of several layers for a dictionary that has one.
    """
    return Labels.of(path).on(dictionary_or_data, layer=layer)


def _places(known: Any) -> tuple[bool, Find]:
    """-> whether features have layers; from layer and index to the number: ValueError for a feature that is not there,
    None for one that dashboards without their dictionary do not show."""
    if known is None:
        return False, lambda at, index: index
    panels = getattr(known, "panels", None)
    if panels is None:
        return _in_dictionary(known if isinstance(known, Dictionary) else as_dictionary(known))
    if known.capture is not None:
        return _in_dictionary(known.capture.dictionary)
    if isinstance(known.encoder, Dictionary):
        return _in_dictionary(known.encoder)
    if known.encoder is not None:
        return _in_dictionary(as_dictionary(known.encoder, known.cfg.hook_point))
    named = {panel.label: feature for feature, panel in panels.items()}
    layered = any(label != str(feature) for label, feature in named.items())
    return layered, lambda at, index: index if at is None else named.get(f"L{at}F{index}")


def _in_dictionary(dictionary: Dictionary) -> tuple[bool, Find]:
    names = [group.name for group in dictionary.groups]
    first = dict(zip(names, dictionary.offsets, strict=False))
    sizes = {group.name: group.n_features for group in dictionary.groups}

    def find(at: int | None, index: int) -> int:
        if at is not None and index < sizes.get(f"L{at}", 0):
            return first[f"L{at}"] + index
        return dictionary.find(str(index) if at is None else f"L{at}F{index}")  # which says what is wrong

    return len(names) > 1, find
