"""`effect="full"`: a feature is taken away at one token where it is written, and the model runs on from there.

What the later layers make of it is then part of the effect, on the prediction after this token and after later ones.
Taken away is the contribution at the earliest place of the residual stream that the feature writes to, or, where it
writes to what is added to the stream (a cross-layer transcoder's targets), at each of those.
"""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from crossvis_tl.ablation import Changes, extremes
from crossvis_tl.capture import Capture, last_hook
from crossvis_tl.effects import Writers
from crossvis_tl.feature_acts import FeatureActs
from crossvis_tl.fused import fused
from crossvis_tl.hooks.reading import settings_for
from crossvis_tl.models import name_of
from crossvis_tl.sequences import Effects, Windows
from crossvis_tl.tokens import replaced_tokens
from crossvis_tl.unembed import Unembedding

# Examples run at a time where the caller sets no bound.
EXAMPLES_AT_A_TIME = 64


@torch.inference_mode()
def full_effects(
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
    """Of each of `acts`' features, by model, one for each example that `shown` (one for each feature) holds.

    ValueError where a model cannot be changed at a place that is written.
    """
    sites = {m: _sites(capture, m) for m in how.written}
    results: list[dict[int, list[Effects]]] = []
    bar = tqdm(total=len(shown), desc="Running ablated sequences", unit="feature", disable=not progress)
    for feature, windows in zip(acts.features.tolist(), shown, strict=True):
        found: dict[int, list[Effects]] = {m: [] for m in how.written}
        for some in torch.arange(len(windows.grid)).split(rows_per_batch or EXAMPLES_AT_A_TIME):
            if not len(some):  # a dead feature
                continue
            examples = _Examples(acts, windows, some)
            inputs = examples.inputs(capture)
            for m in how.written:
                taken = {
                    hook: capture.dictionary.contribution(feature, examples.acts, t, inputs)
                    for t, hook in sites[m].items()
                }
                found[m] += examples.effects(capture, m, taken, how.unembeddings[m], k)
        results.append(found)
        bar.update()
    bar.close()
    return results


def _sites(capture: Capture, model: int) -> dict[int, str]:
    """Target -> the hook at which its contribution is taken away."""
    targets = [t for t, site in enumerate(capture.dictionary.targets) if site.model == model]
    stream = [t for t in targets if capture.writes[t].kind == "residual"]
    if stream:
        targets = [min(stream, key=lambda t: capture.writes[t].order)]
    found = {}
    for t in targets:
        place = str(capture.dictionary.targets[t].place)
        hook = capture.readers[model, place].hook
        if len(hook.reads) != 1 or hook.transform in ("affine", "rescale"):
            raise ValueError(
                f'effect="full" changes {name_of(capture.models[model])} where {capture.dictionary.name} writes, and '
                f'{place} is no hook of its own there; use effect="direct"'
            )
        found[t] = hook.reads[0]
    return found


class _Examples:
    """Rows of some examples of one feature, without the padding they begin with, up to the last token shown.

    `at`: where in its row each example's token is. `acts`: the activation there. `shown`: for each example the
    positions, in its row, whose effect on the next token is shown.
    """

    def __init__(self, acts: FeatureActs, windows: Windows, some: Int[Tensor, " examples"]):
        n_positions = acts.tokens.shape[1]
        bold = windows.bold
        grid, inside = windows.grid[some], windows.inside[some]
        self.flat = grid[:, bold]
        rows = self.flat // n_positions
        lead = acts.mask.lead[rows]
        starts = rows * n_positions + lead
        self.at, self.acts = self.flat - starts, windows.acts[some, bold]
        wanted = inside[:, bold:-1] & inside[:, bold + 1 :]
        if not windows.whole:
            wanted = wanted & (torch.arange(wanted.shape[1]) == 0)
        self.shown = [(grid[i, bold:-1][wanted[i]] - starts[i]) for i in range(len(some))]
        last = max((int(positions[-1]) for positions in self.shown if len(positions)), default=0)
        columns = torch.arange(max(last + 2, int(self.at.max()) + 1))
        kept = (lead[:, None] + columns).clamp_max(n_positions - 1)  # beyond the end nothing is looked at
        self.tokens = acts.tokens[rows].gather(1, kept)
        self.starts = starts

    def inputs(self, capture: Capture) -> list[Tensor] | None:
        """The sources' activations at each example's token, where its normalisation is taken back."""
        if not capture.dictionary.undone:
            return None
        captured = capture.run(self.tokens)
        here = torch.arange(len(self.at))
        return [x[here.to(x.device), self.at.to(x.device)] for x in captured.sources]

    def effects(
        self, capture: Capture, m: int, taken: dict[str, Tensor], unembed: Unembedding, k: int
    ) -> list[Effects]:
        with_it = _final(capture, m, self.tokens, {})
        without = _final(capture, m, self.tokens, {hook: _taker(x, self.at) for hook, x in taken.items()})
        results = []
        for i, positions in enumerate(self.shown):
            following = self.tokens[i, positions + 1]
            at = positions.to(with_it.device)
            changes = _changes(unembed, with_it[i, at], without[i, at], following, k)
            results.append(Effects(positions + self.starts[i], changes, of_one=True))
        return results


def _final(capture: Capture, index: int, tokens: Tensor, changes: dict[str, Callable]) -> Tensor:
    """The final residual stream [rows, positions, d_model], the model changed at some hooks."""
    model, kept = capture.models[index], {}

    def keep(activation: Tensor, hook: object) -> None:
        kept["final"] = activation

    if index in capture.replacements:
        tokens = replaced_tokens(tokens, capture.replacements[index])
    hooks = [*changes.items(), (last_hook(model), keep)]
    with settings_for(model, sorted(changes)), fused(model):
        model.run_with_hooks(tokens.to(model.cfg.device), fwd_hooks=hooks, return_type=None)
    return kept["final"].float()


def _taker(contribution: Float[Tensor, "rows width"], at: Int[Tensor, " rows"]) -> Callable:
    def take(activation: Tensor, hook: object) -> Tensor:
        rows = torch.arange(len(at), device=activation.device)
        changed = activation.clone()
        part = contribution.to(activation).reshape(len(at), *activation.shape[2:])  # heads stand apart in a model
        changed[rows, at.to(activation.device)] -= part
        return changed

    return take


def _changes(unembed: Unembedding, with_it: Tensor, without: Tensor, following: Tensor, k: int) -> Changes:
    device = unembed.W.device
    before, after = unembed.logits(with_it.to(device)), unembed.logits(without.to(device))
    given = before.log_softmax(-1)
    change = given - after.log_softmax(-1)
    k = min(k, change.shape[-1])
    (up_ids, up), (down_ids, down) = (extremes(change, k, largest=largest) for largest in (True, False))
    followed = following.to(device)[:, None]
    loss, p = -change.gather(-1, followed)[:, 0], given.gather(-1, followed)[:, 0].exp()
    return Changes(loss.cpu(), up_ids.cpu(), up.cpu(), down_ids.cpu(), down.cpu(), p.cpu())
