"""Everything that adds up over tokens: fidelity, correlations with the sources' dimensions, and latent scaling."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from crossvis_tl.dictionary import Dictionary
from crossvis_tl.fidelity import FidelitySums
from crossvis_tl.latent_scaling import LatentSums
from crossvis_tl.sparse import SparseActs, sparse_matrix

# Products of features with dimensions, in bytes; beyond it they are not kept, and the page says so.
PRODUCTS_BUDGET = 2**29


@dataclass(frozen=True)
class Fired:
    """What fires of the stored features in a batch, by column and in it by token. `counts`: of each column."""

    columns: Int[Tensor, " fired"]
    tokens: Int[Tensor, " fired"]
    values: Float[Tensor, " fired"]
    counts: Int[Tensor, " stored"]
    n_tokens: int


class SiteSums:
    """Sums that correlate features with the dimensions ("neurons") of the sources they read.

    `x`, `xx`: sum and sum of squares, [width] of all sources side by side. `products`: of activation times dimension,
    [stored, widest]; a feature's row holds the sources of its group side by side, then nothing. None where that was
    not asked for, or too large to keep.
    """

    def __init__(self, dictionary: Dictionary, features: Int[Tensor, " stored"], *, neurons: bool = True):
        widths = [site.width for site in dictionary.sources]
        self.first = [sum(widths[:s]) for s in range(len(widths) + 1)]
        self.reads = [sorted(group.W_enc) for group in dictionary.groups]
        self.group = torch.bucketize(features, torch.tensor(dictionary.offsets[1:]), right=True)
        self.columns = [(self.group == g).nonzero().squeeze(-1) for g in range(len(self.reads))]
        widest = max(sum(widths[s] for s in reads) for reads in self.reads)
        self.x = torch.zeros(sum(widths), dtype=torch.float64)
        self.xx = torch.zeros(sum(widths), dtype=torch.float64)
        kept = neurons and 12 * len(features) * widest <= PRODUCTS_BUDGET  # float32 of a part, float64 of all
        self.products = torch.zeros(len(features), widest, dtype=torch.float64) if kept else None
        self.batch = torch.zeros(len(features), widest, device=dictionary.device) if kept else None

    def add(self, sources: Sequence[Float[Tensor, "tokens d_source"]], fired: Fired) -> None:
        for s, x in enumerate(sources):
            at = slice(self.first[s], self.first[s + 1])
            self.x[at] += x.sum(0).double().cpu()
            self.xx[at] += x.square().sum(0).double().cpu()
        if self.batch is None:
            return
        for g, reads in enumerate(self.reads):
            here = self.group.to(fired.columns.device)[fired.columns] == g
            if not bool(here.any()):
                continue
            x = torch.cat([sources[s].to(fired.values.device) for s in reads], dim=-1)
            columns = self.columns[g].to(x.device)
            rows = torch.searchsorted(columns, fired.columns[here])
            matrix = sparse_matrix(
                torch.stack([rows, fired.tokens[here]]), fired.values[here], (len(columns), fired.n_tokens),
                coalesced=True,
            )  # fmt: skip
            self.batch[columns, : x.shape[1]] += torch.sparse.mm(matrix, x)

    def flush(self) -> None:
        """Float32 sums of some tokens go to float64 ones of all."""
        if self.products is not None and self.batch is not None:
            self.products += self.batch.cpu()
            self.batch.zero_()

    def tensors(self) -> dict[str, Tensor]:
        self.flush()
        products = {} if self.products is None else {"products": self.products}
        return {"x": self.x, "xx": self.xx, **products}

    def add_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        self.x += tensors["x"]
        self.xx += tensors["xx"]
        if "products" not in tensors:  # too large where these were gathered
            self.products = self.batch = None
        elif self.products is not None:
            self.products += tensors["products"]


class Sums:
    """All of them, of one dictionary's stored features. `latent`: None unless asked for."""

    def __init__(
        self,
        dictionary: Dictionary,
        features: Int[Tensor, " stored"],
        *,
        latent_scaling: bool = False,
        neurons: bool = True,
    ):
        self.dictionary = dictionary
        self.fidelity = FidelitySums.of(dictionary)
        self.sites = SiteSums(dictionary, features, neurons=neurons)
        self.latent = LatentSums(dictionary, features) if latent_scaling else None

    def add(
        self,
        acts: SparseActs,
        fired: Fired,
        sources: Sequence[Float[Tensor, "tokens d_source"]],
        targets: Sequence[Float[Tensor, "tokens d_target"]],
    ) -> None:
        recons = self.dictionary.decode(acts, sources)
        self.fidelity.add(self.dictionary, acts, targets, recons)
        self.sites.add(sources, fired)
        if self.latent is not None:
            self.latent.add(fired, targets, recons)

    def tensors(self) -> dict[str, Tensor]:
        parts = {"fidelity": self.fidelity, "sites": self.sites, "latent": self.latent}
        return {
            f"{name}.{key}": tensor
            for name, part in parts.items()
            if part is not None
            for key, tensor in part.tensors().items()
        }

    def add_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Adds what `tensors` gave, of other tokens. KeyError or RuntimeError when they are sums of something else."""
        parts = {"fidelity": self.fidelity, "sites": self.sites, "latent": self.latent}
        for name, part in parts.items():
            if part is not None:
                own = {key.removeprefix(f"{name}."): value for key, value in tensors.items()}
                part.add_tensors(own)
