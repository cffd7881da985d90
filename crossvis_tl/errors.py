"""Words shared by the errors people meet: near misses, lists kept short, and warnings."""

import operator
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from difflib import SequenceMatcher, get_close_matches
from typing import Any


class CrossvisWarning(UserWarning):
    """A result was made but should be looked at with doubt; the text says why."""


class ModelMismatchError(ValueError):
    """The model does not fit: its logits differ from HuggingFace's, or a dictionary was trained on another."""


def near_misses(name: str, known: Iterable[str], limit: int = 3) -> str:
    """-> " Did you mean 'a' or 'b'?" for the known names nearest to `name`, or "" where none is near."""
    matches = get_close_matches(name, [k for k in known if k], n=limit, cutoff=0.5)
    if not matches:
        return ""
    # beside a name that is one slip away, a distant one only distracts
    likeness = [SequenceMatcher(None, match, name).ratio() for match in matches]
    matches = [match for match, ratio in zip(matches, likeness, strict=True) if ratio > likeness[0] - 0.25]
    return f" Did you mean {' or '.join(repr(match) for match in matches)}?"


def check_word(name: str, value: str, known: Sequence[str]) -> None:
    """ValueError with near misses unless `value` is one of `known`."""
    if value not in known:
        hint = near_misses(str(value), known)
        raise ValueError(f"{name}={value!r}; expected {', '.join(map(repr, known))}.{hint}")


def short_list(items: Iterable[object], limit: int = 8) -> str:
    """-> "a, b, c and 12 more"."""
    texts = [str(item) for item in items]
    if len(texts) <= limit:
        return ", ".join(texts)
    return f"{', '.join(texts[:limit])} and {len(texts) - limit} more"


def first_line(error: Exception) -> str:
    """Other libraries' errors run over pages; their first line says what went wrong."""
    text = str(error).strip()
    line = text.splitlines()[0] if text else type(error).__name__
    return re.sub(r"\x1b\[[0-9;]*m", "", line).rstrip(". ")


def whole_numbers(values: Iterable[object], what: str, expected: str) -> list[int]:
    """-> the values as ints. ValueError naming the first that is no whole number: 1.5 is not quietly 1, nor True 1.

    `what` holds them ("cfg.features"); `expected` says what they should be ("feature numbers 0 to 39").
    """
    if isinstance(values, str | bytes) or not isinstance(values, Iterable):
        raise ValueError(f"{what} is {values!r}; expected {expected}")
    numbers = []
    for value in values:
        try:
            number = operator.index(value)  # type: ignore[arg-type]
        except TypeError:
            number = None
        if number is None or isinstance(value, bool):
            raise ValueError(f"{what} holds {value!r}; expected {expected}")
        numbers.append(number)
    return numbers


def feature_numbers(features: object, what: str) -> list[int]:
    """One feature or several -> their numbers. ValueError when there are none, one is no number, or one comes twice."""
    one = isinstance(features, int) and not isinstance(features, bool)
    numbers = whole_numbers([features] if one else features, what, "feature numbers")  # type: ignore[arg-type]
    if not numbers:
        raise ValueError(f"{what} is empty; give numbers, or None for all features")
    twice = [number for number, count in Counter(numbers).items() if count > 1]
    if twice:
        raise ValueError(f"{what} names feature {twice[0]} twice")
    return numbers


def parse_facts(texts: Iterable[str]) -> dict[str, Any]:
    """["k=32", "input_scale=0.28,0.24"] -> {"k": 32, "input_scale": [0.28, 0.24]}. ValueError for other spellings."""
    facts: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name.isidentifier() or not value:
            raise ValueError(f"fact {text!r}; expected NAME=VALUE, such as k=32")
        parts = [_value(part.strip()) for part in value.split(",")]
        facts[name] = parts if len(parts) > 1 else parts[0]
    return facts


def _value(text: str) -> object:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return {"true": True, "false": False}.get(text.lower(), text)


class MissingFact(ValueError):
    """What encoding needs and the files do not say. `fact`: its name in `load_dictionary`; `stand_in`: a value with
    which the rest of the files can be looked at."""

    def __init__(self, fact: str, text: str, stand_in: object):
        super().__init__(text)
        self.fact, self.stand_in = fact, stand_in
