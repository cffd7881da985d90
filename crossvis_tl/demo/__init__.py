"""The demo: two small language models, a crosscoder between them, a cross-layer transcoder of the second, and tokens
none of them has seen. `scripts/train_demo` made them all from free texts (`assets/SOURCES.md`)."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from crossvis_tl.fidelity import Fidelity
    from crossvis_tl.vis_data import SaeVisData

ASSETS = Path(__file__).parent / "assets"
BASE, TUNED = ASSETS / "base", ASSETS / "tuned"
CROSSCODER, CLT, TOKENS = ASSETS / "crosscoder", ASSETS / "clt", ASSETS / "tokens.npy"
CLT_LAYER = 1
CROSSCODER_FEATURES = 400


@dataclass(frozen=True)
class DemoResult:
    """`pages`: the files to open. `highlights`: three features worth a look, in words."""

    pages: list[Path]
    highlights: list[str]


def run_demo(folder: Path, say: Callable[[str], None], verdict: Callable[["Fidelity"], None]) -> DemoResult:
    """Both dashboards into `folder`. OSError when it cannot be made or written."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    pages = [folder / "crosscoder.html", folder / f"clt_layer_{CLT_LAYER}.html"]
    from crossvis_tl.errors import check_output

    for page in pages:
        check_output(page)
    say("two models, one crosscoder: what fine-tuning on code changed")
    _crosscoder(verdict).save_feature_centric_vis(pages[0], feature_idx=_highlights()[0]["feature"])
    say(f"one model, one cross-layer transcoder: its layer {CLT_LAYER}")
    _clt_layer(verdict).save_feature_centric_vis(pages[1])
    lines = [f"feature {h['feature']} ({h['class']}): {h['meaning']}" for h in _highlights()[:3]]
    return DemoResult(pages, lines)


def _highlights() -> list[dict[str, Any]]:
    """Features named by reading their dashboards."""
    return json.loads((ASSETS / "highlights.json").read_text(encoding="utf-8"))["crosscoder"]


def _crosscoder(verdict: Callable[["Fidelity"], None]) -> "SaeVisData":
    from crossvis_tl.render import RenderJob

    job = RenderJob([str(BASE), str(TUNED)], CROSSCODER, TOKENS, "all", cfg_fields={"verbose": True})
    return job.run(verdict)


def _clt_layer(verdict: Callable[["Fidelity"], None]) -> "SaeVisData":
    from crossvis_tl.formats import load_dictionary
    from crossvis_tl.render import RenderJob

    sizes = load_dictionary(CLT).offsets
    span = f"{sizes[CLT_LAYER]}-{sizes[CLT_LAYER + 1] - 1}"
    return RenderJob([str(TUNED)], CLT, TOKENS, span, cfg_fields={"verbose": True}).run(verdict)
