"""Token sets: read from a file or a text, checked against the model, and which of their positions count."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Int
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from crossvis_tl.errors import first_line, short_list

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer

TOKEN_SUFFIXES = (".npy", ".npz", ".safetensors", ".pt")
Masking = Literal["special", "none"]


def load_tokens(path: str | Path, tokenizer: Any = None, context: int = 128) -> Int[Tensor, "rows positions"]:
    """Token ids from a `.npy`, `.npz`, `.safetensors` or `.pt` file, or from a text file by way of `tokenizer`.

    A text is cut into rows of `context` tokens, each beginning with the BOS token where the tokenizer has one; what is
    left at the end is dropped. -> int64 [rows, positions]. FileNotFoundError, or ValueError naming the file.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"the token file {path} does not exist; give an array of ids or a text file")
    if path.suffix not in TOKEN_SUFFIXES:
        return _from_text(path, tokenizer, context)
    array = _read_array(path)
    if array.is_floating_point() or array.is_complex() or array.dtype == torch.bool:
        raise ValueError(f"{path} holds {array.dtype} numbers; token ids are integers")
    if array.ndim == 1:
        array = array.unsqueeze(0)
    if array.ndim != 2:
        raise ValueError(f"{path} holds an array {tuple(array.shape)}; token ids are [sequences, positions]")
    return array.long()


def _read_array(path: Path) -> Tensor:
    try:
        if path.suffix == ".npy":
            return _from_numpy(np.load(path, allow_pickle=False))
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as archive:
                return _only({name: _from_numpy(archive[name]) for name in archive.files}, path)
        if path.suffix == ".safetensors":
            return _only(load_file(path), path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (ValueError, OSError, SafetensorError, RuntimeError, EOFError) as error:
        raise ValueError(f"{path} cannot be read as an array of token ids: {first_line(error)}") from error
    return content if isinstance(content, Tensor) else _only(content, path)


def _from_numpy(array: np.ndarray) -> Tensor:
    return torch.from_numpy(array.astype(np.int64) if array.dtype.kind in "iu" else array)


def _only(arrays: dict[str, Tensor], path: Path) -> Tensor:
    if "tokens" in arrays:
        return arrays["tokens"]
    if len(arrays) != 1:
        raise ValueError(f"{path} holds {short_list(arrays) or 'nothing'}; expected one array, or one named 'tokens'")
    return next(iter(arrays.values()))


def _from_text(path: Path, tokenizer: Any, context: int) -> Tensor:
    if tokenizer is None:
        raise ValueError(f"{path} is a text, and the model has no tokenizer; give token ids in a .npy file")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        kinds = ", ".join(TOKEN_SUFFIXES)
        raise ValueError(f"{path} is neither UTF-8 text nor one of {kinds}: {error}") from error
    ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    bos = [tokenizer.bos_token_id] if tokenizer.bos_token_id is not None else []
    body = context - len(bos)
    rows = [bos + ids[start : start + body] for start in range(0, len(ids) - body + 1, body)]
    if not rows and len(ids) > 1:
        rows = [bos + ids]
    if not rows:
        raise ValueError(f"{path} gives no tokens; the text is empty or too short")
    return torch.tensor(rows)


def check_tokens(tokens: Int[Tensor, "rows positions"], model: "HookedTransformer", where: str = "the tokens") -> None:
    """ValueError when there are none, or they are no ids of this model, or longer than its context."""
    if not isinstance(tokens, Tensor) or tokens.ndim != 2 or tokens.is_floating_point():
        got = f"{tokens.dtype} {tuple(tokens.shape)}" if isinstance(tokens, Tensor) else type(tokens).__name__
        raise ValueError(f"{where} must be integer ids [sequences, positions]; got {got}")
    if tokens.numel() == 0:
        raise ValueError(f"{where} are empty: {tuple(tokens.shape)}; at least one sequence is needed")
    low, high = int(tokens.min()), int(tokens.max())
    if low < 0 or high >= model.cfg.d_vocab:
        bad = high if high >= model.cfg.d_vocab else low
        raise ValueError(
            f"{where} hold the id {bad}, outside the model's vocabulary of {model.cfg.d_vocab}; they were made with "
            "another tokenizer"
        )
    if tokens.shape[1] > model.cfg.n_ctx:
        raise ValueError(f"{where} are {tokens.shape[1]} positions long; the model's context is {model.cfg.n_ctx}")


@dataclass(frozen=True)
class Mask:
    """Which positions count, and in words which do not. `counted`: bool [rows, positions]."""

    counted: Bool[Tensor, "rows positions"]
    text: str


def token_mask(tokens: Int[Tensor, "rows positions"], tokenizer: Any, masking: Masking = "special") -> Mask:
    """Leaves out BOS and padding: the run of such tokens that a row begins with, and the padding it ends with.

    With `masking="none"`, or where the tokenizer has neither, every position counts. ValueError if none would.
    """
    counted = torch.ones_like(tokens, dtype=torch.bool)
    bos = getattr(tokenizer, "bos_token_id", None)
    pad = getattr(tokenizer, "pad_token_id", None)
    if masking == "none" or (bos is None and pad is None):
        return Mask(counted, "nothing masked")
    at_start = _run(tokens, {bos, pad})
    at_end = _run(tokens.flip(-1), {pad}).flip(-1)
    counted &= ~(at_start | at_end)
    if not counted.any():
        raise ValueError("every token is BOS or padding; nothing is left to look at")
    # A tokenizer whose BOS doubles as padding cannot say which of a row's first tokens is which: the last one is BOS.
    leading = at_start & (tokens == bos) if bos is not None else torch.zeros_like(at_start)
    n_bos = int(leading.any(-1).sum())
    n_pad = int((~counted).sum()) - n_bos
    return Mask(counted, f"masked: BOS ({n_bos:,} tokens), padding ({n_pad:,} tokens)")


def _run(tokens: Tensor, ids: set[int | None]) -> Tensor:
    """Positions in the run of `ids` that each row begins with."""
    inside = torch.zeros_like(tokens, dtype=torch.bool)
    for token in ids - {None}:
        inside |= tokens == token
    return inside.cumprod(-1).bool()
