"""Decoder norms, cosines and classes: which sites or models a feature lives in.

All are computed in the producer's training units, that is, before a normaliser is undone, and with a folded input scale
taken out again: a factor per source would change relative norms.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from crossvis_tl.dictionary import Dictionary

# Bounds of the classes on the norm difference (arXiv 2504.02922): below the first, between the next two,
# above the last.
ONLY_FIRST, SHARED, ONLY_SECOND = 0.1, (0.4, 0.6), 0.9
OTHER = "other"


@dataclass
class SiteGeometry:
    """One feature's decoder vectors. `targets`: the sites it writes, by index. `norms`: L2 norm at each of them, in
    training units. `cosine`: between each two. `relative_norm`: |d_B| / (|d_A| + |d_B|) for two models, else None;
    `kind`: their class ("shared", "only base", "other" ...)."""

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
        kind = classify(norms[i].tolist(), names) if two_models else None
        result.append(SiteGeometry(at, _rounded([norms[i].tolist()[t] for t in at]), cosine, relative, kind))
    return result


def _cosines(vectors: list[Float[Tensor, "n d_target"]]) -> Float[Tensor, "n targets targets"]:
    units = torch.nn.functional.normalize(torch.stack(vectors, dim=1), dim=-1)
    return torch.bmm(units, units.transpose(1, 2)).cpu()


def relative_norm(norms: Float[Tensor, "2"]) -> float:
    """|d_B| / (|d_A| + |d_B|): 0 is the first model's alone, 1 the second's, 0.5 both alike."""
    return round(float(norms[1] / norms.sum().clamp_min(1e-12)), 4)


def classify(norms: Sequence[float], names: Sequence[str]) -> str:
    """The class of a feature of two models with these decoder norms: "only base", "shared", "only tuned" or "other".

    By delta = ((|d_B| - |d_A|) / max(|d_A|, |d_B|) + 1) / 2 (arXiv 2504.02922): 0 is the first model's alone, 1 the
    second's.
    """
    largest = max(norms)
    if largest <= 0:
        return OTHER
    delta = ((norms[1] - norms[0]) / largest + 1) / 2
    if delta < ONLY_FIRST:
        return f"only {names[0]}"
    if delta > ONLY_SECOND:
        return f"only {names[1]}"
    return "shared" if SHARED[0] <= delta <= SHARED[1] else OTHER


def class_help(names: Sequence[str]) -> str:
    """What the class chip says on hover."""
    a, b = (f"|d_{name}|" for name in names[:2])
    return (
        f"by delta = (({b} - {a}) / max({a}, {b}) + 1) / 2, of the decoder norms in training units (arXiv 2504.02922)\n"
        f"only {names[0]}: delta < {ONLY_FIRST}\nshared: {SHARED[0]} to {SHARED[1]}\n"
        f"only {names[1]}: delta > {ONLY_SECOND}\n{OTHER}: between"
    )


def _rounded(values: list) -> list:
    return [_rounded(v) if isinstance(v, list) else round(v, 4) for v in values]
