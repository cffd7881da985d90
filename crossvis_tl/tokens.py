"""Token sets: read from files, texts and datasets, and checked against the model."""

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor
from tqdm.auto import tqdm

from crossvis_tl.corpora import open_corpus
from crossvis_tl.documents import Corpus, Packing, Reading
from crossvis_tl.packing import around, joined, one_of_each, stacked
from crossvis_tl.token_files import integers, is_array, read_ids

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer

# Sequences taken of a dataset of the hub unless it is said how many; SAEDashboard's `n_prompts_total`.
HUB_SEQUENCES = 24_576
# Texts are tokenised so many characters at a time, at least one text.
CHARACTERS = 2**20
# Texts of the hub that may be too short for a sequence, one after another, before reading ends; and after how many
# seconds it is shown how many were read.
PATIENCE, DELAY = 100_000, 3
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TokenSet:
    """Sequences of one length, and what is known of them. `tokens`: ids. `documents`: the number of the document each
    token is of, None where that is not known. `origin`: where they come from, for people. `uncounted`: positions that
    do not count, those of a prefix and a suffix that were put around every sequence. `separator`: the id that was put
    between documents, None where none was."""

    tokens: Int[Tensor, "rows positions"]
    documents: Int[Tensor, "rows positions"] | None = None
    origin: str = "the tokens"
    uncounted: tuple[int, ...] = ()
    separator: int | None = None

    @classmethod
    def of(cls, tokens: "Tensor | TokenSet") -> "TokenSet":
        return tokens if isinstance(tokens, cls) else cls(tokens)  # type: ignore[arg-type]

    def checked(self, models: Sequence["HookedTransformer"], n_rows: int | None) -> "TokenSet":
        """The first `n_rows`, None for all, after `checked_tokens`."""
        tokens = checked_tokens(self.tokens, models, self.origin)[:n_rows]
        return replace(self, tokens=tokens, documents=None if self.documents is None else self.documents[:n_rows])


def load_tokens(
    source: str | Path, tokenizer: Any = None, context: int = 128, **options: Any
) -> Int[Tensor, "rows positions"]:
    """The ids of `load_token_set`, which takes the same: int64 [rows, positions]."""
    return load_token_set(source, tokenizer, context, **options).tokens


def load_token_set(  # noqa: PLR0913 - all that can be said of texts
    source: str | Path,
    tokenizer: Any = None,
    context: int = 128,
    *,
    n_sequences: int | None = None,
    prefix: str = "",
    suffix: str = "",
    count_affixes: bool = True,
    prepend_bos: bool | None = None,
    packing: Packing | None = None,
    shuffle: bool = False,
    seed: int = 0,
    column: str | None = None,
    split: str | None = None,
    subset: str | None = None,
) -> TokenSet:
    """Sequences of token ids from a file, a folder or a dataset of the hub.

    `source`: an array of ids (`.npy`, `.npz`, `.safetensors`, `.pt`), taken as it is; JSON lines (`.jsonl`, `.json`,
    also gzipped) or Parquet, texts or lists of ids in `column` (default "tokens", "input_ids", "text", "content" or
    "problem"); any other file is one text, unless it is named as what is none (`.csv`, `.zst`); a folder of Parquet or
    JSON lines files, or what `datasets.save_to_disk` wrote; a dataset's id on the hub, "org/name" or
    "org/name@revision". `split`, `subset`: of a dataset; default "train" and its only one. Documents are read until
    there are `n_sequences`, default all, and 24,576 of the hub.

    Each sequence has `context` tokens. Texts are joined: BOS begins each sequence and stands between two texts, where
    it does not count, and what does not fill a last sequence is dropped, as sae_lens does
    (`concat_and_batch_sequences`). `packing`="each" takes the first `context` tokens of each text and leaves out
    shorter ones, as SAEDashboard's runner does. Lists of ids are taken one each unless `packing`="joined".
    `prepend_bos`: whether BOS begins each sequence; default where the tokenizer has one, and for ids as they are.

    `prefix`, `suffix`: texts whose tokens every sequence has behind BOS and at its end, within `context`; with
    `count_affixes`=False they are left out of statistics and examples. `shuffle`: documents and sequences in an order
    drawn by `seed`; of a file or dataset that is read in order, from ten thousand documents at a time.

    FileNotFoundError, IsADirectoryError or ValueError naming the source, also for what unpacks to more than is read; an
    array's ids are compared to a model later (`checked_tokens`).
    """
    reading = Reading(
        n_sequences, prefix, suffix, count_affixes, prepend_bos, packing, shuffle, seed, column, split, subset
    )
    return token_set(open_tokens(source, reading), tokenizer, context, reading, str(source))


def open_tokens(source: str | Path, reading: Reading) -> Tensor | Corpus:
    """Before long work: an array of ids, or documents whose first one is good. Raises as `load_token_set`."""
    path = Path(source)
    if not is_array(path):
        return open_corpus(source, reading)
    reading.refuse(f"{path}, an array", "column", "split", "subset", "packing")
    return read_ids(path)


def token_set(
    opened: Tensor | Corpus,
    tokenizer: Any,
    context: int,
    reading: Reading,
    origin: str,
    *,
    progress: bool | None = None,
) -> TokenSet:
    """The sequences of what `open_tokens` gave. `progress`: whether it is shown how many documents were read, if that
    takes long; default on a terminal."""
    if type(context) is not int or context < 2:
        raise ValueError(f"context is {context!r}; {origin} is cut into sequences of at least 2 tokens")
    if isinstance(opened, Corpus):
        return _Rows(opened, tokenizer, context, reading, progress).token_set()
    tokens = opened
    if reading.shuffle:
        tokens = tokens[_permutation(len(tokens), reading.seed)]
    tokens = tokens[: reading.n_sequences]
    if not (reading.prefix or reading.suffix or reading.prepend_bos) or not tokens.numel():
        return TokenSet(tokens, origin=origin)
    corpus = Corpus(origin, False, iter(tokens.numpy()))
    return _Rows(corpus, tokenizer, tokens.shape[1], replace(reading, shuffle=False)).token_set()


class _Rows:
    """A corpus as sequences."""

    def __init__(self, corpus: Corpus, tokenizer: Any, context: int, reading: Reading, progress: bool | None = None):
        self.corpus, self.tokenizer, self.reading = corpus, tokenizer, reading
        self.disable = None if progress is None else not progress
        self.packing = reading.packing or ("joined" if corpus.texts else "each")
        if tokenizer is None and (corpus.texts or reading.prefix or reading.suffix):
            what = f"{corpus.origin} is a text" if corpus.texts else "prefix and suffix are texts"
            raise ValueError(f"{what}, and the model has no tokenizer; give token ids in a .npy file")
        self.bos = getattr(tokenizer, "bos_token_id", None)
        self.prefix, self.suffix = self._encoded(reading.prefix), self._encoded(reading.suffix)
        affixed = bool(self.prefix or self.suffix) and not corpus.texts
        self.pad = getattr(tokenizer, "pad_token_id", None) if affixed else None
        self.start = self._start()
        self.room = context - len(self.prefix) - len(self.suffix)
        if self.room < 1 + (self.start is not None):
            raise ValueError(
                f"prefix and suffix are {len(self.prefix) + len(self.suffix)} tokens long, which leaves no room for "
                f"those of {corpus.origin} in sequences of {context}; give a larger context"
            )

    def _encoded(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]) if text else []

    def _start(self) -> int | None:
        """What begins each sequence. A prefix that begins with BOS says so too."""
        wanted = self.reading.prepend_bos
        if wanted and self.bos is None:
            raise ValueError("prepend_bos is True, but the tokenizer has no BOS token")
        if self.bos is not None and self.prefix[:1] == [self.bos]:
            self.prefix, wanted = self.prefix[1:], True
        if wanted is None:
            wanted = self.corpus.texts or self.packing == "joined"
        return self.bos if wanted else None

    def token_set(self) -> TokenSet:
        short: list[int] = []
        if self.packing == "joined":
            rows = joined(self._numbered(), self.room, self.start, self.bos)
        else:
            patience = PATIENCE if self.corpus.endless else None
            rows = one_of_each(
                self._numbered(), self.room, self.start, short, patience=patience, origin=self.corpus.origin
            )
        n = self.reading.n_sequences
        if n is None and self.corpus.endless:
            n = HUB_SEQUENCES
            log.warning(
                "the first %s sequences of %s are taken unless it is said how many", f"{n:,}", self.corpus.origin
            )
        known = self.corpus.separate and (self.corpus.texts or self.packing == "joined")
        tokens, owners = stacked(islice(rows, n), known)
        self._say(len(tokens), n, short)
        tokens, owners, uncounted = self._surrounded(tokens, owners)
        order = _permutation(len(tokens), self.reading.seed) if self.reading.shuffle else slice(None)
        return TokenSet(
            torch.from_numpy(tokens)[order], None if owners is None else torch.from_numpy(owners)[order],
            self.corpus.origin, uncounted, self.bos if known and self.packing == "joined" else None,
        )  # fmt: skip

    def _say(self, n_found: int, n: int | None, short: list[int]) -> None:
        """ValueError where there is nothing; a note where there is less than one would think."""
        origin = self.corpus.origin
        if not n_found and short:
            raise ValueError(
                f"nothing of {origin} is {self.room} tokens long, the longest {max(short)}: give a smaller context, or "
                "packing='joined'"
            )
        if not n_found:
            raise ValueError(f"{origin} gives no tokens; the text is empty or too short")
        if short:
            log.warning("%s: %s of less than %d tokens are left out", origin, f"{len(short):,}", self.room)
        if n is not None and n_found < n:
            log.info("%s gives %s sequences, fewer than %s", origin, f"{n_found:,}", f"{n:,}")

    def _surrounded(
        self, tokens: np.ndarray, owners: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray | None, tuple[int, ...]]:
        """With prefix and suffix, and their positions if they do not count."""
        if not self.prefix and not self.suffix:
            return tokens, owners, ()
        begins = tokens[:, 0] == self.bos if self.bos is not None else np.zeros(len(tokens), bool)
        if self.prefix and begins.any() and not begins.all():
            raise ValueError(f"some sequences of {self.corpus.origin} begin with BOS and some do not; prepend_bos=True")
        first, n = int(bool(self.prefix) and begins.all()), len(self.prefix)
        columns = [*range(first)] + [first] * n + [*range(first, tokens.shape[1])] + [-1] * len(self.suffix)
        positions = (*range(first, first + n), *range(-len(self.suffix), 0))
        return (
            around(tokens, self.prefix, self.suffix, bool(first)), None if owners is None else owners[:, columns],
            () if self.reading.count_affixes else positions,
        )  # fmt: skip

    def _numbered(self) -> Iterator[tuple[int, np.ndarray]]:
        """Ids of one document after another; documents without any are passed over."""
        documents: Iterable[Any] = self._tokenised() if self.corpus.texts else self.corpus.documents
        seen = tqdm(documents, desc="Reading documents", unit="doc", delay=DELAY, disable=self.disable)
        for number, ids in enumerate(seen):
            ids = np.asarray(ids, dtype=np.int64)  # noqa: PLW2901
            if self.pad is not None and ((ids[:2] == self.pad).all() or (ids[-2:] == self.pad).all()) and len(ids) > 1:
                raise ValueError(
                    f"row {number} of {self.corpus.origin} holds padding; a prefix or suffix would stand beside it"
                )
            if len(ids):
                yield number if self.corpus.separate else 0, ids

    def _tokenised(self) -> Iterator[list[int]]:
        """Many texts at a time: a fast tokenizer takes them on all cores."""
        texts: list[Any] = []
        held = 0
        for text in self.corpus.documents:
            texts.append(text)
            held += len(text)
            if held >= CHARACTERS:
                yield from self._ids(texts)
                texts, held = [], 0
        yield from self._ids(texts)

    def _ids(self, texts: list[str]) -> list[list[int]]:
        return self.tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"] if texts else []


def _permutation(n: int, seed: int) -> Tensor:
    return torch.randperm(n, generator=torch.Generator().manual_seed(seed))


def check_tokens(tokens: Int[Tensor, "rows positions"], model: "HookedTransformer", where: str = "the tokens") -> None:
    """ValueError when there are none, or they are no ids of this model, or longer than its context."""
    if not isinstance(tokens, Tensor) or tokens.ndim != 2 or not integers(tokens):
        got = f"{tokens.dtype} {tuple(tokens.shape)}" if isinstance(tokens, Tensor) else type(tokens).__name__
        raise ValueError(f"{where} must be integer ids [sequences, positions]; got {got}")
    if tokens.numel() == 0:
        raise ValueError(f"{where} are empty: {tuple(tokens.shape)}; at least one sequence is needed")
    low, high = int(tokens.min()), int(tokens.max())
    if low < 0 or high >= model.cfg.d_vocab:
        bad = high if high >= model.cfg.d_vocab else low
        raise ValueError(
            f"{where} hold the id {bad}, outside the model's vocabulary of {model.cfg.d_vocab}; they were made with "
            "another tokenizer"
        )
    if tokens.shape[1] > model.cfg.n_ctx:
        raise ValueError(f"{where} are {tokens.shape[1]} positions long; the model's context is {model.cfg.n_ctx}")


def checked_tokens(tokens: Tensor, models: Sequence["HookedTransformer"], where: str = "the tokens") -> Tensor:
    """-> the ids as int64 on the CPU, where examples and statistics are made, after `check_tokens` for each model."""
    if isinstance(tokens, Tensor) and integers(tokens):
        tokens = tokens.detach().to("cpu", torch.long)
    for model in models:
        check_tokens(tokens, model, where)
    return tokens


def replaced_tokens(
    tokens: Int[Tensor, "rows positions"], replacements: Mapping[int, int]
) -> Int[Tensor, "rows positions"]:
    """Ids with some put in place of others: what a base model reads where a chat template has tokens it never saw."""
    changed = tokens.clone()
    for old, new in replacements.items():
        changed[tokens == old] = new
    return changed
