"""Which features a command is to show: "0,5,10-20", "L3F7", "top:50" or "all"."""

import re
from typing import TYPE_CHECKING

from crossvis_tl.dictionary import Dictionary

if TYPE_CHECKING:
    from crossvis_tl.feature_acts import FeatureActs

GRAMMAR = 'numbers and ranges ("0,5,10-20"), labels ("L3F7"), "top:50" (highest maximum activation) or "all"'


def top_count(text: str) -> int | None:
    """50 for "top:50"; None for anything else. ValueError for a top: without a count."""
    text = text.strip()
    if not text.startswith("top:"):
        return None
    count = text.removeprefix("top:")
    if not count.isdecimal() or int(count) == 0:
        raise ValueError(f"--features {text!r}: after 'top:' comes how many, such as top:50")
    return int(count)


def parse_features(text: str, dictionary: Dictionary) -> list[int] | None:
    """Feature numbers in the order given, each once; None for "all" and "top:N", which need no list beforehand.

    ValueError for what cannot be read or is out of range.
    """
    text = text.strip()
    if text == "all" or top_count(text) is not None:
        return None
    features: dict[int, None] = {}
    for part in filter(None, (piece.strip() for piece in text.split(","))):
        features.update(dict.fromkeys(_expand(part, dictionary)))
    if not features:
        raise ValueError(f"--features {text!r} names no feature; give {GRAMMAR}")
    return list(features)


def _expand(part: str, dictionary: Dictionary) -> list[int]:
    span = re.fullmatch(r"(\d+)-(\d+)", part)
    if span:
        first, last = int(span[1]), int(span[2])
        if first > last:
            raise ValueError(f"the range {part!r} runs backwards")
        dictionary.check_features([first, last])
        return list(range(first, last + 1))
    try:
        return [dictionary.find(part)]
    except ValueError as error:
        raise ValueError(f"--features: {error} Give {GRAMMAR}") from error


def strongest(acts: "FeatureActs", count: int) -> list[int]:
    """Indices of the `count` gathered features with the largest activations (by magnitude: some fire below zero), dead
    ones left out."""
    maxima = acts.strengths()
    order = maxima.argsort(descending=True, stable=True)[:count]
    return [int(i) for i in order if maxima[i] > 0]
