"""Shown sequences: tokens around each example, coloured by activation, with the feature's effect on each next token.

As in sae_vis, a token shows its own activation, and the effect that taking the feature away at the token *before* it
has on predicting it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from sae_vis.data_config_classes import SequencesConfig
from sae_vis.data_storing_fns import SequenceData, SequenceGroupData, SequenceMultiGroupData
from torch import Tensor

from crossvis_tl.ablation import Changes
from crossvis_tl.examples import Group
from crossvis_tl.masking import Mask
from crossvis_tl.panels import ShownSequence, TokenEffects

DIGITS = 4


@dataclass(frozen=True)
class Windows:
    """All examples of one feature. `grid`: flat positions [examples, before + 1 + after + 1], beginning one token
    before the window for its effect on the first; `inside`: which of them lie in the example's row; `acts`: the
    feature's activation there, 0 outside. `bold`: the column of the example's own token. `whole`: whether more is shown
    than that (`compute_buffer`)."""

    grid: Int[Tensor, "examples width"]
    inside: Bool[Tensor, "examples width"]
    acts: Float[Tensor, "examples width"]
    bold: int
    whole: bool = True

    def along(
        self, where: Int[Tensor, " fired"], columns: Float[Tensor, "fired n"]
    ) -> Float[Tensor, "examples width n"]:
        """Numbers of every activation, such as its sources' shares, at each place shown; 0 where nothing fires."""
        if not len(where):
            return torch.zeros(*self.grid.shape, columns.shape[-1])
        at = torch.searchsorted(where, self.grid).clamp_max(len(where) - 1)
        return torch.where((self.acts != 0)[..., None], columns[at], 0.0)

    def sources(self) -> tuple[Int[Tensor, " p"], Float[Tensor, " p"]]:
        """Positions whose effect on the next token is shown, ascending, and the activations there."""
        wanted = (self.acts[:, :-1] != 0) & self.inside[:, 1:]
        positions, inverse = torch.unique(self.grid[:, :-1][wanted], return_inverse=True)
        values = torch.zeros(len(positions))
        values[inverse] = self.acts[:, :-1][wanted]
        return positions, values


def windows(
    groups: Sequence[Group],
    where: Int[Tensor, " fired"],
    values: Float[Tensor, " fired"],
    mask: Mask,
    cfg: SequencesConfig,
) -> Windows:
    """Every example of every group, in order; padding is left out of them."""
    n_positions = mask.counted.shape[1]
    before, after = cfg.buffer
    bold = torch.cat([group.positions for group in groups]) if groups else torch.zeros(0, dtype=torch.long)
    offsets = torch.arange(-before - 1, after + 1)
    grid = bold[:, None] + offsets
    row = bold[:, None] // n_positions
    column = grid - row * n_positions
    inside = (column >= mask.lead[row]) & (column < n_positions - mask.tail[row])
    acts = lookup(where, values, grid) * inside
    if not cfg.compute_buffer:
        acts = acts * (offsets == 0)
    return Windows(grid, inside, acts, before + 1, cfg.compute_buffer)


def lookup(
    where: Int[Tensor, " fired"], values: Float[Tensor, " fired"], positions: Int[Tensor, "*shape"]
) -> Float[Tensor, "*shape"]:
    """The activation at each flat position, 0 where the feature is silent."""
    if not len(where):
        return torch.zeros(positions.shape)
    at = torch.searchsorted(where, positions).clamp_max(len(where) - 1)
    return torch.where(where[at] == positions, values[at], 0.0)


@dataclass(frozen=True)
class Effects:
    """Effects on one model's predictions, made at `positions` (flat). `of_one`: of one example alone, where a feature
    that was taken away changes later predictions too, those after tokens on which it is silent among them."""

    positions: Int[Tensor, " p"]
    changes: Changes
    of_one: bool = False


class _Listed(NamedTuple):
    """One model's effects as plain lists, and where each position's stand."""

    loss: list[float]
    p: list[float]
    sides: tuple[list[list[int]], list[list[float]], list[list[int]], list[list[float]]]
    at: dict[int, int]
    of_one: bool


def _listed(effects: Effects) -> _Listed:
    changes = effects.changes
    return _Listed(
        loss=changes.loss.double().round(decimals=DIGITS).tolist(),
        p=changes.p.double().round(decimals=DIGITS).tolist(),
        sides=(*_shown(changes.up_ids, changes.up), *_shown(changes.down_ids, changes.down)),
        at={position: i for i, position in enumerate(effects.positions.tolist())},
        of_one=effects.of_one,
    )


def _shown(ids: Tensor, values: Tensor) -> tuple[list[list[int]], list[list[float]]]:
    """Those that are not zero to the digits shown, which come last."""
    rounded = values.double().round(decimals=DIGITS)  # all at once: a page holds millions of these
    rows, numbers = ids.tolist(), rounded.tolist()
    kept = (rounded != 0).sum(-1).tolist()
    for i, n in enumerate(kept):
        if n < len(rows[i]):
            rows[i], numbers[i] = rows[i][:n], numbers[i][:n]
    return rows, numbers


def build_sequences(
    groups: Sequence[Group],
    shown: Windows,
    tokens: Int[Tensor, "rows positions"],
    mask: Mask,
    effects: dict[int, list[Effects]],
    direct: dict[int, Float[Tensor, " d_vocab"]],
    shares: Float[Tensor, "examples width sources"] | None = None,
) -> tuple[SequenceMultiGroupData, list[list[ShownSequence]]]:
    """-> sae_vis' data with the first model's effects, and our record of every sequence with all models' effects.

    `effects`: by model, of each example, or one of all examples together. `shares`: of the sources at each token.
    """
    flat = tokens.flatten()
    n_positions = tokens.shape[1]
    documents = mask.documents.flatten()
    listed = {m: [_listed(part) for part in parts] for m, parts in effects.items()}
    ids = flat[shown.grid.clamp(0, len(flat) - 1)]
    logits = {m: _rounded(vector[ids.to(vector.device)]) for m, vector in direct.items()} if effects else {}
    id_rows, inside, grid, values = ids.tolist(), shown.inside.tolist(), shown.grid.tolist(), _rounded(shown.acts)
    acts = shown.acts.tolist() if effects else values
    whole = shown.inside[:, 1:].all(-1).tolist()  # most are: a slice is then all of it
    sources = [] if shares is None else _rounded(shares.permute(0, 2, 1))
    stock_groups, records, example = [], [], 0
    for group in groups:
        data, record = [], []
        for _ in group.positions.tolist():
            columns: Sequence[int] = range(1, len(inside[example]))
            if not whole[example]:
                columns = [c for c in columns if inside[example][c]]
            parts = {
                m: _token_effects(
                    found[min(example, len(found) - 1)], logits[m][example], grid[example], acts[example], columns
                )
                for m, found in listed.items()
            }
            bold = int(group.positions[len(data)])
            origin = ShownSequence(
                bold // n_positions, bold % n_positions, bold - grid[example][columns[0]], parts, int(documents[bold]),
                [_at(line, columns) for line in sources[example]] if sources else [],
            )  # fmt: skip
            first = next(iter(parts.values()), None)
            data.append(_sequence_data(_at(id_rows[example], columns), _at(values[example], columns), first))
            record.append(origin)
            example += 1
        stock_groups.append(SequenceGroupData(group.title, data))
        records.append(record)
    return SequenceMultiGroupData(stock_groups), records


def _rounded(values: Tensor) -> list:
    return values.double().round(decimals=DIGITS).tolist()


def _at(values: list, columns: Sequence[int]) -> list:
    return values[columns.start :] if isinstance(columns, range) else [values[c] for c in columns]


def _token_effects(
    found: _Listed, logits: list[float], grid: list[int], acts: list[float], columns: Sequence[int]
) -> TokenEffects:
    loss = [0.0] * len(columns)
    p: list[float | None] = [None] * len(columns)
    nothing: list = []  # one for all: a page's data holds millions of tokens at which nothing fires
    sides: list[list] = [[nothing] * len(columns) for _ in found.sides]
    for i, c in enumerate(columns):
        at = found.at.get(grid[c - 1]) if found.of_one or acts[c - 1] else None
        if at is not None:
            loss[i], p[i] = found.loss[at], found.p[at]
            for side, values in zip(sides, found.sides, strict=True):
                side[i] = values[at]
    up_ids, up, down_ids, down = sides
    return TokenEffects(loss, _at(logits, columns), up_ids, up, down_ids, down, p)


def _sequence_data(ids: list[int], acts: list[float], effects: TokenEffects | None) -> SequenceData:
    """What sae_vis' constructor gives. That goes through every number to round it and to drop zeros, which is done
    already: half of the time of making a page's data."""
    if effects is None:
        nothing: list[list] = [[]] * len(ids)
        effects = TokenEffects(
            [0.0] * len(ids), [0.0] * len(ids), nothing, nothing, nothing, nothing, [None] * len(ids)
        )
    data = SequenceData.__new__(SequenceData)
    data.token_ids, data.feat_acts, data.seq_len = ids, acts, len(ids)
    data.loss_contribution, data.token_logits = effects.loss, effects.logits
    data.top_token_ids, data.top_logits = effects.up_ids, effects.up
    data.bottom_token_ids, data.bottom_logits = effects.down_ids, effects.down
    return data
