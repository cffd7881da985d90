"""Decoder norms, cosines and classes: which sites or models a feature lives in.

All are computed in the producer's training units, that is, before a normaliser is undone, and with a folded input scale
taken out again: a factor per source would change relative norms.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from crossvis_tl.dictionary import Dictionary

# ckkissane/crosscoder-model-diff-replication, analysis.py: shared features lie between these relative norms.
ONLY_FIRST, ONLY_SECOND = 0.3, 0.7


@dataclass
class SiteGeometry:
    """One feature's decoder vectors. `targets`: the sites it writes, by index. `norms`: L2 norm at each of them, in
    training units. `cosine`: between each two. `relative_norm`: |d_B| / (|d_A| + |d_B|) for two models, else None;
    `kind`: the class it gives ("shared", "only base" ...)."""

    targets: list[int]
    norms: list[float]
    cosine: list[list[float]]
    relative_norm: float | None = None
    kind: str | None = None


def decoder_vectors(dictionary: Dictionary, features: Int[Tensor, " n"]) -> list[Float[Tensor, "n d_target"]]:
    """The decoder rows at each target, in training units."""
    unit = dictionary.unit(features)[:, None]
    return [
        dictionary.decoder(features, t, trained=True) * site.scale * unit for t, site in enumerate(dictionary.targets)
    ]


def site_geometry(dictionary: Dictionary, features: Int[Tensor, " n"], names: list[str]) -> list[SiteGeometry]:
    """One `SiteGeometry` per feature, rounded to four decimals."""
    vectors = decoder_vectors(dictionary, features)
    norms = torch.stack([v.norm(dim=-1) for v in vectors], dim=-1).cpu()
    same_width = len({v.shape[-1] for v in vectors}) == 1
    cosines = _cosines(vectors) if same_width else None
    two_models = dictionary.n_models == 2 and len(dictionary.targets) == 2
    result = []
    for i, feature in enumerate(features.tolist()):
        at = dictionary.writes(feature)
        cosine = _rounded(cosines[i][at][:, at].tolist()) if cosines is not None else []
        relative = relative_norm(norms[i]) if two_models else None
        kind = classify(relative, names) if relative is not None else None
        result.append(SiteGeometry(at, _rounded([norms[i].tolist()[t] for t in at]), cosine, relative, kind))
    return result


def _cosines(vectors: list[Float[Tensor, "n d_target"]]) -> Float[Tensor, "n targets targets"]:
    units = torch.nn.functional.normalize(torch.stack(vectors, dim=1), dim=-1)
    return torch.bmm(units, units.transpose(1, 2)).cpu()


def relative_norm(norms: Float[Tensor, "2"]) -> float:
    """|d_B| / (|d_A| + |d_B|): 0 is the first model's alone, 1 the second's, 0.5 both alike."""
    return round(float(norms[1] / norms.sum().clamp_min(1e-12)), 4)


def classify(relative: float, names: list[str]) -> str:
    if relative < ONLY_FIRST:
        return f"only {names[0]}"
    return f"only {names[1]}" if relative > ONLY_SECOND else "shared"


def class_help(names: list[str]) -> str:
    """What the class chip says on hover."""
    return (
        f"relative norm r = |d_{names[1]}| / (|d_{names[0]}| + |d_{names[1]}|), of the decoder vectors in training "
        "units; "
        f"only {names[0]}: r < {ONLY_FIRST}; only {names[1]}: r > {ONLY_SECOND}; shared: between"
    )


def _rounded(values: list) -> list:
    return [_rounded(v) if isinstance(v, list) else round(v, 4) for v in values]
