"""On which weights: HuggingFace's own, or folded and centred ones as TransformerLens loads by default.

Dictionaries were trained on the one or the other. What processing changes at a hook is little and exact: the residual
stream and what is added to it lose their mean over d_model (LayerNorm models only), and values and the heads' outputs
lose what the biases before them add (their own, and the norm's through W_V). So activations of raw weights can be made
those of processed ones, but not the other way round.
"""

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
from einops import einsum
from torch import Tensor

from crossvis_tl.errors import ModelMismatchError
from crossvis_tl.norms import gain_and_bias

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer

Processing = Literal["none", "tl_default", "as given"]
LN_TYPES = ("LN", "LNPre")
# Hooks whose tensors lose their mean when TransformerLens centres the weights that write to the residual stream.
CENTRED = re.compile(
    r"(hook_resid_(pre|mid|post)|hook_(mlp|attn)_out|hook_mlp_in|hook_attn_in|hook_embed|hook_pos_embed|"
    r"blocks\.\d+\.hook_(in|out)|(mlp|attn|mlp\.out|attn\.o)\.hook_out|ln\d\.hook_in|ln_final\.hook_in)$"
)
VALUES = re.compile(r"blocks\.(\d+)\.attn\.(hook_v|hook_z|v\.hook_out|o\.hook_in)$")
# Rows of the embedding that show whether all were centred.
ROWS_LOOKED_AT = 1024
NORM_OUTPUTS = re.compile(r"(ln\w+\.hook_out|(attn|mlp)\.hook_in|(attn\.(q|k|v)|mlp\.(in|gate)|unembed)\.hook_in)$")


def is_processed(model: "HookedTransformer") -> bool:
    """Whether TransformerLens has folded or centred the weights, so that the activations are not HuggingFace's.

    Folding shows in the config; centring alone shows in the embedding, whose rows then have mean 0 (to rounding).
    """
    kind = str(model.cfg.normalization_type or "")
    if kind.endswith("Pre") or kind not in LN_TYPES:
        return kind.endswith("Pre")
    W_E = model.W_E.detach()
    W_E = W_E[:: -(-len(W_E) // ROWS_LOOKED_AT)].float()
    return bool(W_E.mean(-1).abs().max() < 1e-5 * W_E.abs().max())


def folds(model: "HookedTransformer") -> bool:
    """Whether the norms' gains and biases may stand in the weights after them."""
    bridge = getattr(model, "bridge", model)
    return str(model.cfg.normalization_type or "").endswith("Pre") or bool(getattr(bridge, "compatibility_mode", False))


def centres(model: "HookedTransformer") -> bool:
    """Whether TransformerLens' default processing takes the mean out of this model's residual stream."""
    return str(model.cfg.normalization_type or "") in LN_TYPES


def check_fits(processing: Processing | None, hooks: Sequence[str], model: "HookedTransformer", who: str) -> None:
    """`ModelMismatchError` when a processed model no longer has the activations of unprocessed weights at these hooks.

    `who`: the dictionary and the model, for the text.
    """
    if processing != "none":
        return
    processed = is_processed(model)
    for hook in hooks:
        gone = None
        if processed and centres(model) and CENTRED.search(hook):
            gone = f"the mean of {hook} is gone"
        elif (processed or folds(model)) and VALUES.search(hook):
            gone = f"{hook} may lack the value bias"
        elif folds(model) and NORM_OUTPUTS.search(hook):
            gone = f"{hook} may lack the norm's gain and bias"
        if gone:
            raise ModelMismatchError(
                f"{who} has been processed by TransformerLens ({gone}). Load it with crossvis_tl.load_model(...)"
            )


def processed_like(x: Tensor, hooks: Sequence[str], model: "HookedTransformer") -> Tensor:
    """Activations [..., width] at a hook as TransformerLens' default processing would have them; as they are where the
    model was processed so itself."""
    if any(CENTRED.search(hook) for hook in hooks) and centres(model):
        return x - x.mean(-1, keepdim=True)
    match = next((found for hook in hooks if (found := VALUES.search(hook))), None)
    if match is None:
        return x
    bias = _value_bias(model, int(match[1]))
    if bias.numel() != x.shape[-1]:  # fewer value heads than heads: each serves several
        bias = bias.reshape(-1, int(model.cfg.d_head)).repeat_interleave(x.shape[-1] // bias.numel(), dim=0)
    return x - bias.flatten().to(x)


@torch.no_grad()
def _value_bias(model: "HookedTransformer", layer: int) -> Tensor:
    """What processing moves out of the values: what they are where the norm before them gives its bias alone.

    [heads * d_head], of the value heads.
    """
    attention = model.blocks[layer].attn
    norm_bias = gain_and_bias(model, f"blocks.{layer}.ln1")[1]
    wrapped: Any = getattr(getattr(attention, "v", None), "original_component", None)
    if wrapped is not None:
        weight = next(wrapped.parameters())
        return wrapped(norm_bias.to(device=weight.device, dtype=weight.dtype)[None, None])[0, 0].float()
    # grouped heads: W_V and b_V themselves are repeated for every head
    W_V, b_V = (getattr(attention, f"_{name}", getattr(attention, name)).detach().float() for name in ("W_V", "b_V"))
    return (einsum(norm_bias.to(W_V), W_V, "d_model, heads d_model d_head -> heads d_head") + b_V).flatten()
