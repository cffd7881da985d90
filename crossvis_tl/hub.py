"""Files of the HuggingFace hub, by way of `huggingface_hub` and its cache: ids, revisions, folders inside, offline."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from crossvis_tl.errors import first_line, near_misses
from crossvis_tl.files import near_siblings

REPO_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
REFERENCE = re.compile(
    r"hf://(?P<repo>[^/@?]+/[^/@?]+)(?:@(?P<at>[^/?]+))?(?:/(?P<inside>[^?]*))?(?:\?revision=(?P<rev>.+))?"
)


@dataclass(frozen=True)
class HubOptions:
    """`revision`: branch, tag or commit. `cache_dir`: where downloads are kept, the hub's own place by default.
    `offline`: only what is there already."""

    revision: str | None = None
    cache_dir: str | Path | None = None
    offline: bool = False


_DEFAULT = HubOptions()
_OPTIONS: ContextVar[HubOptions] = ContextVar("hub options", default=_DEFAULT)


@contextmanager
def hub_options(options: HubOptions) -> Iterator[None]:
    """Inside, `fetch` goes by these."""
    token = _OPTIONS.set(options)
    try:
        yield
    finally:
        _OPTIONS.reset(token)


def located(path: str | Path, subfolder: str | None = None) -> Path:
    """A folder or file here, or what the hub has under that id ("org/name", "hf://org/name/folder"), downloaded.

    FileNotFoundError when it is neither, with near misses; ValueError for a revision of a local path and for a
    subfolder that leads out.
    """
    if not isinstance(path, str | Path):
        raise ValueError(f"path is {path!r}; expected a folder, a weight file or an id of the hub")
    inside = _checked_inside(subfolder) if subfolder else ""
    text, here = str(path), Path(path)
    try:
        exists = here.exists()
    except OSError as error:  # too long to be a name
        raise FileNotFoundError(f"{text[:80]}... cannot be a path: {error.strerror}") from error
    if exists:
        if _OPTIONS.get().revision is not None:
            raise ValueError(f"{path} lies here, and revision={_OPTIONS.get().revision!r} is for ids of the hub")
        return _existing(here / inside) if inside else here
    reference = REFERENCE.fullmatch(text)
    if reference:
        parts = [part.strip("/") for part in (reference["inside"] or "", inside) if part]
        return fetch(reference["repo"], "/".join(parts), reference["at"] or reference["rev"])
    if REPO_ID.fullmatch(text) and not here.parent.exists():
        return fetch(text, inside)
    raise FileNotFoundError(f"{path} does not exist.{near_siblings(here)}")


def referred(reference: str, folder: Path) -> Path:
    """A file that a config names: "hf://org/name/file", or a path inside the config's own folder.

    ValueError where it leads out of that folder; FileNotFoundError where it is not there.
    """
    match = REFERENCE.fullmatch(reference)
    if match:
        return fetch(match["repo"], _checked_inside(match["inside"] or ""), match["at"] or match["rev"])
    return _existing(folder / _checked_inside(reference))


def _existing(path: Path) -> Path:
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist.{near_siblings(path)}")
    return path


def _checked_inside(inside: str) -> str:
    if not isinstance(inside, str):
        raise ValueError(f"subfolder is {inside!r}; expected the name of a folder")
    parts = PurePosixPath(inside.replace("\\", "/"))
    if parts.is_absolute() or ".." in parts.parts or ":" in inside:
        raise ValueError(f"{inside!r} leads out of its folder; give the name of something inside it")
    return str(parts) if inside else ""


def fetch(repo: str, inside: str = "", revision: str | None = None) -> Path:
    """The folder or file `inside` a repository of the hub (all of it by default), from the cache where it is there."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    options = _OPTIONS.get()
    revision = revision or options.revision
    at = f" at revision {revision!r}" if revision else ""
    patterns = [inside, f"{inside}/**"] if inside else None
    try:
        snapshot = snapshot_download(
            repo, revision=revision, allow_patterns=patterns, cache_dir=options.cache_dir,
            local_files_only=options.offline,
        )  # fmt: skip
    except GatedRepoError as error:
        raise FileNotFoundError(f"{repo} asks for consent: accept its terms on the hub, and log in there") from error
    except RevisionNotFoundError as error:
        raise FileNotFoundError(f"{repo} on the hub has no revision {revision!r}") from error
    except RepositoryNotFoundError as error:
        raise FileNotFoundError(
            f"{repo} is no folder or file here, and the hub has no such repository (or it is private, and you are not "
            "logged in)"
        ) from error
    except (LocalEntryNotFoundError, HfHubHTTPError, HFValidationError, OSError) as error:
        raise FileNotFoundError(
            f"{repo}{at} is no folder or file here, is not in the cache, and could not be had from the hub "
            f"({'offline was asked for' if options.offline else first_line(error)})"
        ) from error
    found = Path(snapshot) / inside
    if not found.exists():
        beside = [p.relative_to(snapshot).as_posix() for p in Path(snapshot).rglob("*") if p.is_dir()]
        raise FileNotFoundError(f"{repo}{at} has no {inside!r}.{near_misses(inside, beside)}")
    return found
