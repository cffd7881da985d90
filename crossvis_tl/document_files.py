"""Documents read out of files: JSON lines, Parquet, plain text."""

import gzip
import json
import re
import zlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, Literal

from crossvis_tl.documents import Corpus, Reading, column_of, corpus_of, shuffled
from crossvis_tl.errors import first_line

LINES = (".jsonl", ".ndjson", ".json")
TABLE = "is a table, not a text; write it as .parquet or .jsonl, a row each, and name the column"
PACKED = "is compressed in a way that is not read here; unpack it, or pack JSON lines as .jsonl.gz"
ARROW = "is an Arrow file; give the folder that datasets.save_to_disk wrote, or write it as .parquet"
# What would be tokens of its commas and bytes if it were taken for a text, and what to give instead.
REFUSED = {
    ".csv": TABLE, ".tsv": TABLE, ".xlsx": TABLE, ".arrow": ARROW, ".feather": ARROW,
    ".zst": PACKED, ".bz2": PACKED, ".xz": PACKED, ".zip": PACKED, ".7z": PACKED, ".tar": PACKED, ".tgz": PACKED,
}  # fmt: skip
# A file that is named so was meant to be here: no dataset of the hub is.
SUFFIXES = (*LINES, ".npy", ".npz", ".safetensors", ".pt", ".txt", ".parquet", ".gz", *REFUSED)
# Characters of a text file that are tokenised at a time.
BLOCK = 2**24
# Characters of a line, and of a list that was gzipped: a thousandth of it on disk may unpack to more than memory holds.
LONGEST_LINE, LONGEST_LIST = 2**28, 2**30
CUT = re.compile(r"\S\n(?=\S)")
UNREADABLE = (UnicodeDecodeError, EOFError, gzip.BadGzipFile, zlib.error)


def kind_of(path: Path) -> Literal["lines", "parquet", "text"]:
    if _inner_suffix(path) in LINES:
        return "lines"
    return "parquet" if path.suffix.lower() == ".parquet" else "text"


def _inner_suffix(path: Path) -> str:
    """That before .gz, where it is gzipped."""
    return (path.with_suffix("") if path.suffix.lower() == ".gz" else path).suffix.lower()


def no_text(path: Path) -> str | None:
    """Why what is no lines and no Parquet, by its name, is not read as a text either."""
    suffix = path.suffix.lower()
    if suffix == ".gz" and kind_of(path) == "text":
        return "is gzipped, of which only JSON lines are read (.jsonl.gz); unpack it"
    return REFUSED.get(suffix)


def from_files(files: Sequence[Path], origin: str, reading: Reading) -> Corpus:
    """Those of one kind, one after another. Raises as `crossvis_tl.corpora.open_corpus`."""
    kind = kind_of(files[0])
    if kind == "text":
        if wrong := no_text(files[0]):
            raise ValueError(f"{files[0]} {wrong}")
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
    opener: Any = gzip.open if path.suffix.lower() == ".gz" else open
    with opener(path, "rt", encoding="utf-8-sig") as file:
        if _inner_suffix(path) == ".json" and _taken(file.read, 256, path).lstrip().startswith("["):
            file.seek(0)
            yield from _items(path, file, LONGEST_LIST if opener is gzip.open else None)
            return
        file.seek(0)
        number = 0
        while line := _taken(file.readline, LONGEST_LINE + 1, path, number):
            number += 1
            where = f"{path}, line {number}"
            if len(line) > LONGEST_LINE:
                raise ValueError(f"{where} is longer than {LONGEST_LINE:,} characters; write a document a line")
            if line.strip():
                yield where, _parsed(line, where, first=number == 1)


def _items(path: Path, file: Any, longest: int | None) -> Iterator[tuple[str, Any]]:
    text = _taken(file.read, -1 if longest is None else longest + 1, path)
    if longest is not None and len(text) > longest:
        raise ValueError(
            f"{path} unpacks to more than {longest:,} characters, which are read at once; write it as .jsonl.gz, a "
            "document a line"
        )
    try:
        records = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"{path} is no JSON list: {first_line(error)}; a .json file that begins with [ is read as one list: name "
            "it .jsonl if each line is a document"
        ) from error
    yield from ((f"{path}, item {i}", record) for i, record in enumerate(records))


def _taken(read: Callable[[int], str], n: int, path: Path, line: int = 0) -> str:
    """The next of a file of which `line` lines were read."""
    try:
        return read(n)
    except UNREADABLE as error:
        wrong = f"is damaged after line {line}" if line else "is no JSON"
        raise ValueError(f"{path} {wrong}: {first_line(error)}") from error


def _parsed(line: str, where: str, *, first: bool) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:  # a plain ValueError for numbers of thousands of digits
        goes_on = first and line.lstrip()[0] in "[{" and line.rstrip()[-1] not in "]}"
        hint = "; each line is read as a document: one list over several lines is a .json file" if goes_on else ""
        raise ValueError(f"{where} is no JSON: {first_line(error)}{hint}") from error


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
    held: list[str] = []  # of a line that has not ended yet, searched already
    tail = ""  # the last two characters of them, where a cut may begin
    try:
        with path.open(encoding="utf-8-sig") as file:
            while block := file.read(BLOCK):
                seam = tail + block
                last = deque(CUT.finditer(seam), maxlen=1) if len(block) == BLOCK else ()
                if last:
                    at = last[0].start() + 2 - len(tail)
                    yield "".join([*held, block[:at]])
                    held, block = [], block[at:]
                    seam = block
                held.append(block)
                tail = seam[-2:]
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} is neither UTF-8 text nor one of .npy, .npz, .safetensors, .pt, .parquet, .jsonl: {error}"
        ) from error
    if held:
        yield "".join(held)
