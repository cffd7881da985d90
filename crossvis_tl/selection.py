"""Which features a command is to show: "0,5,10-20", "L3F7", "L3", "top:50" or "all"."""

import re
from typing import TYPE_CHECKING

from crossvis_tl.dictionary import Dictionary

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


def parse_features(text: str, dictionary: Dictionary, layer: int | None = None) -> list[int] | None:
    """Feature numbers in the order given, each once; None for "all" and "top:N", which need no list beforehand.

    `layer`: only features that read it; numbers are then those within the layer ("0,5": L3F0 and L3F5), and "all" and
    "top:N" give all of its features. ValueError for what cannot be read or is out of range.
    """
    text = text.strip()
    within = None if layer is None else dictionary.of_layer(layer)
    if text == "all" or top_count(text) is not None:
        return None if within is None else list(within)
    features: dict[int, None] = {}
    for part in filter(None, (piece.strip() for piece in text.split(","))):
        features.update(dict.fromkeys(_expand(part, dictionary, within)))
    if not features:
        raise ValueError(f"--features {text!r} names no feature; give {GRAMMAR}")
    outside = [] if within is None else [feature for feature in features if feature not in within]
    if outside:
        raise ValueError(f"--features {text!r}: {dictionary.label(outside[0])} is not of layer {layer}")
    return list(features)


def _expand(part: str, dictionary: Dictionary, within: range | None) -> list[int]:
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
        if re.fullmatch(r"[lL]\d+", part):
            return list(dictionary.of_layer(int(part[1:])))
        return [dictionary.find(part)]
    except ValueError as error:
        raise ValueError(f"--features: {error} Give {GRAMMAR}") from error


def strongest(acts: "FeatureActs", count: int) -> list[int]:
    """Indices of the `count` gathered features with the largest activations (by magnitude: some fire below zero), dead
    ones left out."""
    maxima = acts.strengths()
    order = maxima.argsort(descending=True, stable=True)[:count]
    return [int(i) for i in order if maxima[i] > 0]
