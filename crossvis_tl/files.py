"""Output files: looked at before long work, and appearing whole or not at all."""

import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from secrets import token_hex
from typing import Any

from crossvis_tl.errors import first_line, near_misses


def check_output(path: Path, suffix: str | None = None) -> None:
    """Before long work: OSError naming what is wrong when `path` cannot be written, ValueError for another suffix."""
    if suffix is not None and path.suffix != suffix:
        raise ValueError(f"{path} must end in {suffix}")
    with clear_errors(path):
        folder = path.resolve().parent
        is_folder, has_folder, exists = path.is_dir(), folder.is_dir(), path.exists()
    if is_folder:
        raise IsADirectoryError(f"{path} is a folder; give the name of a file in it")
    if not has_folder:
        raise FileNotFoundError(f"the folder {folder} does not exist; make it first, or write {path.name} elsewhere")
    if not os.access(folder, os.W_OK) or (exists and not os.access(path, os.W_OK)):
        raise PermissionError(f"{path} cannot be written: no permission")


def read_json(path: Path, wrong: str) -> Any:
    """What a JSON file holds. ValueError "PATH `wrong`: why" when it is none."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{path} {wrong}: {first_line(error)}") from error


def near_siblings(path: Path) -> str:
    """`near_misses` of a name that is not there among those that lie beside it."""
    return near_misses(path.name, [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else [])


def write_whole(path: Path, chunks: Iterable[str]) -> int:
    """Writes UTF-8 text as it comes and returns its size in bytes.

    The file appears only when it is whole; on any error what stood at `path` before still stands and nothing else is
    left. OSError naming the path where it cannot be written; an error from making a chunk passes as it is.
    """
    size = 0
    with drafted(path) as draft:
        with clear_errors(path):
            file = draft.open("xb")
        with file:
            for chunk in chunks:
                with clear_errors(path):
                    size += file.write(chunk.encode("utf-8"))
            with clear_errors(path):
                file.flush()
    return size


@contextmanager
def drafted(path: Path) -> Iterator[Path]:
    """A path to write to, beside `path`. It takes its place when all went well, and goes when not."""
    draft = path.parent / f".{path.name}.{token_hex(4)}.part"
    try:
        yield draft
        with clear_errors(path):
            draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


@contextmanager
def clear_errors(path: Path) -> Iterator[None]:
    """Any OSError inside becomes one of the same kind whose text names the path and says what is wrong."""
    try:
        yield
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        if isinstance(error, FileNotFoundError):
            reason = f"there is no folder {path.parent}"
        clear = type(error)(f"{path} cannot be written: {reason}")
        clear.errno = error.errno
        raise clear from error
