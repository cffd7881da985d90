"""Sequences in columns: how a feature's examples are written into the page, at a third of the room of one by one.

All tokens of all sequences stand in one list, and so do all activations, losses and so on; the lengths of the sequences
say where one ends. A column of numbers is `[places, whole numbers]`: the numbers times 10 ** places, rounded. `places`
is chosen for the column's largest number, so that what the page prints of it is right, and small numbers are short.
Of the tokens a feature raises, the largest change of a token's list is written so and all of them as fiftieths of
it: taking a feature away moves the same tokens nearly in proportion wherever it fires. A list whose largest change is
nothing beside those of other lists is left empty. `viewer/data.js` undoes all of this.
"""

from collections.abc import Iterable, Mapping, Sequence
from itertools import chain, compress
from typing import Any

import numpy as np

# Digits of a column's largest number, beyond which numbers are rounded.
ACT_DIGITS, LOSS_DIGITS, LOGIT_DIGITS, MOVED_DIGITS, P_DIGITS, SHARE_DIGITS = 4, 3, 3, 3, 2, 2
TABLE_DIGITS = 4
# In place of a probability: nothing is said of this token, or all but its probability.
NO_EFFECT, NO_P = -1, -2
Packed = dict[str, Any]


def pack(feature: Mapping[str, Any]) -> Packed:
    """-> the feature as it is written: `contract.FeaturePayload` with its sequences in columns."""
    groups = feature["groups"]
    packed = {name: value for name, value in feature.items() if value is not None}
    packed["logits"] = [one | {side: _pairs(one[side]) for side in ("top", "bottom")} for one in feature["logits"]]
    packed["groups"] = {name: [group[name] for group in groups] for name in ("title", "low", "high", "share")}
    packed["groups"]["n"] = [len(group["sequences"]) for group in groups]
    packed["examples"] = columns([sequence for group in groups for sequence in group["sequences"]])
    if feature["prompts"] is not None:
        packed["prompts"] = columns(feature["prompts"])
    return packed


def _pairs(pairs: Sequence[tuple[int, float]]) -> list:
    """Pairs of token and number -> tokens, places and whole numbers."""
    return [[token for token, _ in pairs], *scaled(np.array([x for _, x in pairs], dtype=float), TABLE_DIGITS)]


def columns(sequences: Sequence[Mapping[str, Any]]) -> Packed:
    """All sequences in columns; whole ones that hold nothing are left out."""
    tokens = flat(sequence["t"] for sequence in sequences)
    acts = np.array(flat(sequence["a"] for sequence in sequences), dtype=float)
    packed: Packed = {"n": [len(sequence["t"]) for sequence in sequences], "t": tokens, "a": scaled(acts, ACT_DIGITS)}
    for name in ("bold", "row", "pos"):
        packed[name] = [sequence[name] for sequence in sequences]
    if any(s.get("doc") not in (None, s["row"]) for s in sequences):  # a row is a document unless it says otherwise
        packed["doc"] = [None if s.get("doc") == s["row"] else s.get("doc") for s in sequences]
    first = first_places(tokens)
    n_models = max((len(sequence["e"]) for sequence in sequences), default=0)
    packed["e"] = [_effects([sequence["e"][m] for sequence in sequences], first) for m in range(n_models)]
    n_sources = max((len(sequence.get("s", ())) for sequence in sequences), default=0)
    if n_sources:  # where the feature is silent nothing drives it
        fires = acts.nonzero()[0]
        packed["s"] = [
            fixed(np.array(flat(sequence["s"][s] for sequence in sequences))[fires], SHARE_DIGITS)
            for s in range(n_sources)
        ]
    return packed


def _effects(effects: Sequence[Mapping[str, Any]], first: Sequence[int]) -> Packed:
    """One model's effects along all sequences. `first`: places of the tokens that have a direct logit of their own.

    `p`: of every token. What the feature does is written of those tokens alone of which `p` is not `NO_EFFECT`.
    """
    logits = np.array(flat(effect["logit"] for effect in effects), dtype=float)
    losses = np.array(flat(effect["loss"] for effect in effects), dtype=float)
    sides = {side: flat(effect[side] for effect in effects) for side in ("up", "down")}
    chances = flat(effect.get("p") or [None] * len(effect["loss"]) for effect in effects)
    said = [
        p is not None or loss != 0 or bool(up) or bool(down)
        for p, loss, up, down in zip(chances, losses.tolist(), *sides.values(), strict=True)
    ]
    packed: Packed = {
        "logit": scaled(logits[first], LOGIT_DIGITS), "loss": scaled(losses[said], LOSS_DIGITS),
        "p": [
            NO_EFFECT if not one else NO_P if p is None else round(p * 10**P_DIGITS)
            for p, one in zip(chances, said, strict=True)
        ],
    }  # fmt: skip
    for side, lists in sides.items():
        ids = flat(chain.from_iterable(effect[f"{side}_ids"] for effect in effects))
        packed[side] = _moved(list(compress(lists, said)), ids)
    return packed


def _moved(lists: Sequence[Sequence[float]], ids: Sequence[int]) -> Packed:
    """Tokens raised, or lowered, at each token, an empty list at most of them. `id`: places in `of`, whose order makes
    them small numbers: a feature moves the same few tokens nearly everywhere. `n`: lengths, negative where the largest
    change is not the first of its list; where it is, `v` holds it and `part` the others alone."""
    lengths = np.fromiter(map(len, lists), int, len(lists))
    values = np.fromiter(chain.from_iterable(lists), float, len(ids))
    some = lengths[lengths > 0]
    starts = np.cumsum(some) - some
    most = np.maximum.reduceat(np.abs(values), starts) if len(some) else np.zeros(0)
    leads = np.abs(values[starts]) == most  # as nearly always: the largest is the first
    signed = np.where(leads, values[starts], most) if len(some) else most
    places, whole = scaled(signed, MOVED_DIGITS)
    written = np.array(whole, dtype=float)
    left = written != 0
    lengths[lengths > 0] = np.where(leads, some, -some) * left
    # fiftieths of what is written, so that rounding it does not move the others
    fiftieths = np.round(50 * values * 10.0**places / np.where(left, written, 1).repeat(some))
    shown = left.repeat(some)
    parts = shown.copy()
    parts[starts[leads]] = False
    table, codes = _numbered(np.array(ids, dtype=int)[shown])
    return {
        "n": lengths.tolist(), "of": table, "id": codes,
        "v": [places, written[left].astype(int).tolist()], "part": fiftieths[parts].astype(int).tolist(),
    }  # fmt: skip


def _numbered(ids: np.ndarray) -> tuple[list[int], list[int]]:
    """-> the distinct ids, the most frequent first, and where in that list each of `ids` stands."""
    table, code, counts = np.unique(ids, return_inverse=True, return_counts=True)
    order = np.argsort(-counts, kind="stable")
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    return table[order].tolist(), rank[code].tolist()


def first_places(tokens: Sequence[int]) -> list[int]:
    """Where each distinct token stands first, in that order: its direct logit is written once."""
    seen: dict[int, int] = {}
    for place, token in enumerate(tokens):
        seen.setdefault(token, place)
    return list(seen.values())


def scaled(values: np.ndarray, digits: int) -> list:
    """-> [places, whole numbers], the largest of them with about so many digits."""
    most = np.abs(values).max() if len(values) else 0.0
    if not np.isfinite(most):
        raise ValueError(f"sequences hold {most}, not a finite number")
    if most == 0:
        return [0, [0] * len(values)]
    return fixed(values, int(digits - 1 - np.floor(np.log10(most))))


def fixed(values: np.ndarray, places: int) -> list:
    """-> [places, whole numbers]."""
    return [places, np.round(values * 10.0**places).astype(np.int64).tolist()]


def flat(lists: Iterable[Iterable[Any]]) -> list[Any]:
    return list(chain.from_iterable(lists))
