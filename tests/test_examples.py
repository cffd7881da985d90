"""Which examples are shown, intervals, latent scaling, and sae_vis' own call in all its spellings."""

import pytest
import sae_vis
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sae_vis.data_config_classes import SequencesConfig

from crossvis_tl import SaeVisData, gather, load_dictionary
from crossvis_tl.examples import Picker, choose
from crossvis_tl.latent_scaling import latent_scaling
from crossvis_tl.masking import token_mask
from crossvis_tl.selection import strongest
from crossvis_tl.statistics import density_interval
from tests.conftest import N_CTX, write_crosscoder
from tests.test_golden import GOLDEN
from tests.test_vis_data import HOOK, autoencoder

pytestmark = pytest.mark.filterwarnings("ignore::crossvis_tl.CrossvisWarning")


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 2**16), st.integers(1, 9), st.one_of(st.none(), st.integers(1, 4)), st.booleans())
def test_examples_are_the_strongest_that_are_distinct_and_few_per_document(seed, k, per_document, distinct):
    """Against picking one by one from all, strongest first."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, 3, (12, 8), generator=generator)
    documents = torch.randint(0, 5, (12,), generator=generator)
    mask = token_mask(tokens, None, "none", documents=documents)
    where = torch.randperm(96, generator=generator)[:60].sort().values
    values = torch.rand(60, generator=generator) + 0.1
    cfg = SequencesConfig(buffer=(1, 1), top_acts_group_size=k, n_quantiles=0)
    picker = Picker(tokens, mask, (1, 1), per_document, distinct)
    (group,) = choose(where, values, 96, cfg, torch.Generator(), picker)
    want, seen, used = [], set(), []
    for position in where[values.argsort(descending=True)].tolist():
        row, column = divmod(position, 8)
        window = tuple(int(tokens[row, c]) if 0 <= c < 8 else None for c in range(column - 1, column + 2))
        document = int(documents[row])
        if len(want) == k or (distinct and window in seen) or used.count(document) == per_document:
            continue
        want.append(position)
        seen.add(window)
        used.append(document)
    assert group.positions.tolist() == want


def test_examples_carry_their_document_and_a_row_of_several_has_several(crosscoder_dir, tl_models, tokens):
    dictionary = load_dictionary(crosscoder_dir)
    rows = tokens.clone()
    rows[:, 12] = 0  # the tokenizer's end of a text
    cfg = sae_vis.SaeVisConfig(features=[5, 12])
    data = SaeVisData.create(dictionary, tl_models, rows, cfg)
    records = [r for panel in data.panels.values() for group in panel.sequences for r in group]
    assert {r.document for r in records} > {0, 1}
    assert all(r.document == 2 * r.row + (r.position >= 12) for r in records)
    given = SaeVisData.create(dictionary, tl_models, rows, cfg, documents=torch.full((12,), 7), per_document=2)
    assert all(len(group) <= 2 for panel in given.panels.values() for group in panel.sequences)
    assert {r.document for panel in given.panels.values() for group in panel.sequences for r in group} == {7}


def test_documents_of_another_shape_are_refused(crosscoder_dir, tl_models, tokens):
    with pytest.raises(ValueError, match=r"documents is torch.int64 \(3,\); expected a whole number for each row"):
        SaeVisData.create(load_dictionary(crosscoder_dir), tl_models, tokens, documents=torch.arange(3))


@settings(deadline=None)
@given(st.integers(1, 10**6), st.floats(0, 1))
def test_density_intervals_are_wilsons(n, share):
    """The ends p are where |x / n - p| is 1.96 standard deviations of a share p of n."""
    x = round(share * n)
    low, high = density_interval(x, n)
    assert 0 <= low <= x / n + 1e-12
    assert x / n - 1e-12 <= high <= 1
    for p in (low, high):
        if 0 < p < 1:
            assert abs(x / n - p) == pytest.approx(1.959964 * (p * (1 - p) / n) ** 0.5, rel=1e-5, abs=1e-7)


def test_a_feature_that_never_fired_may_still_be_alive(tl_models, tokens):
    encoder = autoencoder()
    encoder.b_enc[3] = -1e4
    data = SaeVisData.create(encoder, tl_models[0], tokens, sae_vis.SaeVisConfig(hook_point=HOOK, features=[3]))
    low, high = data.panels[3].density_interval
    assert (low, data.panels[3].density) == (0, 0)
    assert high == pytest.approx(3.84 / (12 * (N_CTX - 1) + 3.84), rel=1e-3)


@torch.no_grad()
def test_latent_scaling_is_least_squares(crosscoder_dir, tl_models, tokens):
    """beta from torch.linalg.lstsq on all tokens, for the error without the feature and for the reconstruction."""
    dictionary = load_dictionary(crosscoder_dir)
    cfg = sae_vis.SaeVisConfig(features=[5, 12])
    data = SaeVisData.create(dictionary, tl_models, tokens, cfg, latent_scaling=True, masking="none")
    x = [m.run_with_cache(tokens)[1][HOOK].flatten(0, 1).double() for m in tl_models]
    acts = dictionary.encode([part.float() for part in x]).double()
    recons = [recon.double() for recon in dictionary.decode(acts.float())]
    for feature in (5, 12):
        at, f = torch.tensor([feature]), acts[:, feature]
        d = [dictionary.decoder(at, t)[0].double() for t in (0, 1)]
        column = (f[:, None] * d[1]).reshape(-1, 1)
        found = data.panels[feature].scaling
        for kind in (0, 1):
            betas = []
            for m in (0, 1):
                y = recons[m] if kind else x[m] - recons[m] + f[:, None] * d[m]
                betas.append(torch.linalg.lstsq(column, y.reshape(-1, 1)).solution.item())
            assert found.beta_first[kind] == pytest.approx(betas[0], rel=1e-3, abs=1e-5)
            assert found.beta_second[kind] == pytest.approx(betas[1], rel=1e-3, abs=1e-5)
            assert found.nu[kind] == pytest.approx(betas[0] / betas[1], rel=2e-3, abs=1e-4)
            assert found.nu_low[kind] < found.nu[kind] < found.nu_high[kind]


def test_the_interval_of_nu_covers_it_as_often_as_it_says():
    """Features whose true nu is 0.3, with noise, on 40 tokens each."""
    generator = torch.Generator().manual_seed(0)
    n, tokens = 4000, 40
    v = torch.rand(n, tokens, generator=generator, dtype=torch.float64) + 0.5
    u = 0.3 * v + 0.2 * torch.randn(n, tokens, generator=generator, dtype=torch.float64)
    moments = torch.stack([part.sum(-1) for part in (u, v, u * u, v * v, u * v)], dim=-1)[:, None].expand(-1, 2, -1)
    found = latent_scaling({"moments": moments, "power": torch.ones(n), "count": torch.full((n,), tokens)})
    covered = sum(one.nu_low[0] <= 0.3 <= one.nu_high[0] for one in found) / n
    assert 0.92 < covered < 0.97


def test_nu_of_a_feature_that_fired_once_has_no_interval():
    moments = torch.tensor([[[0.5, 2.0, 0.25, 4.0, 1.0]] * 2, [[0.0] * 5] * 2], dtype=torch.float64)
    once, dead = latent_scaling({"moments": moments, "power": torch.tensor([4.0, 0.0]), "count": torch.tensor([1, 0])})
    assert (once.nu, once.nu_low, once.nu_high) == ([0.25, 0.25], [None, None], [None, None])
    assert (dead.nu, dead.beta_first) == ([None, None], [None, None])


def test_latent_scaling_of_one_model_is_refused_before_any_work(tmp_path, tl_models, tokens, monkeypatch):
    dictionary = load_dictionary(write_crosscoder(tmp_path / "c", n_sources=1))
    with pytest.raises(ValueError, match=r"latent_scaling compares two models at one site each"):
        SaeVisData.create(dictionary, tl_models[0], tokens, latent_scaling=True)


def test_negative_activations_are_shown_and_ranked(tl_models, tokens):
    """circuit-tracer's TopK keeps what is below zero."""
    path = GOLDEN[0].parent / "f12_openai_topk_ln_rawkeys/checkpoint/6.pt"
    dictionary = load_dictionary(path, input_layer_norm=False, hook_point="blocks.1.hook_mlp_out")
    from dataclasses import replace

    (group,) = dictionary.groups
    signed = replace(group, activation=replace(group.activation, relu=False), b_enc=group.b_enc - 5.0)
    dictionary = replace(dictionary, groups=(signed,))
    acts = gather(dictionary, tl_models[0], tokens)
    assert len(acts.parts[0].values)
    assert (acts.parts[0].values < 0).all()
    feature = int(acts.features[strongest(acts, 1)[0]])
    data = SaeVisData.create(dictionary, tl_models[0], tokens, sae_vis.SaeVisConfig(features=[feature]))
    (group,) = data.feature_data_dict[feature].sequence_data.seq_group_data
    assert group.title.startswith("LOWEST ACTIVATIONS<br>MIN = -")
    assert data.panels[feature].maximum == 0
    assert data.panels[feature].density > 0


def test_sae_vis_spellings(tl_models, tokens, capsys):
    encoder, cfg = autoencoder(), sae_vis.SaeVisConfig(hook_point=HOOK, features=4)
    want = SaeVisData.create(encoder=encoder, model=tl_models[0], tokens=tokens, cfg=cfg, encoder_B=autoencoder(3))
    got = SaeVisData.create(sae=encoder, model=tl_models[0], tokens=tokens, cfg=cfg, sae_B=autoencoder(3))
    assert list(got.panels) == [4]
    assert got.panels == want.panels
    assert got.feature_data_dict[4].feature_tables_data == want.feature_data_dict[4].feature_tables_data
    assert got.feature_data_dict[4].feature_tables_data.correlated_b_features_indices
    with pytest.raises(ValueError, match="encoder= and sae= are two names of one thing"):
        SaeVisData.create(encoder, tl_models[0], tokens, cfg, sae=encoder)
    with pytest.raises(TypeError, match="needs an encoder"):
        SaeVisData.create(model=tl_models[0], tokens=tokens)
    cfg.help()
    cfg.feature_centric_layout.help()
    printed = capsys.readouterr().out
    assert "minibatch_size_tokens" in printed
    assert "top_acts_group_size" in printed


@pytest.mark.parametrize("features", [range(3, 6), [5, 3, 4], None])
def test_features_in_every_form_sae_vis_takes(tl_models, tokens, features):
    cfg = sae_vis.SaeVisConfig(hook_point=HOOK, features=features, batch_size=7, minibatch_size_tokens=2)
    data = SaeVisData.create(autoencoder(), tl_models[0], tokens, cfg)
    assert list(data.panels) == (list(range(32)) if features is None else list(features))
    rows = {r.row for panel in data.panels.values() for group in panel.sequences for r in group}
    assert max(rows) < 7
    assert dict(data.page.facts)["tokens"] == f"{7 * (N_CTX - 1)} counted in 7 sequences of {N_CTX}"


@pytest.mark.parametrize("name", ["batch_size", "minibatch_size_tokens", "minibatch_size_features"])
def test_sizes_that_cannot_be_meant(tl_models, tokens, name):
    cfg = sae_vis.SaeVisConfig(hook_point=HOOK, features=[1], **{name: 0})
    with pytest.raises(ValueError, match=rf"cfg\.{name} is 0; expected a whole number of at least 1, or None"):
        SaeVisData.create(autoencoder(), tl_models[0], tokens, cfg)


def test_batch_sizes_change_nothing(tl_models, tokens):
    def panels(**sizes):
        cfg = sae_vis.SaeVisConfig(hook_point=HOOK, features=[4, 9, 20], **sizes)
        data = SaeVisData.create(autoencoder(), tl_models[0], tokens, cfg)
        return data, [data.panels[f].sequences[0] for f in (4, 9, 20)]

    want, sequences = panels()
    for sizes in ({"minibatch_size_tokens": 1}, {"minibatch_size_tokens": None, "minibatch_size_features": 1}):
        got, again = panels(**sizes)
        for a, b in zip(sequences, again, strict=True):
            assert [(r.row, r.position) for r in a] == [(r.row, r.position) for r in b]
        for f in (4, 9, 20):
            one, other = (data.feature_data_dict[f].feature_tables_data for data in (want, got))
            assert one.correlated_features_indices == other.correlated_features_indices
            assert set(one.correlated_features_indices) <= {4, 9, 20} - {f}


def test_neurons_of_too_many_features_are_not_gathered_and_the_page_says_so(tl_models, tokens, monkeypatch):
    monkeypatch.setattr("crossvis_tl.sums.PRODUCTS_BUDGET", 100)
    cfg = sae_vis.SaeVisConfig(hook_point=HOOK, features=[4, 9])
    data = SaeVisData.create(autoencoder(), tl_models[0], tokens, cfg)
    tables = data.feature_data_dict[4].feature_tables_data
    assert tables.correlated_neurons_indices == []
    assert tables.correlated_features_indices == [9]
    assert dict(data.page.facts)["correlated neurons"].startswith("not gathered: too many features")
