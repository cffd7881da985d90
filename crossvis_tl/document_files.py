"""Documents read out of files: JSON lines, Parquet, plain text."""

import gzip
import json
import re
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, Literal

from crossvis_tl.documents import Corpus, Reading, column_of, corpus_of, shuffled
from crossvis_tl.errors import first_line

LINES = (".jsonl", ".ndjson", ".json")
# Characters of a text file that are tokenised at a time.
BLOCK = 2**24


def kind_of(path: Path) -> Literal["lines", "parquet", "text"]:
    suffix = path.with_suffix("").suffix if path.suffix == ".gz" else path.suffix
    return "lines" if suffix in LINES else "parquet" if suffix == ".parquet" else "text"


def from_files(files: Sequence[Path], origin: str, reading: Reading) -> Corpus:
    """Those of one kind, one after another. Raises as `crossvis_tl.corpora.open_corpus`."""
    kind = kind_of(files[0])
    if kind == "text":
        reading.refuse(origin, "column")
        return Corpus(origin, True, _blocks(files[0]), separate=False)
    if kind == "parquet":
        names = _parquet_names(files[0])
        column = column_of(names, reading.column, origin)
        values = chain.from_iterable(_parquet(path, column) for path in files)
    else:
        records = chain.from_iterable(_lines(path) for path in files)
        first = next(records, None)
        if first is None:
            raise ValueError(f"{origin} is empty; it holds no texts and no ids")
        if isinstance(first[1], dict):
            column = column_of(list(first[1]), reading.column, origin)
            values = ((where, _field(record, column, where)) for where, record in chain([first], records))
        else:
            column = None
            reading.refuse(f"{origin}, whose lines have no names", "column")
            values = chain([first], records)
    if reading.shuffle:
        values = shuffled(values, reading.seed)
    return corpus_of(origin, column, values)


def _lines(path: Path) -> Iterator[tuple[str, Any]]:
    """The records of JSON lines, or of a .json file that is one list."""
    where = str(path)
    opener = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rt", encoding="utf-8") as file:
            if ".json" in path.suffixes and file.read(256).lstrip().startswith("["):
                file.seek(0)
                yield from ((f"{path}, item {i}", record) for i, record in enumerate(json.load(file)))
                return
            file.seek(0)
            for number, line in enumerate(file, 1):
                where = f"{path}, line {number}"
                if line.strip():
                    yield where, json.loads(line)
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError, EOFError, gzip.BadGzipFile) as error:
        raise ValueError(f"{where} is no JSON: {first_line(error)}") from error


def _field(record: Any, column: str, where: str) -> Any:
    if not isinstance(record, dict) or column not in record:
        raise ValueError(f"{where} has no {column!r}, which the lines before it have")
    return record[column]


def _parquet_names(path: Path) -> list[str]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.read_schema(path).names
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{path} is no Parquet file: {first_line(error)}") from error


def _parquet(path: Path, column: str) -> Iterator[tuple[str, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    if column not in _parquet_names(path):
        raise ValueError(f"{path} has no column {column!r}, which the files before it have")
    number = 0
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=128, columns=[column]):
                for value in batch.column(0).to_pylist():
                    yield f"{path}, row {number}", value
                    number += 1
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{path} is damaged after row {number}: {first_line(error)}") from error


def _blocks(path: Path) -> Iterator[str]:
    """A text in parts: cut where a line ends and the next begins with no space, which no tokenizer joins. A text of
    less than `BLOCK` characters is one."""
    try:
        with path.open(encoding="utf-8") as file:
            held = ""
            while block := file.read(BLOCK):
                held += block
                at = [match.start() + 2 for match in re.finditer(r"\S\n(?=\S)", held)] if len(block) == BLOCK else []
                if at:
                    yield held[: at[-1]]
                    held = held[at[-1] :]
            if held:
                yield held
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} is neither UTF-8 text nor one of .npy, .npz, .safetensors, .pt, .parquet, .jsonl: {error}"
        ) from error
