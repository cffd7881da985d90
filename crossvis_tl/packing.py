"""Documents cut into sequences of one length: joined, or one of each."""

from collections.abc import Iterable, Iterator

import numpy as np
from jaxtyping import Int

Numbered = Iterable[tuple[int, Int[np.ndarray, " length"]]]
Row = tuple[Int[np.ndarray, " positions"], Int[np.ndarray, " positions"]]


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


def one_of_each(documents: Numbered, context: int, bos: int | None, short: list[int]) -> Iterator[Row]:
    """The first `context` ids of each document, behind `bos` unless it begins with it; documents that are too short are
    left out, and their lengths put into `short`. As SAEDashboard's runner takes them."""
    for number, ids in documents:
        row = ids[:context]
        if bos is not None and row[0] != bos:
            row = np.concatenate([[bos], row[: context - 1]])
        if len(row) < context:
            short.append(len(row))
            continue
        yield row, np.full(context, number)


def around(
    row: Int[np.ndarray, " positions"], prefix: list[int], suffix: list[int], behind_first: bool
) -> Int[np.ndarray, " longer"]:
    """A row with ids put before and after it; `behind_first`: before all but its first id, which is BOS."""
    first = int(behind_first)
    return np.concatenate([row[:first], np.array(prefix, int), row[first:], np.array(suffix, int)])
