"""Whether what lies in a store is what a gathering writes: a store from elsewhere is data."""

from collections.abc import Mapping

import torch
from torch import Tensor

from crossvis_tl.manifest import Manifest
from crossvis_tl.masking import Mask


def tokens_fit(tokens: Tensor, features: Tensor, mask: Mask, n_features: int) -> bool:
    """Whether tokens, features and mask are of one store."""
    whole = (tokens, features, mask.lead, mask.tail, mask.documents)
    if any(x.dtype != torch.long for x in whole) or mask.counted.dtype != torch.bool or tokens.ndim != 2:
        return False
    rows, n_positions = tokens.shape
    if mask.counted.shape != tokens.shape or mask.documents.shape != tokens.shape or features.ndim != 1:
        return False
    if mask.lead.shape != (rows,) or mask.tail.shape != (rows,) or not rows or not n_positions or not len(features):
        return False
    room = bool((mask.lead >= 0).all() and (mask.tail >= 0).all() and (mask.lead + mask.tail <= n_positions).all())
    known = int(features.min()) >= 0 and int(features.max()) < n_features and len(features.unique()) == len(features)
    return room and known and bool(mask.counted.any()) and bool((tokens >= 0).all())


def sums_problem(sums: Mapping[str, Tensor], n_stored: int, manifest: Manifest) -> str | None:
    """What of the sums is lacking, of another shape, or not finite; None where all is well."""
    n_targets = len(manifest.labels["sites"])
    width = len(sums["sites.x"]) if "sites.x" in sums and sums["sites.x"].ndim == 1 else -1
    shapes: dict[str, tuple[int, ...]] = {
        "fidelity.n_tokens": (), "fidelity.active": (manifest.n_features,), "fidelity.squares": (n_targets,),
        "fidelity.errors": (n_targets,), "sites.x": (width,), "sites.xx": (width,),
    }  # fmt: skip
    if manifest.latent_scaling:
        shapes |= {"latent.moments": (n_stored, 2, 5), "latent.power": (n_stored,), "latent.count": (n_stored,)}
    for name in (*shapes, *(f"fidelity.total.{t}" for t in range(n_targets))):
        if name not in sums:
            return f"{name!r} is missing"
    for name, tensor in sums.items():
        wanted = shapes.get(name)
        if name == "sites.products":
            wanted = (n_stored, tensor.shape[-1]) if tensor.ndim == 2 and tensor.shape[-1] <= width else (-1,)
        if wanted is not None and tuple(tensor.shape) != wanted:
            return f"{name!r} is of shape {tuple(tensor.shape)}"
        counts = name in ("fidelity.n_tokens", "fidelity.active", "latent.count")
        if tensor.dtype != (torch.long if counts else torch.float64) or not bool(torch.isfinite(tensor).all()):
            return f"{name!r} holds {tensor.dtype} numbers that are not what they should be"
    return None
