"""Histograms, quantiles and correlations from sparse feature activations, in sae_vis' own data classes."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from sae_vis.data_storing_fns import ActsHistogramData, LogitsHistogramData
from sae_vis.utils_fns import ASYMMETRIC_RANGES_AND_PRECISIONS, FeatureStatistics
from scipy.sparse import csr_matrix
from torch import Tensor

from crossvis_tl.dictionary import Dictionary
from crossvis_tl.feature_acts import BLOCK, Block, FeatureActs
from crossvis_tl.latent_scaling import Z95

# Products of features with features held at a time, in numbers.
PRODUCTS = 2**22
# A variance of less than this share of the mean square is rounding: sums of a batch are float32.
CONSTANT = 1e-6


def histogram(values: Float[Tensor, " n"], n_bins: int) -> tuple[list[int], float, float]:
    """-> heights, lowest and highest value. sae_vis' bins: equal ones from minimum to maximum."""
    low, high = float(values.min()), float(values.max())
    if low == high:  # one bin cannot be told from another; a width of nothing would divide by zero
        return [len(values)] + [0] * (n_bins - 1), low, high
    heights = torch.histc(values.float(), bins=n_bins, min=low, max=high)
    return heights.long().tolist(), low, high


def ticks(low: float, high: float, wanted: int = 4) -> list[float]:
    """Round numbers from `low` to `high`: steps of 1, 2 or 5 times a power of ten."""
    span = high - low
    if not span > 0:
        return [round(low, 6)]
    step = next(s for p in range(-12, 13) for s in (10.0**p, 2 * 10.0**p, 5 * 10.0**p) if span / s <= wanted)
    first = int(np.ceil(low / step))
    return [round(step * k, 9) for k in range(first, int(np.floor(high / step)) + 1)]


def _bars(values: Tensor, n_bins: int) -> dict:
    heights, low, high = histogram(values, n_bins)
    width = (high - low) / n_bins
    middles = [round(low + (i + 0.5) * width, 5) for i in range(n_bins)]
    return {"bar_heights": heights, "bar_values": middles, "tick_vals": ticks(low, high)}


def acts_histogram(values: Float[Tensor, " fired"], n_counted: int, n_bins: int) -> ActsHistogramData:
    """Of the values a feature fires with; empty for a dead one."""
    density = len(values) / max(n_counted, 1)
    if not len(values):
        return ActsHistogramData(title="ACTIVATIONS<br>NEVER FIRED")
    return ActsHistogramData(**_bars(values, n_bins), title=f"ACTIVATIONS<br>DENSITY = {density:.3%}")


def logits_histogram(logits: Float[Tensor, " d_vocab"], n_bins: int) -> LogitsHistogramData:
    return LogitsHistogramData(**_bars(logits, n_bins))


def density_interval(n_fired: int, n_counted: int) -> tuple[float, float]:
    """95 % interval of the share of tokens a feature fires on (Wilson's score interval), as if tokens were independent.

    For a feature that never fired on n tokens it ends near 4 / n: it may still be alive.
    """
    if n_counted < 1:
        return 0.0, 1.0
    share, spread = n_fired / n_counted, Z95**2 / n_counted
    middle = (share + spread / 2) / (1 + spread)
    half = (Z95 / (1 + spread)) * (share * (1 - share) / n_counted + spread / (4 * n_counted)) ** 0.5
    return max(0.0, middle - half), min(1.0, middle + half)


def feature_statistics(acts: FeatureActs) -> FeatureStatistics:
    """Maximum, density and sae_vis' quantile grid of each feature over all counted tokens, the zeros included.

    sae_vis appends the grid again for every batch of features, and its quantiles drift; here it stands once.
    """
    grid: list[float] = []
    for (start, end), precision in ASYMMETRIC_RANGES_AND_PRECISIONS:
        step = 10**-precision
        grid.extend(np.arange(start, end - 0.5 * step, step))
    quantile_data, maxima, density = [], [], []
    n = acts.n_counted
    points = np.asarray(grid) * (n - 1)
    for block in acts.blocks():
        for _, _, fired in block.each():
            values = np.sort(fired.numpy())
            quantile_data.append(_quantiles(values, n, points))
            zero = [0.0] if len(values) < n else []  # a feature that only fires below zero has its maximum there
            maxima.append(max([float(v) for v in values[-1:]] + zero, default=0.0))
            density.append(len(values) / max(n, 1))
    return FeatureStatistics(
        max=maxima, frac_nonzero=density, quantile_data=quantile_data, quantiles=[round(q, 6) for q in [*grid, 1.0]],
        ranges_and_precisions=ASYMMETRIC_RANGES_AND_PRECISIONS,
    )  # fmt: skip


def _quantiles(values: np.ndarray, n: int, points: np.ndarray) -> list[float]:
    """Linear interpolation in the sorted values and their n - len(values) zeros; leading zeros stripped, as sae_vis
    stores them."""
    n_negative, n_zeros = int(np.searchsorted(values, 0)), n - len(values)
    padded = np.append(values.astype(np.float64), 0.0)  # the last place is the zero that all silent tokens share

    def at(index: np.ndarray) -> np.ndarray:
        silent = (index >= n_negative) & (index < n_negative + n_zeros)
        place = np.where(index < n_negative, index, index - n_zeros)
        return padded[np.where(silent, len(values), place)]

    below = np.floor(points).astype(int)
    # the grid below the first value that is not zero needs no looking up
    first = int(np.searchsorted(below, n_zeros - 1)) if n_negative == 0 and n_zeros > 0 else 0
    below, points = below[first:], points[first:]
    low, high = at(below), at(np.minimum(below + 1, n - 1))
    rounded = np.round(low + (points - below) * (high - low), 6)
    visible = np.flatnonzero(np.abs(rounded) > 1e-6)
    return rounded[visible[0] :].tolist() if len(visible) else []


@dataclass(frozen=True)
class Correlated:
    """For each selected feature its k most correlated partners. `pearson`, `cosine`: [selected][k]."""

    indices: list[list[int]]
    pearson: list[list[float]]
    cosine: list[list[float]]

    @classmethod
    def joined(cls, parts: Sequence["Correlated"]) -> "Correlated":
        """One after another."""
        columns = ([row for part in parts for row in getattr(part, name)] for name in ("indices", "pearson", "cosine"))
        return cls(*columns)


def correlate_features(acts: FeatureActs, other: FeatureActs, k: int, *, same: bool) -> Correlated:
    """Partners of `acts`' features among all of `other`'s, by Pearson correlation over counted tokens.

    `same`: the two are one, so a feature is no partner of itself. Indices are feature numbers.
    """
    y, yy = _moments(other)
    k = min(k, len(other.features) - int(same))
    rows = max(1, PRODUCTS // max(len(other.features), 1))
    # made once where all fit in memory, else again for every few features
    held = [_by_token(block, other) for block in other.blocks()] if int(other.starts[-1]) <= BLOCK else None
    found = []
    for block in _short(acts.blocks(), rows):
        mine = _sparse(block, acts)
        theirs = held or (_by_token(one, other) for one in other.blocks())
        products = np.concatenate([csr_matrix(mine @ matrix).toarray() for matrix in theirs], axis=1)
        pearson, cosine = _normalise(torch.from_numpy(products), *_block_moments(block), y, yy, acts.n_counted)
        if same:
            own = torch.arange(len(block))
            pearson[own, own + block.first] = -torch.inf
        found.append(_best(pearson, cosine, k, other.features, block.starts.diff() > 0))
    return Correlated.joined(found)


def correlate_sites(acts: FeatureActs, dictionary: Dictionary, k: int) -> Correlated | None:
    """Dimensions of the source activations ("neurons") most correlated with each feature, of the sources it reads;
    numbered through all sources, side by side. None where the sums were too large to keep."""
    if "sites.products" not in acts.sums:
        return None
    widths = [site.width for site in dictionary.sources]
    first = [sum(widths[:s]) for s in range(len(widths))]
    groups = torch.bucketize(acts.features, torch.tensor(dictionary.offsets[1:]), right=True)
    parts: list[tuple[Tensor, Correlated]] = []
    total, squares = _moments(acts)
    for g, group in enumerate(dictionary.groups):
        at = (groups == g).nonzero().squeeze(-1)
        if not len(at):
            continue
        neurons = torch.cat([torch.arange(first[s], first[s] + widths[s]) for s in sorted(group.W_enc)])
        products = acts.sums["sites.products"][acts.columns[at], : len(neurons)]
        x, xx = acts.sums["sites.x"][neurons], acts.sums["sites.xx"][neurons]
        pearson, cosine = _normalise(products, total[at], squares[at], x, xx, acts.n_counted)
        parts.append((at, _best(pearson, cosine, min(k, len(neurons)), neurons, squares[at] > 0)))
    joined = Correlated.joined([part for _, part in parts])
    order = torch.argsort(torch.cat([at for at, _ in parts])).tolist()
    return Correlated(*([column[i] for i in order] for column in vars(joined).values()))


def _short(blocks: Iterator[Block], rows: int) -> Iterator[Block]:
    """The same in blocks of at most so many features."""
    for block in blocks:
        for begin in range(0, len(block), rows):
            starts = block.starts[begin : begin + rows + 1]
            at = slice(int(starts[0]), int(starts[-1]))
            yield Block(block.first + begin, starts - starts[0], block.where[at], block.values[at])


def _sparse(block: Block, acts: FeatureActs) -> csr_matrix:
    """[features, tokens], float64: products of many tokens would drift in float32."""
    values = block.values.numpy().astype(np.float64)
    shape = (len(block), acts.tokens.numel())
    return csr_matrix((values, block.where.numpy(), block.starts.numpy()), shape=shape)


def _by_token(block: Block, acts: FeatureActs) -> csr_matrix:
    """[tokens, features]."""
    return _sparse(block, acts).T.tocsr()


def _block_moments(block: Block) -> tuple[Tensor, Tensor]:
    """Sum and sum of squares of each feature."""
    values, lengths = block.values.double(), block.starts.diff()
    total = torch.segment_reduce(values, "sum", lengths=lengths, initial=0.0)
    return total, torch.segment_reduce(values.square(), "sum", lengths=lengths, initial=0.0)


def _moments(acts: FeatureActs) -> tuple[Tensor, Tensor]:
    totals, squares = zip(*(_block_moments(block) for block in acts.blocks()), strict=True)
    return torch.cat(totals), torch.cat(squares)


def _normalise(
    products: Tensor, x: Tensor, xx: Tensor, y: Tensor, yy: Tensor, n: int
) -> tuple[Float[Tensor, "x y"], Float[Tensor, "x y"]]:
    """Pearson correlation and cosine similarity from sums of products; 0 where one of the two is constant."""
    covariance = products.double() - torch.outer(x.double(), y.double()) / n
    deviations = torch.outer(_deviation(x, xx, n), _deviation(y, yy, n))
    pearson = torch.where(deviations > 0, covariance / deviations, 0.0).clamp(-1, 1)
    lengths = torch.outer(xx.double().sqrt(), yy.double().sqrt())
    cosine = torch.where(lengths > 0, products.double() / lengths, 0.0).clamp(-1, 1)
    return pearson, cosine


def _deviation(x: Tensor, xx: Tensor, n: int) -> Tensor:
    """sqrt(n) standard deviations; 0 where what varies is no more than the rounding of the sums."""
    varies = xx.double() - x.double().square() / n
    return torch.where(varies > CONSTANT * xx.double(), varies, 0.0).sqrt()


def _best(pearson: Tensor, cosine: Tensor, k: int, names: Int[Tensor, " y"], alive: Tensor) -> Correlated:
    """Of a feature that never fired (`alive` False), none: all are alike."""
    top = pearson.topk(k, dim=-1)
    columns = (names[top.indices].tolist(), top.values.tolist(), cosine.gather(-1, top.indices).tolist())
    return Correlated(*([row if fires else [] for row, fires in zip(c, alive.tolist(), strict=True)] for c in columns))
