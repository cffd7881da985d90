"""What a file does not say and tokens can tell: the threshold of a BatchTopK, the scale of a crosscoder's inputs."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from crossvis_tl.activation_fns import ZSCORE_EPS, Identity, JumpReLU, TopK
from crossvis_tl.capture import Capture
from crossvis_tl.dictionary import Dictionary, Group, Site
from crossvis_tl.masking import Mask, Masking, set_mask
from crossvis_tl.models import load_models
from crossvis_tl.pairs import Replacements
from crossvis_tl.processing import Processing
from crossvis_tl.sparse import pieces
from crossvis_tl.tokens import TokenSet

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer

TOKENS_AT_A_TIME, ROWS_PER_BATCH = 4096, 64
# Activations held while a threshold is looked for.
HELD = 2**27
# Begins the names of tensors that a store keeps of it.
KEPT = "calibration."


@torch.inference_mode()
def calibrate(
    dictionary: Dictionary,
    model: "HookedTransformer | Sequence[HookedTransformer]",
    tokens: Int[Tensor, "rows positions"] | TokenSet,
    *,
    masking: Masking = "special",
    token_replacements: Replacements | None = None,
    rows_per_batch: int = ROWS_PER_BATCH,
    progress: bool = False,
) -> Dictionary:
    """The dictionary with a threshold in place of a ranking over the batch, so that a token's features no longer depend
    on its company.

    BatchTopK: the threshold above which k features a token fire on average on `tokens`; a z-scored ranking also gets
    each feature's mean and deviation there. What was done is said in `facts["calibrated"]`, and on every page. `model`,
    `tokens`, `masking`, `token_replacements`: as `SaeVisData.create` takes them. ValueError where there is nothing to
    calibrate.
    """
    if not dictionary.batch_dependent:
        raise ValueError(
            f"{dictionary.name} ({dictionary.activation}) does not depend on the batch: nothing to calibrate"
        )
    models = load_models(model)
    given = TokenSet.of(tokens).checked(models, None)
    mask = set_mask(given, models[0].tokenizer, masking)
    return calibrated_on(
        dictionary, models, given.tokens, mask, token_replacements, rows_per_batch=rows_per_batch, progress=progress
    )


@torch.inference_mode()
def calibrated_on(
    dictionary: Dictionary,
    models: "Sequence[HookedTransformer]",
    tokens: Int[Tensor, "rows positions"],
    mask: Mask,
    token_replacements: Replacements | None = None,
    *,
    rows_per_batch: int = ROWS_PER_BATCH,
    progress: bool = False,
) -> Dictionary:
    """As `calibrate`, on the tokens that a mask counts; of very many, on the first of them."""
    there = dictionary.to(str(models[0].cfg.device))
    capture = Capture(there, models, token_replacements, calibrating=True)
    n_rows = _rows(dictionary, mask)
    tokens, counted = tokens[:n_rows], mask.counted[:n_rows]
    n_tokens = int(counted.sum())

    def batches(what: str) -> Iterator[list[Tensor]]:
        rows = range(0, len(tokens), rows_per_batch)
        for start in tqdm(rows, desc=what, unit="batch", disable=not progress):
            rows_now = slice(start, start + rows_per_batch)
            captured = capture.run(tokens[rows_now], lead=mask.lead[rows_now])
            at = counted[rows_now].flatten().nonzero().squeeze(-1)
            for some in at.split(TOKENS_AT_A_TIME):
                yield there.normalised([x.flatten(0, 1)[some.to(x.device)] for x in captured.sources])

    done = [] if dictionary.joint is None else [dictionary.joint]
    if dictionary.joint is not None:
        joint, groups = _calibrated(dictionary.joint, there.groups, batches, n_tokens)
    else:
        joint, groups = None, []
        for group in there.groups:
            activation = group.activation
            if isinstance(activation, TopK) and activation.batch_dependent:
                done.append(activation)
                _, (group,) = _calibrated(activation, [group], batches, n_tokens)  # noqa: PLW2901
            groups.append(group)
    said = f"{done[0].name} with k = {done[0].k}, its threshold taken from {n_tokens:,} tokens; none was stored"
    groups = tuple(
        replace(group, activation=new.activation.to(dictionary.device))
        for group, new in zip(dictionary.groups, groups, strict=True)
    )
    return replace(dictionary, joint=joint, groups=groups, facts=dictionary.facts | {"calibrated": said})


def _rows(dictionary: Dictionary, mask: Mask) -> int:
    """How many sequences a threshold is found on: as many as leave room for the activations above it."""
    activations = [group.activation for group in dictionary.groups] if dictionary.joint is None else [dictionary.joint]
    largest = max((one.k for one in activations if isinstance(one, TopK) and one.batch), default=0)
    per_row = mask.counted.sum(-1).cumsum(0)
    return len(per_row) if not largest else max(1, int((largest * per_row <= HELD).sum()))


def calibration_of(dictionary: Dictionary) -> dict[str, Tensor]:
    """What `calibrate` found, by names of tensors, for `calibrated_as`; {} where it was not asked."""
    if "calibrated" not in dictionary.facts:
        return {}
    found = {}
    for name, one in [("joint", dictionary.joint), *((str(g), x.activation) for g, x in enumerate(dictionary.groups))]:
        if isinstance(one, JumpReLU) and one.name == "BatchTopK":
            found[f"{KEPT}{name}.threshold"] = one.threshold
        elif isinstance(one, TopK) and one.moments is not None:
            found[f"{KEPT}{name}.mean"], found[f"{KEPT}{name}.std"] = one.moments
    return {name: tensor.detach().cpu().contiguous().clone() for name, tensor in found.items()}


def calibrated_as(dictionary: Dictionary, kept: Mapping[str, Tensor], said: str) -> Dictionary:
    """As `calibrate` left it, by what `calibration_of` gave of that: found again, on another machine or after tokens
    were merged, its last digits would be others. Whether it is the same, the fingerprint says. ValueError where it is
    of other groups."""
    _check_kept(dictionary, kept)
    ranking, device = dictionary.joint, dictionary.device

    def moments(name: str, activation: Any) -> Any:
        if f"{KEPT}{name}.mean" not in kept:
            return activation
        both = (kept[f"{KEPT}{name}.mean"].to(device), kept[f"{KEPT}{name}.std"].to(device))
        return replace(activation, moments=both)

    groups = []
    for g, group in enumerate(dictionary.groups):
        bounds, was = kept.get(f"{KEPT}{g}.threshold"), ranking or group.activation
        if bounds is None:
            activation = moments(str(g), group.activation)
        else:
            relu = isinstance(was, TopK) and was.relu
            activation = JumpReLU(bounds.to(device), strict=False, relu=relu, name="BatchTopK")
        groups.append(replace(group, activation=activation))
    joint = moments("joint", ranking) if f"{KEPT}joint.mean" in kept else None
    return replace(dictionary, joint=joint, groups=tuple(groups), facts=dictionary.facts | {"calibrated": said})


def _check_kept(dictionary: Dictionary, kept: Mapping[str, Tensor]) -> None:
    sizes = {str(g): group.n_features for g, group in enumerate(dictionary.groups)}
    sizes["joint"] = dictionary.n_features
    for name, tensor in kept.items():
        group = name.removeprefix(KEPT).split(".")[0]
        if tensor.shape != (sizes.get(group, -1),) or not tensor.is_floating_point():
            raise ValueError(f"the threshold kept for {dictionary.name} is damaged: {name} is {tuple(tensor.shape)}")


def _calibrated(
    activation: TopK, groups: Sequence[Group], batches: Callable[[str], Iterator[list[Tensor]]], n_tokens: int
) -> tuple[TopK | None, list[Group]]:
    """-> what still ranks all groups together (TopK by fixed moments), and the groups."""
    moments = _moments(groups, batches("Measuring features"), n_tokens) if activation.zscore else None
    fixed = replace(activation, moments=moments)
    if not activation.batch:
        return fixed, list(groups)
    threshold = _threshold(fixed, groups, batches("Finding the threshold"), n_tokens)
    result, first = [], 0
    for group in groups:
        bounds = torch.full_like(group.b_enc, threshold, dtype=torch.float32)
        if moments is not None:
            mean, std = (part[first : first + group.n_features] for part in moments)
            bounds = mean + threshold * (std + ZSCORE_EPS)
        # relu: where fewer than k are positive the k-th largest is a 0, above which everything positive counts
        result.append(replace(group, activation=JumpReLU(bounds, strict=False, relu=fixed.relu, name="BatchTopK")))
        first += group.n_features
    return None, result


def _moments(groups: Sequence[Group], batches: Iterator[list[Tensor]], n_tokens: int) -> tuple[Tensor, Tensor]:
    """Mean and deviation of every feature's pre-activation over all tokens."""
    size = sum(group.n_features for group in groups)
    total, squares = (torch.zeros(size, dtype=torch.float64, device=groups[0].b_enc.device) for _ in range(2))
    for inputs in batches:
        for first, pre in _all_pieces(groups, inputs):
            at = slice(first, first + pre.shape[1])
            total[at] += pre.double().sum(0)
            squares[at] += pre.double().square().sum(0)
    mean = total / n_tokens
    variance = (squares - n_tokens * mean.square()).clamp_min(0) / max(n_tokens - 1, 1)
    return mean.float(), variance.sqrt().float()


def _threshold(activation: TopK, groups: Sequence[Group], batches: Iterator[list[Tensor]], n_tokens: int) -> float:
    """Between the (k * tokens)-th largest key of all features and tokens and the next, so that rounding moves none."""
    k = activation.k * n_tokens + 1
    held, n, bound = list[Tensor](), 0, float("-inf")
    for inputs in batches:
        for first, pre in _all_pieces(groups, inputs):
            keys = activation.keys(pre, first).flatten()
            held.append(keys[keys > bound])
            n += len(held[-1])
            if n > 2 * k:  # seldom: each time costs as much as all that is held
                held = [torch.cat(held).topk(k, sorted=False).values]
                n, bound = k, float(held[0].min())
    every = torch.cat(held)
    return float(every.topk(k).values[-2:].mean()) if len(every) >= k else float("-inf")


def _all_pieces(groups: Sequence[Group], inputs: list[Tensor]) -> Iterator[tuple[int, Tensor]]:
    """-> number of the first feature, counted through the groups, and pre-activations."""
    first = 0
    for group in groups:
        for at, pre in pieces(group, inputs):
            yield first + at.start, pre
        first += group.n_features


@torch.inference_mode()
def estimate_input_scale(
    model: "HookedTransformer | Sequence[HookedTransformer]",
    tokens: Int[Tensor, "rows positions"] | TokenSet,
    hook_point: str | Sequence[str],
    *,
    processing: Processing,
    masking: Masking = "special",
    token_replacements: Replacements | None = None,
    rows_per_batch: int = 64,
) -> list[float]:
    """`input_scale` for `load_dictionary`: sqrt(d) / mean norm of each source's activations (ckkissane/
    crosscoder-model-diff-replication, `buffer.py`), BOS and padding left out by `masking`.

    `hook_point`: one for all models, or one for each source (of one model several). `processing`: on what weights the
    models ran in training, "none" or "tl_default". The tokens should be like the producer's; the factors come out
    within a few percent of his. ValueError when hooks and models do not fit, or nothing is counted.
    """
    models = load_models(model)
    hooks = [hook_point] * len(models) if isinstance(hook_point, str) else list(hook_point)
    if len(models) not in (1, len(hooks)):
        raise ValueError(f"{len(hooks)} hook points for {len(models)} models; give one for each, or one model")
    sites = [Site(s if len(models) > 1 else 0, hook, 0, processing) for s, hook in enumerate(hooks)]
    device = models[0].cfg.device
    nothing = Group("", {}, torch.zeros(1, device=device), Identity(), {})
    probe = Dictionary(kind="crosscoder", groups=(nothing,), sources=tuple(sites), targets=(), name="the crosscoder")
    capture = Capture(probe, models, token_replacements)
    given = TokenSet.of(tokens).checked(models, None)
    tokens, mask = given.tokens, set_mask(given, models[0].tokenizer, masking)
    counted = mask.counted
    norms: list[Float[Tensor, ""]] = [torch.zeros((), dtype=torch.float64) for _ in sites]
    widths = [0 for _ in sites]
    for start in range(0, len(tokens), rows_per_batch):
        rows = slice(start, start + rows_per_batch)
        for s, x in enumerate(capture.run(tokens[rows], lead=mask.lead[rows]).sources):
            norms[s] += x.norm(dim=-1)[counted[rows].to(x.device)].double().sum().cpu()
            widths[s] = x.shape[-1]
    n_tokens = int(counted.sum())
    return [width**0.5 * n_tokens / float(norm) for width, norm in zip(widths, norms, strict=True)]
