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

from rcssmin import cssmin
from rjsmin import jsmin

from crossvis_tl.files import write_whole
from crossvis_tl.page.check import check_features, check_head
from crossvis_tl.page.encode import deflate, find_culprit, inert_json
from crossvis_tl.page.pack import pack

SCRIPTS = (  # in the order in which they are joined: later ones use earlier ones
    "dom.js",
    "data.js",
    "tokens.js",
    "charts.js",
    "sites.js",
    "driven.js",
    "quality.js",
    "tooltip.js",
    "panels.js",
    "sequences.js",
    "search.js",
    "header.js",
    "jump.js",
    "map_scales.js",
    "map_draw.js",
    "map_plot.js",
    "map_table.js",
    "map.js",
    "feature_view.js",
    "prompt_view.js",
    "live_parts.js",
    "live_view.js",
    "main.js",
)
STYLES = ("viewer.css", "map.css", "live.css")
VIEW_ONLY = {  # what a page of another view does without
    "map_scales.js": "feature", "map_draw.js": "feature", "map_plot.js": "feature", "map_table.js": "feature",
    "map.js": "feature", "map.css": "feature", "jump.js": "feature", "prompt_view.js": "prompt",
    "live_parts.js": "live", "live_view.js": "live", "live.css": "live",
}  # fmt: skip


# Fidelity at more sites than this, or of losses too, is shown in a table of its own.
FEW_SITES = 2


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
    view = head["view"]
    fills = {
        "TITLE": title, "CSS": style_sheet(view), "HEAD": inert_json(head, "the head"),
        "JS": viewer_script(view, _needless(head)),
    }  # fmt: skip
    before, after = read("shell.html").split("%%FEATURES%%")
    yield fill(before, fills)
    for number, feature in check_features(head, features):
        what = f"feature {number}"
        try:
            packed = pack(feature)
        except (ValueError, TypeError) as error:
            raise ValueError(f"{what} cannot be written to a page: {find_culprit(feature) or error}") from error
        yield f"<script type=t id=f{number}>{deflate(packed, what)}</script>\n"
    yield after


def fill(shell: str, fills: Mapping[str, str]) -> str:
    """Put the fills at their marks in one pass, so that a fill that reads like a mark stays as it is."""
    return re.sub("%%([A-Z]+)%%", lambda mark: fills[mark[1]], shell)


def _needless(head: Mapping[str, Any]) -> frozenset[str]:
    """Files of panels that nothing on this page is shown in."""
    fidelity = head["fidelity"] or {"sites": ()}
    components = {part["name"] for column in head["layout"]["columns"] for part in column["components"]}
    shown = {
        "driven.js": "SourceAttribution" in components,
        "quality.js": len(fidelity["sites"]) > FEW_SITES or bool(fidelity.get("losses")),
    }
    return frozenset(name for name, there in shown.items() if not there)


@cache
def viewer_script(view: str = "feature", without: frozenset[str] = frozenset()) -> str:
    """-> the viewer's files joined inside one function, so that nothing of it is global. Comments and white space are
    for those who read the files: the page does without. `without`: files that this page has no need of."""
    names = (name for name in SCRIPTS if VIEW_ONLY.get(name, view) == view and name not in without)
    script = "\n".join(read(f"viewer/{name}") for name in names)
    return str(jsmin("(() => {\n'use strict';\n" + script + "})();\n"))


@cache
def style_sheet(view: str = "feature") -> str:
    """-> the style sheets joined, as short."""
    return str(cssmin("".join(read(name) for name in STYLES if VIEW_ONLY.get(name, view) == view)))


@cache
def read(name: str) -> str:
    """-> the text of a file of this package."""
    return files("crossvis_tl.page").joinpath(name).read_text(encoding="utf-8")
