"""From the final residual stream to logits: the model's own final norm, unembedding, bias and soft-cap, in one place.

logits = softcap(centre(x) * gain @ W_U / scale(x) + offset), with offset = norm bias @ W_U + b_U. Splitting off the
scale makes a feature's effect cheap: the numerator is linear, so that of `x - a*d` is that of x minus a times d's.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from einops import einsum
from jaxtyping import Float
from torch import Tensor

from crossvis_tl.norms import gain_and_bias

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer


@dataclass(frozen=True)
class Unembedding:
    """A model's way from its final residual stream to logits. All tensors float32.

    `W`: [d_model, d_vocab], the unembedding with the norm's gain and, for LayerNorm, its centring folded in.
    `offset`: [d_vocab]. `norm`: "LN", "RMS" or "" (none). `eps`: as in the model. `softcap`: 0 where there is none.
    """

    W: Float[Tensor, "d_model d_vocab"]
    offset: Float[Tensor, " d_vocab"]
    norm: str
    eps: float
    softcap: float

    @cached_property
    def biased(self) -> bool:
        """Whether there is any offset."""
        return bool(self.offset.any())

    def scale(self, resid: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch 1"]:
        """What the final norm divides by at each position."""
        if not self.norm:
            return torch.ones_like(resid[..., :1])
        centred = resid - resid.mean(-1, keepdim=True) if self.norm == "LN" else resid
        return (centred.pow(2).mean(-1, keepdim=True) + self.eps).sqrt()

    def project(self, resid: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_vocab"]:
        """The linear part: logits before the division by `scale` and the offset."""
        return einsum(resid, self.W, "... d_model, d_model d_vocab -> ... d_vocab")

    def finish(
        self, projected: Float[Tensor, "*batch d_vocab"], scale: Float[Tensor, "*batch 1"], out: Tensor | None = None
    ) -> Float[Tensor, "*batch d_vocab"]:
        """Logits from the linear part and the scale. `out`: where they go, if there is room already."""
        logits = torch.div(projected, scale, out=out)
        if self.biased:
            logits += self.offset
        return self.softcap * torch.tanh(logits / self.softcap) if self.softcap > 0 else logits

    def logits(self, resid: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_vocab"]:
        resid = resid.float()
        return self.finish(self.project(resid), self.scale(resid))


def unembedding(model: "HookedTransformer") -> Unembedding:
    """ValueError when the model's final norm is of a kind not known here."""
    norm = str(model.cfg.normalization_type or "")
    kind = norm.removesuffix("Pre")
    if kind not in ("LN", "RMS", ""):
        raise ValueError(f"final norms of type {norm!r} are not known; known: LN, RMS, with or without folding")
    W_U = model.W_U.detach().float()
    gain, bias = _norm_weights(model, W_U)
    W = einsum(gain, W_U, "d_model, d_model d_vocab -> d_model d_vocab")
    if kind == "LN":  # centring commutes into the weights: (x - mean x) @ W == x @ (W - mean over rows of W)
        W = W - W.mean(0, keepdim=True)
    b_U = model.b_U.detach().float() if getattr(model.unembed, "b_U", None) is not None else torch.zeros_like(W[0])
    offset = b_U + einsum(bias, W_U, "d_model, d_model d_vocab -> d_vocab")
    softcap = float(getattr(model.cfg, "output_logits_soft_cap", 0.0) or 0.0)
    return Unembedding(W.contiguous(), offset, kind, float(model.cfg.eps or 0.0), max(softcap, 0.0))


def _norm_weights(model: "HookedTransformer", W_U: Tensor) -> tuple[Tensor, Tensor]:
    """-> gain, bias [d_model]; ones and zeros where the norm has none or they are folded into W_U."""
    ones, zeros = torch.ones_like(W_U[:, 0]), torch.zeros_like(W_U[:, 0])
    if not model.cfg.normalization_type or str(model.cfg.normalization_type).endswith("Pre"):
        return ones, zeros
    gain, bias = gain_and_bias(model, "ln_final")
    return gain.to(W_U), bias.to(W_U)
