"""What activations go through before they are encoded, and reconstructions after."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class TokenNorm:
    """What a token is normalised with, over the last axis: (x - mean) / (std + eps), or (x - mean) / sqrt(std^2 + eps)
    where eps stands `inside` the root, as in a layer norm. `unbiased`: std divides by d - 1 and not by d."""

    eps: float
    unbiased: bool
    inside: bool = False

    def statistics(self, x: Float[Tensor, "*batch d"]) -> tuple[Float[Tensor, "*batch 1"], Float[Tensor, "*batch 1"]]:
        """-> mean and deviation of each token."""
        return x.mean(-1, keepdim=True), x.std(-1, keepdim=True, correction=int(self.unbiased))

    def __call__(self, x: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch d"]:
        mean, std = self.statistics(x)
        return (x - mean) / ((std.square() + self.eps).sqrt() if self.inside else std + self.eps)

    def to(self, device: str | torch.device) -> "TokenNorm":
        return self


@dataclass(frozen=True)
class Affine:
    """(x - mean) * scale, the same for every token. `mean`, `scale`: [d], or one number for all dimensions."""

    mean: Float[Tensor, "#d"]
    scale: Float[Tensor, "#d"]

    def __call__(self, x: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch d"]:
        return (x - self.mean.to(x)) * self.scale.to(x)

    def undo(self, y: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch d"]:
        return y / self.scale.to(y) + self.mean.to(y)

    def undo_direction(self, y: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch d"]:
        """Of a difference between two activations, which the mean is not in."""
        return y / self.scale.to(y)

    def to(self, device: str | torch.device) -> "Affine":
        return Affine(self.mean.to(device), self.scale.to(device))


def scaling(factor: float | Tensor) -> Affine:
    """Multiplication by one number."""
    scale = torch.as_tensor(factor, dtype=torch.float32).reshape(1)
    return Affine(torch.zeros(1), scale)
