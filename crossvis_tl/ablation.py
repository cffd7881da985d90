"""What taking features away at tokens changes in the prediction after them, for many features and tokens in bulk.

With x the final residual stream, s(x) what the final norm divides by, and c what a feature adds to x, the logits with
and without it are P(x) / s(x) and P(x - c) / s(x - c) plus an offset, P linear. So with u = P(x) and f = P(c) the
change is alpha * u + beta * f, alpha = 1 / s(x) - 1 / s(x - c), beta = 1 / s(x - c): each token is unembedded once,
each feature's direction once, and a pair of the two costs a few passes over the vocabulary. A soft-cap is not linear;
there both are computed whole.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from crossvis_tl.devices import out_of_memory
from crossvis_tl.unembed import Unembedding

# Logits held at a time, in numbers, of tokens and of pairs: on a CPU what its caches hold, on a GPU what keeps it busy.
CPU_TOKENS, CPU_PAIRS, GPU_TOKENS, GPU_PAIRS = 2**23, 2**21, 2**26, 2**26
# Logits searched together for the largest ones.
CHUNK = 128
# Change of a logit beyond which exponentials are shifted before they are added up, so that they do not overflow.
LARGE_CHANGE = 60.0


@dataclass(frozen=True)
class Pairs:
    """Features at tokens. Pair i is a feature at the `tokens[i]`-th of the final residual streams given; what it adds
    there is `amounts[i]` times the `rows[i]`-th direction, or, where there is no such direction, `added[i]`.
    `following`: the token after it."""

    tokens: Int[Tensor, " pairs"]
    following: Int[Tensor, " pairs"]
    rows: Int[Tensor, " pairs"]
    amounts: Float[Tensor, " pairs"]
    added: Float[Tensor, "pairs d_model"] | None = None

    def __getitem__(self, at: Tensor | slice) -> "Pairs":
        added = None if self.added is None else self.added[at]
        return Pairs(self.tokens[at], self.following[at], self.rows[at], self.amounts[at], added)

    def __len__(self) -> int:
        return len(self.tokens)


@dataclass(frozen=True)
class Changes:
    """By pair. `loss`: change in nats of the loss on the token that follows, negative where the feature helps. `up`,
    `down`: ids and log-probability changes of the k most raised and most lowered tokens, [pairs, k]. `p`: the
    probability of the token that follows, the feature in its place."""

    loss: Float[Tensor, " pairs"]
    up_ids: Int[Tensor, "pairs k"]
    up: Float[Tensor, "pairs k"]
    down_ids: Int[Tensor, "pairs k"]
    down: Float[Tensor, "pairs k"]
    p: Float[Tensor, " pairs"]

    @classmethod
    def empty(cls, n: int, k: int) -> "Changes":
        ids = torch.zeros(n, k, dtype=torch.int32)
        return cls(torch.zeros(n), ids, torch.zeros(n, k), ids.clone(), torch.zeros(n, k), torch.zeros(n))

    def put(self, at: Tensor, found: "Changes") -> None:
        """Writes what was found of the pairs `at`."""
        for mine, theirs in zip(vars(self).values(), vars(found).values(), strict=True):
            mine[at] = theirs.to(mine)

    def __getitem__(self, at: slice | Tensor) -> "Changes":
        return Changes(*(part[at] for part in vars(self).values()))


def ablate(
    unembed: Unembedding,
    resid: Float[Tensor, "tokens d_model"],
    directions: Float[Tensor, "features d_model"],
    direct: Float[Tensor, "features d_vocab"],
    pairs: Pairs,
    k: int,
) -> Changes:
    """Takes each pair's feature away at its token, fewer at a time where memory does not suffice. `direct`:
    `unembed.project(directions)`."""
    on_gpu = resid.device.type != "cpu"
    n_tokens, n_pairs = (
        max(8, size // direct.shape[-1]) for size in ((GPU_TOKENS, GPU_PAIRS) if on_gpu else (CPU_TOKENS, CPU_PAIRS))
    )
    while True:
        try:
            return _ablate_all(unembed, resid, directions, direct, pairs, k, n_tokens, n_pairs)
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error) or (n_tokens, n_pairs) == (8, 8):
                raise
        n_tokens, n_pairs = max(8, n_tokens // 2), max(8, n_pairs // 2)
        if on_gpu:
            torch.cuda.empty_cache()


def _ablate_all(
    unembed: Unembedding, resid: Tensor, directions: Tensor, direct: Tensor, pairs: Pairs, k: int, n_tokens: int,
    n_pairs: int,
) -> Changes:  # fmt: skip
    n_vocab = direct.shape[-1]
    out = Changes.empty(len(pairs), k)
    order = torch.argsort(pairs.tokens, stable=True)
    distinct, counts = torch.unique_consecutive(pairs.tokens[order], return_counts=True)
    ends = counts.cumsum(0)
    room = _Room(min(n_tokens, len(distinct)), min(n_pairs, len(pairs)), n_vocab, resid.device)
    for begin in range(0, len(distinct), n_tokens):
        shown = distinct[begin : begin + n_tokens]
        first = int(ends[begin] - counts[begin])
        tokens = _Tokens.of(unembed, resid[shown], room)
        for at in order[first : int(ends[begin + len(shown) - 1])].split(n_pairs):
            some = pairs[at.to(pairs.tokens.device)]
            place = torch.searchsorted(shown, some.tokens)
            out.put(at, _ablate(unembed, tokens, place, directions, direct, some, k))
    return out


class _Room:
    """Where logits go: taken once, since memory taken anew for every block costs as much as what is done in it."""

    def __init__(self, n_tokens: int, n_pairs: int, n_vocab: int, device: torch.device):
        self.projected, self.probabilities, self.change = (
            torch.empty(n, n_vocab, device=device) for n in (n_tokens, n_tokens, n_pairs)
        )


@dataclass(frozen=True)
class _Tokens:
    """Some tokens unembedded: final residual stream, the linear part of its logits, its scale, and probabilities."""

    unembed: Unembedding
    resid: Float[Tensor, "tokens d_model"]
    projected: Float[Tensor, "tokens d_vocab"]
    scale: Float[Tensor, "tokens 1"]
    probabilities: Float[Tensor, "tokens d_vocab"]

    room: _Room

    @classmethod
    def of(cls, unembed: Unembedding, resid: Tensor, room: _Room) -> "_Tokens":
        projected = torch.mm(resid, unembed.W, out=room.projected[: len(resid)])
        scale = unembed.scale(resid)
        logits = unembed.finish(projected, scale, out=room.probabilities[: len(resid)])
        return cls(unembed, resid, projected, scale, torch.softmax(logits, -1, out=logits), room)

    def logits(self, place: Tensor) -> Float[Tensor, "pairs d_vocab"]:
        return self.unembed.finish(self.projected[place], self.scale[place])


def _ablate(
    unembed: Unembedding, tokens: _Tokens, place: Tensor, directions: Tensor, direct: Tensor, pairs: Pairs, k: int
) -> Changes:
    added = pairs.amounts[:, None] * directions[pairs.rows] if pairs.added is None else pairs.added
    after = unembed.scale(tokens.resid[place] - added)[:, 0]
    parts, rows, amounts = direct, pairs.rows, pairs.amounts
    if pairs.added is not None:
        rows, amounts = torch.arange(len(pairs), device=added.device), torch.ones_like(amounts)
        parts = unembed.project(added)
    if unembed.softcap > 0:
        left = _combined(tokens, place, 1 / after, parts, rows, -amounts / after)
        drop = unembed.finish(left, torch.ones_like(after)[:, None]) - tokens.logits(place)
    else:
        alpha = 1 / after - 1 / tokens.scale[place, 0]
        drop = _combined(tokens, place, alpha, parts, rows, -amounts / after)
    # `drop` is the change that taking the feature away makes, so that its exponentials need no pass to turn it
    (up_ids, lowest), (down_ids, highest) = (extremes(drop, max(k, 1), largest=largest) for largest in (False, True))
    # log-softmax differs from the logits by one number a row: the order of tokens needs no softmax
    followed = drop.gather(-1, pairs.following[:, None])[:, 0]
    grows = _log_mean_exp(drop, tokens, place, lowest[:, 0], highest[:, 0])
    up, down = grows[:, None] - lowest, grows[:, None] - highest
    p = tokens.probabilities[place, pairs.following]
    return Changes(followed - grows, up_ids[:, :k], up[:, :k], down_ids[:, :k], down[:, :k], p)


def _combined(
    tokens: _Tokens, place: Tensor, alpha: Tensor, f: Tensor, rows: Tensor, beta: Tensor
) -> Float[Tensor, "pairs d_vocab"]:
    """alpha * u[place] + beta * f[rows], with u the tokens' linear part."""
    u, out = tokens.projected, tokens.room.change[: len(place)]
    if u.device.type != "cpu":
        return torch.mul(f[rows], beta[:, None], out=out).addcmul_(u[place], alpha[:, None])
    # row by row: gathering rows first would move everything twice
    for row, i, a, j, b in zip(out, place.tolist(), alpha.tolist(), rows.tolist(), beta.tolist(), strict=True):
        torch.mul(f[j], b, out=row).add_(u[i], alpha=a)
    return out


def _log_mean_exp(
    drop: Float[Tensor, "pairs d_vocab"], tokens: _Tokens, place: Tensor, lowest: Tensor, highest: Tensor
) -> Float[Tensor, " pairs"]:
    """log of the mean of exp(drop) over the predicted distribution: by how much the logits' normaliser grows.
    Overwrites `drop`, whose extremes are given."""
    if bool((torch.maximum(-lowest, highest) > LARGE_CHANGE).any()):
        logits = tokens.logits(place)
        return (logits + drop).logsumexp(-1) - logits.logsumexp(-1)
    grown = drop.exp_()
    if grown.device.type != "cpu":
        return (grown * tokens.probabilities[place]).sum(-1).log()
    rows = [torch.dot(row, tokens.probabilities[i]) for row, i in zip(grown, place.tolist(), strict=True)]
    return torch.stack(rows).log()


def extremes(
    values: Float[Tensor, "rows n"], k: int, *, largest: bool
) -> tuple[Int[Tensor, "rows k"], Float[Tensor, "rows k"]]:
    """-> indices and values of each row's k largest (or smallest), best first: those of `torch.topk`, in a third of the
    time. The k best lie in the k chunks whose own best are the best."""
    rows, n = values.shape
    n_chunks = n // CHUNK
    if k == 0 or n_chunks <= 4 * k:
        top = values.topk(min(k, n), dim=-1, largest=largest)
        return top.indices, top.values
    chunks = values[:, : n_chunks * CHUNK].view(rows, n_chunks, CHUNK)
    best = chunks.amax(-1) if largest else chunks.amin(-1)
    chosen = best.topk(k, dim=-1, largest=largest, sorted=False).indices
    at = torch.arange(CHUNK, device=values.device)
    candidates = (chosen[:, :, None] * CHUNK + at).flatten(1)
    rest = torch.arange(n_chunks * CHUNK, n, device=values.device).expand(rows, -1)
    candidates = torch.cat([candidates, rest], dim=1)
    top = values.gather(1, candidates).topk(k, dim=-1, largest=largest)
    return candidates.gather(1, top.indices), top.values
