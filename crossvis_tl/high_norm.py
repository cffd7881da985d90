"""Tokens whose activations are far larger than others', as attention sinks have them, left out of everything.

SAEDashboard (`ignore_high_activation_norm_multiple`) and dictionary_learning (`remove_high_norm`) compare a token's
norm to the median of its minibatch, BOS and padding with it. Here the median is that of all tokens that count, found in
a pass before, so that what is left out does not depend on the batches.
"""

import json
import logging
import math
from dataclasses import replace
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from crossvis_tl.capture import Capture
from crossvis_tl.devices import out_of_memory
from crossvis_tl.fingerprints import mask_fingerprint, tokens_fingerprint
from crossvis_tl.manifest import NAME, Manifest
from crossvis_tl.masking import Mask
from crossvis_tl.parts import open_tensors
from crossvis_tl.store import TOKENS, check_folder

# Tokens of a forward pass; whatever the caller's batches are, the norms are the same numbers.
TOKENS_AT_A_TIME = 4096
log = logging.getLogger(__name__)


def check_multiple(multiple: float | None) -> None:
    """ValueError for what is no number above 1, None for no filter."""
    number = isinstance(multiple, int | float) and not isinstance(multiple, bool)
    if multiple is not None and not (number and math.isfinite(multiple) and multiple > 1):
        raise ValueError(
            f"high_norm_multiple is {multiple!r}; expected a number above 1, such as 10, of times the median norm, or "
            "None to leave no token out for its norm"
        )


def without_high_norms(
    capture: Capture,
    tokens: Int[Tensor, "rows positions"],
    mask: Mask,
    multiple: float | None,
    *,
    out: str | Path | None = None,
    progress: bool = False,
) -> Mask:
    """The mask without the tokens at which the norm of any source's activation is more than `multiple` times the median
    there over all tokens that count; None leaves it as it is.

    `out`: the folder that will be gathered into. One that was begun says itself which tokens count, and nothing is run.
    ValueError where no token would be left.
    """
    check_multiple(multiple)
    if multiple is None:
        return mask
    how = json.dumps(json.loads(mask.how or "{}") | {"high_norm": float(multiple)})
    what = f"activations of more than {multiple:g} times the median norm"
    if out is not None:
        check_folder(Path(out))
        if (Path(out) / NAME).is_file():
            held = Manifest.read(Path(out))
            if held.tokens != tokens_fingerprint(tokens) or held.mask_how != how:
                return replace(mask, how=how)  # another gathering, which will be refused
            if (Path(out) / TOKENS).is_file():
                return _held(mask, Path(out), held, what, how)
    norms = source_norms(capture, tokens, mask, progress=progress)
    high = torch.zeros_like(mask.counted)
    for one in norms:  # a source at a time: the norms of all are large enough once
        high |= one > multiple * one[mask.counted].nanmedian()
    found = _marked(mask, mask.counted & ~high, what, how)
    if not found.n_counted:
        raise ValueError(f"{found.text}; nothing is left to look at: give a larger high_norm_multiple")
    return found


def _held(mask: Mask, folder: Path, held: Manifest, what: str, how: str) -> Mask:
    """As a folder of the same tokens has it; unless something else of the mask is another, for which it refuses."""
    counted = open_tensors(folder / TOKENS)[0].get("counted", mask.counted).clone()
    if counted.shape == mask.counted.shape and mask_fingerprint(replace(mask, counted=counted, how=how)) == held.mask:
        return _marked(mask, counted, what, how)
    return replace(mask, how=how)


def _marked(mask: Mask, counted: Tensor, what: str, how: str) -> Mask:
    n = int((mask.counted & ~counted).sum())
    return replace(mask, counted=counted, masked=(*mask.masked, (what, n)), how=how)


@torch.inference_mode()
def source_norms(
    capture: Capture, tokens: Int[Tensor, "rows positions"], mask: Mask, *, progress: bool = False
) -> Float[Tensor, "sources rows positions"]:
    """The Euclidean norm of what the model gives at each source, before any scaling of the dictionary's own."""
    read = replace(capture.dictionary, targets=())
    n = read.n_models  # of several models the last may only be written
    replacements = {model: ids for model, ids in capture.replacements.items() if model < n}
    sources = Capture(read, capture.models[:n], replacements, calibrating=True, checked=True)
    norms = torch.zeros(len(capture.dictionary.sources), *tokens.shape)
    row, at_a_time = 0, max(1, min(len(tokens), TOKENS_AT_A_TIME // tokens.shape[1]))
    with tqdm(total=len(tokens), desc="Measuring norms", unit="seq", disable=not progress) as bar:
        while row < len(tokens):
            rows = slice(row, row + at_a_time)
            try:
                captured = sources.run(tokens[rows], lead=mask.lead[rows])
            except (RuntimeError, MemoryError) as error:
                if not out_of_memory(error) or at_a_time == 1:
                    raise
                at_a_time = max(1, at_a_time // 2)
                log.warning("out of memory: going on with %d sequences at a time", at_a_time)
                continue
            for source, x in enumerate(captured.sources):
                norms[source, rows] = x.norm(dim=-1).cpu()
            row += len(captured.sources[0])
            bar.update(len(captured.sources[0]))
    return norms
