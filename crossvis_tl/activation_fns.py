"""The activation functions of sparse dictionaries, each written once.

An activation maps pre-activations `[..., features]` to feature activations of the same shape. Those whose value at a
feature depends on that feature alone, or on the `block` of features it stands in, can be taken a few features at a
time; TopK of very many features is found piece by piece by `crossvis_tl.sparse`.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor

from crossvis_tl.weights import pick

# Producers' own, in the z-score of pre-activations (curt-tigges/crosslayer-coding, `activations.py`).
ZSCORE_EPS = 1e-6


class Activation(Protocol):
    """What a group of features does with its pre-activations."""

    @property
    def name(self) -> str: ...

    @property
    def block(self) -> int:
        """Features, counted from the first, that must be given together; 0 where only all of them will do."""
        ...

    def __call__(self, pre: Float[Tensor, "*batch features"]) -> Float[Tensor, "*batch features"]: ...

    def select(self, features: Int[Tensor, " selected"] | slice) -> "Activation": ...

    def to(self, device: str | torch.device) -> "Activation": ...


@dataclass(frozen=True)
class ReLU:
    """max(x, 0)."""

    name: str = "ReLU"
    block: int = 1

    def __call__(self, pre: Float[Tensor, "*batch features"]) -> Float[Tensor, "*batch features"]:
        return torch.relu(pre)

    def select(self, features: Int[Tensor, " selected"] | slice) -> "ReLU":
        return self

    def to(self, device: str | torch.device) -> "ReLU":
        return self


@dataclass(frozen=True)
class JumpReLU:
    """x where x > threshold, else 0 (arXiv 2407.14435); a negative threshold lets negative values through.

    `threshold` is the raw one (not its logarithm), one for each feature. `strict` False keeps x == threshold too:
    producers differ. `relu` True also drops what is not positive.
    """

    threshold: Float[Tensor, " features"]
    strict: bool = True
    relu: bool = False
    name: str = "JumpReLU"
    block: int = 1

    def __call__(self, pre: Float[Tensor, "*batch features"]) -> Float[Tensor, "*batch features"]:
        threshold = self.threshold.to(pre)
        keep = pre > threshold if self.strict else pre >= threshold
        if self.relu:
            keep &= pre > 0
        return pre * keep

    def select(self, features: Int[Tensor, " selected"] | slice) -> "JumpReLU":
        return JumpReLU(pick(self.threshold, features), self.strict, self.relu, self.name)

    def to(self, device: str | torch.device) -> "JumpReLU":
        return JumpReLU(self.threshold.to(device), self.strict, self.relu, self.name)


@dataclass(frozen=True)
class TopK:
    """The k largest pre-activations of a token, 0 elsewhere (arXiv 2406.04093).

    `relu`: negative values are dropped before anything is ranked. Producers differ: circuit-tracer's keeps them, so
    that activations can be negative. `batch`: BatchTopK (arXiv 2412.06410), the k * tokens largest of all the tokens
    given; the same token then has other features in other company. `zscore`: ranked by how many standard deviations a
    value is above its feature's mean over the tokens given; `moments`: mean and deviation of every feature, [features]
    each, to be used instead of those of the tokens given.
    """

    k: int
    relu: bool = True
    batch: bool = False
    zscore: bool = False
    moments: tuple[Float[Tensor, " features"], Float[Tensor, " features"]] | None = None
    block: int = 0

    @property
    def name(self) -> str:
        return "BatchTopK" if self.batch else "TopK"

    @property
    def batch_dependent(self) -> bool:
        """Whether a token's features depend on the tokens they are encoded with."""
        return self.batch or (self.zscore and self.moments is None)

    def values(self, pre: Float[Tensor, "tokens features"]) -> Float[Tensor, "tokens features"]:
        """What is left where a feature is among the largest."""
        return torch.relu(pre) if self.relu else pre

    def keys(self, pre: Float[Tensor, "tokens features"], first: int = 0) -> Float[Tensor, "tokens features"]:
        """What is ranked; that of a feature depends on its own pre-activations alone. `first`: the number of the first
        feature given."""
        if not self.zscore:
            return self.values(pre)
        if self.moments is not None:
            mean, std = (part[first : first + pre.shape[1]].to(pre) for part in self.moments)
        else:
            if len(pre) == 1:
                raise ValueError(
                    f"{self.name} of z-scores needs the deviation over several tokens, and got one; encode it with "
                    "others, or fix the ranking on tokens: crossvis_tl.calibrate(dictionary, models, tokens)"
                )
            std, mean = torch.std_mean(pre, dim=0, correction=int(len(pre) > 0))
        return (pre - mean) / (std + ZSCORE_EPS)

    def __call__(self, pre: Float[Tensor, "*batch features"]) -> Float[Tensor, "*batch features"]:
        flat = pre.reshape(-1, pre.shape[-1])
        keys, values = self.keys(flat), self.values(flat)
        rows = keys.reshape(1, -1) if self.batch else keys
        k = self.k * len(flat) if self.batch else self.k
        at = rows.topk(min(k, rows.shape[-1]), dim=-1).indices
        chosen = values.reshape(rows.shape).gather(-1, at)
        return torch.zeros_like(rows).scatter(-1, at, chosen).reshape(pre.shape)

    def select(self, features: Int[Tensor, " selected"] | slice) -> "TopK":
        raise ValueError("a feature's TopK activation depends on the other features; encode all of them")

    def to(self, device: str | torch.device) -> "TopK":
        return self


@dataclass(frozen=True)
class GroupMax:
    """The largest of each `size` neighbouring features where it is positive, 0 elsewhere (EleutherAI/sparsify,
    `fused_encoder.py`)."""

    size: int
    name: str = "GroupMax"

    @property
    def block(self) -> int:
        return self.size

    def __call__(self, pre: Float[Tensor, "*batch features"]) -> Float[Tensor, "*batch features"]:
        groups = torch.relu(pre).unflatten(-1, (-1, self.size))
        top = groups.max(dim=-1, keepdim=True)
        return torch.zeros_like(groups).scatter(-1, top.indices, top.values).flatten(-2)

    def select(self, features: Int[Tensor, " selected"] | slice) -> "GroupMax":
        """Whole blocks only."""
        return self

    def to(self, device: str | torch.device) -> "GroupMax":
        return self


@dataclass(frozen=True)
class Identity:
    """x."""

    name: str = "Identity"
    block: int = 1

    def __call__(self, pre: Float[Tensor, "*batch features"]) -> Float[Tensor, "*batch features"]:
        return pre

    def select(self, features: Int[Tensor, " selected"] | slice) -> "Identity":
        return self

    def to(self, device: str | torch.device) -> "Identity":
        return self
