"""The gain and bias of a model's norms, whatever class holds them."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from crossvis_tl.errors import ModelMismatchError


def norm_at(model: Any, path: str) -> nn.Module:
    """ "blocks.3.ln2" -> the module. HookedTransformer gives a parallel block two norms where HuggingFace has one."""
    module = model
    for part in path.split("."):
        module = module[int(part)] if part.isdecimal() else getattr(module, part)
    return module


def gain_and_bias(model: Any, path: str) -> tuple[Float[Tensor, " d_model"], Float[Tensor, " d_model"]]:
    """Of the norm at a TransformerLens path; ones and zeros for what it does not have.

    `ModelMismatchError` when they have been folded into the weights after it, so that nobody knows them any more.
    """
    norm = norm_at(model, path)
    if isinstance(getattr(model, "bridge", None), nn.Module) or hasattr(norm, "original_component"):
        return _measured(norm, int(model.cfg.d_model))
    if str(model.cfg.normalization_type or "").endswith("Pre"):
        raise ModelMismatchError(
            f"the gain and bias of {path} have been folded into the weights after it, so its output as HuggingFace has "
            "it is gone. Load the model with crossvis_tl.load_model(...)"
        )
    gain, bias = getattr(norm, "w", None), getattr(norm, "b", None)
    like = torch.zeros(int(model.cfg.d_model), device=model.cfg.device)
    gain = torch.ones_like(like) if gain is None else gain.detach().float()
    bias = like if bias is None else bias.detach().float()
    return gain, bias


@torch.no_grad()
def _measured(norm: nn.Module, width: int) -> tuple[Tensor, Tensor]:
    """From what HuggingFace's own norm does: architectures store the gain differently (Gemma's is 1 + weight). A vector
    of +1 and -1 in equal number has mean 0 and scale 1, for LayerNorm and RMSNorm alike."""
    weight = next(norm.parameters())
    signs = torch.ones(1, 1, width, device=weight.device, dtype=weight.dtype)
    signs[..., ::2] = -1
    original: Any = getattr(norm, "original_component", None)
    call = norm if original is None else original  # not through the bridge's hooks
    plus, minus = call(1e3 * signs)[0, 0].float(), call(-1e3 * signs)[0, 0].float()  # large: eps has no part in it
    return (plus - minus) / 2 * signs[0, 0].float(), (plus + minus) / 2
