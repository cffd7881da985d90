"""What a feature does to the logits: directly, and what taking it away at a token changes in the prediction after it.

The effect of a feature on a prediction is the log-probability with it minus the log-probability without it, through the
model's own final norm, unembedding, bias and soft-cap. "Without it" is the final residual stream minus what the feature
writes to it (`residual_written`), later layers left as they are: the direct effect, as sae_vis defines it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from crossvis_tl.capture import Capture
from crossvis_tl.dictionary import Dictionary
from crossvis_tl.hooks.find import Finder
from crossvis_tl.hooks.writing import residual_write
from crossvis_tl.unembed import Unembedding

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer

# Logits held at a time, in numbers: small enough to stay in a core's cache while they are worked on.
BLOCK = 2**18


@dataclass(frozen=True)
class Written:
    """What features add to a model's final residual stream: amount * direction, and `base` wherever they fire.

    `direction`: [n, d_model], of one unit. `base`: [n, d_model], None where there is none (`Post.offset`). `gate`: [n],
    what an activation must be above for anything to be written, None where there is no such bound.
    """

    direction: Float[Tensor, "n d_model"]
    base: Float[Tensor, "n d_model"] | None = None
    gate: Float[Tensor, " n"] | None = None

    def to(self, device: torch.device) -> "Written":
        parts = (self.direction, self.base, self.gate)
        return Written(*(None if part is None else part.to(device) for part in parts))  # type: ignore[arg-type]

    def removed(self, index: int, acts: Float[Tensor, " p"]) -> tuple[Float[Tensor, " p"], Tensor | None]:
        """-> how much of the direction the index-th feature adds at each activation, and how much of its base."""
        if self.gate is None:
            return acts, None if self.base is None else (acts != 0).to(acts)
        passes = (acts > self.gate[index]).to(acts)
        return acts * passes, None if self.base is None else passes


def residual_written(
    dictionary: Dictionary, features: Int[Tensor, " n"], model: "HookedTransformer", index: int
) -> Written | None:
    """What each feature adds to the final residual stream of model number `index`.

    Residual sites: the deepest one's decoder alone, which the earlier ones are in already. MLP and attention outputs:
    the sum over sites. MLP activations and attention heads: through W_out / W_O. None where no site of this model
    writes to its residual stream (norm outputs, queries, keys ...), or what is added depends on the token's scale:
    by way of a post-norm, or by a dictionary that takes back its normalisation of every token, or lives in it.
    """
    sites = [(t, site) for t, site in enumerate(dictionary.targets) if site.model == index]
    finder = Finder(model)
    writes = {t: residual_write(model, str(site.place), finder) for t, site in sites}
    if any(t in dictionary.undone or t in dictionary.target_norm for t in writes):
        return None  # what a feature adds is multiplied by each token's own scale
    stream = [t for t, write in writes.items() if write.kind == "residual"]
    if stream:
        t = max(stream, key=lambda t: writes[t].order)
        return Written(dictionary.decoder(features, t), dictionary.base(features, t), dictionary.gate(features, t))
    # a post-norm divides by another number at each token: no one direction says what is added
    if not writes or any(write.kind == "none" or write.norm is not None for write in writes.values()):
        return None
    if any(dictionary.gate(features, t) is not None for t in writes):
        return None
    direction = torch.stack([w.through(dictionary.decoder(features, t), model) for t, w in writes.items()]).sum(0)
    bases = [(w, base) for t, w in writes.items() if (base := dictionary.base(features, t)) is not None]
    base = torch.stack([write.through(one, model) for write, one in bases]).sum(0) if bases else None
    return Written(direction, base)


@dataclass(frozen=True)
class Effects:
    """Effects of one feature on one model's predictions, made at `positions` (flat, ascending) where it fires.

    `loss`: change in nats of the loss on the token that follows, negative where the feature helps. `up` / `down`: ids
    and log-probability changes of the k most raised and most lowered tokens, [positions, k].
    """

    positions: Int[Tensor, " p"]
    loss: Float[Tensor, " p"]
    up_ids: Int[Tensor, "p k"]
    up: Float[Tensor, "p k"]
    down_ids: Int[Tensor, "p k"]
    down: Float[Tensor, "p k"]


def effects_of(
    unembed: Unembedding,
    resid: Float[Tensor, "p d_model"],
    acts: Float[Tensor, " p"],
    written: Written,
    index: int,
    direct: Float[Tensor, " d_vocab"],
    following: Int[Tensor, " p"],
    positions: Int[Tensor, " p"],
    k: int,
) -> Effects:
    """Ablates the index-th feature of `written` at positions whose final residual stream is `resid`. `direct`:
    `project(direction)`; `following`: the token after each position."""
    size = max(64, BLOCK // direct.shape[0])  # fewer rows would read the unembedding over and over
    direction = written.direction[index]
    amounts, fires = written.removed(index, acts)
    constant = None if fires is None or written.base is None else fires[:, None] * written.base[index]
    blocks = [
        _ablate(unembed, resid[at], amounts[at], direction, direct, following[at], k,
                None if constant is None else constant[at])
        for at in (slice(begin, begin + size) for begin in range(0, len(acts), size))
    ]  # fmt: skip
    blocks = blocks or [_ablate(unembed, resid, amounts, direction, direct, following, k, None)]
    loss, up_ids, up, down_ids, down = (torch.cat(parts).cpu() for parts in zip(*blocks, strict=True))
    return Effects(positions, loss, up_ids, up, down_ids, down)


def _ablate(
    unembed: Unembedding, resid: Tensor, acts: Tensor, direction: Tensor, direct: Tensor, following: Tensor, k: int,
    constant: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """-> loss, up ids and values, down ids and values, of a block of positions. `constant`: [positions, d_model], taken
    away beside `acts` times `direction`."""
    projected = unembed.project(resid)
    before_scale = unembed.scale(resid)
    left = resid - acts[:, None] * direction
    left = left if constant is None else left - constant
    after_scale = unembed.scale(left)
    before = unembed.finish(projected, before_scale)
    if constant is not None:
        change = before - unembed.finish(unembed.project(left), after_scale)
    elif unembed.softcap > 0:
        change = before - unembed.finish(projected - acts[:, None] * direct, after_scale)
    else:  # P/s - (P - aD)/s' without a second pass over what the two share
        change = (projected * (1 / before_scale - 1 / after_scale)).addcmul_(acts[:, None] / after_scale, direct)
    # log-softmax differs from the logits by one number a row: the order of tokens needs no softmax
    shift = before.logsumexp(-1, keepdim=True) - (before - change).logsumexp(-1, keepdim=True)
    up, down = change.topk(k, dim=-1), change.topk(k, dim=-1, largest=False)
    loss = (shift - change.gather(-1, following[:, None])).squeeze(-1)
    return loss, up.indices, up.values - shift, down.indices, down.values - shift


@torch.inference_mode()
def final_residuals(
    capture: Capture,
    tokens: Int[Tensor, "rows positions"],
    positions: Int[Tensor, " p"],
    *,
    rows_per_batch: int = 64,
    progress: bool = False,
) -> list[Float[Tensor, "p d_model"]]:
    """Each model's final residual stream at flat `positions` (ascending, distinct); only their rows are run."""
    n_positions = tokens.shape[1]
    rows = torch.unique(positions // n_positions)
    kept: list[list[Tensor]] = [[] for _ in capture.models]
    batches = rows.split(rows_per_batch) if len(rows) else ()
    for batch in tqdm(batches, desc="Running shown sequences", unit="batch", disable=not progress):
        captured = capture.run(tokens[batch], final=True)
        here = positions[(positions >= batch[0] * n_positions) & (positions < (batch[-1] + 1) * n_positions)]
        local = torch.searchsorted(batch, here // n_positions) * n_positions + here % n_positions
        for m, final in enumerate(captured.final):
            kept[m].append(final.flatten(0, 1)[local.to(final.device)])
    widths = [model.cfg.d_model for model in capture.models]
    return [torch.cat(parts) if parts else torch.zeros(0, w) for parts, w in zip(kept, widths, strict=True)]


def following_tokens(tokens: Int[Tensor, "rows positions"], positions: Sequence[int] | Tensor) -> Int[Tensor, " p"]:
    """The token after each flat position, which must not be the last of its row."""
    flat = tokens.flatten()
    return flat[torch.as_tensor(positions) + 1].long()
