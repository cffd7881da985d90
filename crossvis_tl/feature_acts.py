"""Gather once: one pass of the models over the tokens, keeping what fires.

Feature activations are sparse, so they are kept by feature as (token position, value). Everything after this - any
example, statistic or layout - reads that and runs no more of the model than the few sequences it shows.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from einops import einsum
from jaxtyping import Bool, Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from crossvis_tl.capture import Capture
from crossvis_tl.diagnosis import diagnose
from crossvis_tl.fidelity import Fidelity, FidelitySums
from crossvis_tl.models import name_of
from crossvis_tl.tokens import Mask

if TYPE_CHECKING:
    from crossvis_tl.dictionary import Dictionary

# Final residual streams kept from the gathering pass, in bytes; beyond this the shown sequences are run again.
FINAL_BUDGET = 2**30
# Activations of a batch at all sites, in bytes.
SITE_BUDGET = 2**30
# Tokens encoded at a time: many enough for the weights to be read rarely, few enough for what fires to fit in memory.
TOKENS_AT_A_TIME = 4096
# Activations of kept features held dense at a time, in numbers, to correlate them with the sources' dimensions.
DENSE_BUDGET = 2**25


@dataclass(frozen=True)
class SiteSums:
    """Sums over counted tokens that correlate features with the dimensions of the source activations.

    The sources stand side by side: `products` [selected, width] of activation times dimension, `x` and `xx` [width].
    """

    products: Float[Tensor, "selected width"]
    x: Float[Tensor, " width"]
    xx: Float[Tensor, " width"]


@dataclass(frozen=True)
class FeatureActs:
    """Activations of selected features on a token set, kept by feature.

    Feature `features[i]` fires at flat positions `where[starts[i]:starts[i+1]]` (row * positions + position, ascending)
    with `values[...]` there. Masked positions hold nothing. `counted`: which positions count. `final`: each model's
    final residual stream at every flat position, where it was small enough to keep.
    """

    tokens: Int[Tensor, "rows positions"]
    counted: Bool[Tensor, "rows positions"]
    mask_text: str
    features: Int[Tensor, " selected"]
    starts: Int[Tensor, " selected_plus_1"]
    where: Int[Tensor, " fired"]
    values: Float[Tensor, " fired"]
    sums: SiteSums
    fidelity: Fidelity
    final: list[Float[Tensor, "positions d_model"]] | None = None

    @property
    def n_counted(self) -> int:
        return int(self.counted.sum())

    def of(self, index: int) -> tuple[Int[Tensor, " fired"], Float[Tensor, " fired"]]:
        """Flat positions and values of the index-th selected feature."""
        at = slice(int(self.starts[index]), int(self.starts[index + 1]))
        return self.where[at], self.values[at]

    def maxima(self) -> Float[Tensor, " selected"]:
        """Largest activation of each selected feature, 0 where it never fired."""
        lengths = self.starts.diff()
        return torch.segment_reduce(self.values, "max", lengths=lengths, initial=0.0)

    def select(self, indices: Sequence[int]) -> "FeatureActs":
        """The same gathering with only these of its features, in this order."""
        parts = [self.of(index) for index in indices]
        lengths = torch.tensor([0] + [len(where) for where, _ in parts])
        empty_where, empty_values = self.where[:0], self.values[:0]
        at = torch.tensor(list(indices), dtype=torch.long)
        return FeatureActs(
            self.tokens, self.counted, self.mask_text, self.features[at], lengths.cumsum(0),
            torch.cat([where for where, _ in parts] or [empty_where]),
            torch.cat([values for _, values in parts] or [empty_values]),
            SiteSums(self.sums.products[at], self.sums.x, self.sums.xx), self.fidelity, self.final,
        )  # fmt: skip


@torch.inference_mode()
def gather(
    capture: Capture,
    tokens: Int[Tensor, "rows positions"],
    mask: Mask,
    features: Sequence[int] | None = None,
    *,
    rows_per_batch: int = 64,
    keep_final: bool = True,
    progress: bool = False,
) -> FeatureActs:
    """One pass over `tokens`; all features are encoded (fidelity needs them), those asked for are kept.

    `features`: numbers of the features to keep, None for all. `keep_final`: run the models to the end and keep their
    final residual streams if they fit in memory, so that logit effects need no second pass. ValueError when a feature
    is out of range.
    """
    dictionary = capture.dictionary
    chosen = list(range(dictionary.n_features)) if features is None else list(features)
    dictionary.check_features(chosen)
    collector = _Collector(capture, torch.tensor(chosen, dtype=torch.long), tokens.shape[1])
    width = sum(model.cfg.d_model for model in capture.models)
    collector.keep_final = keep_final and tokens.numel() * width * 4 <= FINAL_BUDGET
    rows_per_batch = _fitting(rows_per_batch, capture, tokens.shape[1])
    starts = range(0, len(tokens), rows_per_batch)
    for start in tqdm(starts, desc="Gathering activations", unit="batch", disable=not progress):
        rows = slice(start, start + rows_per_batch)
        collector.add(tokens[rows], mask.counted[rows], start)
    names = [name_of(model) for model in capture.models]
    fidelity = collector.fidelity.result(dictionary, names)
    fidelity = diagnose(capture, tokens, mask.counted, fidelity)
    where, values, offsets = collector.by_feature()
    return FeatureActs(
        tokens.cpu(), mask.counted.cpu(), mask.text, torch.tensor(chosen), offsets, where, values,
        collector.site_sums(), fidelity, collector.finals(),
    )  # fmt: skip


def _fitting(rows: int, capture: Capture, n_positions: int) -> int:
    """Rows of a batch whose float32 activations at all sites stay within the budget."""
    sites = (*capture.dictionary.sources, *capture.dictionary.targets)
    row = 4 * n_positions * sum(site.width for site in sites)
    return max(1, min(rows, SITE_BUDGET // row))


class _Collector:
    """Takes batches of tokens in, keeps what fires and the sums over what does not."""

    def __init__(self, capture: Capture, features: Tensor, n_positions: int):
        self.capture, self.features, self.n_positions = capture, features, n_positions
        dictionary: Dictionary = capture.dictionary
        self.place = torch.full((dictionary.n_features,), -1, dtype=torch.long, device=dictionary.device)
        self.place[features.to(dictionary.device)] = torch.arange(len(features), device=dictionary.device)
        self.fidelity = FidelitySums(dictionary)
        width = sum(site.width for site in dictionary.sources)
        self.products = torch.zeros(len(features), width, device=dictionary.device)
        self.x = torch.zeros(width, dtype=torch.float64)
        self.xx = torch.zeros(width, dtype=torch.float64)
        self.columns: list[Tensor] = []
        self.where: list[Tensor] = []
        self.values: list[Tensor] = []
        self.keep_final = False
        self.final: list[list[Tensor]] = [[] for _ in capture.models]

    def add(self, tokens: Tensor, counted: Tensor, first_row: int) -> None:
        captured = self.capture.run(tokens, final=self.keep_final)
        for kept, final in zip(self.final, captured.final, strict=False):  # captured.final is empty unless kept
            kept.append(final.flatten(0, 1).cpu())
        flat = counted.flatten().nonzero().squeeze(-1)
        size = min(TOKENS_AT_A_TIME, max(1, DENSE_BUDGET // len(self.features)))
        for begin in range(0, len(flat), size):
            at = flat[begin : begin + size]
            sources = [x.flatten(0, 1)[at.to(x.device)] for x in captured.sources]
            targets = [x.flatten(0, 1)[at.to(x.device)] for x in captured.targets]
            self._add_tokens(sources, targets, at + first_row * self.n_positions)

    def _add_tokens(self, sources: list[Tensor], targets: list[Tensor], positions: Tensor) -> None:
        dictionary = self.capture.dictionary
        acts = dictionary.encode_sparse(sources)
        self.fidelity.add(acts, targets, dictionary.decode(acts, sources))
        columns = self.place[acts.features]
        wanted = columns >= 0
        columns, tokens, values = columns[wanted], acts.tokens[wanted], acts.values[wanted]
        self.columns.append(columns.to("cpu", torch.int32))
        self.where.append(positions[tokens.cpu()].to(torch.int32))
        self.values.append(values.cpu())
        x = torch.cat([source.to(values.device) for source in sources], dim=-1)
        kept = torch.zeros(len(x), len(self.features), device=values.device)
        kept[tokens, columns] = values
        self.products += einsum(kept, x, "tokens features, tokens width -> features width")
        self.x += x.sum(0).double().cpu()
        self.xx += x.pow(2).sum(0).double().cpu()

    def by_feature(self) -> tuple[Tensor, Tensor, Tensor]:
        """-> positions and values sorted by feature, then position; and where each feature's begin."""
        columns = torch.cat(self.columns)
        order = torch.argsort(columns, stable=True)
        lengths = torch.bincount(columns, minlength=len(self.features))
        offsets = torch.cat([torch.zeros(1, dtype=torch.long), lengths.cumsum(0)])
        return torch.cat(self.where)[order].long(), torch.cat(self.values)[order], offsets

    def finals(self) -> list[Tensor] | None:
        return [torch.cat(parts) for parts in self.final] if self.keep_final else None

    def site_sums(self) -> SiteSums:
        return SiteSums(self.products.cpu(), self.x, self.xx)


def spans(acts: FeatureActs) -> list[tuple[int, int]]:
    """Begin and end of each selected feature in `where` and `values`."""
    return list(pairwise(acts.starts.tolist()))
