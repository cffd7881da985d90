"""Feature activations on a token set, kept sparse and by feature.

Everything after the gathering - any example, statistic or layout - reads this, and runs no more of the model than the
few sequences that are shown. It lies in parts, each of some rows of tokens, in memory or mapped from disk.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from crossvis_tl.fidelity import Fidelity
from crossvis_tl.manifest import Manifest
from crossvis_tl.masking import Mask
from crossvis_tl.parts import Part

# Activations held at a time by what goes through all of them.
BLOCK = 2**24


@dataclass(frozen=True)
class Block:
    """Some neighbouring features. The i-th of them fires at flat positions `where[starts[i]:starts[i+1]]`, ascending,
    with `values[...]`. `first`: its place among all selected features."""

    first: int
    starts: Int[Tensor, " features_plus_1"]
    where: Int[Tensor, " fired"]
    values: Float[Tensor, " fired"]

    def __len__(self) -> int:
        return len(self.starts) - 1

    def each(self) -> Iterator[tuple[int, Int[Tensor, " fired"], Float[Tensor, " fired"]]]:
        """-> index among all selected features, flat positions and values of each feature."""
        bounds = self.starts.tolist()
        for i in range(len(self)):
            at = slice(bounds[i], bounds[i + 1])
            yield self.first + i, self.where[at], self.values[at]


@dataclass(frozen=True)
class FeatureActs:
    """Activations of selected features, `features`, on `tokens`; masked positions hold nothing.

    `parts`: of consecutive rows, together all of them; feature `features[i]` is column `columns[i]` of each. `sums`:
    what `Sums.tensors` gave. `final`: each model's final residual stream at every flat position, where it was small
    enough to keep. `home`: keeps a temporary folder alive. `vocabulary`, `tokenizer`: the texts of token ids, where
    either is known. `folder`: where it was opened from. `calibration`: what `calibrate` found of the dictionary, by
    names of tensors (`calibration_of`).
    """

    tokens: Int[Tensor, "rows positions"]
    mask: Mask
    features: Int[Tensor, " selected"]
    columns: Int[Tensor, " selected"]
    parts: tuple[Part, ...]
    sums: Mapping[str, Tensor]
    fidelity: Fidelity
    manifest: Manifest
    final: list[Float[Tensor, "positions d_model"]] | None = None
    home: object = field(default=None, repr=False)
    vocabulary: Mapping[int, str] = field(default_factory=dict, repr=False)
    tokenizer: Any = field(default=None, repr=False)
    folder: str = ""
    calibration: Mapping[str, Tensor] = field(default_factory=dict, repr=False)

    @property
    def counted(self) -> Bool[Tensor, "rows positions"]:
        return self.mask.counted

    @cached_property
    def n_counted(self) -> int:
        return self.mask.n_counted

    @cached_property
    def starts(self) -> Int[Tensor, " selected_plus_1"]:
        """Where each selected feature's activations would begin if all lay one after another."""
        lengths = torch.zeros(len(self.columns), dtype=torch.long)
        for part in self.parts:
            lengths += part.starts[self.columns + 1] - part.starts[self.columns]
        return torch.cat([torch.zeros(1, dtype=torch.long), lengths.cumsum(0)])

    @cached_property
    def offsets(self) -> list[int]:
        """Flat position of each part's first token."""
        rows = torch.tensor([0, *(part.n_rows for part in self.parts)]).cumsum(0)
        return (rows * self.tokens.shape[1]).tolist()

    def block(self, begin: int, end: int) -> Block:
        """The selected features number `begin` to `end` - 1."""
        columns = self.columns[begin:end]
        starts = self.starts[begin : end + 1] - self.starts[begin]
        n = int(starts[-1])
        if len(self.parts) == 1:
            at = _entries(self.parts[0], columns)
            where, values = self.parts[0].where[at].long(), self.parts[0].values[at]
            return self._checked(Block(begin, starts, where, values))
        where, values = torch.empty(n, dtype=torch.long), torch.empty(n)
        free = starts[:-1].clone()
        for offset, part in zip(self.offsets[:-1], self.parts, strict=True):
            lengths = part.starts[columns + 1] - part.starts[columns]
            at = _entries(part, columns)
            first = lengths.cumsum(0) - lengths
            target = torch.arange(int(lengths.sum())) + (free - first).repeat_interleave(lengths)
            where[target] = part.where[at].long() + offset
            values[target] = part.values[at]
            free += lengths
        return self._checked(Block(begin, starts, where, values))

    def _checked(self, block: Block) -> Block:
        """ValueError where a file from elsewhere holds what no gathering writes: it is mapped, so it is looked at when
        it is read."""
        where, n = block.where, self.tokens.numel()
        begins = torch.zeros(len(where) + 1, dtype=torch.bool)
        begins[block.starts] = True
        good = (where >= 0) & (where < n) & torch.isfinite(block.values)
        if len(where) > 1:
            good[1:] &= (where[1:] > where[:-1]) | begins[1:-1]
        if not bool(good.all()):
            where_from = f" in {self.folder}" if self.folder else ""
            raise ValueError(
                f"a part of the store{where_from} is damaged: it holds activations at no token, twice, or not finite"
            )
        return block

    def blocks(self, largest: int = BLOCK) -> Iterator[Block]:
        """All selected features in order, so many at a time that their activations are no more than `largest` (but at
        least one)."""
        starts, begin, n = self.starts, 0, len(self.features)
        while begin < n:
            end = int(torch.searchsorted(starts, starts[begin] + largest, right=True)) - 1
            end = min(max(end, begin + 1), n)
            yield self.block(begin, end)
            begin = end

    def of(self, index: int) -> tuple[Int[Tensor, " fired"], Float[Tensor, " fired"]]:
        """Flat positions and values of the index-th selected feature."""
        block = self.block(index, index + 1)
        return block.where, block.values

    def shares(self, index: int) -> Float[Tensor, "fired sources"]:
        """Each source's share of the pre-activation (`attribution`), in the order of `of(index)`; [fired, 0] where that
        was not gathered. ValueError where a file from elsewhere holds numbers that are not finite."""
        column = self.columns[index : index + 1]
        found = torch.cat([part.shares[_entries(part, column)] for part in self.parts]).float()
        if not bool(torch.isfinite(found).all()):
            raise ValueError(f"a part of the store in {self.folder} is damaged: it holds shares that are not finite")
        return found

    def strengths(self) -> Float[Tensor, " selected"]:
        """Largest magnitude of each selected feature's activations, 0 where it never fired."""
        found = [
            torch.segment_reduce(block.values.abs(), "max", lengths=block.starts.diff(), initial=0.0)
            for block in self.blocks()
        ]
        return torch.cat(found) if found else torch.zeros(0)

    def scales(self, positions: Int[Tensor, " p"]) -> Float[Tensor, "p scaled"]:
        """What decoder rows to the targets in `Manifest.scaled` are multiplied by at flat positions."""
        out = torch.ones(len(positions), len(self.manifest.scaled))
        if not self.manifest.scaled:
            return out
        for begin, end, part in zip(self.offsets, self.offsets[1:], self.parts, strict=False):
            here = (positions >= begin) & (positions < end)
            if bool(here.any()):
                out[here] = part.scales[positions[here] - begin]
        return out

    def select(self, indices: Sequence[int]) -> "FeatureActs":
        """The same gathering with only these of its features, in this order."""
        at = torch.tensor(list(indices), dtype=torch.long)
        return replace(self, features=self.features[at], columns=self.columns[at])

    def select_features(self, features: Sequence[int]) -> "FeatureActs":
        """As `select`, by feature number. ValueError for one that was not gathered."""
        place = {int(feature): i for i, feature in enumerate(self.features.tolist())}
        missing = [feature for feature in features if feature not in place]
        if missing:
            raise ValueError(
                f"feature {missing[0]} was not gathered: the store holds {len(place)} of the dictionary's "
                f"{self.manifest.n_features} features; gather again with it"
            )
        return self.select([place[feature] for feature in features])


def _entries(part: Part, columns: Int[Tensor, " selected"]) -> Tensor | slice:
    """Where a part holds what fires of these columns, column by column."""
    begin, end = part.starts[columns], part.starts[columns + 1]
    if not len(columns) or bool((begin[1:] == end[:-1]).all()):  # one after another: no copy of indices
        return slice(int(begin[0]), int(end[-1])) if len(columns) else slice(0, 0)
    lengths = end - begin
    first = lengths.cumsum(0) - lengths
    return torch.arange(int(lengths.sum())) + (begin - first).repeat_interleave(lengths)
