"""Latent scaling (arXiv 2504.02922): how much of a feature that looks like one model's own is in the other model too.

For each model m, beta_m = argmin over beta of sum |y_m - beta * f * d|^2 = sum f (d . y_m) / sum f^2 |d|^2 over tokens,
with f the activation and d the second model's decoder vector. y is the error of the reconstruction with the feature
left out of it, or the reconstruction itself. nu = beta_first / beta_second: near 0, the feature is the second model's
own; near 1, it is in both. nu on errors finds what the dictionary dropped in the first model ("complete shrinkage"), nu
on reconstructions what other features write there ("latent decoupling").
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from einops import einsum
from jaxtyping import Float, Int
from torch import Tensor

from crossvis_tl.dictionary import Dictionary
from crossvis_tl.weights import CHUNK

if TYPE_CHECKING:
    from crossvis_tl.sums import Fired

Z95 = 1.959964


@dataclass
class LatentScaling:
    """Of one feature; each on errors and on reconstructions, None where it never fired or nothing is there to divide
    by. `beta_first`, `beta_second`: of the two models. `nu`: their ratio; `nu_low`, `nu_high`: its 95 % interval by the
    delta method over the tokens it fires on, None where it fires on one alone."""

    beta_first: list[float | None]
    beta_second: list[float | None]
    nu: list[float | None]
    nu_low: list[float | None]
    nu_high: list[float | None]


def check_latent_scaling(dictionary: Dictionary) -> None:
    """ValueError unless the dictionary writes one site of each of two models, by its decoder rows alone."""
    models = [site.model for site in dictionary.targets]
    widths = {site.width for site in dictionary.targets}
    if models != [0, 1] or len(widths) > 1:
        raise ValueError(
            f"latent_scaling compares two models at one site each, of one width; {dictionary.name} writes "
            f"{len(models)} site(s) of {dictionary.n_models} model(s)"
        )
    if dictionary.undone or dictionary.target_norm or any(group.post for group in dictionary.groups):
        raise ValueError(
            f"latent_scaling is defined for features that add their activation times a decoder row; {dictionary.name} "
            "does more than that after its encoder"
        )


class LatentSums:
    """Sums over the tokens that features fire on. `moments`: [stored, 2, 5], on errors and on reconstructions; with u
    and v = f (d . y) of the two models, the sums of u, v, u^2, v^2 and u v. `power`: of f^2 |d|^2. `count`: of 1."""

    def __init__(self, dictionary: Dictionary, features: Int[Tensor, " stored"]):
        check_latent_scaling(dictionary)
        self.directions = [dictionary.decoder(features, t) for t in (0, 1)]
        self.moments = torch.zeros(len(features), 2, 5, dtype=torch.float64)
        self.power = torch.zeros(len(features), dtype=torch.float64)
        self.count = torch.zeros(len(features), dtype=torch.long)

    def add(
        self,
        fired: "Fired",
        targets: Sequence[Float[Tensor, "tokens d_target"]],
        recons: Sequence[Float[Tensor, "tokens d_target"]],
    ) -> None:
        size = max(1, CHUNK // self.directions[1].shape[-1])
        for begin in range(0, len(fired.values), size):
            at = slice(begin, begin + size)
            columns, tokens, values = fired.columns[at], fired.tokens[at], fired.values[at].double()
            d = self.directions[1][columns]
            square = d.square().sum(-1).double()
            parts = []
            for m, (x, recon) in enumerate(zip(targets, recons, strict=True)):
                own = einsum(d, self.directions[m][columns], "fired width, fired width -> fired").double()
                left, made = (x.to(recon) - recon)[tokens], recon[tokens]
                on_error = _dot(d, left) + values * own  # with the feature left out of the reconstruction
                parts.append(torch.stack([values * on_error, values * _dot(d, made)], dim=-1))
            u, v = parts
            found = torch.stack([u, v, u * u, v * v, u * v], dim=-1).cpu()
            columns = columns.cpu()
            self.moments.index_add_(0, columns, found)
            self.power.index_add_(0, columns, (values.square() * square).cpu())
            self.count.index_add_(0, columns, torch.ones_like(columns))

    def tensors(self) -> dict[str, Tensor]:
        return {"moments": self.moments, "power": self.power, "count": self.count}

    def add_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        self.moments += tensors["moments"]
        self.power += tensors["power"]
        self.count += tensors["count"]


def _dot(d: Tensor, y: Tensor) -> Float[Tensor, " fired"]:
    return einsum(d, y, "fired width, fired width -> fired").double()


def latent_scaling(tensors: Mapping[str, Any]) -> list[LatentScaling]:
    """One for each feature, from what `LatentSums.tensors` gave."""
    moments, power, count = tensors["moments"], tensors["power"], tensors["count"]
    u, v, uu, vv, uv = moments.unbind(-1)
    betas = [torch.where(power[:, None] > 0, part / power[:, None], torch.nan) for part in (u, v)]
    nu = torch.where(v != 0, u / v, torch.nan)
    n = count[:, None].double()
    spread = (uu - 2 * nu * uv + nu.square() * vv).clamp_min(0) * n / (n - 1)
    half = torch.where(n > 1, Z95 * spread.sqrt() / v.abs(), torch.nan)
    columns = [_known(part) for part in (*betas, nu, nu - half, nu + half)]
    return [LatentScaling(*(column[i] for column in columns)) for i in range(len(power))]


def _known(values: Float[Tensor, "n 2"]) -> list[list[float | None]]:
    finite = torch.isfinite(values).tolist()
    return [
        [round(x, 6) if known else None for x, known in zip(row, knowns, strict=True)]
        for row, knowns in zip(values.tolist(), finite, strict=True)
    ]
