"""Which features score highest at each token of a prompt, of all features and of each part of the dictionary."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

METRICS = ("act_quantile", "act_size", "loss_effect")
Row = list[tuple[int, str]]


@dataclass(frozen=True)
class Scope:
    """Features that are ranked by themselves: those of `members`, or at each token those that `source` drives most.
    All of them where neither is given."""

    name: str
    members: Bool[Tensor, " features"] | None = None
    source: int | None = None


ALL = Scope("all features")


@dataclass(frozen=True)
class Ranked:
    """Features on a prompt. `losses`: effect on the loss of each *predicted* token; the feature fires on the token
    before. `shares`: each source's share of the pre-activation."""

    features: Int[Tensor, " features"]
    acts: Float[Tensor, "positions features"]
    quantiles: Float[Tensor, "positions features"]
    losses: Float[Tensor, "positions features"]
    shares: Float[Tensor, "positions features sources"]

    def firing(self, scope: Scope) -> Bool[Tensor, "positions features"]:
        fires = self.acts != 0
        if scope.members is not None:
            fires = fires & scope.members
        if scope.source is not None:
            fires = fires & (self.shares.argmax(-1) == scope.source)
        return fires


def rank(found: Ranked, metric: str, scope: Scope, n_top: int) -> list[Row]:
    """-> at each position the best `n_top` as (feature, formatted score): largest activations or quantiles first, for
    the loss effect those that help most."""
    fires = found.firing(scope)
    if metric == "act_size":
        return _rows(found.acts, fires, found.features, n_top, ".3f", largest=True)
    if metric == "act_quantile":
        return _rows(found.quantiles, fires, found.features, n_top, ".3%", largest=True)
    before = torch.cat([torch.zeros_like(fires[:1]), fires[:-1]])
    return _rows(found.losses, before, found.features, n_top, "+.3f", largest=False)


def _rows(values: Tensor, eligible: Tensor, features: Tensor, n_top: int, style: str, *, largest: bool) -> list[Row]:
    rows = []
    for value, may in zip(values, eligible, strict=True):
        at = may.nonzero().squeeze(-1)
        top = value[at].topk(min(n_top, len(at)), largest=largest)
        chosen = features[at[top.indices]].tolist()
        rows.append([(feature, f"{one:{style}}") for feature, one in zip(chosen, top.values.tolist(), strict=True)])
    return rows
