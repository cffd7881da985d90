"""One number of every feature, for the axes of a page's map and the columns of its table."""

from collections.abc import Sequence
from itertools import combinations
from typing import Any

from crossvis_tl.panels import FeaturePanels

Measures = list[dict[str, Any]]
# All that a map can be drawn by, where features have it.
MEASURES = (
    "density", "max", "relative_norm", "cosine", "layer", "strongest_site", "driven", "nu_errors", "nu_reconstructions"
)  # fmt: skip


def feature_measures(panels: Sequence[FeaturePanels], models: Sequence[str], sites: Sequence[str]) -> Measures:
    """Those that some feature has a value of, as `page.contract.Measure`. `sites`: labels of the dictionary's targets.

    Density and maximum are not among them: the page has them already.
    """
    first, second = models[0], models[-1]
    found = [
        _measure(
            "relative_norm", "relative norm", [p.geometry and p.geometry.relative_norm for p in panels],
            f"|d_{second}| / (|d_{first}| + |d_{second}|): 0 is {first}'s alone, 1 {second}'s, 0.5 both alike",
        ),
        _measure(
            "cosine", "decoder cosine", [_cosine(p) for p in panels],
            "cosine between the decoder rows to two sites; the mean over all pairs of sites where there are more",
        ),
        _measure(
            "layer", "layer", [p.layer for p in panels] if len({p.layer for p in panels}) > 1 else [],
            "the layer that the feature reads",
        ),
        _measure(
            "strongest_site", "strongest site", [_strongest(p) for p in panels] if len(sites) > 2 else [],
            "number of the site with the largest decoder norm: "
            + ", ".join(f"{i} {label}" for i, label in enumerate(sites)),
        ),
        _measure(
            "driven", f"share of {second}", [p.attribution[1] if len(p.attribution) == 2 else None for p in panels],
            f"{second}'s share of the pre-activation over the top examples; below 0 it works against the feature",
        ) if len(models) == 2 else None,
        _measure(
            "nu_errors", "ν on errors", [p.scaling and p.scaling.nu[0] for p in panels],
            f"latent scaling (arXiv 2504.02922): near 0, {second} alone has the feature; near 1, both do",
        ),
        _measure(
            "nu_reconstructions", "ν on reconstructions", [p.scaling and p.scaling.nu[1] for p in panels],
            f"latent scaling (arXiv 2504.02922): near 0, {second} alone has the feature; near 1, both do",
        ),
    ]  # fmt: skip
    return [measure for measure in found if measure is not None]


def _measure(name: str, label: str, values: Sequence[float | None], help: str) -> dict[str, Any] | None:
    if all(value is None for value in values):
        return None
    short = [None if value is None else float(f"{value:.4g}") for value in values]
    return {"name": name, "label": label, "scale": "linear", "values": short, "help": help}


def _cosine(panel: FeaturePanels) -> float | None:
    cosine = panel.geometry.cosine if panel.geometry else []
    pairs = [cosine[i][j] for i, j in combinations(range(len(cosine)), 2)]
    return sum(pairs) / len(pairs) if pairs else None


def _strongest(panel: FeaturePanels) -> int | None:
    geometry = panel.geometry
    return geometry.targets[max(range(len(geometry.norms)), key=geometry.norms.__getitem__)] if geometry else None
