"""Python objects to the text inside the page's inert tags.

A feature is compact JSON and, behind it, byte by byte, the columns of whole numbers that JSON would spell out; all is
deflated, and written seven bits a character: the browser inflates only the features that are looked at, and the text
holds nothing that ends a tag. The head stays readable JSON with every character escaped that HTML could act on.
"""

import json
import math
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np

_ACTIVE_IN_HTML = str.maketrans({character: f"\\u{ord(character):04x}" for character in "<>&\u2028\u2029"})
# Lists of fewer whole numbers stay in the JSON.
LEAST = 8
# Characters that HTML reads otherwise than as they stand, each written as one of those beside them.
TAKEN = {0: 0x80, 13: 0x81, 60: 0x82}  # NUL, carriage return, "<"
_SEVEN = np.array([TAKEN.get(code, code) for code in range(128)], dtype=np.uint32)


def deflate(value: Mapping[str, Any], what: str) -> str:
    """-> the text of a feature's tag. `what` names the value in errors."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)  # as `DecompressionStream("deflate-raw")` takes it
    return in_seven_bits(packer.compress(in_columns(value, what)) + packer.flush())


def in_columns(value: Mapping[str, Any], what: str) -> bytes:
    """-> JSON, a line break, and the columns one after another.

    A column stands in the JSON as {"$": [count, bytes a number]}: first the lowest byte of every number, then the next.
    Below zero bytes a number, the numbers have signs: n is written as 2 n, or -2 n - 1 where it is below zero.
    """
    body: list[bytes] = []

    def replaced(part: Any) -> Any:
        if isinstance(part, Mapping):
            return {name: replaced(one) for name, one in part.items()}
        if not isinstance(part, list):
            return part
        if len(part) >= LEAST and type(part[0]) is int:
            column = np.array(part)
            if column.ndim == 1 and column.dtype.kind == "i":
                return {"$": [len(part), _column(column, body)]}
        return [replaced(one) for one in part]

    return to_json(replaced(value), what).encode("ascii") + b"\n" + b"".join(body)


def _column(column: np.ndarray, body: list[bytes]) -> int:
    """Puts a column's bytes behind the others. -> bytes a number."""
    has_signs = bool(column.min() < 0)
    whole = np.where(column < 0, -2 * column - 1, 2 * column) if has_signs else column
    width = next(width for width in (1, 2, 4, 8) if int(whole.max()) < 256**width)
    planes = whole.astype(f"<u{width}").view(np.uint8).reshape(-1, width).T
    body.append(planes.tobytes())
    return -width if has_signs else width


def in_seven_bits(data: bytes) -> str:
    """Seven bits of the data a character, the last filled up with zeros. In HTML each takes one byte, but for those in
    `TAKEN`. A fourteenth longer than the data where base64 is a third."""
    bits = np.unpackbits(np.frombuffer(data, dtype=np.uint8))
    padded = np.zeros(-(-len(bits) // 7) * 7, dtype=np.uint8)
    padded[: len(bits)] = bits
    sevens = padded.reshape(-1, 7) @ np.array([64, 32, 16, 8, 4, 2, 1], dtype=np.uint8)
    return _SEVEN[sevens].astype("<u4").tobytes().decode("utf-32-le")


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
