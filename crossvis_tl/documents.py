"""Documents, one after another and never all of them at once: texts, or rows of ids, and how they are asked for."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any, Literal, get_args

import numpy as np

from crossvis_tl.errors import check_word, near_misses, short_list

Packing = Literal["joined", "each"]
Values = Iterable[tuple[str, Any]]  # where each stands, for people, and what it is

# Columns that are taken unless another is named, in the order of sae_lens' ActivationsStore; "content" is that of code.
COLUMNS = ("tokens", "input_ids", "text", "content", "problem")
# Documents held to draw the next from, where they come one after another.
BUFFER = 10_000


@dataclass(frozen=True)
class Reading:
    """How tokens are read: see `crossvis_tl.tokens.load_token_set`. ValueError for what cannot be meant."""

    n_sequences: int | None = None
    prefix: str = ""
    suffix: str = ""
    count_affixes: bool = True
    prepend_bos: bool | None = None
    packing: Packing | None = None
    shuffle: bool = False
    seed: int = 0
    column: str | None = None
    split: str | None = None
    subset: str | None = None

    def __post_init__(self) -> None:
        n = self.n_sequences
        if n is not None and (isinstance(n, bool) or not isinstance(n, int) or n < 1):
            raise ValueError(f"n_sequences is {n!r}; expected a whole number of at least 1, or None for all")
        if self.shuffle and (isinstance(self.seed, bool) or not isinstance(self.seed, int) or self.seed < 0):
            raise ValueError(f"seed is {self.seed!r}; expected a whole number of at least 0")
        if self.packing is not None:
            check_word("packing", self.packing, get_args(Packing))
        for name in ("prefix", "suffix"):
            if not isinstance(getattr(self, name), str):
                raise ValueError(f"{name} is {getattr(self, name)!r}; expected a text")

    def refuse(self, origin: object, *names: str) -> None:
        """ValueError for those of these options that were given, where they mean nothing."""
        given = [name for name in names if getattr(self, name) is not None]
        if given:
            raise ValueError(f"{' and '.join(f'{name}=' for name in given)} means nothing for {origin}; leave it out")


@dataclass
class Corpus:
    """Documents, read as they are asked for, and once. `origin`: where they come from, for people. `texts`: they are
    texts, otherwise arrays of token ids [length]. `separate`: each is a document, otherwise a part of one. `endless`:
    of a dataset of the hub, which nobody reads to its end."""

    origin: str
    texts: bool
    documents: Iterator[str | np.ndarray]
    separate: bool = True
    endless: bool = False


def column_of(names: Sequence[str], wanted: str | None, origin: str) -> str:
    """ValueError with the columns there are where the one wanted is not, or it is not clear which is."""
    if wanted is not None:
        if wanted not in names:
            raise ValueError(
                f"{origin} has no column {wanted!r}, only {short_list(names)}.{near_misses(wanted, names)}"
            )
        return wanted
    found = next((name for name in COLUMNS if name in names), names[0] if len(names) == 1 else None)
    if found is None:
        raise ValueError(f"{origin} has the columns {short_list(names)}; say which holds the texts or ids: column=...")
    return found


def corpus_of(origin: str, column: str | None, values: Values, *, endless: bool = False) -> Corpus:
    """Of values that are all texts or all lists of ids; such as are empty are passed over."""
    there = ((where, value) for where, value in values if value is not None and _length(value) != 0)
    first = next(there, None)
    if first is None:
        raise ValueError(f"{origin} is empty; it holds no texts and no ids")
    texts = isinstance(first[1], str)
    checked: Callable[[str, Any, str | None], Any] = _text if texts else _ids
    documents = (checked(where, value, column) for where, value in chain([first], there))
    first_document = next(documents)  # said now, before models are loaded
    return Corpus(origin, texts, chain([first_document], documents), endless=endless)


def _length(value: Any) -> int | None:
    return len(value) if hasattr(value, "__len__") else None


def _text(where: str, value: Any, column: str | None) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{_named(where, column)} is {_short(value)}, where those before are texts")
    # half a surrogate pair, which JSON may hold, is no text: tokenizers refuse it
    return value if value.isascii() else value.encode("utf-8", "replace").decode("utf-8")


def _ids(where: str, value: Any, column: str | None) -> np.ndarray:
    array = None
    if isinstance(value, list | tuple | np.ndarray):
        try:
            array = np.asarray(value)
        except ValueError:  # lists of different lengths
            array = None
    whole = array is not None and array.ndim == 1 and array.dtype.kind in "iu"
    if array is None or not whole or (array.dtype.kind == "u" and int(array.max()) > np.iinfo(np.int64).max):
        raise ValueError(f"{_named(where, column)} is {_short(value)}; expected a text or a list of token ids")
    return array.astype(np.int64)


def _named(where: str, column: str | None) -> str:
    return where if column is None else f"{where}: {column!r}"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}..."


def shuffled(values: Values, seed: int) -> Iterator[tuple[str, Any]]:
    """Each drawn from `BUFFER` of them that are held; of fewer values that is any order of all."""
    generator, values = np.random.default_rng(seed), iter(values)
    held = list(islice(values, BUFFER))
    for value in values:
        at = int(generator.integers(len(held)))
        yield held[at]
        held[at] = value
    yield from (held[at] for at in generator.permutation(len(held)))
