"""What a feature adds to a model's final residual stream, and the final residual streams of shown sequences.

The effect of a feature on a prediction is the log-probability with it minus the log-probability without it, through the
model's own final norm, unembedding, bias and soft-cap. "Without it" is the final residual stream minus what the feature
writes to it (`residual_written`), later layers left as they are: the direct effect, as sae_vis defines it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from crossvis_tl.capture import Capture
from crossvis_tl.dictionary import Dictionary
from crossvis_tl.hooks.find import Finder
from crossvis_tl.hooks.writing import ResidualWrite, residual_write

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer


@dataclass(frozen=True)
class Written:
    """What features add to a model's final residual stream: amount * direction, and `base` wherever they fire.

    `direction`: [n, d_model], of one unit. `base`: [n, d_model], None where there is none (`Post.offset`). `gate`: [n],
    what an activation must be above for anything to be written, None where there is no such bound. `scaled`: the target
    whose scale at each token (`Captured.scales`) multiplies all of that, None for none. `others`: what is added by way
    of further targets that have scales or bounds of their own.
    """

    direction: Float[Tensor, "n d_model"]
    base: Float[Tensor, "n d_model"] | None = None
    gate: Float[Tensor, " n"] | None = None
    scaled: int | None = None
    others: tuple["Written", ...] = ()

    @property
    def one_direction(self) -> bool:
        """Whether all that is added at any token is a multiple of `direction`."""
        return self.base is None and not self.others

    def to(self, device: torch.device | str) -> "Written":
        parts = (self.direction, self.base, self.gate)
        moved = (None if part is None else part.to(device) for part in parts)
        return Written(*moved, self.scaled, tuple(other.to(device) for other in self.others))  # type: ignore[arg-type]

    def removed(self, index: int, acts: Float[Tensor, " p"]) -> tuple[Float[Tensor, " p"], Tensor | None]:
        """-> how much of the direction the index-th feature adds at each activation, and how much of its base; both
        still to be multiplied by the token's scale."""
        amounts, fires = self._amounts(torch.full((len(acts),), index), acts)
        return amounts, None if self.base is None else fires

    def _amounts(self, which: Int[Tensor, " p"], acts: Float[Tensor, " p"]) -> tuple[Tensor, Tensor]:
        passes = acts != 0 if self.gate is None else acts > self.gate[which.to(self.gate.device)].to(acts)
        return acts * passes, passes.to(acts)

    def amounts(
        self, which: Int[Tensor, " p"], acts: Float[Tensor, " p"], scales: dict[int, Float[Tensor, " p"]]
    ) -> Float[Tensor, " p"]:
        """How much of its direction the `which[i]`-th feature adds, firing with `acts[i]`. `scales`: by target."""
        amounts, _ = self._amounts(which, acts)
        return amounts if self.scaled is None else amounts * scales[self.scaled].to(amounts)

    def added(
        self, which: Int[Tensor, " p"], acts: Float[Tensor, " p"], scales: dict[int, Float[Tensor, " p"]]
    ) -> Float[Tensor, "p d_model"]:
        """All that is added, whatever it is made of."""
        amounts, fires = self._amounts(which, acts)
        out = amounts[:, None] * self.direction[which]
        if self.base is not None:
            out = out + fires[:, None] * self.base[which]
        if self.scaled is not None:
            out = out * scales[self.scaled].to(out)[:, None]
        for other in self.others:
            out = out + other.added(which, acts, scales)
        return out


def residual_written(
    dictionary: Dictionary,
    features: Int[Tensor, " n"],
    model: "HookedTransformer",
    index: int,
    writes: Sequence[ResidualWrite] | None = None,
) -> Written | None:
    """What each feature adds to the final residual stream of model number `index`.

    Residual sites: the deepest one's decoder alone, which the earlier ones are in already. MLP and attention outputs:
    the sum over sites. MLP activations and attention heads: through W_out / W_O. By way of a post-norm, or where a
    token's normalisation is taken back: times the token's own scale. None where no site of this model writes to its
    residual stream (norm outputs, queries, keys ...), or the dictionary's output lives in a normalised space. `writes`:
    `Capture.writes`.
    """
    finder = None if writes else Finder(model)
    own = [t for t, site in enumerate(dictionary.targets) if site.model == index]
    how = {t: writes[t] if writes else residual_write(model, str(dictionary.targets[t].place), finder) for t in own}
    if not how or any(t in dictionary.target_norm for t in how):
        return None
    stream = [t for t, write in how.items() if write.kind == "residual"]
    if stream:
        how = {t: how[t] for t in [max(stream, key=lambda t: how[t].order)]}
    elif any(write.kind == "none" for write in how.values()):
        return None
    parts = [written_at(dictionary, features, t, write, model) for t, write in how.items()]
    plain = [part for part in parts if part.gate is None and part.scaled is None]
    others = [part for part in parts if part.gate is not None or part.scaled is not None]
    if plain:
        bases = [part.base for part in plain if part.base is not None]
        direction = torch.stack([part.direction for part in plain]).sum(0)
        return Written(direction, torch.stack(bases).sum(0) if bases else None, others=tuple(others))
    first = others[0]
    return Written(first.direction, first.base, first.gate, first.scaled, tuple(others[1:]))


def written_at(
    dictionary: Dictionary, features: Tensor, target: int, write: ResidualWrite, model: "HookedTransformer"
) -> Written:
    """What features add to the final residual stream by way of one target alone. `write`: `Capture.writes[target]`."""
    direct = write.kind == "residual"
    direction, base = dictionary.decoder(features, target), dictionary.base(features, target)
    return Written(
        direction if direct else write.through(direction, model),
        base if base is None or direct else write.through(base, model),
        dictionary.gate(features, target),
        target if target in dictionary.undone or write.scale_hook is not None else None,
    )


@torch.inference_mode()
def final_residuals(
    capture: Capture,
    tokens: Int[Tensor, "rows positions"],
    lead: Int[Tensor, " rows"],
    positions: Int[Tensor, " p"],
    *,
    rows_per_batch: int | None = 64,
    progress: bool = False,
) -> Iterator[tuple[slice, list[Float[Tensor, "some d_model"]]]]:
    """Each model's final residual stream at flat `positions` (ascending, distinct), some at a time; only their rows are
    run. -> which of the positions, and a tensor for each model."""
    n_positions = tokens.shape[1]
    rows = torch.unique(positions // n_positions)
    batches = rows.split(rows_per_batch or len(rows)) if len(rows) else ()
    for batch in tqdm(batches, desc="Running shown sequences", unit="batch", disable=not progress):
        captured = capture.run(tokens[batch], final=True, lead=lead[batch])
        bounds = torch.tensor([int(batch[0]), int(batch[-1]) + 1]) * n_positions
        at = slice(*torch.searchsorted(positions, bounds).tolist())
        here = positions[at]
        local = torch.searchsorted(batch, here // n_positions) * n_positions + here % n_positions
        yield at, [final.flatten(0, 1)[local.to(final.device)] for final in captured.final]


def following_tokens(tokens: Int[Tensor, "rows positions"], positions: Sequence[int] | Tensor) -> Int[Tensor, " p"]:
    """The token after each flat position, which must not be the last of its row."""
    flat = tokens.flatten()
    return flat[torch.as_tensor(positions) + 1].long()
