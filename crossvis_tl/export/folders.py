"""Folders that an export writes to: what lies there is ours and of this very export, or it is refused."""

import hashlib
import json
import re
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from crossvis_tl.errors import short_list
from crossvis_tl.files import clear_errors

# Seconds after which an unfinished file that nobody has written to is of a run that is over. Younger ones may be of
# another process that writes other batches to the same folder.
OVER = 3600
# Bytes of a name; most systems end at 255.
LONGEST = 200
# No names on Windows, whatever follows behind a dot.
DEVICES = re.compile(r"(con|prn|aux|nul|com[0-9¹²³]|lpt[0-9¹²³])(\..*)?", re.IGNORECASE)


def name_problem(name: str) -> str | None:
    """Why a text cannot be a folder's name on every system, None where it can."""
    if not name or name.startswith(".") or len(name.encode(errors="replace")) > LONGEST:
        return f"{name[:40]!r} is empty, begins with a dot or is too long for a folder's name"
    if any(character in '/\\:*?"<>|' or not character.isprintable() for character in name):
        return f"{name!r} cannot be a folder's name"
    if DEVICES.fullmatch(name) or name[-1] in ". ":
        return f"{name!r} cannot be a folder's name on Windows; give another"
    return None


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
    """Makes it, and takes away what a run that was killed left unfinished, once that is an hour old (`OVER`). OSError
    naming it."""
    known = set(names)
    with clear_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for path in folder.iterdir():
            if path.name not in known and _finished(path.name) in known and _is_over(path):
                path.unlink(missing_ok=True)


def _is_over(draft: Path) -> bool:
    with suppress(FileNotFoundError):  # finished just now
        return time.time() - draft.stat().st_mtime > OVER
    return False


def _finished(name: str) -> str | None:
    """What a draft (`files.drafted`) was to become."""
    match = re.fullmatch(r"\.(.+)\.[0-9a-f]{8}\.part", name)
    return match[1] if match else None
