"""One HTML file from a head and features.

The page is self-contained: no address but its own, so it opens from a mail attachment or a train. The viewer comes
before the features, so that the header stands while a large file still loads.
"""

import html
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from crossvis_tl.files import write_whole
from crossvis_tl.page.check import check_features, check_head
from crossvis_tl.page.encode import deflate, inert_json

SCRIPTS = (  # in the order in which they are joined: later ones use earlier ones
    "dom.js",
    "data.js",
    "tokens.js",
    "charts.js",
    "tooltip.js",
    "panels.js",
    "sequences.js",
    "header.js",
    "jump.js",
    "feature_view.js",
    "prompt_view.js",
    "main.js",
)


def render_page(head: Mapping[str, Any], features: Iterable[tuple[int, Mapping[str, Any]]]) -> str:
    """-> the whole page. `head` and each feature are as `contract.Head` and `contract.FeaturePayload` say.

    Raises ValueError, naming the feature, for what does not fit the contract or cannot be written (NaN, infinity).
    """
    return "".join(page_chunks(head, features))


def write_page(path: str | Path, head: Mapping[str, Any], features: Iterable[tuple[int, Mapping[str, Any]]]) -> int:
    """Write the page and return its size in bytes. Features are written as they come, never all held at once.

    The file appears only when it is whole (`files.write_whole`). Raises OSError naming the path where it cannot be
    written, ValueError as `render_page` does.
    """
    return write_whole(Path(path), page_chunks(head, features))


def page_chunks(head: Mapping[str, Any], features: Iterable[tuple[int, Mapping[str, Any]]]) -> Iterator[str]:
    """The page piece by piece: the shell up to the features, a tag for each, the rest."""
    check_head(head)
    title = html.escape(head["title"].encode("utf-8", "replace").decode("utf-8"))
    fills = {"TITLE": title, "CSS": read("viewer.css"), "HEAD": inert_json(head, "the head"), "JS": viewer_script()}
    before, after = read("shell.html").split("%%FEATURES%%")
    yield fill(before, fills)
    for number, feature in check_features(head, features):
        yield f'<script type="text/plain" id="f{number}">{deflate(feature, f"feature {number}")}</script>\n'
    yield after


def fill(shell: str, fills: Mapping[str, str]) -> str:
    """Put the fills at their marks in one pass, so that a fill that reads like a mark stays as it is."""
    return re.sub("%%([A-Z]+)%%", lambda mark: fills[mark[1]], shell)


@cache
def viewer_script() -> str:
    """-> the viewer's files joined inside one function, so that nothing of it is global."""
    return "(() => {\n'use strict';\n" + "\n".join(read(f"viewer/{name}") for name in SCRIPTS) + "})();\n"


@cache
def read(name: str) -> str:
    """-> the text of a file of this package."""
    return files("crossvis_tl.page").joinpath(name).read_text(encoding="utf-8")
