"""Python objects to the text inside the page's inert tags.

A feature is deflated JSON in base64: the browser inflates only the features that are looked at, and the text can hold
nothing that ends a tag. The head stays readable JSON with every character escaped that HTML could act on.
"""

import base64
import json
import math
import zlib
from collections.abc import Mapping

_ACTIVE_IN_HTML = str.maketrans({character: f"\\u{ord(character):04x}" for character in "<>&\u2028\u2029"})


def deflate(value: Mapping[str, object], what: str) -> str:
    """-> base64 of the zlib stream of compact JSON, as `DecompressionStream("deflate")` takes it."""
    return base64.b64encode(zlib.compress(to_json(value, what).encode("ascii"))).decode("ascii")


def inert_json(value: Mapping[str, object], what: str) -> str:
    """-> JSON that can stand inside a script tag, whatever its strings say."""
    return to_json(value, what).translate(_ACTIVE_IN_HTML)


def to_json(value: Mapping[str, object], what: str) -> str:
    """-> compact ASCII JSON. Lone surrogates survive as escapes.

    `what` names the value in the error for what JSON cannot carry: "feature 12".
    """
    try:
        return json.dumps(dict(value), ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{what} cannot be written to a page: {find_culprit(value) or error}") from error


def find_culprit(value: object, path: str = "") -> str | None:
    """-> "groups[0].low is nan, not a finite number", the first part of `value` that JSON cannot carry, or None."""
    if isinstance(value, float):
        return None if math.isfinite(value) else f"{path} is {value}, not a finite number"
    if isinstance(value, Mapping):
        parts = ((f"{path}.{key}" if path else str(key), part) for key, part in value.items())
    elif isinstance(value, list | tuple):
        parts = ((f"{path}[{i}]", part) for i, part in enumerate(value))
    elif value is None or isinstance(value, str | int):
        return None
    else:
        return f"{path} is of type {type(value).__name__}; turn it into plain numbers, strings, lists and dicts"
    return next((found for name, part in parts if (found := find_culprit(part, name))), None)
