"""Statistics from sparse activations are those of the dense ones."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sae_vis.data_config_classes import SequencesConfig
from sae_vis.utils_fns import FeatureStatistics

from crossvis_tl import statistics
from crossvis_tl.examples import Picker, choose
from crossvis_tl.feature_acts import FeatureActs
from crossvis_tl.fidelity import Fidelity
from crossvis_tl.manifest import Manifest
from crossvis_tl.masking import token_mask
from crossvis_tl.parts import Part
from crossvis_tl.sequences import lookup, windows


def sparse(dense: torch.Tensor, n_positions: int = 8, n_parts: int = 1) -> FeatureActs:
    """[tokens, features] -> the same, kept by feature, in parts of whole rows."""
    rows = dense.shape[0] // n_positions
    parts = []
    for some in dense.split(-(-rows // n_parts) * n_positions):
        where = [(column != 0).nonzero().squeeze(-1) for column in some.T]
        starts = torch.tensor([0] + [len(p) for p in where]).cumsum(0)
        values = torch.cat([some[p, i] for i, p in enumerate(where)])
        shares = torch.zeros(len(values), 0, dtype=torch.float16)
        parts.append(Part(len(some) // n_positions, starts, torch.cat(where).int(), values, torch.zeros(0, 0), shares))
    tokens = torch.arange(rows * n_positions).reshape(rows, n_positions)
    mask = token_mask(tokens, None, "none")
    features = torch.arange(dense.shape[1])
    manifest = Manifest("", "", [], [], "", "", len(features), "", "", [], {}, False, [], 0, {}, {}, [])
    return FeatureActs(tokens, mask, features, features, tuple(parts), {}, Fidelity("", "", [], 0, 0, 0), manifest)


def picker(rows: int, **options) -> Picker:
    """For rows of 8 tokens, all different and each row a document."""
    tokens = torch.arange(rows * 8).reshape(rows, 8)
    return Picker(tokens, token_mask(tokens, None, "none"), (2, 2), **({"per_document": None} | options))


@st.composite
def dense_acts(draw, signed: bool = False):
    """[64, features]"""
    features = draw(st.integers(1, 5))
    seed = draw(st.integers(0, 2**16))
    share = draw(st.floats(0, 1))
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(64, features, generator=generator)
    values = values if signed else values.abs()
    return values * (torch.rand(64, features, generator=generator) < share)


@settings(deadline=None, max_examples=40)
@given(dense_acts())
def test_quantiles_are_those_of_all_tokens(dense):
    got = statistics.feature_statistics(sparse(dense, n_parts=2))
    want = FeatureStatistics.create(data=dense.T.contiguous())
    assert got.quantiles == want.quantiles
    assert got.max == pytest.approx(want.max)
    for mine, theirs in zip(got.quantile_data, want.quantile_data, strict=True):
        # values within rounding of zero may or may not be stripped from the front
        n = min(len(mine), len(theirs))
        assert mine[len(mine) - n :] == pytest.approx(theirs[len(theirs) - n :], abs=2e-5)
        assert abs(len(mine) - len(theirs)) <= 1


@settings(deadline=None, max_examples=40)
@given(dense_acts(signed=True))
def test_signed_quantiles_too(dense):
    acts = sparse(dense)
    got = statistics.feature_statistics(acts)
    grid = torch.tensor(got.quantiles[:-1], dtype=torch.float64)
    for mine, column in zip(got.quantile_data, dense.T, strict=True):
        want = torch.quantile(column.double(), grid)
        assert mine == pytest.approx(want[len(want) - len(mine) :].tolist(), abs=2e-5)


@settings(deadline=None, max_examples=40)
@given(dense_acts(signed=True))
def test_correlations_are_numpys(dense):
    acts = sparse(dense, n_parts=3)
    n = dense.shape[1]
    found = statistics.correlate_features(acts, acts, n, same=True)
    with np.errstate(all="ignore"):
        expected = np.atleast_2d(np.corrcoef(dense.T.double().numpy()))
    for i, (indices, pearson) in enumerate(zip(found.indices, found.pearson, strict=True)):
        assert i not in indices
        assert len(indices) == (n - 1) * bool((dense[:, i] != 0).any())  # all are alike to one that never fires
        for j, value in zip(indices, pearson, strict=True):
            assert value == pytest.approx(np.nan_to_num(expected[i, j]), abs=1e-4)
        assert pearson == sorted(pearson, reverse=True)


@settings(deadline=None)
@given(st.floats(-1e4, 1e4), st.floats(1e-6, 1e4))
def test_ticks_are_few_and_inside(low, span):
    found = statistics.ticks(low, low + span)
    assert len(found) <= 6
    assert all(low - 1e-6 <= tick <= low + span + 1e-6 for tick in found)


def test_a_histogram_of_one_value():
    heights, low, high = statistics.histogram(torch.tensor([2.0, 2.0]), 5)
    assert heights == [2, 0, 0, 0, 0]
    assert low == high == 2


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 2**16), st.integers(1, 200), st.integers(0, 6), st.integers(1, 9), st.integers(1, 9))
def test_groups_hold_what_their_titles_say(seed, fired, n_quantiles, top, each):
    generator = torch.Generator().manual_seed(seed)
    where = torch.randperm(400, generator=generator)[:fired].sort().values
    values = torch.rand(fired, generator=generator) + 1e-3
    cfg = SequencesConfig(n_quantiles=n_quantiles, top_acts_group_size=top, quantile_group_size=each)
    groups = choose(where, values, 400, cfg, generator, picker(50))
    assert len(groups) == 1 + n_quantiles
    shown = lookup(where, values, groups[0].positions)
    assert shown.tolist() == values.sort(descending=True).values[:top].tolist()
    for group in groups[1:]:
        at = lookup(where, values, group.positions)
        inside = (values >= group.low) & (values <= group.high)
        assert ((at >= group.low) & (at <= group.high)).all()
        assert len(at) == len(set(group.positions.tolist())) == min(each, int(inside.sum()))
        assert group.share == pytest.approx(int(inside.sum()) / 400)


def test_a_feature_that_never_fired_has_no_groups():
    empty = torch.zeros(0)
    assert choose(empty.long(), empty, 10, SequencesConfig(), torch.Generator(), picker(2)) == []


@settings(deadline=None)
@given(st.integers(0, 47), st.integers(0, 7), st.integers(0, 7))
def test_windows_stay_in_their_row(flat, before, after):
    row, position = divmod(flat, 8)
    start, end = max(0, position - before), min(8, position + after + 1)
    cfg = SequencesConfig(buffer=(before, after), n_quantiles=0)
    where, values = torch.tensor([flat]), torch.tensor([1.5])
    groups = choose(where, values, 48, cfg, torch.Generator(), picker(6))
    grid = windows(groups, where, values, picker(6).mask, cfg)
    kept = grid.grid[0][1:][grid.inside[0][1:]]
    assert kept.tolist() == list(range(row * 8 + start, row * 8 + end))
    assert grid.acts.sum() == 1.5
