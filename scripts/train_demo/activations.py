"""What the dictionaries are trained on: activations of the stored language models, gathered once and kept in memory."""

import functools
import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from transformers import GPT2LMHeadModel

log = logging.getLogger(__name__)
KINDS = ("prose", "docs", "code")
LAYERS, D_MODEL = 4, 128
CROSSCODER_BLOCK = 2


def load(folder: Path) -> GPT2LMHeadModel:
    """The stored float16 weights, computed with in float32."""
    return GPT2LMHeadModel.from_pretrained(folder, dtype=torch.float32).eval()


def training_sequences(tokens: dict[str, np.ndarray], per_kind: int, seed: int) -> np.ndarray:
    """As many sequences of each kind: code is where base and tuned differ, and prose is the scarcest of the three."""
    generator = np.random.default_rng(seed)
    drawn = [tokens[kind][generator.permutation(len(tokens[kind]))[:per_kind]] for kind in KINDS]
    mixed = np.concatenate(drawn)
    return mixed[generator.permutation(len(mixed))]


def held_out_sequences(tokens: dict[str, np.ndarray]) -> np.ndarray:
    return np.concatenate([tokens[f"{kind}.held_out"] for kind in KINDS])


@torch.no_grad()
def residuals(model: GPT2LMHeadModel, tokens: Tensor) -> Float[Tensor, "batch position d"]:
    """The stream after block 2: `hidden_states[0]` is the embedding, so block 2 ends at index 3."""
    return model.transformer(tokens, output_hidden_states=True).hidden_states[CROSSCODER_BLOCK + 1]


def keep_input(found: dict[int, Tensor], layer: int, _module: torch.nn.Module, given: tuple[Tensor, ...]) -> None:
    found[layer] = given[0]


def keep_output(found: dict[int, Tensor], layer: int, _module: torch.nn.Module, _given: tuple, result: Tensor) -> None:
    found[layer] = result


@torch.no_grad()
def mlp_inputs_and_outputs(
    model: GPT2LMHeadModel, tokens: Tensor
) -> tuple[Float[Tensor, "batch position layer d"], Float[Tensor, "batch position layer d"]]:
    """Before each block's `ln_2` (TransformerLens' `hook_resid_mid`) and after its `mlp` (`hook_mlp_out`)."""
    before: dict[int, Tensor] = {}
    after: dict[int, Tensor] = {}
    handles = []
    for layer in range(LAYERS):
        norm, mlp = (model.get_submodule(f"transformer.h.{layer}.{name}") for name in ("ln_2", "mlp"))
        handles += [
            norm.register_forward_pre_hook(functools.partial(keep_input, before, layer)),
            mlp.register_forward_hook(functools.partial(keep_output, after, layer)),
        ]
    try:
        model.transformer(tokens)
    finally:
        for handle in handles:
            handle.remove()
    read, written = (torch.stack([found[layer] for layer in range(LAYERS)], dim=2) for found in (before, after))
    return read, written


def batches(sequences: np.ndarray, size: int = 64) -> Iterator[Tensor]:
    for start in range(0, len(sequences), size):
        yield torch.from_numpy(sequences[start : start + size].astype(np.int64))


def gather_residuals(
    models: list[GPT2LMHeadModel], sequences: np.ndarray, dtype: torch.dtype = torch.float16
) -> Float[Tensor, "token model d"]:
    """Without the BOS: the first position's stream is one constant vector of outsized norm."""
    found = []
    for tokens in batches(sequences):
        stacked = torch.stack([residuals(model, tokens)[:, 1:] for model in models], dim=2)
        found.append(stacked.flatten(0, 1).to(dtype))
    return torch.cat(found)


def gather_mlps(
    model: GPT2LMHeadModel, sequences: np.ndarray, dtype: torch.dtype = torch.float16
) -> tuple[Float[Tensor, "token layer d"], Float[Tensor, "token layer d"]]:
    """Without the BOS. Filled in place, as a list and its concatenation would need the memory twice."""
    rows = len(sequences) * (sequences.shape[1] - 1)
    read, written = (torch.empty(rows, LAYERS, D_MODEL, dtype=dtype) for _ in range(2))
    start = 0
    for tokens in batches(sequences):
        before, after = (values[:, 1:].flatten(0, 1) for values in mlp_inputs_and_outputs(model, tokens))
        read[start : start + len(before)], written[start : start + len(after)] = before, after
        start += len(before)
    return read, written


def shuffled_rows(n_rows: int, batch: int, steps: int, seed: int) -> Iterator[Tensor]:
    """Row numbers of `steps` batches, epoch by epoch without replacement."""
    generator = torch.Generator().manual_seed(seed)
    order, at = torch.randperm(n_rows, generator=generator), 0
    for _ in range(steps):
        if at + batch > n_rows:
            order, at = torch.randperm(n_rows, generator=generator), 0
        yield order[at : at + batch]
        at += batch


def unexplained(
    squared_error: Float[Tensor, "site"], total: Float[Tensor, "site d"], squares: Float[Tensor, "site d"], rows: int
) -> list[float]:
    """FVU a site: squared error over squared distance from the mean, both summed over tokens and dimensions."""
    spread = (squares - total**2 / rows).sum(-1)
    return (squared_error / spread).tolist()
