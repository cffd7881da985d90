"""Token sets: read from a file or a text, and checked against the model."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Int
from safetensors.torch import load_file
from torch import Tensor

from crossvis_tl.errors import short_list
from crossvis_tl.files import near_siblings

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer

TOKEN_SUFFIXES = (".npy", ".npz", ".safetensors", ".pt")


def load_tokens(path: str | Path, tokenizer: Any = None, context: int = 128) -> Int[Tensor, "rows positions"]:
    """Token ids from a `.npy`, `.npz`, `.safetensors` or `.pt` file, or from a text file by way of `tokenizer`.

    A text is cut into rows of `context` tokens, each beginning with the BOS token where the tokenizer has one; what is
    left at the end is dropped. -> int64 [rows, positions]. FileNotFoundError, or ValueError naming the file.
    """
    path = Path(path)
    check_token_file(path)
    if context < 2:
        raise ValueError(f"context is {context}; {path} is cut into sequences of at least 2 tokens")
    if path.suffix not in TOKEN_SUFFIXES:
        return _from_text(path, tokenizer, context)
    array = _read_array(path)
    if not _integers(array):
        raise ValueError(f"{path} holds {array.dtype} numbers; token ids are integers")
    if array.ndim == 1:
        array = array.unsqueeze(0)
    if array.ndim != 2:
        raise ValueError(f"{path} holds an array {tuple(array.shape)}; token ids are [sequences, positions]")
    return array.long()


def check_token_file(path: Path) -> None:
    """FileNotFoundError or IsADirectoryError, with near misses, unless `path` is a file."""
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder; give the file with the token ids or the text")
    if not path.is_file():
        hint = near_siblings(path)
        raise FileNotFoundError(f"the token file {path} does not exist; give an array of ids or a text file.{hint}")


def _read_array(path: Path) -> Tensor:
    try:
        if path.suffix == ".npy":
            return _from_numpy(np.load(path, allow_pickle=False))
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as archive:
                content: Any = {name: _from_numpy(archive[name]) for name in archive.files}
        elif path.suffix == ".safetensors":
            content = load_file(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # numpy, torch, zipfile and pickle each raise their own kinds for damaged files
        raise ValueError(
            f"{path} is no readable {path.suffix} file of token ids; it is damaged or holds other data"
        ) from error
    return content if isinstance(content, Tensor) else _only(content, path)


def _from_numpy(array: np.ndarray) -> Tensor:
    if array.dtype.kind == "u" and array.size and int(array.max()) > np.iinfo(np.int64).max:
        raise ValueError("an id does not fit into 64 bits")
    return torch.from_numpy(array.astype(np.int64) if array.dtype.kind in "iu" else array)


def _only(content: Any, path: Path) -> Tensor:
    arrays = {k: v for k, v in content.items() if isinstance(v, Tensor)} if isinstance(content, dict) else {}
    if "tokens" in arrays:
        return arrays["tokens"]
    if len(arrays) != 1:
        held = short_list(content) if isinstance(content, dict) else f"a {type(content).__name__}"
        raise ValueError(f"{path} holds {held or 'nothing'}; expected one array, or one named 'tokens'")
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


def _integers(tokens: Tensor) -> bool:
    return not (tokens.is_floating_point() or tokens.is_complex() or tokens.dtype == torch.bool)


def check_tokens(tokens: Int[Tensor, "rows positions"], model: "HookedTransformer", where: str = "the tokens") -> None:
    """ValueError when there are none, or they are no ids of this model, or longer than its context."""
    if not isinstance(tokens, Tensor) or tokens.ndim != 2 or not _integers(tokens):
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


def checked_tokens(tokens: Tensor, models: Sequence["HookedTransformer"], where: str = "the tokens") -> Tensor:
    """-> the ids as int64 on the CPU, where examples and statistics are made, after `check_tokens` for each model."""
    if isinstance(tokens, Tensor) and _integers(tokens):
        tokens = tokens.detach().to("cpu", torch.long)
    for model in models:
        check_tokens(tokens, model, where)
    return tokens


def replaced_tokens(
    tokens: Int[Tensor, "rows positions"], replacements: Mapping[int, int]
) -> Int[Tensor, "rows positions"]:
    """Ids with some put in place of others: what a base model reads where a chat template has tokens it never saw."""
    changed = tokens.clone()
    for old, new in replacements.items():
        changed[tokens == old] = new
    return changed
