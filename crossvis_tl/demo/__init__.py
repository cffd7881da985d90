"""The demo: two small language models, a crosscoder between them, a cross-layer transcoder of the second, and tokens
none of them has seen. `scripts/train_demo` made them all from free texts (`assets/SOURCES.md`)."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from crossvis_tl.dictionary import Dictionary
    from crossvis_tl.feature_acts import FeatureActs
    from crossvis_tl.fidelity import Fidelity
    from crossvis_tl.vis_data import SaeVisData

ASSETS = Path(__file__).parent / "assets"
BASE, TUNED = ASSETS / "base", ASSETS / "tuned"
CROSSCODER, CLT, TOKENS = ASSETS / "crosscoder", ASSETS / "clt", ASSETS / "tokens.npy"
SHOWN_FEATURES = 300
# Small batches stay in a CPU's cache: a third faster than sae_vis' 64 rows on models of this size.
CFG_FIELDS = {"verbose": True, "minibatch_size_tokens": 16}


@dataclass(frozen=True)
class DemoResult:
    """`pages`: the files to open. `highlights`: three features worth a look, in words."""

    pages: list[Path]
    highlights: list[str]


def run_demo(folder: Path, say: Callable[[str], None], verdict: Callable[["Fidelity"], None]) -> DemoResult:
    """Both dashboards into `folder`. OSError when it cannot be made or written."""
    from crossvis_tl.files import check_output

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    pages = [folder / "crosscoder.html", folder / "clt.html"]
    for page in pages:
        check_output(page)
    named = highlights()
    say("two models, one crosscoder: what fine-tuning on code changed")
    _crosscoder(verdict).save_feature_centric_vis(pages[0], feature_idx=named[0]["feature"])
    say("one model, one cross-layer transcoder: all of its layers")
    _clt(verdict).save_feature_centric_vis(pages[1])
    lines = [f"crosscoder feature {h['feature']} ({h['class']}): {h['meaning']}" for h in named[:3]]
    return DemoResult(pages, lines)


def highlights() -> list[dict[str, Any]]:
    """Crosscoder features named by reading their dashboards: `feature`, `class`, `meaning`, and in `pattern` a regular
    expression that the text up to and including the token matches where the feature is strongest."""
    return json.loads((ASSETS / "highlights.json").read_text(encoding="utf-8"))


def _crosscoder(verdict: Callable[["Fidelity"], None]) -> "SaeVisData":
    from crossvis_tl.render import RenderJob

    models = [str(BASE), str(TUNED)]
    return RenderJob(models, CROSSCODER, TOKENS, "all", cfg_fields=CFG_FIELDS, choose=_peculiar_first).run(verdict)


def _peculiar_first(dictionary: "Dictionary", acts: "FeatureActs") -> list[int]:
    """What only one model has, then what was given a name, then the strongest of the shared features."""
    from crossvis_tl.geometry import site_geometry
    from crossvis_tl.selection import strongest

    geometry = site_geometry(dictionary, acts.features, [BASE.name, TUNED.name])
    order = strongest(acts, len(acts.features))
    ranks = {f"only {TUNED.name}": 0, f"only {BASE.name}": 1}
    named = {entry["feature"] for entry in highlights()}

    def rank(index: int) -> int:
        return ranks.get(geometry[index].kind or "", 2 if int(acts.features[index]) in named else 3)

    return sorted(order, key=rank)[:SHOWN_FEATURES]


def _clt(verdict: Callable[["Fidelity"], None]) -> "SaeVisData":
    from crossvis_tl.render import RenderJob

    return RenderJob([str(TUNED)], CLT, TOKENS, "all", cfg_fields=CFG_FIELDS, choose=_strongest_by_layer).run(verdict)


def _strongest_by_layer(dictionary: "Dictionary", acts: "FeatureActs") -> list[int]:
    """As many of each layer: the strongest of all would be mostly the first layer's."""
    from crossvis_tl.selection import strongest

    order, each = strongest(acts, len(acts.features)), SHOWN_FEATURES // len(dictionary.groups)
    layers = [
        [i for i in order if dictionary.locate(int(acts.features[i]))[0] == g] for g in range(len(dictionary.groups))
    ]
    return [i for layer in layers for i in layer[:each]]
