"""What predictions lose when the model goes on with a reconstruction in place of what was reconstructed.

Cross-entropy in nats a predicted token, beside that of the model as it is and that with nothing in the site's place:
each site by itself, and all of them together, where the later layers read what the earlier reconstructions made of the
residual stream (as in the replacement model of transformer-circuits.pub/2025/attribution-graphs/methods.html, without
its error nodes).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from crossvis_tl.capture import Capture, without_lead
from crossvis_tl.fidelity import site_label
from crossvis_tl.fused import fused
from crossvis_tl.hooks.reading import settings_for
from crossvis_tl.losses import ReplacementLoss, SiteLoss
from crossvis_tl.masking import Mask
from crossvis_tl.models import name_of
from crossvis_tl.tokens import replaced_tokens

# Tokens predicted where as many were asked for as are worth it, and what share of the gathering it may take.
ENOUGH_TOKENS, FEWEST_TOKENS, SHARE = 4096, 256, 0.2
# Logits held at a time, in bytes.
LOGITS_BUDGET = 2**28
Change = Callable[[Tensor], Tensor]


@torch.inference_mode()
def replacement_losses(
    capture: Capture, tokens: Int[Tensor, "rows positions"], mask: Mask, n_tokens: int | None = None
) -> list[ReplacementLoss]:
    """One for each model that is written to.

    `n_tokens`: about so many tokens are predicted, of the first sequences; default as many as take a fifth of the time
    of one pass over all. Only counted tokens are replaced, and only what is predicted from them counts.
    """
    wanted = n_tokens or _affordable(capture, mask)
    rows = _rows(mask, wanted)
    if not len(rows):
        return []
    found = []
    for m in sorted({site.model for site in capture.dictionary.targets}):
        found.append(_of_model(capture, m, tokens, mask, rows))
    return found


def _affordable(capture: Capture, mask: Mask) -> int:
    passes = 2 * len(capture.dictionary.targets) + 4
    return min(ENOUGH_TOKENS, max(FEWEST_TOKENS, int(SHARE * mask.n_counted / passes)))


def _predicts(mask: Mask) -> Bool[Tensor, "rows positions"]:
    """Counted tokens that a token of the text comes after."""
    n = mask.counted.shape[1]
    followed = torch.arange(n) < (n - 1 - mask.tail)[:, None]
    return mask.counted & followed


def _rows(mask: Mask, wanted: int) -> Int[Tensor, " rows"]:
    """The first sequences that together predict so many tokens."""
    per_row = _predicts(mask).sum(-1)
    some = per_row.nonzero().squeeze(-1)
    return some[: int((per_row[some].cumsum(0) < wanted).sum()) + 1]


def _of_model(capture: Capture, m: int, tokens: Tensor, mask: Mask, rows: Tensor) -> ReplacementLoss:
    sites = [t for t, site in enumerate(capture.dictionary.targets) if site.model == m]
    name, names = name_of(capture.models[m]), [name_of(model) for model in capture.models]
    why = next((text for t in sites if (text := _cannot(capture, t))), "")
    if why:
        return ReplacementLoss(name, note=why)
    batch = _batch_rows(capture, m, tokens.shape[1])
    totals: dict[str, float] = {}
    causal, count = True, 0
    for some in rows.split(batch):
        run = _Run(capture, m, tokens[some], mask, some)
        count += run.n_predicted
        causal = run.causal
        for what, loss in run.losses(sites):
            totals[what] = totals.get(what, 0.0) + loss
    mean = {what: total / count for what, total in totals.items()}
    labels = {t: site_label(capture.dictionary.targets[t], names) for t in sites}
    each = [SiteLoss(labels[t], mean[f"put {t}"], mean[f"zero {t}"]) for t in sites]
    together = SiteLoss("all together", mean["put all"], mean["zero all"]) if len(sites) > 1 else None
    note = "" if causal or together is None else "all together: of the reconstructions made from the model as it is"
    return ReplacementLoss(name, mean["clean"], count, each, together, note)


def _batch_rows(capture: Capture, m: int, n_positions: int) -> int:
    row = 4 * n_positions * int(capture.models[m].cfg.d_vocab)
    return max(1, LOGITS_BUDGET // row)


def _cannot(capture: Capture, target: int) -> str:
    """Why nothing can be put in there; empty where it can."""
    site = capture.dictionary.targets[target]
    hook = capture.readers[site.model, str(site.place)].hook
    if target in capture.dictionary.target_norm:
        return "not measured: what the dictionary reconstructs is normalised, and its scale is not known"
    if len(hook.reads) != 1 or hook.transform in ("affine", "rescale"):
        return f"not measured: {site.place} is no hook of its own in this model"
    moved = site.processing == "tl_default" and not capture.processed[site.model]
    if moved and capture.writes[target].kind == "none":
        return f"not measured: {site.place} is another tensor in a processed model than in this one"
    return ""


@dataclass
class _Run:
    """One model on some sequences, changed in many ways."""

    capture: Capture
    m: int
    given: Tensor
    mask: Mask
    rows: Tensor

    def __post_init__(self) -> None:
        lead = self.mask.lead[self.rows]
        self.tokens, _ = without_lead(self.given, lead)
        self.counted, _ = without_lead(self.mask.counted[self.rows], lead)
        self.predicts, _ = without_lead(_predicts(self.mask)[self.rows], lead)
        self.n_predicted = int(self.predicts.sum())
        capture = self.capture
        runs = [self._run(m, {}) for m in range(len(capture.models))]
        self.found, self.clean = [found for _, found in runs], runs[self.m][0]
        order = {hook: i for i, hook in enumerate(self.found[self.m])}
        self.at = {t: self._order(t, order) for t, s in enumerate(capture.dictionary.targets) if s.model == self.m}
        self.causal = all(self._follows(t, order) for t in self.at)

    def _order(self, target: int, order: Mapping[str, int]) -> int:
        return order[self._hook(target)]

    def _hook(self, target: int) -> str:
        site = self.capture.dictionary.targets[target]
        return self.capture.readers[site.model, str(site.place)].reads[0]

    def _follows(self, target: int, order: Mapping[str, int]) -> bool:
        """Whether all that a target is made from has passed before it."""
        dictionary = self.capture.dictionary
        if dictionary.joint is not None and len(self.at) > 1:
            return False
        reads = {s for group in dictionary.groups if target in group.W_dec for s in group.W_enc}
        reads |= {s for s, t in dictionary.skip if t == target}
        sites = [dictionary.sources[s] for s in reads if dictionary.sources[s].model == self.m]
        hooks = [hook for site in sites for hook in self.capture.readers[self.m, str(site.place)].reads]
        return all(order[hook] <= self.at[target] for hook in hooks)

    def losses(self, targets: Sequence[int]) -> Iterator[tuple[str, float]]:
        """-> what was done, and the summed cross-entropy."""
        yield "clean", self.clean
        left = self._differences(self.found)
        for t in targets:
            yield f"put {t}", self._run(self.m, {t: left[t]})[0]
            yield f"zero {t}", self._run(self.m, {t: None})[0]
        if len(targets) > 1:
            put = left if not self.causal else self._one_after_another()
            yield "put all", self._run(self.m, {t: put[t] for t in targets})[0]
            yield "zero all", self._run(self.m, dict.fromkeys(targets))[0]

    def _one_after_another(self) -> dict[int, Tensor]:
        """Each target's reconstruction, made from what the model does with the earlier ones in place."""
        put: dict[int, Tensor] = {}
        for t in sorted(self.at, key=self.at.__getitem__):
            found = list(self.found)
            if put:
                found[self.m] = self._run(self.m, put, predict=False)[1]
            put[t] = self._differences(found)[t]
        return put

    def _differences(self, found: list[dict[str, Tensor]]) -> dict[int, Float[Tensor, "tokens width"]]:
        """What is left of each target's activation when its reconstruction is taken away, at counted tokens."""
        captured = self.capture.read(found)
        dictionary, at = self.capture.dictionary, self.counted
        sources = [x[at.to(x.device)] for x in captured.sources]
        recons = dictionary.decode(dictionary.encode_sparse(sources), sources)
        return {t: recons[t] - captured.targets[t][at.to(captured.targets[t].device)].to(recons[t]) for t in self.at}

    def _run(
        self, m: int, put: Mapping[int, Tensor | None], *, predict: bool = True
    ) -> tuple[float, dict[str, Tensor]]:
        """-> summed cross-entropy of what is predicted (0 unless `predict`), and what the dictionary's hooks gave."""
        model, kept = self.capture.models[m], {}

        def keeper(name: str) -> Callable:
            def keep(activation: Tensor, hook: object) -> None:
                kept.setdefault(name, activation)

            return keep

        wanted = sorted(self.capture.wanted(m))
        hooks: list[Any] = [(name, keeper(name)) for name in wanted]  # first, so that what is kept is what came there
        hooks += [(self._hook(t), _hook_of(self._change(change))) for t, change in put.items()]
        tokens = self.tokens
        if m in self.capture.replacements:
            tokens = replaced_tokens(tokens, self.capture.replacements[m])
        with settings_for(model, [*wanted, *(self._hook(t) for t in put)]), fused(model):
            logits = model.run_with_hooks(
                tokens.to(model.cfg.device), fwd_hooks=hooks, return_type="logits" if predict else None
            )
        return self._loss(logits, tokens) if predict else 0.0, kept

    def _change(self, difference: Tensor | None) -> Change:
        """Adds the difference at counted tokens, or leaves nothing there. A difference is right also where the model
        holds more at that place than the dictionary was given (a mean that was centred away)."""

        def change(activation: Tensor) -> Tensor:
            here = self.counted.to(activation.device)
            changed = activation.clone()
            if difference is None:
                changed[here] = 0.0
            else:
                rows = activation[here]
                changed[here] = rows + difference.to(rows).reshape(rows.shape)  # heads stand apart in a model
            return changed

        return change

    def _loss(self, logits: Tensor, tokens: Tensor) -> float:
        here = self.predicts.to(logits.device)[:, :-1]
        given = logits[:, :-1][here].float().log_softmax(-1)
        following = tokens.to(logits.device)[:, 1:][here]
        return -float(given.gather(-1, following[:, None]).sum(dtype=torch.float64))


def _hook_of(change: Change) -> Callable:
    def hook_fn(activation: Tensor, hook: object) -> Tensor:
        return change(activation)

    return hook_fn
