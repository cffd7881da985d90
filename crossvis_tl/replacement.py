"""What predictions lose when the model goes on with a reconstruction in place of what was reconstructed.

Cross-entropy in nats a predicted token, beside that of the model as it is and that with nothing in the site's place:
each site by itself, and all of them together, where the later layers read what the earlier reconstructions made of the
residual stream (as in the replacement model of transformer-circuits.pub/2025/attribution-graphs/methods.html, without
its error nodes).
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import EllipsisType
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from crossvis_tl.capture import Capture, layer_of, without_lead
from crossvis_tl.devices import out_of_memory
from crossvis_tl.dictionary import Dictionary
from crossvis_tl.fidelity import site_label
from crossvis_tl.fused import fused
from crossvis_tl.hooks.reading import settings_for
from crossvis_tl.losses import LARGEST, ReplacementLoss, SiteLoss
from crossvis_tl.masking import Mask
from crossvis_tl.models import name_of
from crossvis_tl.tokens import replaced_tokens

# How many tokens are predicted at most, and at least; between them, what share of the gathering's time it may take.
ENOUGH_TOKENS, FEWEST_TOKENS, SHARE = 4096, 256, 0.2
# Logits held at a time, in bytes, and rows of them made probabilities at a time.
LOGITS_BUDGET, TOKENS_AT_A_TIME = 2**28, 256
Change = Callable[[Tensor], Tensor]
Nats = dict[str, list[Float[Tensor, " tokens"]]]  # by what was done, each predicted token's, of each batch
log = logging.getLogger(__name__)


@torch.inference_mode()
def replacement_losses(
    capture: Capture,
    tokens: Int[Tensor, "rows positions"],
    mask: Mask,
    n_tokens: int | None = None,
    *,
    progress: bool = False,
) -> list[ReplacementLoss]:
    """One for each model that is written to.

    `n_tokens`: about so many tokens are predicted, of the first sequences; default as many as take a fifth of the time
    of one pass over all, but at least 256, whatever that takes, and at most 4,096. Only counted tokens are replaced,
    and only what is predicted from them counts, where it is of the same document.
    """
    rows = _rows(mask, n_tokens or _affordable(capture, mask))
    if not len(rows):
        return []
    models = sorted({site.model for site in capture.dictionary.targets})
    with tqdm(total=len(models) * len(rows), desc="Replacing sites", unit="seq", disable=not progress) as bar:
        return [_of_model(capture, m, tokens, mask, rows, bar) for m in models]


def _affordable(capture: Capture, mask: Mask) -> int:
    passes = 3 * len(capture.dictionary.targets) + 3
    return min(ENOUGH_TOKENS, max(FEWEST_TOKENS, int(SHARE * mask.n_counted / passes)))


def _predicts(mask: Mask) -> Bool[Tensor, "rows positions"]:
    """Counted tokens that a token of the same document comes after."""
    n = mask.counted.shape[1]
    followed = torch.arange(n) < (n - 1 - mask.tail)[:, None]
    followed[:, :-1] &= mask.documents[:, 1:] == mask.documents[:, :-1]
    return mask.counted & followed


def _rows(mask: Mask, wanted: int) -> Int[Tensor, " rows"]:
    """The first sequences that together predict so many tokens."""
    per_row = _predicts(mask).sum(-1)
    some = per_row.nonzero().squeeze(-1)
    return some[: int((per_row[some].cumsum(0) < wanted).sum()) + 1]


def _of_model(
    capture: Capture, m: int, tokens: Tensor, mask: Mask, rows: Int[Tensor, " rows"], bar: "tqdm[Any]"
) -> ReplacementLoss:
    sites = [t for t, site in enumerate(capture.dictionary.targets) if site.model == m]
    name = name_of(capture.models[m])
    why = next((text for t in sites if (text := _cannot(capture, t))), "")
    if why:
        return ReplacementLoss(name, note=f"not measured: {why}")
    nats: Nats = {}
    todo, causal = list(rows.split(_batch_rows(capture, m, tokens.shape[1]))), True
    while todo:
        some = todo.pop(0)
        found = _batch(capture, m, tokens, mask, some)
        if found is None and len(some) == 1:
            return ReplacementLoss(name, note="not measured: memory did not suffice")
        if found is None:
            todo[:0] = some.split(-(-len(some) // 2))
            log.warning("out of memory: replacing sites of %d sequences at a time", len(todo[0]))
            continue
        causal = found[1]
        for what, values in found[0].items():
            nats.setdefault(what, []).append(values)
        bar.update(len(some))
    return _result(capture, name, sites, {what: torch.cat(parts) for what, parts in nats.items()}, causal=causal)


def _batch(
    capture: Capture, m: int, tokens: Tensor, mask: Mask, rows: Tensor
) -> tuple[dict[str, Float[Tensor, " tokens"]], bool] | None:
    """-> each predicted token's cross-entropy by what was done, and whether all sites could be put in one after
    another; None where memory did not suffice."""
    try:
        run = _Run(capture, m, tokens[rows], mask, rows)
        return run.losses(), run.causal
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return None


def _result(
    capture: Capture, name: str, sites: list[int], nats: dict[str, Float[Tensor, " tokens"]], *, causal: bool
) -> ReplacementLoss:
    if not all(bool((values.abs() < LARGEST).all()) for values in nats.values()):  # infinity is not, nor what is none
        note = (
            "not measured: with the reconstruction put in the model's numbers overflow (float16 does where bfloat16 "
            "and float32 do not), or the dictionary's scale is wrong"
        )
        return ReplacementLoss(name, note=note)
    names, clean = [name_of(model) for model in capture.models], nats["clean"]

    def site(label: str, what: object) -> SiteLoss:
        worth = nats[f"zero {what}"] - clean
        error = float(worth.std()) / len(clean) ** 0.5 if len(clean) > 1 else 0.0
        return SiteLoss(label, float(nats[f"put {what}"].mean()), float(nats[f"zero {what}"].mean()), error)

    each = [site(site_label(capture.dictionary.targets[t], names), t) for t in sites]
    together = site("all together", "all") if len(sites) > 1 else None
    note = "" if causal or together is None else "all together: of the reconstructions made from the model as it is"
    return ReplacementLoss(name, float(clean.mean()), len(clean), each, together, note)


def _batch_rows(capture: Capture, m: int, n_positions: int) -> int:
    row = 4 * n_positions * int(capture.models[m].cfg.d_vocab)
    return max(1, LOGITS_BUDGET // row)


def _cannot(capture: Capture, target: int) -> str:
    """Why nothing can be put in there; empty where it can."""
    site = capture.dictionary.targets[target]
    hook = capture.readers[site.model, str(site.place)].hook
    if target in capture.dictionary.target_norm:
        return "what the dictionary reconstructs is normalised, and its scale is not known"
    if len(hook.reads) != 1 or hook.transform in ("affine", "rescale"):
        return f"{site.place} is no hook of its own in this model"
    moved = site.processing == "tl_default" and not capture.processed[site.model]
    if moved and capture.writes[target].kind == "none":
        return f"{site.place} is another tensor in a processed model than in this one"
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
        capture = self.capture
        self.clean, own = self._run(self.m, {})
        models = range(len(capture.models))
        self.found = [own if m == self.m else self._run(m, {}, upto=capture.last_layer(m))[1] for m in models]
        order = {hook: i for i, hook in enumerate(own)}
        self.at = {t: order[self._hook(t)] for t, site in enumerate(capture.dictionary.targets) if site.model == self.m}
        self.causal = all(self._follows(t, order) for t in self.at)

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

    def losses(self) -> dict[str, Float[Tensor, " tokens"]]:
        """By what was done."""
        left = self._differences(self.found, self.capture.dictionary, list(self.at))
        nats = {"clean": self.clean}
        for t in self.at:
            nats[f"put {t}"] = self._run(self.m, {t: left[t]})[0]
            nats[f"zero {t}"] = self._run(self.m, {t: None})[0]
        if len(self.at) > 1:
            nats["put all"] = self._run(self.m, self._one_after_another() if self.causal else left)[0]
            nats["zero all"] = self._run(self.m, dict.fromkeys(self.at))[0]
        return nats

    def _one_after_another(self) -> dict[int, Tensor]:
        """Each target's difference, made from what the model does with the earlier ones in place."""
        put: dict[int, Tensor] = {}
        for t in sorted(self.at, key=self.at.__getitem__):
            found = list(self.found)
            if put:
                found[self.m] = found[self.m] | self._run(self.m, put, upto=layer_of(self._hook(t)))[1]
            put |= self._differences(found, _only(self.capture.dictionary, t), [t])
        return put

    def _differences(
        self, found: list[dict[str, Tensor]], dictionary: Dictionary, targets: Sequence[int]
    ) -> dict[int, Float[Tensor, "tokens width"]]:
        """By target, its reconstruction less the activation that is there, at counted tokens."""
        captured = self.capture.read(found)
        at = self.counted
        sources = [x[at.to(x.device)] for x in captured.sources]
        recons = dictionary.decode(dictionary.encode_sparse(sources), sources)
        there = {t: captured.targets[t][at.to(captured.targets[t].device)] for t in targets}
        return {t: recons[t] - there[t].to(recons[t]) for t in targets}

    def _run(
        self, m: int, put: Mapping[int, Tensor | None], *, upto: int | EllipsisType | None = ...
    ) -> tuple[Float[Tensor, " tokens"], dict[str, Tensor]]:
        """-> cross-entropy of what is predicted, and what the dictionary's hooks gave, in the order in which they fired
        and with what was put in. `upto`: nothing is predicted, and this is the last layer that runs; None for all."""
        model, kept = self.capture.models[m], {}

        def keeper(name: str) -> Callable:
            def keep(activation: Tensor, hook: object) -> None:
                kept[name] = activation

            return keep

        wanted = sorted(self.capture.wanted(m))
        hooks: list[Any] = [(self._hook(t), _hook_of(self._change(change))) for t, change in put.items()]
        hooks += [(name, keeper(name)) for name in wanted]  # last: later features read what was put in
        tokens = self.tokens
        if m in self.capture.replacements:
            tokens = replaced_tokens(tokens, self.capture.replacements[m])
        predict = upto is ...
        with settings_for(model, [*wanted, *(self._hook(t) for t in put)]), fused(model):
            logits = model.run_with_hooks(
                tokens.to(model.cfg.device), fwd_hooks=hooks, return_type="logits" if predict else None,
                stop_at_layer=None if upto is ... or upto is None else upto + 1,
            )  # fmt: skip
        return self._nats(logits, tokens) if predict else torch.zeros(0), kept

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

    def _nats(self, logits: Tensor, tokens: Tensor) -> Float[Tensor, " tokens"]:
        here = self.predicts.to(logits.device)[:, :-1].nonzero(as_tuple=True)
        following = tokens.to(logits.device)[:, 1:][here]
        parts = [
            -logits[rows, at].float().log_softmax(-1).gather(-1, ids[:, None])[:, 0].double().cpu()
            for rows, at, ids in zip(*(x.split(TOKENS_AT_A_TIME) for x in (*here, following)), strict=True)
        ]
        return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.float64)


def _only(dictionary: Dictionary, target: int) -> Dictionary:
    """What one target is made of, so that nothing else is encoded and decoded."""
    if dictionary.joint is not None:
        return dictionary
    groups = [group for group in dictionary.groups if target in group.W_dec]
    alone = tuple(replace(group, W_dec={target: group.W_dec[target]}) for group in groups)
    return replace(dictionary, groups=alone)


def _hook_of(change: Change) -> Callable:
    def hook_fn(activation: Tensor, hook: object) -> Tensor:
        return change(activation)

    return hook_fn
