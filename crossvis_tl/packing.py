"""Documents cut into sequences of one length: joined, or one of each."""

from collections.abc import Iterable, Iterator

import numpy as np
from jaxtyping import Int

Numbered = Iterable[tuple[int, Int[np.ndarray, " length"]]]
# Ids, and the number of the document that each of them, or that all of them are of.
Row = tuple[Int[np.ndarray, " positions"], Int[np.ndarray, " positions"] | int]
# Rows for which there is room at first.
ROOM = 1024


def joined(documents: Numbered, context: int, bos: int | None, separator: int | None) -> Iterator[Row]:
    """Documents one after another -> rows of `context` ids, and of which document each of them is.

    As `concat_and_batch_sequences` of sae_lens does: `bos` begins each row, `separator` stands between two documents,
    neither where the document has it there already; no other id is lost or comes twice but those of a last row that is
    not full. That row is given only where it is the only one and holds at least two ids of documents. Parts of a
    document that come one after another under one number are not separated.
    """
    row, owner = (np.zeros(context, dtype=np.int64) for _ in range(2))
    filled, own, given, before = 0, 0, False, None
    for number, ids in documents:
        at = 0
        while at < len(ids):
            lead = bos if filled == 0 else separator if at == 0 and number != before else None
            if lead is not None and ids[at] != lead:
                row[filled], owner[filled] = lead, number
                filled += 1
            n = min(context - filled, len(ids) - at)
            row[filled : filled + n], owner[filled : filled + n] = ids[at : at + n], number
            filled, at, own = filled + n, at + n, own + n
            if filled == context:
                yield row.copy(), owner.copy()
                filled, own, given = 0, 0, True
        before = number
    if not given and own > 1:
        yield row[:filled].copy(), owner[:filled].copy()


def one_of_each(
    documents: Numbered,
    context: int,
    bos: int | None,
    short: list[int],
    *,
    patience: int | None = None,
    origin: str = "the corpus",
) -> Iterator[Row]:
    """The first `context` ids of each document, behind `bos` unless it begins with it; documents that are too short are
    left out, and their lengths put into `short`. As SAEDashboard's runner takes them. ValueError where `patience` of
    them, one after another, are too short: of a corpus without an end nothing might ever come."""
    in_a_row = 0
    for number, ids in documents:
        row = ids[:context]
        if bos is not None and row[0] != bos:
            row = np.concatenate([[bos], row[: context - 1]])
        if len(row) < context:
            short.append(len(row))
            in_a_row += 1
            if patience is not None and in_a_row >= patience:
                raise ValueError(
                    f"{patience:,} documents in a row of {origin} are less than {context} tokens long, the longest "
                    f"{max(short[-patience:])}: give a smaller context, or packing='joined'"
                )
            continue
        in_a_row = 0
        yield row, number


def stacked(
    rows: Iterable[Row], owned: bool
) -> tuple[Int[np.ndarray, "rows positions"], Int[np.ndarray, "rows positions"] | None]:
    """Rows of one length one under another -> ids (int64), and if `owned` the documents' numbers (int32).

    Each is written where it stays, so that beside the result there is room for a quarter of it at most. No rows:
    [0, 0].
    """
    tokens, owners = np.empty((0, 0), np.int64), np.empty((0, 0), np.int32)
    n = 0
    for row, owner in rows:
        if n == 0:
            tokens, owners = np.empty((ROOM, len(row)), np.int64), np.empty((ROOM if owned else 0, len(row)), np.int32)
        elif n == len(tokens):
            _resize(n + n // 4, tokens, owners)
        tokens[n] = row
        if owned:
            owners[n] = owner
        n += 1
    _resize(n, tokens, owners)
    return tokens, owners if owned else None


def _resize(n: int, *arrays: np.ndarray) -> None:
    """In place: nothing else may hold them."""
    for array in arrays:
        if len(array):
            array.resize((n, array.shape[1]), refcheck=False)


def around(
    rows: Int[np.ndarray, "rows positions"], prefix: list[int], suffix: list[int], behind_first: bool
) -> Int[np.ndarray, "rows longer"]:
    """Rows with ids put before and after them; `behind_first`: before all but their first id, which is BOS."""
    n, first, end = rows.shape[1], int(behind_first), len(prefix) + rows.shape[1]
    longer = np.empty((len(rows), end + len(suffix)), rows.dtype)
    longer[:, :first], longer[:, first + len(prefix) : end] = rows[:, :first], rows[:, first:n]
    longer[:, first : first + len(prefix)], longer[:, end:] = prefix, suffix
    return longer
