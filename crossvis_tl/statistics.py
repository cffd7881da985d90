"""Histograms, quantiles and correlations from sparse feature activations, in sae_vis' own data classes."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from sae_vis.data_storing_fns import ActsHistogramData, LogitsHistogramData
from sae_vis.utils_fns import ASYMMETRIC_RANGES_AND_PRECISIONS, FeatureStatistics
from scipy.sparse import csr_matrix
from torch import Tensor

from crossvis_tl.feature_acts import FeatureActs, spans


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


def feature_statistics(acts: FeatureActs) -> FeatureStatistics:
    """Maximum, density and sae_vis' quantile grid of each feature over all counted tokens, the zeros included.

    sae_vis appends the grid again for every batch of features, and its quantiles drift; here it stands once.
    """
    grid: list[float] = []
    for (start, end), precision in ASYMMETRIC_RANGES_AND_PRECISIONS:
        step = 10**-precision
        grid.extend(np.arange(start, end - 0.5 * step, step))
    quantile_data, maxima, density = [], [], []
    points = np.asarray(grid) * (acts.n_counted - 1)
    for begin, end in spans(acts):
        values = np.sort(acts.values[begin:end].numpy())
        quantile_data.append(_quantiles(values, acts.n_counted, points))
        maxima.append(float(values[-1]) if len(values) else 0.0)
        density.append(len(values) / max(acts.n_counted, 1))
    return FeatureStatistics(
        max=maxima, frac_nonzero=density, quantile_data=quantile_data, quantiles=[round(q, 6) for q in [*grid, 1.0]],
        ranges_and_precisions=ASYMMETRIC_RANGES_AND_PRECISIONS,
    )  # fmt: skip


def _quantiles(values: np.ndarray, n: int, points: np.ndarray) -> list[float]:
    """Linear interpolation in the sorted values and their n - len(values) zeros; leading zeros stripped, as sae_vis
    stores them."""
    negative = values[values < 0]
    positive = values[values >= 0]
    n_zeros = n - len(values)

    def at(index: np.ndarray) -> np.ndarray:
        out = np.zeros(len(index))
        low, high = index < len(negative), index >= len(negative) + n_zeros
        out[low] = negative[index[low]]
        out[high] = positive[index[high] - len(negative) - n_zeros]
        return out

    below = np.floor(points).astype(int)
    above = np.minimum(below + 1, n - 1)
    result = at(below) + (points - below) * (at(above) - at(below))
    rounded = [round(float(value), 6) for value in result]
    first = next((i for i, value in enumerate(rounded) if abs(value) > 1e-6), len(rounded))
    return rounded[first:]


@dataclass(frozen=True)
class Correlated:
    """For each selected feature its k most correlated partners. `pearson`, `cosine`: [selected][k]."""

    indices: list[list[int]]
    pearson: list[list[float]]
    cosine: list[list[float]]


def correlate_features(acts: FeatureActs, other: FeatureActs, k: int, *, same: bool) -> Correlated:
    """Partners of `acts`' features among all of `other`'s, by Pearson correlation over counted tokens.

    `same`: the two are one, so a feature is no partner of itself. Indices are feature numbers.
    """
    n = acts.n_counted
    products = torch.from_numpy((_sparse(acts) @ _sparse(other).T).toarray())
    pearson, cosine = _normalise(products, *_moments(acts), *_moments(other), n)
    if same:
        pearson.fill_diagonal_(-torch.inf)
    k = min(k, pearson.shape[1] - int(same))
    return _best(pearson, cosine, k, other.features)


def correlate_sites(acts: FeatureActs, k: int) -> Correlated:
    """Dimensions of the source activations ("neurons") most correlated with each feature, all sources side by side."""
    x, xx = acts.sums.x, acts.sums.xx
    pearson, cosine = _normalise(acts.sums.products, *_moments(acts), x, xx, acts.n_counted)
    return _best(pearson, cosine, min(k, len(x)), torch.arange(len(x)))


def _sparse(acts: FeatureActs) -> csr_matrix:
    shape = (len(acts.features), acts.tokens.numel())
    return csr_matrix((acts.values.numpy(), acts.where.numpy(), acts.starts.numpy()), shape=shape)


def _moments(acts: FeatureActs) -> tuple[Tensor, Tensor]:
    """Sum and sum of squares of each feature."""
    lengths = acts.starts.diff()
    total = torch.segment_reduce(acts.values, "sum", lengths=lengths, initial=0.0)
    return total, torch.segment_reduce(acts.values.pow(2), "sum", lengths=lengths, initial=0.0)


def _normalise(
    products: Tensor, x: Tensor, xx: Tensor, y: Tensor, yy: Tensor, n: int
) -> tuple[Float[Tensor, "x y"], Float[Tensor, "x y"]]:
    """Pearson correlation and cosine similarity from sums of products; 0 where one of the two is constant."""
    covariance = products.double() - torch.outer(x.double(), y.double()) / n
    var_x = (xx.double() - x.double().pow(2) / n).clamp_min(0)
    var_y = (yy.double() - y.double().pow(2) / n).clamp_min(0)
    pearson = covariance / torch.outer(var_x.sqrt(), var_y.sqrt()).clamp_min(1e-12)
    cosine = products.double() / torch.outer(xx.double().sqrt(), yy.double().sqrt()).clamp_min(1e-12)
    return pearson, cosine


def _best(pearson: Tensor, cosine: Tensor, k: int, names: Int[Tensor, " y"]) -> Correlated:
    top = pearson.topk(k, dim=-1)
    return Correlated(
        indices=names[top.indices].tolist(),
        pearson=top.values.tolist(),
        cosine=cosine.gather(-1, top.indices).tolist(),
    )
