"""Which tokens a dashboard shows: the top activations and samples from equal-width intervals below them.

Group bounds are sae_vis': `n_quantiles` intervals of equal width from 0 to the maximum, highest first, a random sample
from each. Unlike sae_vis, an interval holds only tokens the feature fires on (the lowest one there is mostly zeros),
and tokens near a sequence's edge are not left out: what is missing of the context is simply not shown.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from sae_vis.data_config_classes import SequencesConfig
from torch import Tensor


@dataclass(frozen=True)
class Group:
    """Flat positions of a group's examples. `low`, `high`: its bounds; `share`: how many of the counted tokens lie in
    them, 0 to 1; None for the top group."""

    title: str
    positions: Int[Tensor, " examples"]
    low: float | None = None
    high: float | None = None
    share: float | None = None


def choose(
    where: Int[Tensor, " fired"],
    values: Float[Tensor, " fired"],
    n_counted: int,
    cfg: SequencesConfig,
    generator: torch.Generator,
) -> list[Group]:
    """The groups of one feature, top activations first; none for a feature that never fired."""
    if not len(values):
        return []
    highest = float(values.max())
    top = torch.topk(values, min(cfg.top_acts_group_size, len(values))).indices
    groups = [Group(f"TOP ACTIVATIONS<br>MAX = {highest:.3f}", where[top])]
    edges = torch.linspace(0, highest, cfg.n_quantiles + 1).tolist() if cfg.n_quantiles and highest > 0 else []
    for i in range(len(edges) - 2, -1, -1):
        low, high = edges[i], edges[i + 1]
        inside = ((values >= low) & (values <= high)).nonzero().squeeze(-1)
        picked = inside[torch.randperm(len(inside), generator=generator)[: cfg.quantile_group_size]]
        picked = picked[values[picked].argsort(descending=True)]
        share = len(inside) / max(n_counted, 1)
        title = f"INTERVAL {low:.3f} - {high:.3f}<br>CONTAINS {share:.3%}"
        groups.append(Group(title, where[picked], low, high, share))
    return groups
