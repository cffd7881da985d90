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

from crossvis_tl.examples import Group
from crossvis_tl.logit_effects import Effects
from crossvis_tl.panels import ShownSequence, TokenEffects

DIGITS = 4


@dataclass(frozen=True)
class Windows:
    """All examples of one feature. `grid`: flat positions [examples, before + 1 + after + 1], beginning one token
    before the window for its effect on the first; `inside`: which of them lie in the example's row; `acts`: the
    feature's activation there, 0 outside."""

    grid: Int[Tensor, "examples width"]
    inside: Bool[Tensor, "examples width"]
    acts: Float[Tensor, "examples width"]

    @property
    def sources(self) -> Int[Tensor, " p"]:
        """Positions whose effect on the next token is shown, ascending."""
        wanted = (self.acts[:, :-1] != 0) & self.inside[:, 1:]
        return torch.unique(self.grid[:, :-1][wanted])


def windows(
    groups: Sequence[Group],
    where: Int[Tensor, " fired"],
    values: Float[Tensor, " fired"],
    n_positions: int,
    cfg: SequencesConfig,
) -> Windows:
    """Every example of every group, in order."""
    before, after = cfg.buffer
    bold = torch.cat([group.positions for group in groups]) if groups else torch.zeros(0, dtype=torch.long)
    offsets = torch.arange(-before - 1, after + 1)
    grid = bold[:, None] + offsets
    inside = (
        torch.div(grid, n_positions, rounding_mode="floor")
        == torch.div(bold, n_positions, rounding_mode="floor")[:, None]
    )
    inside &= grid >= 0
    acts = lookup(where, values, grid) * inside
    if not cfg.compute_buffer:
        acts = acts * (offsets == 0)
    return Windows(grid, inside, acts)


def lookup(
    where: Int[Tensor, " fired"], values: Float[Tensor, " fired"], positions: Int[Tensor, "*shape"]
) -> Float[Tensor, "*shape"]:
    """The activation at each flat position, 0 where the feature is silent."""
    if not len(where):
        return torch.zeros(positions.shape)
    at = torch.searchsorted(where, positions).clamp_max(len(where) - 1)
    return torch.where(where[at] == positions, values[at], 0.0)


class _Listed(NamedTuple):
    """One model's effects as plain lists, and where each position's stand."""

    loss: list[float]
    up: list[list[tuple[int, float]]]
    down: list[list[tuple[int, float]]]
    at: dict[int, int]


def _listed(effects: Effects) -> _Listed:
    return _Listed(
        loss=effects.loss.double().round(decimals=DIGITS).tolist(),
        up=_pairs(effects.up_ids, effects.up),
        down=_pairs(effects.down_ids, effects.down),
        at={position: i for i, position in enumerate(effects.positions.tolist())},
    )


def _pairs(ids: Tensor, values: Tensor) -> list[list[tuple[int, float]]]:
    rounded = values.double().round(decimals=DIGITS).tolist()  # all at once: a page holds millions of these
    return [list(zip(row, column, strict=True)) for row, column in zip(ids.tolist(), rounded, strict=True)]


def build_sequences(
    groups: Sequence[Group],
    shown: Windows,
    tokens: Int[Tensor, "rows positions"],
    effects: dict[int, Effects],
    direct: dict[int, Float[Tensor, " d_vocab"]],
) -> tuple[SequenceMultiGroupData, list[list[ShownSequence]]]:
    """-> sae_vis' data with the first model's effects, and our record of every sequence with all models' effects."""
    flat = tokens.flatten()
    n_positions = tokens.shape[1]
    listed = {m: _listed(part) for m, part in effects.items()}
    ids = flat[shown.grid.clamp(0, len(flat) - 1)]
    logits = {m: vector[ids.to(vector.device)].tolist() for m, vector in direct.items()}
    id_rows, inside, acts, grid = ids.tolist(), shown.inside.tolist(), shown.acts.tolist(), shown.grid.tolist()
    stock_groups, records, example = [], [], 0
    for group in groups:
        data, record = [], []
        for _ in group.positions.tolist():
            columns = [c for c in range(1, len(inside[example])) if inside[example][c]]
            values = [round(acts[example][c], DIGITS) for c in columns]
            parts = {m: _token_effects(listed[m], logits[m][example], grid[example], columns) for m in direct}
            bold = int(group.positions[len(data)])
            origin = ShownSequence(bold // n_positions, bold % n_positions, bold - grid[example][columns[0]], parts)
            data.append(
                _sequence_data([id_rows[example][c] for c in columns], values, next(iter(parts.values()), None))
            )
            record.append(origin)
            example += 1
        stock_groups.append(SequenceGroupData(group.title, data))
        records.append(record)
    return SequenceMultiGroupData(stock_groups), records


def _token_effects(found: _Listed, logits: list[float], grid: list[int], columns: list[int]) -> TokenEffects:
    loss, up, down = [], [], []
    for c in columns:
        i = found.at.get(grid[c - 1])
        loss.append(0.0 if i is None else found.loss[i])
        up.append([] if i is None else found.up[i])
        down.append([] if i is None else found.down[i])
    return TokenEffects(loss, [round(logits[c], DIGITS) for c in columns], up, down)


def _sequence_data(ids: list[int], acts: list[float], effects: TokenEffects | None) -> SequenceData:
    effects = effects or TokenEffects([0.0] * len(ids), [0.0] * len(ids), [[] for _ in ids], [[] for _ in ids])
    return SequenceData(
        token_ids=ids, feat_acts=acts, loss_contribution=effects.loss, token_logits=effects.logits,
        top_token_ids=[[i for i, _ in pairs] for pairs in effects.up],
        top_logits=[[v for _, v in pairs] for pairs in effects.up],
        bottom_token_ids=[[i for i, _ in pairs] for pairs in effects.down],
        bottom_logits=[[v for _, v in pairs] for pairs in effects.down],
    )  # fmt: skip
