"""A safetensors file written piece by piece, so that its tensors are never in memory.

The layout is that of the safetensors format (huggingface/safetensors, README): 8 bytes with the header's length, a JSON
header, then the tensors one after another, little-endian.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from crossvis_tl.files import clear_errors, drafted

NAMES = {"uint16": "U16", "uint32": "U32", "int32": "I32", "float16": "F16", "float32": "F32"}
Append = Callable[[str, np.ndarray], None]


@contextmanager
def streamed(
    path: Path, tensors: Mapping[str, tuple[str, tuple[int, ...]]], about: Mapping[str, str]
) -> Iterator[Append]:
    """Gives a function that appends rows to a tensor, by its name. The file appears whole or not at all.

    `tensors`: type (one of `NAMES`) and shape of each. OSError naming the path; ValueError where what was appended is
    not as large as was said.
    """
    header, begins, ends = _header(tensors, about)
    at = dict(begins)
    with drafted(path) as draft:
        with clear_errors(path):
            file = draft.open("xb")
        with file:
            with clear_errors(path):
                file.write(header)

            def append(name: str, rows: np.ndarray) -> None:
                data = np.ascontiguousarray(rows.astype(np.dtype(tensors[name][0]).newbyteorder("<"), copy=False))
                if at[name] + data.nbytes > ends[name]:
                    raise ValueError(f"{path}: more of {name} than its shape {tensors[name][1]} holds")
                with clear_errors(path):
                    file.seek(at[name])
                    file.write(data.data if data.size else b"")
                at[name] += data.nbytes

            yield append
            if at != ends:
                raise ValueError(f"{path}: less than the shapes {[shape for _, shape in tensors.values()]} hold")
            with clear_errors(path):
                file.flush()


def _header(
    tensors: Mapping[str, tuple[str, tuple[int, ...]]], about: Mapping[str, str]
) -> tuple[bytes, dict[str, int], dict[str, int]]:
    """-> the file's beginning, and where each tensor begins and ends in the file."""
    # those of larger numbers first, as the format's own writers have it, so that each lies where its type needs it
    order = sorted(tensors, key=lambda name: (-np.dtype(tensors[name][0]).itemsize, name))
    content: dict[str, object] = {"__metadata__": dict(about)}
    places, end = {}, 0
    for name in order:
        dtype, shape = tensors[name]
        begin, end = end, end + int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
        content[name] = {"dtype": NAMES[dtype], "shape": list(shape), "data_offsets": [begin, end]}
        places[name] = (begin, end)
    text = json.dumps(content, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    first = 8 + len(text)
    begins = {name: first + begin for name, (begin, _) in places.items()}
    ends = {name: first + end for name, (_, end) in places.items()}
    return len(text).to_bytes(8, "little") + text, begins, ends
