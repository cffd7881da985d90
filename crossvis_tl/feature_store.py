"""Gathering by itself, for those who keep what was gathered: into a folder, token shard by token shard, and merged."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Int
from torch import Tensor

from crossvis_tl.capture import Capture
from crossvis_tl.encoders import as_dictionary
from crossvis_tl.errors import feature_numbers
from crossvis_tl.feature_acts import FeatureActs
from crossvis_tl.fidelity import warn_if_bad
from crossvis_tl.gathering import gather as gather_acts
from crossvis_tl.high_norm import without_high_norms
from crossvis_tl.masking import Masking, set_mask
from crossvis_tl.models import load_models
from crossvis_tl.pairs import Replacements
from crossvis_tl.store import merge_acts, open_store, save_acts
from crossvis_tl.tokens import TokenSet

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer


def gather(  # noqa: PLR0913 - as `SaeVisData.create`
    encoder: Any,
    model: "HookedTransformer | Sequence[HookedTransformer]",
    tokens: Int[Tensor, "rows positions"] | TokenSet,
    features: int | Sequence[int] | None = None,
    *,
    out: str | Path | None = None,
    hook_point: str | None = None,
    rows_per_batch: int | None = 64,
    masking: Masking = "special",
    masked_tokens: Sequence[int | str] = (),
    masked_positions: Sequence[int] = (),
    high_norm_multiple: float | None = None,
    documents: Int[Tensor, "rows *positions"] | None = None,
    token_replacements: Replacements | None = None,
    latent_scaling: bool = False,
    replacement: bool | None = None,
    progress: bool = False,
) -> FeatureActs:
    """One pass of the models over `tokens`: what fires of `features` (None: all), kept by feature.

    `out`: a folder to keep it in, for `open_store` and `SaeVisData.from_store`. A gathering that was stopped goes on
    where it was when the same call is made again, and one that is whole is only opened. `encoder`, `model`, `tokens`,
    `masking` ...: as `SaeVisData.create` takes them. ValueError before any long work when something does not fit, or
    `out` holds another gathering.
    """
    if rows_per_batch is not None and rows_per_batch < 1:
        raise ValueError(f"rows_per_batch is {rows_per_batch}; expected at least 1, or None for all at once")
    models = load_models(model)
    dictionary = as_dictionary(encoder, hook_point).to(str(models[0].cfg.device))
    capture = Capture(dictionary, models, token_replacements)
    chosen = None if features is None else feature_numbers(features, "features")
    given = TokenSet.of(tokens).checked(models, None)
    tokens = given.tokens
    mask = set_mask(
        given, models[0].tokenizer, masking, masked_tokens=masked_tokens, masked_positions=masked_positions,
        documents=documents,
    )  # fmt: skip
    mask = without_high_norms(capture, tokens, mask, high_norm_multiple, out=out, progress=progress)
    acts = gather_acts(
        capture, tokens, mask, chosen, rows_per_batch=rows_per_batch, progress=progress, latent_scaling=latent_scaling,
        replacement=replacement, out=out,
    )  # fmt: skip
    warn_if_bad(acts.fidelity)
    return acts


@torch.inference_mode()
def merge(shards: Sequence["str | Path | FeatureActs"], out: str | Path | None = None) -> FeatureActs:
    """Gatherings of different token sets as one: what a single gathering of all their tokens, in this order, gives.

    `shards`: folders, or what `gather` gave. `out`: a new folder to keep the whole in. ValueError when they were made
    by different dictionaries or models, or in different ways.
    """
    if isinstance(shards, str | Path | FeatureActs):
        raise ValueError(f"merge takes a list of gatherings; got {shards!r} alone")
    opened = [shard if isinstance(shard, FeatureActs) else open_store(shard) for shard in shards]
    merged = merge_acts(opened)
    if out is None:
        return merged
    return open_store(save_acts(merged, out))
