"""Effects on logits of many features at the tokens that are shown: each such token unembedded once for all of them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
from einops import einsum
from jaxtyping import Float, Int
from torch import Tensor

from crossvis_tl.ablation import Changes, Pairs, ablate
from crossvis_tl.capture import Capture
from crossvis_tl.errors import check_word
from crossvis_tl.feature_acts import FeatureActs
from crossvis_tl.logit_effects import Written, final_residuals, following_tokens, residual_written
from crossvis_tl.sequences import Effects, Windows
from crossvis_tl.unembed import Unembedding

Effect = Literal["direct", "none", "full"]
# Direct logit vectors of features held at a time, in bytes, of all models together.
DIRECT_BUDGET = 2**30


def check_effect(effect: str) -> None:
    """ValueError for another spelling."""
    check_word("effect", effect, get_args(Effect))


@dataclass(frozen=True)
class Writers:
    """How the selected features write to each model that they write to: by model, its unembedding, and what they
    add to its final residual stream."""

    unembeddings: dict[int, Unembedding]
    written: dict[int, Written]

    def direct(self, model: int, at_a_time: int = 256) -> Float[Tensor, "n d_vocab"]:
        """The direct effect of one unit of each feature on the logits, before the final norm divides. Where what is
        added is scaled at each token, that of one unit of the decoder rows."""
        how = self.written[model]
        direction = how.direction
        for other in how.others:
            direction = direction + other.direction
        W = self.unembeddings[model].W
        out = torch.empty(len(direction), W.shape[1], device=W.device)
        for begin in range(0, len(direction), at_a_time):
            at = slice(begin, begin + at_a_time)
            out[at] = einsum(direction[at], W, "features d_model, d_model d_vocab -> features d_vocab")
        return out

    def changes(
        self,
        model: int,
        resid: Float[Tensor, "tokens d_model"],
        direct: Float[Tensor, "n d_vocab"],
        pairs: "Firing",
        k: int,
    ) -> Changes:
        """Takes features away where they fire. `direct`: what `direct(model)` gave."""
        how, device = self.written[model], direct.device
        resid, acts, which = resid.to(device), pairs.acts.to(device), pairs.which.to(device)
        amounts = how.amounts(which, acts, pairs.scales)
        added = None if how.one_direction else how.added(which, acts, pairs.scales)
        found = Pairs(pairs.tokens.to(device), pairs.following.to(device), which, amounts, added)
        return ablate(
            self.unembeddings[model], resid, how.direction, direct, found, min(k, direct.shape[-1])
        )  # fmt: skip


@dataclass(frozen=True)
class Firing:
    """Features at tokens: the `which[i]`-th feature fires with `acts[i]` at the `tokens[i]`-th of some tokens, which
    `following[i]` comes after. `scales`: by target, as `Captured.scales`."""

    which: Int[Tensor, " pairs"]
    acts: Float[Tensor, " pairs"]
    tokens: Int[Tensor, " pairs"]
    following: Int[Tensor, " pairs"]
    scales: dict[int, Float[Tensor, " pairs"]]

    def __getitem__(self, at: Tensor) -> "Firing":
        scales = {t: scale[at] for t, scale in self.scales.items()}
        return Firing(self.which[at], self.acts[at], self.tokens[at], self.following[at], scales)


def writers(capture: Capture, features: Tensor) -> Writers:
    """Models whose residual stream the features do not write to are left out."""
    unembeddings, written = {}, {}
    for index, model in enumerate(capture.models):
        found = residual_written(capture.dictionary, features, model, index, capture.writes)
        if found is not None:
            unembeddings[index] = capture.unembedding(index)
            written[index] = found.to(unembeddings[index].W.device)
    return Writers(unembeddings, written)


def features_at_a_time(capture: Capture, n_features: int) -> int:
    """How many features' direct logit vectors fit in the budget."""
    row = 4 * sum(model.cfg.d_vocab for model in capture.models)
    return max(1, min(n_features, DIRECT_BUDGET // row))


def direct_effects(
    capture: Capture,
    acts: FeatureActs,
    how: Writers,
    direct: dict[int, Float[Tensor, "n d_vocab"]],
    shown: Sequence[Windows],
    k: int,
    *,
    rows_per_batch: int | None,
    progress: bool,
) -> list[dict[int, list[Effects]]]:
    """Of each of `acts`' features, by model, at all tokens that `shown` (one for each) shows it to fire before."""
    sources = [window.sources() for window in shown]
    at = torch.cat([positions for positions, _ in sources])
    which = torch.arange(len(shown)).repeat_interleave(torch.tensor([len(positions) for positions, _ in sources]))
    positions, tokens = torch.unique(at, return_inverse=True)
    scales = dict(zip(acts.manifest.scaled, acts.scales(at).unbind(-1), strict=True))
    strength = torch.cat([values for _, values in sources])
    firing = Firing(which, strength, tokens, following_tokens(acts.tokens, at), scales)
    order = torch.argsort(tokens, stable=True)
    ordered = tokens[order]
    found = {m: Changes.empty(len(at), min(k, vectors.shape[-1])) for m, vectors in direct.items()}
    for some, resids in _residuals(capture, acts, positions, rows_per_batch, progress):
        bounds = torch.searchsorted(ordered, torch.tensor([some.start, some.stop]))
        here = order[int(bounds[0]) : int(bounds[1])]
        pairs = replace(firing[here], tokens=tokens[here] - some.start)
        for m, vectors in direct.items():
            found[m].put(here, how.changes(m, resids[m], vectors, pairs, k))
    results, begin = [], 0
    for positions, _ in sources:
        own = slice(begin, begin + len(positions))
        results.append({m: [Effects(positions, changes[own])] for m, changes in found.items()})
        begin = own.stop
    return results


def _residuals(capture: Capture, acts: FeatureActs, positions: Tensor, rows_per_batch: int | None, progress: bool):
    """Final residual streams at `positions`, kept from the gathering or made again."""
    if acts.final is not None:
        yield slice(0, len(positions)), [final[positions] for final in acts.final]
        return
    yield from final_residuals(
        capture, acts.tokens, acts.mask.lead, positions, rows_per_batch=rows_per_batch, progress=progress
    )
