"""What a place in the model adds to the residual stream.

| place | what one unit there adds |
|---|---|
| the residual stream | itself; a later place of the stream holds the earlier ones' part already |
| what is added to it (hook_mlp_out, hook_attn_out) | itself |
| MLP activations, attention heads | through W_out / W_O, then as the module's output |
| a module's raw output before a post-norm (Gemma 2, 3) | times the norm's gain, over its scale at the token |
| norm outputs, pre-activations, queries, keys, values | nothing that is linear in it |
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from einops import einsum
from jaxtyping import Float
from torch import Tensor

from crossvis_tl.hooks.derive import BLOCK
from crossvis_tl.hooks.find import Finder
from crossvis_tl.norms import gain_and_bias

Kind = Literal["residual", "added", "none"]
STREAM = ("hook_resid_pre", "hook_resid_mid", "hook_resid_post")
ADDED = {"hook_attn_out": "ln1_post", "hook_mlp_out": "ln2_post"}
RAW = {"attn.hook_out": "hook_attn_out", "mlp.hook_out": "hook_mlp_out"}
THROUGH: dict[str, tuple[Literal["W_out", "W_O"], str]] = {
    "mlp.hook_post": ("W_out", "hook_mlp_out"),
    "attn.hook_z": ("W_O", "hook_attn_out"),
}


@dataclass(frozen=True)
class ResidualWrite:
    """How vectors at a place reach the residual stream.

    `kind`: "residual" (they are in it), "added" (they are added to it, perhaps by way of `matrix` and `norm`) or "none"
    (`why` says it). `order`: where along the stream, smallest first. `matrix`: "W_out" or "W_O" of `layer`. `norm`: the
    post-norm ("blocks.3.ln2_post") whose gain comes next; what is added at a token is then still to be divided by the
    norm's scale there (`scale_hook`).
    """

    kind: Kind
    layer: int | None = None
    order: tuple[int, int] = (-1, 0)
    matrix: Literal["W_out", "W_O"] | None = None
    norm: str | None = None
    why: str = ""

    @property
    def scale_hook(self) -> str | None:
        return None if self.norm is None else f"{self.norm}.hook_scale"

    def through(self, vectors: Float[Tensor, "n width"], model: Any) -> Float[Tensor, "n d_model"]:
        """The vectors in the residual stream, but for the division by the post-norm's scale where there is one.

        ValueError where nothing is written.
        """
        if self.kind == "none":
            raise ValueError(f"nothing is written to the residual stream from there: {self.why}")
        out = vectors.float()
        if self.matrix is not None and self.layer is not None:
            out = _projection(model, self.layer, self.matrix)(out)
        if self.norm is not None:
            if str(model.cfg.normalization_type).startswith("LN"):
                out = out - out.mean(-1, keepdim=True)
            out = out * gain_and_bias(model, self.norm)[0].to(out)
        return out


def residual_write(model: Any, place: str, finder: Finder | None = None) -> ResidualWrite:
    """What `place` (any name that `find_hook` takes) writes to the residual stream of `model`.

    ValueError for a name that is not known.
    """
    finder = finder or Finder(model)
    names = finder.same_tensor(place)
    blocks = [match for name in names if (match := BLOCK.fullmatch(name))]
    found = {match[2]: int(match[1]) for match in reversed(blocks)}
    if "hook_embed" in names and not any(short in found for short in STREAM):
        return ResidualWrite("added", None, (-1, 1))
    for i, short in enumerate(STREAM):
        if short in found:
            return ResidualWrite("residual", found[short], (found[short], i))
    for short in ADDED:
        if short in found:
            return ResidualWrite("added", found[short])
    for short, written in RAW.items():
        if short in found:
            return ResidualWrite("added", found[short], norm=_post_norm(finder, found[short], written))
    for short, (matrix, written) in THROUGH.items():
        if short in found:
            layer = found[short]
            return ResidualWrite("added", layer, matrix=matrix, norm=_post_norm(finder, layer, written))
    return ResidualWrite("none", why=f"{place} is not added to the residual stream, and what follows it is not linear")


def _post_norm(finder: Finder, layer: int, written: str) -> str | None:
    return f"blocks.{layer}.{ADDED[written]}" if finder.has_norm(f"blocks.{layer}.{ADDED[written]}") else None


def _projection(model: Any, layer: int, matrix: Literal["W_out", "W_O"]) -> Callable[[Tensor], Tensor]:
    """The linear part of what HuggingFace's own module does, or the HookedTransformer's matrix."""
    block = model.blocks[layer]
    part = block.mlp if matrix == "W_out" else block.attn
    wrapped = getattr(getattr(part, "out" if matrix == "W_out" else "o", None), "original_component", None)
    if wrapped is not None:

        @torch.no_grad()
        def linear(x: Tensor) -> Tensor:
            weight = next(wrapped.parameters())
            x = x.to(device=weight.device, dtype=weight.dtype)
            return (wrapped(x[None])[0] - wrapped(torch.zeros_like(x[:1])[None])[0]).float()

        return linear
    W = getattr(part, matrix).detach().float()
    W = W.flatten(0, -2)  # W_O: heads side by side
    return lambda x: einsum(x.to(W), W, "n width, width d_model -> n d_model")
