"""Feature activations that are never dense: encoded a few features at a time, decoded from those that fire."""

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from crossvis_tl.activation_fns import TopK
from crossvis_tl.groups import Group
from crossvis_tl.weights import CHUNK, blocks


@dataclass(frozen=True)
class SparseActs:
    """What fires: feature `features[i]` at token `tokens[i]` with `values[i]`, by token and in it by feature.

    `shape`: of the dense activations, [*batch, n_features]; `tokens` counts through *batch.
    """

    tokens: Int[Tensor, " fired"]
    features: Int[Tensor, " fired"]
    values: Float[Tensor, " fired"]
    shape: tuple[int, ...]

    @property
    def n_tokens(self) -> int:
        return int(torch.Size(self.shape[:-1]).numel())

    def of(self, features: Int[Tensor, " selected"]) -> Float[Tensor, "*batch selected"]:
        """Dense activations of a few features, in that order."""
        where = torch.full((self.shape[-1],), -1, dtype=torch.long, device=self.values.device)
        numbers, inverse = torch.unique(features.to(where.device), return_inverse=True)
        where[numbers] = torch.arange(len(numbers), device=where.device)
        at = where[self.features]
        kept = at >= 0
        out = self.values.new_zeros(self.n_tokens, len(numbers))
        out[self.tokens[kept], at[kept]] = self.values[kept]
        return out[:, inverse].reshape(*self.shape[:-1], len(features))

    def to_dense(self) -> Float[Tensor, "*batch features"]:
        out = self.values.new_zeros(self.n_tokens, self.shape[-1])
        out[self.tokens, self.features] = self.values
        return out.reshape(self.shape)


Found = tuple[Tensor, Tensor, Tensor]  # tokens, features, values


def encode_sparse(
    groups: Sequence[Group],
    joint: TopK | None,
    normalised: Sequence[Float[Tensor, "tokens d_source"]],
) -> Found:
    """Tokens, features and values of what fires. `joint`: ranks the features of all groups against each other."""
    first, found = 0, []
    best = None if joint is None else _Best(joint, len(normalised[0]))
    for group in groups:
        if best is not None:
            for at, pre in pieces(group, normalised):
                best.add(pre, first + at.start)
        else:
            found.append(_in_units(group, _encode_group(group, normalised), first))
        first += group.n_features
    tokens, features, values = best.result() if best is not None else _joined(found)
    order = torch.argsort(tokens * first + features)
    return tokens[order], features[order], values[order]


def _encode_group(group: Group, normalised: Sequence[Tensor]) -> Found:
    activation = group.activation
    if isinstance(activation, TopK):
        best = _Best(activation, len(normalised[0]))
        for at, pre in pieces(group, normalised):
            best.add(pre, at.start)
        return best.result()
    found = []
    for at, pre in pieces(group, normalised):
        acts = activation.select(at)(pre)
        tokens, features = acts.nonzero(as_tuple=True)
        found.append((tokens, features + at.start, acts[tokens, features]))
    return _joined(found)


def pieces(group: Group, normalised: Sequence[Tensor]) -> Iterator[tuple[slice, Tensor]]:
    """-> which features, and their pre-activations [tokens, features], a few features at a time."""
    width = max([len(normalised[0]) // 4, *(normalised[s].shape[-1] for s in group.W_enc)])
    for at in blocks(group.n_features, width, max(group.activation.block, 1)):
        yield at, group.pre(normalised, at)


def _in_units(group: Group, found: Found, first: int) -> Found:
    tokens, features, values = found
    return tokens, features + first, group.to_units(values, features)


def _joined(found: Sequence[Found]) -> Found:
    tokens, features, values = zip(*found, strict=True)
    return torch.cat(tokens), torch.cat(features), torch.cat(values)


class _Best:
    """The largest of what was added so far, for each token or for all of them (`TopK.batch`)."""

    def __init__(self, activation: TopK, n_tokens: int):
        self.activation, self.n_tokens = activation, n_tokens
        self.k = activation.k * n_tokens if activation.batch else activation.k
        self.held: tuple[Tensor, Tensor, Tensor] | None = None  # keys, values, token * 2^32 + feature

    def add(self, pre: Float[Tensor, "tokens features"], first: int) -> None:
        tokens = torch.arange(len(pre), device=pre.device)[:, None] << 32
        where = tokens + torch.arange(first, first + pre.shape[1], device=pre.device)
        parts = (self.activation.keys(pre, first), self.activation.values(pre), where)
        if self.activation.batch:
            parts = tuple(part.reshape(1, -1) for part in parts)
        best = self._best(parts)
        if self.held is not None:
            best = self._best(tuple(torch.cat(pair, dim=-1) for pair in zip(self.held, best, strict=True)))
        self.held = best

    def _best(self, parts: tuple[Tensor, ...]) -> tuple[Tensor, Tensor, Tensor]:
        keys, values, where = parts
        at = keys.topk(min(self.k, keys.shape[-1]), dim=-1).indices
        return keys.gather(-1, at), values.gather(-1, at), where.gather(-1, at)

    def result(self) -> Found:
        if self.held is None:
            raise ValueError("there are no features to rank")
        _, values, where = (part.flatten() for part in self.held)
        fired = values != 0
        where = where[fired]
        return where >> 32, where & (2**32 - 1), values[fired]


def sparse_matrix(
    where: Int[Tensor, "2 n"], values: Float[Tensor, " n"], shape: tuple[int, int], *, coalesced: bool = False
) -> Tensor:
    """Numbers at their places, unchecked. torch 2.11 warns of that once, though it was asked for."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse invariant checks are implicitly disabled")
        return torch.sparse_coo_tensor(where, values, shape, check_invariants=False, is_coalesced=coalesced)


def write_sparse(
    group: Group,
    acts: SparseActs,
    first: int,
    target: int,
    add: Callable[[Float[Tensor, "tokens d_target"]], object],
) -> None:
    """What the features of a group, numbered from `first` on, add at a target goes to `add`, piece by piece."""
    here = (acts.features >= first) & (acts.features < first + group.n_features)
    tokens, features, values = acts.tokens[here], acts.features[here] - first, acts.values[here]
    if not len(features):
        return
    rows, columns = torch.unique(features, return_inverse=True)
    decoded = group.decoded(values, target, features)
    size = max(1, CHUNK // group.W_dec[target].shape[-1])
    for begin in range(0, len(rows), size):
        end = min(begin + size, len(rows))
        part = (columns >= begin) & (columns < end)
        where = torch.stack([tokens[part], columns[part] - begin])
        matrix = sparse_matrix(where, decoded[part], (acts.n_tokens, end - begin))
        add(torch.sparse.mm(matrix, group.decoder(target, rows[begin:end])))
