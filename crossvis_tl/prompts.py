"""One prompt under all dashboards: which features fire on each of its tokens, and what they do to the next."""

import json
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from sae_vis.data_config_classes import SequencesConfig
from torch import Tensor

from crossvis_tl.capture import Capture, Captured
from crossvis_tl.effects import Firing, features_at_a_time, writers
from crossvis_tl.errors import near_misses
from crossvis_tl.examples import Group
from crossvis_tl.logit_effects import following_tokens
from crossvis_tl.masking import Mask, token_mask
from crossvis_tl.sequences import Effects, Windows, build_sequences, windows
from crossvis_tl.tokens import check_tokens

if TYPE_CHECKING:
    from crossvis_tl.vis_data import SaeVisData

# Raised and lowered tokens shown at each token of a prompt, as in sae_vis.
HOVER = 5
METRICS = ("act_quantile", "act_size", "loss_effect")
Scores = dict[str, list[list[tuple[int, str]]]]


@dataclass
class ShownPrompt:
    """`scores`: by metric and position, (feature, formatted score), best first. `position`: the one to open on."""

    tokens: list[int]
    position: int
    metric: str
    scores: Scores = field(default_factory=dict)


@torch.inference_mode()
def gather_prompt(
    data: "SaeVisData", capture: Capture, prompt: str, metric: str | None, position: int | None, n_top: int
) -> ShownPrompt:
    """Fills `prompt_data` of every feature of `data` and its panel's `prompt`, and ranks the features.

    ValueError for an unknown metric, an empty prompt or a position outside it.
    """
    if n_top < 1:
        raise ValueError(f"num_top_features is {n_top}; at least one is needed")
    metric = metric or METRICS[0]
    if metric not in METRICS:
        hint = near_misses(metric, METRICS)
        raise ValueError(f"metric is {metric!r}; expected one of {', '.join(METRICS)}.{hint}")
    tokens = _encode(data, capture, prompt)
    n = tokens.shape[1]
    if position is not None and not 0 <= position < n:
        raise ValueError(f"seq_pos is {position}; the prompt has {n} tokens, 0 to {n - 1} (BOS included)")
    features = torch.tensor(list(data.feature_data_dict))
    mask = _prompt_mask(tokens, capture.models[0].tokenizer, data.masking)
    captured = capture.run(tokens, final=True)
    acts = capture.dictionary.encode_features(captured.sources, features)[0].cpu() * mask.counted[0][:, None]
    parts = torch.arange(len(features)).split(features_at_a_time(capture, len(features)))
    losses = torch.cat(
        [_fill(data, capture, tokens, mask, acts[:, some], captured, features[some]) for some in parts], dim=-1
    )
    scores = {
        "act_size": _rank_by_size(acts, features, n_top),
        "act_quantile": _rank_by_quantile(data, acts, features, n_top),
        "loss_effect": _rank_by_loss(acts, losses, features, n_top),
    }
    if position is None:  # the last token at which there is something to see
        position = next((p for p in range(n - 1, -1, -1) if scores[metric][p]), n - 1)
    return ShownPrompt(tokens[0].tolist(), position, metric, scores)


def _prompt_mask(tokens: Tensor, tokenizer: Any, how: str) -> Mask:
    """What the dashboards left out is left out here too; but every token of a prompt is shown."""
    asked = json.loads(how) if how else {"masking": "special", "tokens": [], "positions": []}
    n = tokens.shape[1]
    positions = [position for position in asked["positions"] if -n <= position < n]
    mask = token_mask(tokens, tokenizer, asked["masking"], masked_tokens=asked["tokens"], masked_positions=positions)
    nothing = torch.zeros_like(mask.lead)
    return replace(mask, lead=nothing, tail=nothing)


def _encode(data: "SaeVisData", capture: Capture, prompt: str) -> Int[Tensor, "1 positions"]:
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
    data: "SaeVisData", capture: Capture, tokens: Tensor, mask: Mask, acts: Float[Tensor, "positions features"],
    captured: Captured, features: Tensor,
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
        sequences, records = build_sequences([group], shown[i], tokens, mask, effects, vectors)
        data.feature_data_dict[feature].prompt_data = sequences.seq_group_data[0].seq_data[0]
        data.panels[feature].prompt = records[0][0]
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


def _rank(values: Tensor, eligible: Tensor, features: Tensor, n_top: int, style: str, *, largest: bool) -> list:
    at = eligible.nonzero().squeeze(-1)
    top = values[at].topk(min(n_top, len(at)), largest=largest)
    chosen = features[at[top.indices]].tolist()
    return [(feature, f"{value:{style}}") for feature, value in zip(chosen, top.values.tolist(), strict=True)]


def _rank_by_size(acts: Tensor, features: Tensor, n_top: int) -> list[list[tuple[int, str]]]:
    return [_rank(row, row != 0, features, n_top, ".3f", largest=True) for row in acts]


def _rank_by_quantile(data: "SaeVisData", acts: Tensor, features: Tensor, n_top: int) -> list[list[tuple[int, str]]]:
    quantiles, _ = data.feature_stats.get_quantile(acts.T.contiguous())
    return [
        _rank(row, fires, features, n_top, ".3%", largest=True)
        for row, fires in zip(quantiles.T, acts != 0, strict=True)
    ]


def _rank_by_loss(acts: Tensor, losses: Tensor, features: Tensor, n_top: int) -> list[list[tuple[int, str]]]:
    """The most helpful features first; they fire on the token before the one predicted."""
    before = torch.cat([torch.zeros_like(acts[:1]), acts[:-1]])
    return [
        _rank(row, fires, features, n_top, "+.3f", largest=False)
        for row, fires in zip(losses, before != 0, strict=True)
    ]
