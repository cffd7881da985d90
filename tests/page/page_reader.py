"""Reads a page back without a browser, so that a round trip can be tested on many inputs."""

import json
import re
import zlib
from html.parser import HTMLParser
from typing import Any


class TagReader(HTMLParser):
    """Collects the text of each <script id=...> and of <title>."""

    def __init__(self) -> None:
        super().__init__()
        self.texts: dict[str, str] = {}
        self.tags: list[str] = []
        self.current: str | None = None

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.current = "title" if tag == "title" else dict(attrs).get("id") if tag == "script" else None
        if self.current is not None:
            self.texts[self.current] = ""

    def handle_endtag(self, tag: str) -> None:
        self.current = None

    def handle_data(self, data: str) -> None:
        if self.current is not None:
            self.texts[self.current] += data


def read_tags(page: str) -> TagReader:
    reader = TagReader()
    reader.feed(page)
    reader.close()
    return reader


def read_text(text: str) -> dict[str, Any]:
    """A feature's tag: seven bits a character, inflated, columns put back into the JSON before them."""
    codes = [{0x80: 0, 0x81: 13, 0x82: 60}.get(ord(character), ord(character)) for character in text]
    bits = "".join(f"{code:07b}" for code in codes)
    data = bytes(int(bits[i : i + 8], 2) for i in range(0, len(bits) // 8 * 8, 8))
    content, _, body = zlib.decompressobj(-15).decompress(data).partition(b"\n")
    place = 0

    def column(part: dict[str, Any]) -> Any:
        nonlocal place
        if "$" not in part:
            return part
        count, width = part["$"]
        planes = [body[place + i * count : place + (i + 1) * count] for i in range(abs(width))]
        place += count * abs(width)
        whole = [sum(byte << (8 * i) for i, byte in enumerate(digits)) for digits in zip(*planes, strict=True)]
        return whole if width > 0 else [-(n + 1) // 2 if n % 2 else n // 2 for n in whole]

    value = json.loads(content, object_hook=column)
    assert place == len(body)
    return value


def numbers(column: list[Any]) -> list[float]:
    """A column of numbers: [places, whole numbers]."""
    return [whole / 10 ** column[0] for whole in column[1]]


def cut(column: list[Any], lengths: list[int]) -> list[list[Any]]:
    """One list into lists of these lengths, with nothing left over."""
    rest = iter(column)
    parts = [[next(rest) for _ in range(n)] for n in lengths]
    assert list(rest) == []
    return parts


def read_moved(moved: dict[str, Any]) -> tuple[list[list[int]], list[list[float]]]:
    """-> tokens raised (or lowered) at each token, and their changes."""
    largest, parts = iter(numbers(moved["v"])), iter(moved["part"])
    changes = []
    for n in moved["n"]:  # below zero where the largest is not the first
        most = next(largest) if n else 0.0
        changes.append([most if n > 0 and not i else most * next(parts) / 50 for i in range(abs(n))])
    assert [*largest, *parts] == []
    return cut([moved["of"][i] for i in moved["id"]], [*map(abs, moved["n"])]), changes


def read_effect(effect: dict[str, Any], tokens: list[int], lengths: list[int]) -> list[dict[str, Any]]:
    own = dict(zip(dict.fromkeys(tokens), numbers(effect["logit"]), strict=True))

    def everywhere(column: list[Any], nothing: Any) -> list[Any]:
        rest = iter(column)
        spread = [nothing if p == -1 else next(rest) for p in effect["p"]]
        assert list(rest) == []
        return spread

    columns = {"loss": everywhere(numbers(effect["loss"]), 0.0), "logit": [own[token] for token in tokens]}
    for side in ("up", "down"):
        ids, changes = read_moved(effect[side])
        columns[f"{side}_ids"], columns[side] = everywhere(ids, []), everywhere(changes, [])
    columns["p"] = [None if p < 0 else p / 100 for p in effect["p"]]
    parts = {name: cut(column, lengths) for name, column in columns.items()}
    return [{name: column[i] for name, column in parts.items()} for i in range(len(lengths))]


def read_sequences(packed: dict[str, Any]) -> list[dict[str, Any]]:
    """Sequences out of their columns, written from what `pack` says and not from how it does it."""
    lengths = packed["n"]
    acts = numbers(packed["a"])
    effects = [read_effect(effect, packed["t"], lengths) for effect in packed["e"]]
    sources = []
    for column in packed.get("s", []):
        shares = iter(numbers(column))
        sources.append(cut([next(shares) if act else 0.0 for act in acts], lengths))
    sequences = []
    for i, (t, a) in enumerate(zip(cut(packed["t"], lengths), cut(acts, lengths), strict=True)):
        facts = {name: packed[name][i] for name in ("bold", "row", "pos")}
        facts["doc"] = packed["doc"][i] if "doc" in packed else None
        sequence = {"t": t, "a": a, **facts, "e": [effect[i] for effect in effects]}
        sequences.append(sequence | ({"s": [source[i] for source in sources]} if sources else {}))
    return sequences


def read_feature(packed: dict[str, Any]) -> dict[str, Any]:
    """A feature as the contract says."""
    rest = iter(read_sequences(packed.pop("examples")))
    columns = packed["groups"]
    lengths = columns.pop("n")
    groups = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    assert len(groups) == len(lengths)
    for group, length in zip(groups, lengths, strict=True):
        group["sequences"] = [next(rest) for _ in range(length)]
    assert list(rest) == []
    for one in packed["logits"]:
        for side in ("top", "bottom"):
            tokens, *column = one[side]
            one[side] = [list(pair) for pair in zip(tokens, numbers(column), strict=True)]
    prompts = read_sequences(packed["prompts"]) if "prompts" in packed else None
    return {**packed, "groups": groups, "prompts": prompts}


def read_page(page: str) -> tuple[dict[str, Any], dict[int, dict[str, Any]]]:
    """-> the head, and the features by id."""
    texts = read_tags(page).texts
    packed = {int(name[1:]): text for name, text in texts.items() if re.fullmatch(r"f\d+", name)}
    features = {number: read_text(text) for number, text in packed.items()}
    return json.loads(texts["head"]), {number: read_feature(feature) for number, feature in features.items()}
