"""Which features a command is to show: "0,5,10-20", "L3F7", "L3", "top:50" or "all"."""

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from crossvis_tl.dictionary import Dictionary
from crossvis_tl.errors import short_list

if TYPE_CHECKING:
    from crossvis_tl.feature_acts import FeatureActs

GRAMMAR = 'numbers and ranges ("0,5,10-20"), labels ("L3F7"), layers ("L3"), "top:50" (by maximum) or "all"'


def top_count(text: str) -> int | None:
    """50 for "top:50"; None for anything else. ValueError for a top: without a count."""
    text = text.strip()
    if not text.startswith("top:"):
        return None
    count = text.removeprefix("top:")
    if not count.isdecimal() or int(count) == 0:
        raise ValueError(f"--features {text!r}: after 'top:' comes how many, such as top:50")
    return int(count)


def parse_features(
    text: str, dictionary: Dictionary, layer: int | None = None, there: Sequence[int] | None = None
) -> list[int] | None:
    """Feature numbers in the order given, each once; None for "all" and "top:N", which need no list beforehand.

    `layer`: only features that read it; numbers are then those within the layer ("0,5": L3F0 and L3F5), and "all" and
    "top:N" give all of its features. `there`: those that were gathered, default all; a layer, asked for as a whole,
    gives those of it that are there, while one by one features are given as they are named. ValueError for what cannot
    be read or is out of range, and for a layer of which nothing is there.
    """
    text = text.strip()
    within = None if layer is None else dictionary.of_layer(layer)
    if text == "all" or top_count(text) is not None:
        return None if within is None else _gathered(within, f"layer {layer}", dictionary, there)
    features: dict[int, None] = {}
    for part in filter(None, (piece.strip() for piece in text.split(","))):
        features.update(dict.fromkeys(_expand(part, dictionary, within, there)))
    if not features:
        raise ValueError(f"--features {text!r} names no feature; give {GRAMMAR}")
    outside = [] if within is None else [feature for feature in features if feature not in within]
    if outside:
        raise ValueError(f"--features {text!r}: {dictionary.label(outside[0])} is not of layer {layer}")
    return list(features)


def _gathered(wanted: range, what: str, dictionary: Dictionary, there: Sequence[int] | None) -> list[int]:
    """Those of a layer's features that are there. ValueError where none is."""
    if there is None:
        return list(wanted)
    known = set(there)
    found = [feature for feature in wanted if feature in known]
    if not found:
        groups = sorted({dictionary.locate(feature)[0] for feature in known if 0 <= feature < dictionary.n_features})
        names = short_list(dictionary.groups[group].name for group in groups)
        others = f", of {names}" if names else ""
        raise ValueError(f"--features: no feature of {what} is there; there are {len(known):,} others{others}")
    return found


def _expand(part: str, dictionary: Dictionary, within: range | None, there: Sequence[int] | None) -> list[int]:
    span = re.fullmatch(r"(\d+)(?:-(\d+))?", part)
    if span:
        first, last = int(span[1]), int(span[2] or span[1])
        if first > last:
            raise ValueError(f"the range {part!r} runs backwards")
        if within is None:
            dictionary.check_features([first, last])
            return list(range(first, last + 1))
        if last >= len(within):
            raise ValueError(f"feature {last} is out of range: this layer has features 0 to {len(within) - 1}")
        return list(within[first : last + 1])
    try:
        if not re.fullmatch(r"[lL]\d+", part):
            return [dictionary.find(part)]
        layer = dictionary.of_layer(int(part[1:]))
    except ValueError as error:
        raise ValueError(f"--features: {error} Give {GRAMMAR}") from error
    return _gathered(layer, f"layer {part[1:]}", dictionary, there)


def strongest(acts: "FeatureActs", count: int) -> list[int]:
    """Indices of the `count` gathered features with the largest activations (by magnitude: some fire below zero), dead
    ones left out."""
    maxima = acts.strengths()
    order = maxima.argsort(descending=True, stable=True)[:count]
    return [int(i) for i in order if maxima[i] > 0]
