"""Descriptions of features that were made elsewhere, read so that the page can show and find them.

| kind | what is read | as written by |
|---|---|---|
| Neuronpedia's bulk export | `batch-0.jsonl`, `.jsonl.gz`, or a folder of them: `layer` ("3-clt-hp"), `index`, \
`description` | hijohnnylin/neuronpedia, `utils/neuronpedia-utils/.../export-data.py` |
| Neuronpedia's API | JSON: a list of such entries, `{"results": [...]}` of a search, or a feature with its \
`explanations`, whose `scores` hold a `value` each | the same, `apps/webapp` and its `prisma/schema.prisma` |
| Delphi | a folder of `{module}_latent{index}.txt` (older: `_feature`), a JSON string each | EleutherAI/delphi, \
`delphi/__main__.py` and `delphi/latents/latents.py` |
| a table | CSV or TSV with a header, JSON lists with the same names, or a JSON object of number to text | |

What kind a file is, its content says. All texts are data: they are kept as they are and never run or drawn as HTML.
"""

import csv
import gzip
import io
import json
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from math import inf, isfinite
from pathlib import Path
from typing import Any

from crossvis_tl.errors import first_line, near_misses, short_list
from crossvis_tl.files import near_siblings

INDEX, LAYER = ("feature", "index", "latent"), ("layer",)
TEXT = ("description", "explanation", "label")
RANKED = ("score", "scores", "date", "createdat", "updatedat")
EXPECTED = "expected one of feature, index and latent, and one of description, explanation and label"
LARGEST = 2**29  # bytes of one file, once inflated
EXPORT = re.compile(r"batch-\d+\.jsonl(?:\.gz)?")
DELPHI = re.compile(r"(.*)_(?:latent|feature)(\d+)\.txt")
DELPHI_FAILED = "Explanation could not be parsed."  # what Delphi writes where its explainer gave none
UNDATED = datetime.min.replace(tzinfo=UTC)


@dataclass(frozen=True)
class Row:
    """One description. `where`: for errors. `index`: of the feature, in its layer if that is named. `layer`: as it is
    written: "3-clt-hp", "layers.3.mlp"; None where nothing is. `rank`: the larger, the better: score, then date."""

    where: str
    index: int
    layer: str | None
    text: str
    rank: tuple[float, datetime] = (-inf, UNDATED)

    @property
    def at(self) -> int | None:
        """The number of the layer, if its name says one."""
        found = re.match(r"L?(\d{1,6})(?:-|$)", self.layer or "") or re.search(
            r"(?:^|[._/])(?:layers?|blocks|h)[._](\d{1,6})(?:\D|$)", self.layer or ""
        )
        return int(found[1]) if found else None

    def may_be_of(self, layer: int | str | None) -> bool:
        """Whether it is of a layer that is asked for by number or name; one that says none may be of any."""
        if layer is None or self.layer in (None, layer):
            return True
        return isinstance(layer, int) and self.at in (None, layer)


def read_rows(path: Path) -> list[Row]:
    """FileNotFoundError, or ValueError naming the line for what cannot be read, and where nothing is described."""
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist.{near_siblings(path)}")
    rows = [row for row in (_of_folder(path) if path.is_dir() else _of_file(path)) if row.text]
    if not rows:
        raise ValueError(f"{path} holds no description of any feature")
    return rows


def _of_folder(path: Path) -> Iterator[Row]:
    """Of a folder itself, `explanations/` in it, and, one for each layer, `*/explanations/`."""
    folders = [path, path / "explanations", *sorted(path.glob("*/explanations"))]
    files = [file for folder in folders if folder.is_dir() for file in sorted(folder.iterdir()) if file.is_file()]
    exports = [file for file in files if EXPORT.fullmatch(file.name)]
    texts = [(file, found) for file in files if (found := DELPHI.fullmatch(file.name))]
    if not exports and not texts:
        raise ValueError(
            f"{path} is a folder with neither Delphi's explanations (MODULE_latent0.txt) nor Neuronpedia's "
            "(batch-0.jsonl.gz); a table is given by its own name"
        )
    for file in exports:
        yield from _of_file(file)
    for file, found in texts:
        try:
            said = json.loads(_read_text(file))
        except (json.JSONDecodeError, RecursionError) as error:
            raise ValueError(f"{file} is none of Delphi's explanations, a JSON string: {first_line(error)}") from error
        text = _text(str(file), said.get("explanation") if isinstance(said, dict) else said)
        yield Row(str(file), int(found[2]), found[1], "" if text == DELPHI_FAILED else text)


def _of_file(path: Path) -> Iterator[Row]:
    text = _read_text(path)
    start = text.lstrip()[:1]
    if not start:
        raise ValueError(f"{path} is empty")
    return _json_rows(path, text) if start in "[{" else _table_rows(path, text)


def _read_text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            zipped = file.read(2) == b"\x1f\x8b"
        with gzip.open(path) if zipped else path.open("rb") as file:
            content = file.read(LARGEST + 1)
        if len(content) > LARGEST:
            raise ValueError(f"{path} is larger than {LARGEST // 2**20} MiB; give its parts, in a folder")
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no text in UTF-8 ({first_line(error)}); save it as UTF-8") from error
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"{path} is damaged: {first_line(error)}") from error


def _json_rows(path: Path, text: str) -> Iterator[Row]:
    for where, entry in _entries(path, text):
        if not isinstance(entry, Mapping):
            raise ValueError(f"{where}: {str(entry)[:40]!r} is no description; {EXPECTED}")
        outer = {str(name).lower(): value for name, value in entry.items()}
        inner = outer.pop("explanations", None)
        if isinstance(inner, list):
            each = [one for one in inner if isinstance(one, Mapping)]
            yield from (_row(where, outer | {str(n).lower(): value for n, value in one.items()}) for one in each)
        elif not {*INDEX, *TEXT} & {*outer} and all(isinstance(value, str) for value in outer.values()):
            yield from pairs(where, entry)
        else:
            yield _row(where, outer)


def _entries(path: Path, text: str) -> Iterator[tuple[str, Any]]:
    """A value a line, or one value, which may be a list of them."""
    where = str(path)
    lines = [(f"{path}, line {i}", line) for i, line in enumerate(text.split("\n"), 1) if line.strip()]
    try:
        if len(lines) > 1 and _is_json_object(lines[0][1]):
            for where, line in lines:
                yield where, json.loads(line)
            return
        whole = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where} is no JSON: {first_line(error)}") from error
    if isinstance(whole, dict) and isinstance(whole.get("results"), list):
        whole = whole["results"]
    if isinstance(whole, list):
        yield from ((f"{path}, entry {i}", entry) for i, entry in enumerate(whole, 1))
    else:
        yield where, whole


def _is_json_object(line: str) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def _table_rows(path: Path, text: str) -> Iterator[Row]:
    """CSV, with commas or semicolons, or TSV: what the header has."""
    table = text.lstrip("\r\n")
    skipped = text[: len(text) - len(table)].count("\n")
    header = table.split("\n", 1)[0]
    delimiter = max("\t,;", key=header.count)
    reader = csv.reader(io.StringIO(table, newline=""), delimiter=delimiter, strict=True)
    try:
        names = [name.strip().lower() for name in next(reader)]
        _check_header(f"{path}, line {skipped + 1}", names)
        for cells in reader:
            where = f"{path}, line {skipped + reader.line_num}"
            if not any(cell.strip() for cell in cells):
                continue
            if len(cells) != len(names):
                raise ValueError(
                    f"{where}: {len(cells)} cells where the header has {len(names)}; a text that holds "
                    f"{delimiter!r} stands in double quotes"
                )
            yield _row(where, dict(zip(names, cells, strict=True)))
    except csv.Error as error:
        raise ValueError(f"{path}, line {skipped + reader.line_num}: {first_line(error)}") from error


def _check_header(where: str, names: list[str]) -> None:
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise ValueError(f"{where}: the column {twice[0]!r} is there twice")
    try:
        _columns(names)
    except ValueError as error:
        known = (*INDEX, *TEXT, *LAYER)
        hints = (near_misses(name, known) for name in names if name not in (*known, *RANKED))
        columns = short_list(repr(name[:40]) for name in names)
        raise ValueError(f"{where}: the columns are {columns}; {error}.{next(filter(None, hints), '')}") from error


def _columns(names: Iterable[str]) -> tuple[str, str]:
    """-> which name holds the feature and which the text. A "label" beside another text is the feature's own: L3F7."""
    names = [*names]
    index = next((name for name in INDEX if name in names), None)
    text = next((name for name in TEXT if name in names), None)
    if index is None and text != "label" and "label" in names:
        index = "label"
    if index is None or text is None:
        raise ValueError(EXPECTED)
    return index, text


def _row(where: str, cells: Mapping[str, Any]) -> Row:
    """One description by its names, in lower case."""
    try:
        index, text = _columns(cells)
    except ValueError as error:
        raise ValueError(f"{where}: this has {short_list(map(repr, cells)) or 'nothing'}; {error}") from error
    own, number = _feature(where, cells[index])
    layer = str(cells["layer"]).strip() if cells.get("layer") is not None else ""
    layer = layer[1:] if re.fullmatch(r"L\d+", layer) else layer
    row = Row(where, number, own or layer or None, _text(where, cells[text]), _rank(cells))
    if own and layer and own != layer:
        raise ValueError(f"{where}: {cells[index]!r} is not of layer {layer!r}")
    return row


def pairs(where: str, given: Mapping[Any, Any]) -> Iterator[Row]:
    for key, text in given.items():
        layer, index = _feature(where, key)
        yield Row(f"{where}, {key!r}", index, layer, _text(f"{where}, {key!r}", text))


def _feature(where: str, value: object) -> tuple[str | None, int]:
    """ "7", 7 or "L3F7" -> the layer, if it names one, and the index."""
    plain = "" if isinstance(value, bool) else str(value).strip().removeprefix("#")
    found = re.fullmatch(r"(?:[lL]([0-9]{1,6})[fF])?([0-9]{1,15})", plain)
    if not found:
        raise ValueError(f"{where}: {str(value)[:40]!r} names no feature; expected a number or a label such as 'L3F7'")
    return found[1], int(found[2])


def _text(where: str, value: object) -> str:
    if value is not None and not isinstance(value, str):
        raise ValueError(f"{where}: the description is {str(value)[:40]!r}; expected a text")
    return (value or "").strip()


def _rank(cells: Mapping[str, Any]) -> tuple[float, datetime]:
    several = cells.get("scores")
    scores = [one.get("value") for one in several if isinstance(one, Mapping)] if isinstance(several, list) else []
    dates = [cells.get(name) for name in ("date", "createdat", "updatedat")]
    return max(map(_score, [*scores, cells.get("score")])), max(map(_date, dates))


def _score(value: object) -> float:
    try:
        score = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        return -inf
    return score if isfinite(score) else -inf


def _date(value: object) -> datetime:
    try:
        date = datetime.fromisoformat(str(value))
    except ValueError:
        return UNDATED
    return date if date.tzinfo else date.replace(tzinfo=UTC)
