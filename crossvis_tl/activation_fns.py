"""The activation functions of sparse dictionaries, each written once.

An activation maps pre-activations `[..., features]` to feature activations of the same shape. Those whose value at a
feature depends on that feature alone can be restricted to some features with `select`, so that a few of very many
features are encoded without the rest.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor


class Activation(Protocol):
    """What a group of features does with its pre-activations."""

    @property
    def name(self) -> str: ...

    @property
    def elementwise(self) -> bool: ...

    def __call__(self, pre: Float[Tensor, "*batch features"]) -> Float[Tensor, "*batch features"]: ...

    def select(self, features: Int[Tensor, " selected"]) -> "Activation": ...

    def scaled(self, factor: Float[Tensor, " features"]) -> "Activation": ...

    def to(self, device: str | torch.device) -> "Activation": ...


@dataclass(frozen=True)
class ReLU:
    """max(x, 0)."""

    name: str = "ReLU"
    elementwise: bool = True

    def __call__(self, pre: Float[Tensor, "*batch features"]) -> Float[Tensor, "*batch features"]:
        return torch.relu(pre)

    def select(self, features: Int[Tensor, " selected"]) -> "ReLU":
        return self

    def scaled(self, factor: Float[Tensor, " features"]) -> "ReLU":
        """The activation g with g(factor * x) = factor * self(x), for positive factors."""
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
    elementwise: bool = True

    def __call__(self, pre: Float[Tensor, "*batch features"]) -> Float[Tensor, "*batch features"]:
        threshold = self.threshold.to(pre)
        keep = pre > threshold if self.strict else pre >= threshold
        if self.relu:
            keep &= pre > 0
        return pre * keep

    def select(self, features: Int[Tensor, " selected"]) -> "JumpReLU":
        return JumpReLU(self.threshold[features.to(self.threshold.device)], self.strict, self.relu)

    def scaled(self, factor: Float[Tensor, " features"]) -> "JumpReLU":
        """The activation g with g(factor * x) = factor * self(x), for positive factors."""
        return JumpReLU(self.threshold.float() * factor, self.strict, self.relu)

    def to(self, device: str | torch.device) -> "JumpReLU":
        return JumpReLU(self.threshold.to(device), self.strict, self.relu)


@dataclass(frozen=True)
class TopK:
    """The k largest pre-activations of a token, 0 elsewhere (arXiv 2406.04093).

    `relu`: negative values among them are dropped too. Producers differ: circuit-tracer's keeps them, so that
    activations can be negative.
    """

    k: int
    relu: bool = True
    name: str = "TopK"
    elementwise: bool = False

    def __call__(self, pre: Float[Tensor, "*batch features"]) -> Float[Tensor, "*batch features"]:
        top = pre.topk(min(self.k, pre.shape[-1]), dim=-1)
        values = torch.relu(top.values) if self.relu else top.values
        return torch.zeros_like(pre).scatter(-1, top.indices, values)

    def select(self, features: Int[Tensor, " selected"]) -> "TopK":
        raise ValueError("a feature's TopK activation depends on the other features; encode all of them")

    def scaled(self, factor: Float[Tensor, " features"]) -> "TopK":
        raise ValueError("a TopK of scaled pre-activations would choose other features")

    def to(self, device: str | torch.device) -> "TopK":
        return self


@dataclass(frozen=True)
class Identity:
    """x."""

    name: str = "Identity"
    elementwise: bool = True

    def __call__(self, pre: Float[Tensor, "*batch features"]) -> Float[Tensor, "*batch features"]:
        return pre

    def select(self, features: Int[Tensor, " selected"]) -> "Identity":
        return self

    def scaled(self, factor: Float[Tensor, " features"]) -> "Identity":
        return self

    def to(self, device: str | torch.device) -> "Identity":
        return self
