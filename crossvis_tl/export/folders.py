"""Folders that an export writes to: what lies there is ours and of this very export, or it is refused."""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from crossvis_tl.errors import short_list
from crossvis_tl.files import clear_errors


def digest(content: Iterable[bytes]) -> str:
    """A short text that differs where any of the pieces does."""
    found = hashlib.blake2b(digest_size=16)
    for piece in content:
        found.update(len(piece).to_bytes(8, "little"))
        found.update(piece)
    return found.hexdigest()


def digest_of(content: Mapping[str, Any]) -> str:
    """`digest` of what JSON can hold."""
    return digest([json.dumps(content, sort_keys=True).encode()])


def check_names(folder: Path, names: Iterable[str], what: str) -> set[str]:
    """-> which of `names` lie in `folder`; nothing where it is not there. Unfinished files of these names do not count.

    FileExistsError where `folder` is a file, or holds other things than `what` ("an export for Delphi") has.
    """
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"{folder} is a file; {what} is a folder")
    known = set(names)
    there = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    foreign = sorted(name for name in there - known if _finished(name) not in known)
    if foreign:
        raise FileExistsError(
            f"{folder} holds {short_list(foreign, 3)}, which is not of this {what.removeprefix('an ')}; "
            "give an empty or a new folder"
        )
    return there & known


def open_folder(folder: Path, names: Iterable[str]) -> None:
    """Makes it, and takes away what a run that was stopped left unfinished. OSError naming it."""
    known = set(names)
    with clear_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for path in folder.iterdir():
            if path.name not in known and _finished(path.name) in known:
                path.unlink(missing_ok=True)


def _finished(name: str) -> str | None:
    """What a draft (`files.drafted`) was to become."""
    match = re.fullmatch(r"\.(.+)\.[0-9a-f]{8}\.part", name)
    return match[1] if match else None
