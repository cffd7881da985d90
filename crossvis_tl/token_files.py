"""Arrays of token ids read from files."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from safetensors.torch import load_file
from torch import Tensor

from crossvis_tl.errors import short_list

TOKEN_SUFFIXES = (".npy", ".npz", ".safetensors", ".pt")


def read_ids(path: Path) -> Int[Tensor, "rows positions"]:
    """The ids in a file of one of `TOKEN_SUFFIXES`; a single row may lack its first dimension. -> int64. ValueError
    naming the file for what holds none."""
    array = _read_array(path)
    if not integers(array):
        raise ValueError(f"{path} holds {array.dtype} numbers; token ids are integers")
    if array.ndim == 1:
        array = array.unsqueeze(0)
    if array.ndim != 2:
        raise ValueError(f"{path} holds an array {tuple(array.shape)}; token ids are [sequences, positions]")
    return array.long()


def integers(tokens: Tensor) -> bool:
    return not (tokens.is_floating_point() or tokens.is_complex() or tokens.dtype == torch.bool)


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
