"""Where documents come from: a file, a folder, a dataset of the hub. No code of a dataset is run."""

import re
from collections.abc import Iterable
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from crossvis_tl import documents
from crossvis_tl.document_files import SUFFIXES, from_files, kind_of, no_text
from crossvis_tl.documents import Corpus, Reading, column_of, corpus_of
from crossvis_tl.errors import first_line, near_misses, short_list
from crossvis_tl.files import near_siblings

DATASET_ID = re.compile(r"(?:hf://)?(?:datasets/)?(?P<id>[A-Za-z0-9][\w.-]*/[\w.-]+)(?:@(?P<revision>[^@\s]+))?")
SPLIT_WORDS = {"train", "training", "validation", "valid", "val", "dev", "test"}


def open_corpus(source: str | Path, reading: Reading) -> Corpus:
    """The documents of a file of lines (JSON), a Parquet file, a text, a folder of such files or one that
    `datasets.save_to_disk` wrote, or of a dataset of the hub ("org/name"); the first of them is looked at.

    FileNotFoundError with near misses where there is none; ValueError naming the file, and the line or row, for what is
    no text and no list of ids.
    """
    path = Path(source)
    if path.is_dir():
        return _folder(path, reading)
    if path.is_file():
        reading.refuse(path, "split", "subset")
        return from_files([path], str(path), reading)
    match = DATASET_ID.fullmatch(str(source))
    if match and not path.parent.exists() and path.suffix.lower() not in SUFFIXES:
        return _hub(match["id"], match["revision"], reading)
    hint = near_siblings(path)
    if not path.parent.exists():
        hint = f" There is no folder {path.parent}.{near_siblings(path.parent)}"
    raise FileNotFoundError(
        f"the token file {path} does not exist; give an array of ids or a text file, or a dataset's id, org/name.{hint}"
    )


def _folder(folder: Path, reading: Reading) -> Corpus:
    reading.refuse(folder, "subset")
    if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():
        return _saved(folder, reading)
    inside = sorted(path for path in folder.rglob("*") if path.is_file())
    inside = [path for path in inside if not any(part.startswith(".") for part in path.relative_to(folder).parts)]
    found = {
        "parquet": [path for path in inside if kind_of(path) == "parquet"],
        # a lone .json is mostly a config
        "lines": [path for path in inside if kind_of(path) == "lines" and path.suffix.lower() != ".json"],
    }
    kinds = [kind for kind, files in found.items() if files]
    if len(kinds) > 1:
        raise ValueError(f"{folder} is a folder of Parquet files and of JSON lines; give the one or the other")
    if not kinds:
        others = next((f"; {path.name} {wrong}" for path in inside if (wrong := no_text(path))), "")
        raise IsADirectoryError(
            f"{folder} is a folder without .parquet or .jsonl files, and datasets.save_to_disk did not write it; give "
            f"the file with the token ids or the text{others}"
        )
    files = _of_split(found[kinds[0]], folder, reading.split)
    if reading.shuffle:
        np.random.default_rng(reading.seed).shuffle(files)  # type: ignore[arg-type]
    return from_files(files, str(folder), reading)


def _of_split(files: list[Path], folder: Path, split: str | None) -> list[Path]:
    """Those of one split, by the words in their names; by default of "train" where some are, otherwise all."""
    words = {path: set(re.split(r"[^A-Za-z0-9]+", str(path.relative_to(folder)).lower())) for path in files}
    chosen = [path for path in files if (split or "train").lower() in words[path]]
    if split and not chosen:
        known = sorted(SPLIT_WORDS & set().union(*words.values()))
        there = f"; there are {short_list(known)}" if known else "; the names of its files tell no splits"
        raise ValueError(f"split={split!r}, but no file of {folder} is of it{there}.{near_misses(split, known)}")
    return chosen or files


def _saved(folder: Path, reading: Reading) -> Corpus:
    """What `datasets.save_to_disk` wrote."""
    import datasets

    try:
        found: Any = datasets.load_from_disk(str(folder))
    except Exception as error:  # datasets and Arrow each raise their own kinds for damaged files
        raise ValueError(f"{folder} is no readable folder of datasets.save_to_disk: {first_line(error)}") from error
    if isinstance(found, dict):
        found = found[_split(found, reading.split, folder)]
    else:
        reading.refuse(f"{folder}, which has no splits", "split")
    return _here(found, str(folder), reading)


def _here(dataset: Any, origin: str, reading: Reading) -> Corpus:
    """A `datasets.Dataset`, which lies on this machine."""
    dataset = dataset.with_format(None)
    column = column_of(dataset.column_names, reading.column, origin)
    dataset = dataset.select_columns([column])
    if reading.shuffle:
        dataset = dataset.shuffle(seed=reading.seed, keep_in_memory=True)
    return corpus_of(origin, column, ((f"{origin}, row {i}", row[column]) for i, row in enumerate(dataset)))


def _split(found: Iterable[str], wanted: str | None, origin: object) -> str:
    names = [str(name) for name in found]
    if wanted is None and ("train" in names or len(names) == 1):
        return "train" if "train" in names else names[0]
    if wanted not in names:
        asked = "say which split is meant: split=..." if wanted is None else f"split={wanted!r} is none of them"
        raise ValueError(f"{origin} has the splits {short_list(names)}; {asked}.{near_misses(wanted or '', names)}")
    return wanted


def _hub(name: str, revision: str | None, reading: Reading) -> Corpus:
    """A dataset of the hub, read from the network as it is asked for; offline, what the cache has of it."""
    import datasets
    from datasets import config
    from datasets.exceptions import DatasetsError

    try:
        found: Any = datasets.load_dataset(name, reading.subset, revision=revision, streaming=not config.HF_HUB_OFFLINE)
    except ValueError as error:  # no such subset, or it must be said which; the text names them
        known = set(re.findall(r"'([^']+)'", first_line(error))) - {reading.subset}
        hint = near_misses(reading.subset or "", sorted(known))
        raise ValueError(f"the dataset {name} needs another subset=...: {first_line(error)}.{hint}") from error
    except (OSError, RuntimeError, DatasetsError) as error:
        raise FileNotFoundError(
            f"{name} is no file or folder here, and could not be had as a dataset of the hub: {first_line(error)}"
        ) from error
    origin = f"the dataset {name}"
    rows: Any = found[_split(found, reading.split, origin)]
    if isinstance(rows, datasets.Dataset):
        return _here(rows, origin, reading)
    if reading.shuffle:
        rows = rows.shuffle(seed=reading.seed, buffer_size=documents.BUFFER)
    rows = iter(rows)
    first = next(rows, None)
    if first is None:
        raise ValueError(f"{origin} is empty")
    column = column_of(list(first), reading.column, origin)
    values = ((f"{origin}, row {i}", row.get(column)) for i, row in enumerate(chain([first], rows)))
    return corpus_of(origin, column, values, endless=True)
