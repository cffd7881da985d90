"""Reads a page back without a browser, so that a round trip can be tested on many inputs."""

import base64
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


def read_page(page: str) -> tuple[dict[str, Any], dict[int, dict[str, Any]]]:
    """-> the head, and the features by id."""
    texts = read_tags(page).texts
    packed = {int(name[1:]): text for name, text in texts.items() if re.fullmatch(r"f\d+", name)}
    features = {number: json.loads(zlib.decompress(base64.b64decode(text))) for number, text in packed.items()}
    return json.loads(texts["head"]), features
