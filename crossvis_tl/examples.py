"""Which tokens a dashboard shows: the top activations and samples from equal-width intervals below them.

Group bounds are sae_vis': `n_quantiles` intervals of equal width from 0 to the maximum, highest first, a random sample
from each. Unlike sae_vis, an interval holds only tokens the feature fires on (the lowest one there is mostly zeros),
and tokens near a sequence's edge are not left out: what is missing of the context is simply not shown. No two examples
of a group show the same tokens, and no document gives more than a few of them.
"""

from collections import Counter
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from sae_vis.data_config_classes import SequencesConfig
from torch import Tensor

from crossvis_tl.masking import Mask

# Examples of one group from one document.
PER_DOCUMENT = 3


@dataclass(frozen=True)
class Group:
    """Flat positions of a group's examples. `low`, `high`: its bounds; `share`: how many of the counted tokens lie in
    them, 0 to 1; None for the top and the lowest group."""

    title: str
    positions: Int[Tensor, " examples"]
    low: float | None = None
    high: float | None = None
    share: float | None = None


@dataclass(frozen=True)
class Picker:
    """Takes examples in the order given, but none that shows the same tokens as one before it, and no more than
    `per_document` (None: any number) of one document."""

    tokens: Int[Tensor, "rows positions"]
    mask: Mask
    buffer: tuple[int, int]
    per_document: int | None = PER_DOCUMENT
    distinct: bool = True
    flat_documents: Tensor = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "flat_documents", self.mask.documents.flatten())

    def pick(self, candidates: Int[Tensor, " n"], k: int) -> Int[Tensor, " picked"]:
        """The indices in `candidates` of the first k that may be shown."""
        picked: list[int] = []
        seen: set[bytes] = set()
        documents: Counter[int] = Counter()
        size = 2 * k + 8
        for begin in range(0, len(candidates), size):
            some = candidates[begin : begin + size]
            windows = self._windows(some) if self.distinct else [b""] * len(some)
            for i, (window, document) in enumerate(
                zip(windows, self.flat_documents[some].tolist(), strict=True), begin
            ):
                if len(picked) == k:
                    return torch.tensor(picked, dtype=torch.long)
                full = self.per_document is not None and documents[document] >= self.per_document
                if full or (self.distinct and window in seen):
                    continue
                seen.add(window)
                documents[document] += 1
                picked.append(i)
        return torch.tensor(picked, dtype=torch.long)

    def _windows(self, positions: Int[Tensor, " n"]) -> list[bytes]:
        n_positions = self.tokens.shape[1]
        before, after = self.buffer
        columns = (positions % n_positions)[:, None] + torch.arange(-before, after + 1)
        inside = (columns >= 0) & (columns < n_positions)
        rows = (positions // n_positions)[:, None]
        shown = torch.where(inside, self.tokens[rows, columns.clamp(0, n_positions - 1)], -1)
        return [row.tobytes() for row in shown.numpy()]


def choose(
    where: Int[Tensor, " fired"],
    values: Float[Tensor, " fired"],
    n_counted: int,
    cfg: SequencesConfig,
    generator: torch.Generator,
    picker: Picker,
) -> list[Group]:
    """The groups of one feature, top activations first; none for a feature that never fired. A random sample of all
    tokens it fires on follows the intervals if `cfg` (`layouts.SequencesConfig`) asks for one. A feature that also
    fires below zero has a last group of its lowest activations."""
    if not len(values):
        return []
    highest, lowest = float(values.max()), float(values.min())
    groups = []
    if highest > 0:
        top = _extreme(where, values, cfg.top_acts_group_size, picker)
        groups.append(Group(f"TOP ACTIVATIONS<br>MAX = {highest:.3f}", top))
    edges = torch.linspace(0, highest, cfg.n_quantiles + 1).tolist() if cfg.n_quantiles and highest > 0 else []
    for i in range(len(edges) - 2, -1, -1):
        low, high = edges[i], edges[i + 1]
        inside = ((values >= low) & (values <= high)).nonzero().squeeze(-1)
        drawn = inside[torch.randperm(len(inside), generator=generator)]
        picked = drawn[picker.pick(where[drawn], cfg.quantile_group_size)]
        picked = picked[values[picked].argsort(descending=True)]
        share = len(inside) / max(n_counted, 1)
        title = f"INTERVAL {low:.3f} - {high:.3f}<br>CONTAINS {share:.3%}"
        groups.append(Group(title, where[picked], low, high, share))
    n_random = getattr(cfg, "random_group_size", 0)
    if n_random:  # after the intervals, whose samples are then the same with it and without
        drawn = torch.randperm(len(values), generator=generator)
        picked = drawn[picker.pick(where[drawn], n_random)]
        groups.append(Group("RANDOM ACTIVATIONS", where[picked[values[picked].argsort(descending=True)]]))
    if lowest < 0:
        bottom = _extreme(where, -values, cfg.top_acts_group_size, picker)
        groups.append(Group(f"LOWEST ACTIVATIONS<br>MIN = {lowest:.3f}", bottom))
    return groups


def _extreme(where: Tensor, values: Tensor, k: int, picker: Picker) -> Int[Tensor, " picked"]:
    """Positions of the largest values that may be shown."""
    some = torch.topk(values, min(4 * k, len(values))).indices  # nearly always enough, and no sorting of all
    picked = picker.pick(where[some], k)
    if len(picked) < k and len(some) < len(values):
        some = values.argsort(descending=True)
        picked = picker.pick(where[some], k)
    return where[some[picked]]
