"""Arrays of token ids read from files."""

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from safetensors.torch import load_file
from torch import Tensor

from crossvis_tl.errors import short_list

TOKEN_SUFFIXES = (".npy", ".npz", ".safetensors", ".pt")
# Bytes to which a compressed archive may unpack: half a billion ids. A thousandth of it on disk may say so. What is not
# compressed may be of any size, as a .npy may.
MOST_UNPACKED = 2**32


def is_array(path: Path) -> bool:
    """Whether it is a file that is named as an array of ids."""
    return path.suffix.lower() in TOKEN_SUFFIXES and path.is_file()


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
    suffix = path.suffix.lower()
    if (unpacked := _unpacked(path)) > MOST_UNPACKED:
        raise ValueError(
            f"{path} unpacks to {unpacked / 2**30:,.1f} GiB, more than the {MOST_UNPACKED / 2**30:,.1f} GiB that are "
            "unpacked here; save the ids as .npy, or with numpy.savez, which does not compress"
        )
    try:
        if suffix == ".npy":
            return _from_numpy(np.load(path, allow_pickle=False))
        if suffix == ".npz":
            with np.load(path, allow_pickle=False) as archive:
                content: Any = {name: _from_numpy(archive[name]) for name in archive.files}
        elif suffix == ".safetensors":
            content = load_file(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # numpy, torch, zipfile and pickle each raise their own kinds for damaged files
        raise ValueError(
            f"{path} is no readable {suffix} file of token ids; it is damaged or holds other data"
        ) from error
    return content if isinstance(content, Tensor) else _only(content, path)


def _unpacked(path: Path) -> int:
    """Bytes that the compressed members of an archive become, as it says and is held to; 0 for what is no archive."""
    try:
        with zipfile.ZipFile(path) as archive:
            return sum(one.file_size for one in archive.infolist() if one.compress_type != zipfile.ZIP_STORED)
    except Exception:  # zipfile raises many kinds for damaged files; who reads it says so
        return 0


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
