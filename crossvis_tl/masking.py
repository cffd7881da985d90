"""Which positions count, in every statistic and example alike; where rows begin behind padding; which document each
token belongs to."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from crossvis_tl.errors import check_word, near_misses, short_list, whole_numbers
from crossvis_tl.tokens import TokenSet

WHOLE = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
Masking = Literal["special", "all special", "none"]


@dataclass(frozen=True)
class Mask:
    """Which positions count. `counted`: bool [rows, positions]. `masked`: what does not count, and how many tokens
    that are. `lead`, `tail`: how many padding tokens each row begins and ends with. `documents`: the number of the
    document each token belongs to, [rows, positions]; `documents_given`: by the caller. `how`: what was asked to be
    left out, whole and in one spelling, the same for other tokens.
    """

    counted: Bool[Tensor, "rows positions"]
    masked: tuple[tuple[str, int], ...]
    lead: Int[Tensor, " rows"]
    tail: Int[Tensor, " rows"]
    documents: Int[Tensor, "rows positions"]
    documents_given: bool = False
    how: str = ""

    @property
    def text(self) -> str:
        """What does not count, in words."""
        parts = ", ".join(f"{what} ({n:,} token{'' if n == 1 else 's'})" for what, n in self.masked)
        return f"masked: {parts}" if parts else "nothing masked"

    @property
    def n_counted(self) -> int:
        return int(self.counted.sum())


@dataclass(frozen=True)
class LeftOut:
    """Something else that does not count. `name`, `value`: as `Mask.how` has it. `hidden`: bool [rows, positions], or
    [positions] in every row."""

    name: str
    value: Any
    hidden: Bool[Tensor, "*rows positions"]
    words: str


def token_mask(
    tokens: Int[Tensor, "rows positions"],
    tokenizer: Any,
    masking: Masking = "special",
    *,
    masked_tokens: Sequence[int | str] = (),
    masked_positions: Sequence[int] = (),
    documents: Int[Tensor, "rows *positions"] | None = None,
    may_be_empty: bool = False,
    more: Sequence["LeftOut"] = (),
) -> Mask:
    """Leaves out BOS and padding: the run of such tokens that a row begins with, and the padding it ends with.

    `masking`: "special" does that, "all special" also leaves out the tokenizer's special tokens wherever they stand,
    "none" nothing. `masked_tokens`: more ids, or tokens as the tokenizer writes them, such as those of a chat template.
    `masked_positions`: counted from the first token of a row that is no padding, or with -1, -2 ... from its last.
    `documents`: a number for each row or each token; default: every row is a document, or several where it holds BOS
    or the end of a text inside. `more`: what else does not count. ValueError if nothing would be left (unless it
    `may_be_empty`), or for what is no token or position.
    """
    check_masking(masking)
    bos = getattr(tokenizer, "bos_token_id", None)
    pad = getattr(tokenizer, "pad_token_id", None)
    start, end, lead = _edges(tokens, bos, pad if masking != "none" else None)
    hidden = torch.zeros_like(tokens, dtype=torch.bool)
    masked: list[tuple[str, int]] = []
    if masking != "none" and (bos is not None or pad is not None):
        hidden = start | end
        n_bos = int((start & (tokens == bos)).sum()) if bos is not None else 0
        if bos == pad and bos is not None:  # BOS doubles as padding: the last of the run is BOS, the others are padding
            n_bos = int(start.any(-1).sum())
        masked += [("BOS", n_bos), ("padding", int(hidden.sum()) - n_bos)]
    ids = list(getattr(tokenizer, "all_special_ids", None) or ()) if masking == "all special" else []
    if ids:
        masked.append(_hide(hidden, torch.isin(tokens, torch.tensor(ids)), "other special tokens"))
    chosen = _token_ids(masked_tokens, tokenizer) if len(masked_tokens) else {}
    if chosen:
        words = f"tokens {short_list(chosen, 6)}"
        masked.append(_hide(hidden, torch.isin(tokens, torch.tensor(list(chosen.values()))), words))
    tail = (end & ~start).sum(-1)
    positions = whole_numbers(masked_positions, "masked_positions", "positions such as 0, 1 or -1")
    if positions:
        words = f"positions {short_list(positions, 6)}"
        masked.append(_hide(hidden, _at_positions(positions, tokens.shape[1], lead, tail), words))
    masked += [_hide(hidden, one.hidden, one.words) for one in more]
    numbers = _documents(tokens, tokenizer, lead, tail, documents)
    asked = {"masking": masking, "tokens": sorted(chosen.values()), "positions": sorted(positions)}
    how = json.dumps(asked | {one.name: one.value for one in more})
    mask = Mask(~hidden, tuple(masked), lead, tail, numbers, documents is not None, how)
    if bool(hidden.all()) and not may_be_empty:
        what = "every token is BOS or padding" if len(masked) == 2 else mask.text
        raise ValueError(f"{what}; nothing is left to look at")
    return mask


def set_mask(
    given: TokenSet,
    tokenizer: Any,
    masking: Masking = "special",
    *,
    masked_tokens: Sequence[int | str] = (),
    masked_positions: Sequence[int] = (),
    documents: Int[Tensor, "rows *positions"] | None = None,
) -> Mask:
    """`token_mask` of a token set, by the documents it knows of unless others are given. What was put between them does
    not count by default, as what begins a row does not; nor do its `uncounted` positions."""
    more, columns = [], torch.arange(given.tokens.shape[1])
    if given.separator is not None and given.documents is not None and masking == "special":
        between = torch.zeros_like(given.tokens, dtype=torch.bool)
        between[:, 1:] = given.documents.diff() != 0
        between &= given.tokens == given.separator
        more.append(LeftOut("separator", given.separator, between, "BOS between texts"))
    if given.uncounted:
        affixes = torch.isin(columns, columns[list(given.uncounted)])
        more.append(LeftOut("uncounted", list(given.uncounted), affixes, "prefix and suffix"))
    mask = token_mask(
        given.tokens, tokenizer, masking, masked_tokens=masked_tokens, masked_positions=masked_positions,
        documents=given.documents if documents is None else documents, more=more,
    )  # fmt: skip
    # numbers that begin with 0 in every set are numbered on where gatherings are merged
    return replace(mask, documents_given=documents is not None)


def check_masking(masking: str) -> None:
    """ValueError for another spelling."""
    check_word("masking", masking, get_args(Masking))


def _edges(tokens: Tensor, bos: int | None, pad: int | None) -> tuple[Tensor, Tensor, Tensor]:
    """-> the run of BOS and padding each row begins with, the padding it ends with, and how much of the first is
    padding."""
    start = _run(tokens, {bos, pad})
    end = _run(tokens.flip(-1), {pad}).flip(-1)
    lead = _run(tokens, {pad}).sum(-1)
    if bos == pad and bos is not None:
        lead = (lead - 1).clamp_min(0)
    return start, end, torch.where(lead < tokens.shape[1], lead, 0)


def _run(tokens: Tensor, ids: set[int | None]) -> Tensor:
    """Positions in the run of `ids` that each row begins with."""
    inside = torch.zeros_like(tokens, dtype=torch.bool)
    for token in ids - {None}:
        inside |= tokens == token
    return inside.cumprod(-1).bool()


def _hide(hidden: Tensor, more: Tensor, what: str) -> tuple[str, int]:
    new = more & ~hidden
    hidden |= new
    return what, int(new.sum())


def _token_ids(wanted: Sequence[int | str], tokenizer: Any) -> dict[str, int]:
    """Token as people write it -> its id."""
    if isinstance(wanted, str | bytes):
        raise ValueError(f"masked_tokens is {wanted!r}; give a list, such as [{wanted!r}]")
    found: dict[str, int] = {}
    for token in wanted:
        if not isinstance(token, str):
            found[str(token)] = whole_numbers([token], "masked_tokens", "token ids or tokens")[0]
            continue
        vocabulary = tokenizer.get_vocab() if tokenizer is not None else {}
        if token not in vocabulary:
            no_tokenizer = " The model has no tokenizer: give ids." if tokenizer is None else ""
            hint = near_misses(token, list(vocabulary))
            raise ValueError(f"masked_tokens: {token!r} is no token of this tokenizer.{no_tokenizer}{hint}")
        found[repr(token)] = vocabulary[token]
    return found


def _at_positions(numbers: Sequence[int], n: int, lead: Tensor, tail: Tensor) -> Tensor:
    from_start = torch.arange(n) - lead[:, None]
    from_end = torch.arange(n) - (n - tail)[:, None]
    if not all(-n <= number < n for number in numbers):
        raise ValueError(f"masked_positions {list(numbers)}: sequences have {n} positions, 0 to {n - 1} or -1 to -{n}")
    firsts = torch.tensor([number for number in numbers if number >= 0], dtype=torch.long)
    lasts = torch.tensor([number for number in numbers if number < 0], dtype=torch.long)
    return torch.isin(from_start, firsts) | torch.isin(from_end, lasts)


def _documents(tokens: Tensor, tokenizer: Any, lead: Tensor, tail: Tensor, given: Tensor | None) -> Tensor:
    if given is not None:
        given = torch.as_tensor(given)
        whole = given[:, None].expand(tokens.shape) if given.shape == tokens.shape[:1] else given
        if whole.shape != tokens.shape or whole.dtype not in WHOLE:
            raise ValueError(
                f"documents is {given.dtype} {tuple(given.shape)}; expected a whole number for each row or token, "
                f"{tuple(tokens.shape[:1])} or {tuple(tokens.shape)}"
            )
        return whole.to("cpu", torch.long).contiguous()
    bos, eos = (getattr(tokenizer, f"{name}_token_id", None) for name in ("bos", "eos"))
    begins = torch.zeros_like(tokens, dtype=torch.bool)
    if bos is not None:
        begins |= tokens == bos
    if eos is not None and eos != bos:
        begins[:, 1:] |= tokens[:, :-1] == eos
    columns = torch.arange(tokens.shape[1])
    begins &= columns < tokens.shape[1] - tail[:, None]
    begins = torch.where(columns <= lead[:, None], columns == 0, begins)
    return begins.flatten().cumsum(0).reshape(tokens.shape) - 1
