"""What the writers share: weights with all normalisers folded in, and what no plain layout can hold."""

from dataclasses import dataclass
from typing import Any

import torch
from einops import einsum
from jaxtyping import Float
from torch import Tensor

from crossvis_tl.activation_fns import Activation, JumpReLU, ReLU, TopK
from crossvis_tl.dictionary import Affine, Dictionary, Site
from crossvis_tl.encoders import SaeLensDictionary
from crossvis_tl.weights import Weight


def check_plain(dictionary: Dictionary, layout: str) -> None:
    """ValueError naming what of a dictionary is more than weights, biases and an activation of single features."""
    post = [post for group in dictionary.groups for post in group.post.values()]
    reasons = {
        "ranks the features of all layers against each other": dictionary.joint is not None,
        "depends on the batch it is given (crossvis_tl.calibrate ends that)": dictionary.batch_dependent,
        "normalises each token": any(not isinstance(norm, Affine) for norm in dictionary.normalize.values()),
        "reconstructs normalised activations": bool(dictionary.target_norm),
        "adds an offset to activations before they are decoded": any(one.offset is not None for one in post),
        "has an activation for each source": any(one.gate is not None for one in post),
        "is run by sae_lens": isinstance(dictionary, SaeLensDictionary),
    }
    for reason, holds in reasons.items():
        if holds:
            raise refusal(dictionary, layout, f"it {reason}, which has no place there")


def refusal(dictionary: Dictionary, layout: str, reason: str) -> ValueError:
    """What a writer raises where its layout cannot hold a dictionary."""
    return ValueError(f"{dictionary.name} cannot be written as {layout}: {reason}")


def model_name(dictionary: Dictionary) -> str | None:
    """The first model that is known by name."""
    return next((name for name in dictionary.model_names if name), None)


@dataclass(frozen=True)
class Plain:
    """A group's weights for raw activations. `W_enc`: by source, [d, F]; `W_dec`: by target, [F, d]."""

    W_enc: dict[int, Tensor]
    b_enc: Float[Tensor, " features"]
    W_dec: dict[int, Tensor]


def plain(dictionary: Dictionary, g: int) -> Plain:
    """Group g with the normalisers folded in; as stored where there are none."""
    group = dictionary.groups[g]
    W_enc, b_enc = {}, group.b_enc
    for s, weight in group.W_enc.items():
        norm = dictionary.normalize.get(s)
        if not isinstance(norm, Affine):
            W_enc[s] = _whole(weight)
            continue
        # (x - mean) * scale @ W + b == x @ (scale * W) + (b - (mean * scale) @ W)
        W = group.encoder(s)
        scale, mean = (part.to(W).expand(len(W)) for part in (norm.scale, norm.mean))
        W_enc[s] = scale[:, None] * W
        b_enc = b_enc.float() - einsum(mean, W_enc[s], "d, d features -> features")
    W_dec = {}
    for t, weight in group.W_dec.items():
        norm = dictionary.denormalize.get(t)
        scale = group.post[t].scale if t in group.post else None
        if norm is None and scale is None:
            W_dec[t] = _whole(weight)
            continue
        rows = group.decoder(t) if scale is None else group.decoder(t) * scale.float()[:, None]
        W_dec[t] = rows if norm is None else norm.undo_direction(rows)
    return Plain(W_enc, b_enc, W_dec)


def _whole(weight: Weight) -> Tensor:
    return weight if isinstance(weight, Tensor) else weight.select(slice(None))


def plain_bias(dictionary: Dictionary, target: int) -> Float[Tensor, " d_target"]:
    """b_dec in the model's own units."""
    norm = dictionary.denormalize.get(target)
    return dictionary.b_dec[target] if norm is None else norm.undo(dictionary.b_dec[target].float())


def plain_skip(dictionary: Dictionary, source: int, target: int) -> tuple[Tensor, Tensor]:
    """-> skip connection [d_source, d_target] for raw activations, and what it adds to the target's bias."""
    W = dictionary.skip[source, target].float()
    read, written = dictionary.normalize.get(source), dictionary.denormalize.get(target)
    constant = torch.zeros(W.shape[1], device=W.device)
    if isinstance(read, Affine):
        scale, mean = (part.to(W).expand(len(W)) for part in (read.scale, read.mean))
        W = scale[:, None] * W
        constant = constant - einsum(mean, W, "d_source, d_source d_target -> d_target")
    if written is not None:
        W, constant = written.undo_direction(W), written.undo_direction(constant)
    return W, constant


def above(activation: Activation) -> Float[Tensor, " features"] | None:
    """What a pre-activation must be strictly above, negative ones included, float32; None for ReLU.

    ValueError for an activation that is none of single features.
    """
    if isinstance(activation, ReLU):
        return None
    if not isinstance(activation, JumpReLU):
        raise ValueError(f"a {activation.name} has no threshold")
    threshold = activation.threshold.float()
    if not activation.strict:  # x >= t where x > the number before t
        threshold = torch.nextafter(threshold, torch.full_like(threshold, -torch.inf))
    return threshold.clamp_min(0) if activation.relu else threshold


def top_k(activation: Activation) -> TopK | None:
    return activation if isinstance(activation, TopK) else None


def stored_sites(sites: tuple[Site, ...]) -> list[dict[str, Any]]:
    """Where a dictionary reads or writes, for our own reader: other tools' configs have no words for all of it."""
    return [
        {"model": site.model, "hook": site.hook, "hf_path": site.hf_path, "processing": site.processing}
        for site in sites
    ]
