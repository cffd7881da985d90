"""Prompts under all dashboards: which features fire on each of their tokens, and what they do to the next."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from sae_vis.data_config_classes import SequencesConfig
from torch import Tensor

from crossvis_tl.attribution import Attribution, driving_sources
from crossvis_tl.capture import Capture, Captured
from crossvis_tl.effects import Firing, features_at_a_time, writers
from crossvis_tl.errors import near_misses
from crossvis_tl.examples import Group
from crossvis_tl.logit_effects import following_tokens
from crossvis_tl.masking import Mask, token_mask
from crossvis_tl.panels import PromptSequence
from crossvis_tl.ranking import ALL, METRICS, Ranked, Scope, rank
from crossvis_tl.sequences import Effects, Windows, build_sequences, windows
from crossvis_tl.tokens import check_tokens

if TYPE_CHECKING:
    from crossvis_tl.dashboards import Dashboards

# Raised and lowered tokens shown at each token of a prompt, as in sae_vis.
HOVER = 5


@dataclass
class ShownPrompt:
    """`scores`: by metric, scope and position, (feature, formatted score), best first. `position`: the one to open
    on."""

    tokens: list[int]
    position: int
    scores: dict[str, list[list[list[tuple[int, str]]]]] = field(default_factory=dict)

    def ranked(self) -> set[int]:
        """The features that score somewhere."""
        rows = (row for scopes in self.scores.values() for positions in scopes for row in positions)
        return {feature for row in rows for feature, _ in row}


@dataclass
class ShownPrompts:
    """`metric`: the one shown first. `scopes`: the parts of the dictionary that are ranked by themselves."""

    metric: str
    scopes: list[str]
    each: list[ShownPrompt]


@torch.inference_mode()
def gather_prompts(
    data: "Dashboards", capture: Capture, prompts: Sequence[str], metric: str | None, position: int | None, n_top: int
) -> ShownPrompts:
    """Fills each panel's `prompts` (and sae_vis' `prompt_data`, with the last), and ranks the features.

    ValueError before any is run for an unknown metric, an empty prompt or a position outside one.
    """
    if type(n_top) is not int or n_top < 1:
        raise ValueError(f"num_top_features is {n_top!r}; at least one is needed, a whole number")
    run = _Run(data, capture)
    metric = run.checked(metric or METRICS[0])
    if not prompts:
        raise ValueError("there is no prompt; give at least one")
    encoded = [encode_prompt(capture, prompt) for prompt in prompts]
    for tokens in encoded:
        n = tokens.shape[1]
        if position is not None and (type(position) is not int or not 0 <= position < n):
            raise ValueError(f"seq_pos is {position!r}; the prompt has {n} tokens, 0 to {n - 1} (BOS included)")
    for panel in data.panels.values():
        panel.prompts = []
    each = [run.prompt(tokens, metric, position, n_top) for tokens in encoded]
    return ShownPrompts(metric, [scope.name for scope in run.scopes], each)


class _Run:
    """The features of some dashboards on prompts, one after another."""

    def __init__(self, data: "Dashboards", capture: Capture):
        self.data, self.capture = data, capture
        self.features = torch.tensor(list(data.feature_data_dict))
        several = driving_sources(capture.dictionary, len(self.features))
        self.attribution = Attribution(capture.dictionary, self.features) if several else None
        self.scopes = [ALL, *self._parts()]
        # whether logits are reached is a matter of the sites: any one feature says it
        self.metrics = METRICS if writers(capture, self.features[:1]).written else METRICS[:2]

    def checked(self, metric: str) -> str:
        """ValueError for a metric that there is none of."""
        if metric in METRICS and metric not in self.metrics:
            raise ValueError(f"metric is {metric!r}, but what these features write does not reach the logits")
        if metric not in METRICS:
            hint = near_misses(metric, METRICS)
            raise ValueError(f"metric is {metric!r}; expected one of {', '.join(METRICS)}.{hint}")
        return metric

    def _parts(self) -> list[Scope]:
        """Layers of a transcoder, or the sources that drive features."""
        layers = [panel.layer for panel in self.data.panels.values()]
        known = sorted({layer for layer in layers if layer is not None})
        if len(known) > 1:
            own = torch.tensor([-1 if layer is None else layer for layer in layers])
            return [Scope(f"layer {layer}", own == layer) for layer in known]
        if self.attribution is None:
            return []
        labels = [site.get("short", site["label"]) for site in self.data.page.sources]
        return [Scope(f"driven most by {label}", source=s) for s, label in enumerate(labels)]

    def prompt(self, tokens: Int[Tensor, "1 positions"], metric: str, position: int | None, n_top: int) -> ShownPrompt:
        n, capture, features = tokens.shape[1], self.capture, self.features
        mask = prompt_mask(tokens, capture.models[0].tokenizer, self.data.masking)
        captured = capture.run(tokens, final=True)
        acts = capture.dictionary.encode_features(captured.sources, features)[0].cpu() * mask.counted[0][:, None]
        shares = self._shares(captured, acts)
        losses = torch.cat([
            _fill(self.data, capture, tokens, mask, acts[:, some], captured, features[some], shares[:, some])
            for some in torch.arange(len(features)).split(features_at_a_time(capture, len(features)))
        ], dim=-1)  # fmt: skip
        quantiles, _ = self.data.feature_stats.get_quantile(acts.T.contiguous())
        found = Ranked(features, acts, quantiles.T, losses, shares)
        scores = {name: [rank(found, name, scope, n_top) for scope in self.scopes] for name in self.metrics}
        if position is None:  # the last token at which there is something to see
            position = next((p for p in range(n - 1, -1, -1) if scores[metric][0][p]), n - 1)
        return ShownPrompt(tokens[0].tolist(), position, scores)

    def _shares(self, captured: Captured, acts: Float[Tensor, "positions features"]) -> Tensor:
        """-> each source's share of every pre-activation, [positions, features, sources], 0 where nothing fires."""
        if self.attribution is None:
            return torch.zeros(*acts.shape, 0)
        shares = torch.zeros(*acts.shape, len(captured.sources))
        at, which = acts.nonzero().unbind(-1)
        sources = [x[0] for x in captured.sources]
        device = self.capture.dictionary.device
        shares[at, which] = self.attribution.shares(sources, which.to(device), at.to(device)).cpu()
        return shares


def prompt_mask(tokens: Tensor, tokenizer: Any, how: str) -> Mask:
    """What the dashboards left out is left out here too; but every token of a prompt is shown."""
    asked = json.loads(how) if how else {"masking": "special", "tokens": [], "positions": []}
    n = tokens.shape[1]
    positions = [position for position in asked["positions"] if -n <= position < n]
    mask = token_mask(
        tokens,
        tokenizer,
        asked["masking"],
        masked_tokens=asked["tokens"],
        masked_positions=positions,
        may_be_empty=True,
    )
    nothing = torch.zeros_like(mask.lead)
    return replace(mask, lead=nothing, tail=nothing)


def encode_prompt(capture: Capture, prompt: str) -> Int[Tensor, "1 positions"]:
    """Ids of a prompt as the models read it, behind BOS where they have one. ValueError for an empty one, one that is
    too long, and a model without tokenizer."""
    model = capture.models[0]
    if model.tokenizer is None:
        raise ValueError("a prompt needs a tokenizer, and the model has none")
    if not prompt:
        raise ValueError("the prompt is empty")
    ids = list(model.tokenizer(prompt, add_special_tokens=False)["input_ids"])
    bos = model.tokenizer.bos_token_id
    if bos is not None and model.cfg.default_prepend_bos and ids[:1] != [bos]:
        ids = [bos, *ids]
    tokens = torch.tensor([ids])
    check_tokens(tokens, model, "the prompt's tokens")
    return tokens


def _fill(
    data: "Dashboards", capture: Capture, tokens: Tensor, mask: Mask, acts: Float[Tensor, "positions features"],
    captured: Captured, features: Tensor, shares: Float[Tensor, "positions features sources"],
) -> Float[Tensor, "positions features"]:  # fmt: skip
    """-> loss effect at each predicted position of the first model that is written to, in nats."""
    n = tokens.shape[1]
    whole = SequencesConfig(buffer=(0, n - 1), n_quantiles=0)
    group = Group("PROMPT", torch.tensor([0]))
    losses = torch.zeros(n, len(features))
    how = writers(capture, features)
    direct = {m: how.direct(m) for m in how.written}
    shown, firing = _firing(capture, tokens, mask, acts, captured, group, whole)
    found = {m: how.changes(m, captured.final[m][0], vectors, firing, HOVER) for m, vectors in direct.items()}
    for i, feature in enumerate(features.tolist()):
        at = (firing.which == i).nonzero().squeeze(-1)
        effects = {m: [Effects(firing.tokens[at], changes[at])] for m, changes in found.items()}
        vectors = {m: part[i] for m, part in direct.items()}
        along = shares[:, i][shown[i].grid.clamp(0, n - 1)] if shares.shape[-1] else None
        sequences, records = build_sequences([group], shown[i], tokens, mask, effects, vectors, along)
        whole_prompt = sequences.seq_group_data[0].seq_data[0]
        data.feature_data_dict[feature].prompt_data = whole_prompt
        data.panels[feature].prompts.append(PromptSequence(whole_prompt.feat_acts, records[0][0]))
        if effects:
            first = next(iter(effects.values()))[0]
            losses[first.positions + 1, i] = first.changes.loss
    return losses


def _firing(
    capture: Capture, tokens: Tensor, mask: Mask, acts: Tensor, captured: Captured, group: Group, cfg: SequencesConfig
) -> tuple[list[Windows], Firing]:
    """What fires on the prompt: the windows of each feature, and all of it together."""
    shown, which, positions, values = [], [], [], []
    for i, column in enumerate(acts.T):
        where = column.nonzero().squeeze(-1)
        window = windows([group], where, column[where], mask, cfg)
        at, strength = window.sources()
        shown.append(window)
        which.append(torch.full((len(at),), i))
        positions.append(at)
        values.append(strength)
    at = torch.cat(positions)
    scales = {t: scale[0].cpu()[at] for t, scale in zip(capture.scaled, captured.scales, strict=True)}
    return shown, Firing(torch.cat(which), torch.cat(values), at, following_tokens(tokens, at), scales)
