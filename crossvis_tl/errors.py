"""Words shared by the errors people meet: near misses, lists kept short, and warnings."""

import os
from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path


class CrossvisWarning(UserWarning):
    """A result was made but should be looked at with doubt; the text says why."""


class ModelMismatchError(ValueError):
    """The model does not fit: its logits differ from HuggingFace's, or a dictionary was trained on another."""


def near_misses(name: str, known: Iterable[str], limit: int = 3) -> str:
    """-> " Did you mean 'a' or 'b'?" for the known names nearest to `name`, or "" where none is near."""
    matches = get_close_matches(name, list(known), n=limit, cutoff=0.5)
    if not matches:
        return ""
    return f" Did you mean {' or '.join(repr(match) for match in matches)}?"


def short_list(items: Iterable[object], limit: int = 8) -> str:
    """-> "a, b, c and 12 more"."""
    texts = [str(item) for item in items]
    if len(texts) <= limit:
        return ", ".join(texts)
    return f"{', '.join(texts[:limit])} and {len(texts) - limit} more"


def first_line(error: Exception) -> str:
    """Other libraries' errors run over pages; their first line says what went wrong."""
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__


def check_output(path: Path) -> None:
    """Before long work: OSError naming what is wrong when `path` cannot be written."""
    folder = path.resolve().parent
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder; give the name of a file in it")
    if not folder.is_dir():
        raise FileNotFoundError(f"the folder {folder} does not exist; make it first, or write {path.name} elsewhere")
    if not os.access(folder, os.W_OK) or (path.exists() and not os.access(path, os.W_OK)):
        raise PermissionError(f"{path} cannot be written: no permission")
