"""Weights as they lie on disk: read when they are asked for, a few features at a time.

Safetensors and zipped `.pt` files are mapped into memory, so a tensor costs nothing until a part of it is taken. Large
ones are kept in their stored type; what is taken becomes float32.
"""

from collections.abc import MutableMapping, Sequence
from dataclasses import dataclass
from math import prod

import torch
from jaxtyping import Int
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

# A larger tensor is not looked through when its file is opened, but each part when it is taken.
LARGE = 2**24
# A larger file is mapped into memory. It must not be written over while it is in use, so that small ones are read.
MAPPED = 2**22
# Features whose weights are held as float32 at a time, in numbers.
CHUNK = 2**23


@dataclass(frozen=True)
class Shards:
    """One matrix whose features lie in several files, in this order along `axis`."""

    parts: tuple[Tensor, ...]
    axis: int

    @property
    def shape(self) -> tuple[int, ...]:
        shape = list(self.parts[0].shape)
        shape[self.axis] = sum(part.shape[self.axis] for part in self.parts)
        return tuple(shape)

    @property
    def dtype(self) -> torch.dtype:
        return self.parts[0].dtype

    @property
    def device(self) -> torch.device:
        return self.parts[0].device

    @property
    def nbytes(self) -> int:
        return sum(part.nbytes for part in self.parts)

    def to(self, device: str | torch.device) -> "Shards":
        return Shards(tuple(part.to(device) for part in self.parts), self.axis)

    def select(self, at: Int[Tensor, " selected"] | slice) -> Tensor:
        """The features `at`, in that order."""
        size = self.shape[self.axis]
        wanted = torch.arange(size, device=self.device)[at] if isinstance(at, slice) else at.to(self.device)
        shape = list(self.shape)
        shape[self.axis] = len(wanted)
        out = torch.empty(shape, dtype=self.dtype, device=self.device)
        begin = 0
        for part in self.parts:
            end = begin + part.shape[self.axis]
            here = ((wanted >= begin) & (wanted < end)).nonzero().squeeze(-1)
            if len(here):
                out.index_copy_(self.axis, here.to(out.device), part.index_select(self.axis, wanted[here] - begin))
            begin = end
        return out


Weight = Tensor | Shards
At = Int[Tensor, " selected"] | slice | None


def pick(vector: Tensor, at: At) -> Tensor:
    """One number for each of the features `at`, None for all."""
    if at is None:
        return vector
    return vector[at if isinstance(at, slice) else at.to(vector.device)]


def take(weight: Weight, at: At, axis: int, what: str, dtype: torch.dtype = torch.float32) -> Tensor:
    """Features `at` (None for all) along `axis`, as `dtype`.

    ValueError when they hold NaN or infinite values, looked for in tensors too large to look through at once: `what`
    names the tensor.
    """
    if isinstance(weight, Shards):
        part = weight.select(slice(None) if at is None else at)
    elif at is None:
        part = weight
    elif isinstance(at, slice):
        part = weight[:, at] if axis == 1 else weight[at]
    else:
        part = weight.index_select(axis, at.to(weight.device))
    part = part.to(dtype)
    if is_large(weight):
        _check_finite(weight, at, axis, part, what)
    return part


# Which features of large weights were looked through: a gathering takes the same ones for every batch.
_LOOKED_THROUGH: MutableMapping[object, Tensor] = WeakIdKeyDictionary()


def _check_finite(weight: Weight, at: At, axis: int, part: Tensor, what: str) -> None:
    if weight not in _LOOKED_THROUGH:
        _LOOKED_THROUGH[weight] = torch.zeros(weight.shape[axis], dtype=torch.bool)
    known = _LOOKED_THROUGH[weight]
    here = slice(None) if at is None else at if isinstance(at, slice) else at.cpu()
    if bool(known[here].all()):
        return
    if not all_finite(part):
        raise ValueError(f"{what} holds NaN or infinite values; the file is damaged")
    known[here] = True


def all_finite(tensor: Tensor) -> bool:
    """Whether it holds no NaN and no infinite value; looked through piece by piece, so that it takes no room."""
    return all(bool(torch.isfinite(part).all()) for part in tensor.reshape(-1).split(2**20))


def is_large(weight: Weight) -> bool:
    """Whether the whole is too much to be looked through when a file is opened."""
    return prod(weight.shape) * weight.dtype.itemsize > LARGE


def blocks(n_features: int, width: int, multiple: int = 1) -> list[slice]:
    """Slices of features whose weights fit in `CHUNK` numbers, each but the last a multiple of `multiple` long."""
    size = max(1, CHUNK // max(width, 1) // multiple) * multiple
    return [slice(begin, min(begin + size, n_features)) for begin in range(0, n_features, size)]


def side_by_side(parts: Sequence[Tensor], axis: int) -> Weight:
    """Shares of the features in one: copied together where that is cheap, else left where they lie."""
    joined = Shards(tuple(parts), axis)
    if len(parts) == 1:
        return parts[0]
    return joined if is_large(joined) else torch.cat(list(parts), dim=axis)
