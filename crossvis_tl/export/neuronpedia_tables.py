"""Neighbours of features as Neuronpedia has them: dimensions they write to, and features of their own source."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from crossvis_tl.dictionary import Dictionary
from crossvis_tl.export.batches import Made, Shown, Source, Stored
from crossvis_tl.feature_acts import BLOCK, FeatureActs
from crossvis_tl.geometry import decoder_vectors
from crossvis_tl.statistics import correlate_features

ROWS = 3  # of each table
# Features whose neighbours are looked for at once: all activations of their source are read for each so many.
SPAN = 1024
Correlated = Literal["source", "batch"]


@dataclass(frozen=True)
class Neighbours:
    """The strongest first. `second`, `third`: values and shares of the L1 norm; or Pearson correlations and cosines."""

    indices: list[int] = field(default_factory=list)
    second: list[float] = field(default_factory=list)
    third: list[float] = field(default_factory=list)


def written(dictionary: Dictionary, features: Sequence[int], model: int) -> Float[Tensor, "features d_target"]:
    """The vector whose largest dimensions are listed: the decoder rows to one model's site.

    Of several sites of that model: a transcoder's rows are summed, as the residual stream sums them; of a crosscoder's
    sites along one stream the last holds the others.
    """
    targets = [t for t, site in enumerate(dictionary.targets) if site.model == model]
    vectors = decoder_vectors(dictionary, torch.tensor(features))
    own = [vectors[t] for t in targets]
    if dictionary.kind in ("clt", "plt") and len({vector.shape[-1] for vector in own}) == 1:
        return torch.stack(own).sum(0).cpu()
    return own[-1].cpu()


def aligned(vectors: Float[Tensor, "features d_target"]) -> list[Neighbours]:
    """Dimensions that each feature writes to most, upwards: value, and share of the L1 norm."""
    top = vectors.topk(min(ROWS, vectors.shape[-1]), dim=-1)
    shares = top.values.abs() / vectors.abs().sum(-1, keepdim=True).clamp_min(1e-12)
    columns = (top.indices.tolist(), top.values.tolist(), shares.tolist())
    return [Neighbours(*row) for row in zip(*columns, strict=True)]


def correlated(acts: FeatureActs, others: FeatureActs) -> dict[int, Neighbours]:
    """Of each of `acts`' features the most correlated of `others`, itself left out."""
    found = correlate_features(acts, others, min(ROWS + 1, len(others.features)), same=False)
    result = {}
    for feature, *columns in zip(acts.features.tolist(), found.indices, found.pearson, found.cosine, strict=True):
        rows = [row for row in zip(*columns, strict=True) if row[0] != feature][:ROWS]
        result[feature] = Neighbours(*map(list, zip(*rows, strict=True))) if rows else Neighbours()
    return result


class Partners:
    """The features most correlated with those of one source.

    `among`: the whole source's that were gathered, or those of the same batch, as SAEDashboard has it.
    """

    def __init__(self, shown: Shown, source: Source, batches: list[list[int]], among: Correlated):
        self.shown, self.source, self.batches, self.among = shown, source, batches, among
        self.span: list[int] = []
        self.found: dict[int, Neighbours] = {}
        self.listed: tuple[int, dict[int, Neighbours]] = (-1, {})  # of dashboards: a batch's number, and its own

    def of(self, number: int) -> dict[int, Neighbours]:
        """Of the features of a batch, indices in the source."""
        if isinstance(self.shown, Made):
            if self.listed[0] != number:
                self.listed = (number, {f: self._made(self.shown, f) for f in self.batches[number]})
            return self.listed[1]
        if number not in self.span:
            self.span = self._span(number)
            mine = [feature for i in self.span for feature in self.batches[i]]
            others = mine if self.among == "batch" else self.source.own(list(self.shown.place))
            self.found = correlated(self.shown.select(mine), self.shown.select(others))
        first = self.source.first
        moved = {feature: self.found[feature] for feature in self.batches[number]}
        return {f: Neighbours([i - first for i in n.indices], n.second, n.third) for f, n in moved.items()}

    def _span(self, number: int) -> list[int]:
        """Batches that are looked at together with this one."""
        if self.among == "batch":
            return [number]
        size = max(1, SPAN // max(len(batch) for batch in self.batches))
        begin = number // size * size
        return list(range(begin, min(begin + size, len(self.batches))))

    def _made(self, shown: Made, feature: int) -> Neighbours:
        """Those the dashboards list that are of the same source."""
        table = shown.data.feature_data_dict[feature].feature_tables_data
        columns = (
            table.correlated_features_indices, table.correlated_features_pearson, table.correlated_features_cossim
        )  # fmt: skip
        rows = [row for row in zip(*columns, strict=True) if self.source.own([row[0]])][:ROWS]
        first = self.source.first
        return Neighbours([i - first for i, _, _ in rows], [p for _, p, _ in rows], [c for _, _, c in rows])


def how_correlated(shown: Shown, source: Source, asked: Correlated | None) -> Correlated:
    """Unless asked: among the whole source, where its activations can be held in memory."""
    if asked is not None or isinstance(shown, Made):
        return asked or "source"
    own = source.own(list(shown.place))
    return "source" if sum(shown.counts[feature] for feature in own) <= BLOCK else "batch"


def neuron_shift(shown: Stored | Made, source: Source) -> int:
    """What is taken off the numbers of correlated neurons, which run through all sources of a dictionary: the width of
    those before a layer's own. A crosscoder's stay as they are, side by side."""
    dictionary = shown.dictionary
    read = sorted(dictionary.groups[dictionary.locate(source.first)[0]].W_enc)
    return sum(site.width for site in dictionary.sources[: read[0]]) if len(read) == 1 else 0
