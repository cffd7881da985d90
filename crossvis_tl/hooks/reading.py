"""From hooks to HuggingFace's tensors, on a model in hand."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from crossvis_tl.hooks.find import Finder
from crossvis_tl.hooks.record import Hook
from crossvis_tl.hooks.table import NORMALIZED, flag_of
from crossvis_tl.norms import gain_and_bias


def value(hook: Hook, model: Any, found: Mapping[str, Tensor]) -> Float[Tensor, "batch pos width"]:
    """HuggingFace's tensor of a row, from what its hooks (`hook.reads`) gave on `model`.

    ValueError for a row that is absent; `ModelMismatchError` when the model's weights were processed so that the tensor
    is gone.
    """
    if hook.status == "absent" or not hook.reads:
        raise ValueError(f"{hook.name or hook.hf_name} cannot be read: {hook.note}")
    parts = [found[name] for name in hook.reads]
    if hook.transform == "affine":
        return _affine(parts[0], hook.reads[0], model)
    if hook.transform == "rescale":
        return parts[0] * parts[1]
    if hook.transform == "interleave heads":
        return rearrange(torch.cat(parts, dim=-1), "b p heads d -> b p (heads d)")
    flat = [heads_side_by_side(part) for part in parts]
    return torch.cat(flat, dim=-1) if hook.transform == "concatenate" else flat[0]


def heads_side_by_side(x: Tensor) -> Tensor:
    """[..., heads, d_head] -> [..., heads * d_head]; three axes stay as they are."""
    return rearrange(x, "b p heads d -> b p (heads d)") if x.ndim == 4 else x


def _affine(x: Tensor, name: str, model: Any) -> Tensor:
    match = NORMALIZED.fullmatch(name)
    if match is None:
        raise ValueError(f"{name} is not what a norm holds before its gain")
    gain, bias = gain_and_bias(model, match[1])
    return (x.float() * gain.to(x.device) + bias.to(x.device)).to(x.dtype)


@dataclass(frozen=True)
class Reader:
    """How a place is read on one model. `hook`: its row. `plain`: the hook's own tensor was asked for by its own name,
    so nothing but its heads is changed."""

    hook: Hook
    plain: bool

    @property
    def reads(self) -> tuple[str, ...]:
        return self.hook.reads

    def read(self, model: Any, found: Mapping[str, Tensor]) -> Float[Tensor, "batch pos width"]:
        return heads_side_by_side(found[self.reads[0]]) if self.plain else value(self.hook, model, found)


def reader(finder: Finder, name: str) -> Reader:
    """A TransformerLens name that the model has means that hook's own tensor; any other name HuggingFace's.

    ValueError as `find_hook`, and when the tensor cannot be had on this model.
    """
    if finder.has(name):
        hook = finder.find(name)
        return Reader(replace(hook, name=name, reads=(name,), transform="none", flag=flag_of(name)), plain=True)
    hook = finder.find(name)
    if not hook.reads:
        raise ValueError(f"{name!r} cannot be read from this model: {hook.note}")
    return Reader(hook, plain=False)


@contextmanager
def settings_for(model: Any, names: Sequence[str]) -> Iterator[None]:
    """Inside, the hooks among `names` that are behind a setting fire; afterwards the settings are what they were."""
    flags = {flag for name in names if (flag := flag_of(name))}
    before = {flag: bool(getattr(model.cfg, flag, False)) for flag in flags}
    try:
        for flag in flags:
            getattr(model, f"set_{flag}")(True)
        yield
    finally:
        for flag, was in before.items():
            getattr(model, f"set_{flag}")(was)
