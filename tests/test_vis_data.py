"""Dashboards against stock sae_vis where it is right, and against brute force where it is not."""

import json

import pytest
import sae_vis
import torch
from sae_vis.data_config_classes import Column, LogitsTableConfig
from sae_vis.model_fns import AutoEncoder, AutoEncoderConfig

from crossvis_tl import CrossvisWarning, SaeVisData, gather, load_dictionary
from crossvis_tl.geometry import site_geometry
from crossvis_tl.logit_effects import residual_written
from crossvis_tl.page_data import feature_page
from crossvis_tl.unembed import unembedding
from tests.conftest import D_MODEL, N_LAYERS, write_crosscoder

pytestmark = pytest.mark.filterwarnings("ignore::crossvis_tl.CrossvisWarning")
HOOK = "blocks.1.hook_resid_post"


def autoencoder(seed: int = 9, features: int = 32) -> AutoEncoder:
    torch.manual_seed(seed)
    encoder = AutoEncoder(AutoEncoderConfig(d_in=D_MODEL, d_hidden=features))
    with torch.no_grad():
        encoder.W_enc.copy_(0.5 * torch.randn_like(encoder.W_enc))
        encoder.b_enc.copy_(torch.randn_like(encoder.b_enc) * 0.5 - 0.5)
        encoder.b_dec.copy_(torch.randn_like(encoder.b_dec) * 0.1)
    return encoder.requires_grad_(False)


@pytest.fixture(scope="module")
def both(tl_models, tokens):
    """Stock's result and ours for the same call, nothing masked. Stock's W_U is ours, folded; its model has no biases
    after the norm, so that the logits it leaves them out of are the model's."""
    model = tl_models[0]
    encoder = autoencoder()
    cfg = sae_vis.SaeVisConfig(hook_point=HOOK, features=[0, 4, 9, 31], seed=3)
    ours = SaeVisData.create(encoder=encoder, model=model, tokens=tokens, cfg=cfg, masking="none")
    raw = model.unembed.W_U.data
    model.unembed.W_U.data = unembedding(model).W
    stock = sae_vis.SaeVisData.create(encoder=encoder, model=model, tokens=tokens, cfg=cfg)
    model.unembed.W_U.data = raw
    return stock, ours


def features_of(both):
    stock, ours = both
    return [(stock.feature_data_dict[f], ours.feature_data_dict[f]) for f in stock.feature_data_dict]


def test_histograms_and_density_are_stocks(both):
    for stock, ours in features_of(both):
        assert ours.acts_histogram_data.bar_heights == stock.acts_histogram_data.bar_heights
        assert ours.acts_histogram_data.bar_values == pytest.approx(stock.acts_histogram_data.bar_values, abs=2e-4)
        assert ours.acts_histogram_data.title == stock.acts_histogram_data.title
        assert ours.logits_histogram_data.bar_heights == stock.logits_histogram_data.bar_heights


def test_logit_tables_are_stocks(both):
    for stock, ours in features_of(both):
        for side in ("top", "bottom"):
            ids, values = f"{side}_token_ids", f"{side}_logits"
            assert getattr(ours.logits_table_data, ids) == getattr(stock.logits_table_data, ids)
            expected = pytest.approx(getattr(stock.logits_table_data, values), abs=1e-4)
            assert getattr(ours.logits_table_data, values) == expected


def test_feature_tables_are_stocks(both):
    for stock, ours in features_of(both):
        got, want = ours.feature_tables_data, stock.feature_tables_data
        _drop_itself(want)
        assert got.neuron_alignment_indices == want.neuron_alignment_indices
        assert got.neuron_alignment_l1 == pytest.approx(want.neuron_alignment_l1, abs=1e-5)
        assert got.correlated_neurons_indices == want.correlated_neurons_indices
        assert got.correlated_neurons_pearson == pytest.approx(want.correlated_neurons_pearson, abs=1e-4)
        n = len(want.correlated_features_indices)
        assert n >= 2
        assert got.correlated_features_indices[:n] == want.correlated_features_indices
        assert got.correlated_features_pearson[:n] == pytest.approx(want.correlated_features_pearson, abs=1e-4)
        assert got.correlated_features_cossim[:n] == pytest.approx(want.correlated_features_cossim, abs=1e-4)


def _drop_itself(table) -> None:
    """Stock gives a feature's correlation with itself as 0 and then lists it among its partners where others are
    negative."""
    kept = [i for i, value in enumerate(table.correlated_features_pearson) if value != 0]
    for part in ("indices", "pearson", "cossim"):
        values = getattr(table, f"correlated_features_{part}")
        setattr(table, f"correlated_features_{part}", [values[i] for i in kept])


def test_quantiles_are_stocks(both):
    stock, ours = both
    assert ours.feature_stats.max == pytest.approx(stock.feature_stats.max, abs=1e-5)
    assert ours.feature_stats.frac_nonzero == pytest.approx(stock.feature_stats.frac_nonzero)
    for got, want in zip(ours.feature_stats.quantile_data, stock.feature_stats.quantile_data, strict=True):
        assert got == pytest.approx(want, abs=1e-4)


def test_interval_bounds_are_stocks_and_the_examples_lie_in_them(both):
    stock, ours = both
    for feature, panel in ours.panels.items():
        groups = ours.feature_data_dict[feature].sequence_data.seq_group_data
        theirs = stock.feature_data_dict[feature].sequence_data.seq_group_data
        titles = [group.title.split("<br>")[0] for group in groups]
        assert titles == [group.title.split("<br>")[0] for group in theirs]
        for group, records in zip(groups[1:], panel.sequences[1:], strict=True):
            low, high = (float(part) for part in group.title.split("<br>")[0].removeprefix("INTERVAL ").split(" - "))
            for sequence, record in zip(group.seq_data, records, strict=True):
                assert low - 1e-3 <= sequence.feat_acts[record.bold] <= high + 1e-3


def test_intervals_hold_the_tokens_that_stocks_hold(both, tl_models, tokens):
    """Both draw at random, so what they draw from is compared: the share that the titles give, and that every token
    stock drew is one ours could have drawn. Stock's lowest interval counts the silent tokens too, ours does not."""
    stock, ours = both
    acts = gather(autoencoder(), tl_models[0], tokens, [0, 4, 9, 31], hook_point=HOOK, masking="none")
    flat, drawn = tokens.flatten(), 0
    for i, feature in enumerate((0, 4, 9, 31)):
        where, values = acts.of(i)
        groups = ours.feature_data_dict[feature].sequence_data.seq_group_data
        theirs = stock.feature_data_dict[feature].sequence_data.seq_group_data
        assert [group.title for group in groups[:-1]] == [group.title for group in theirs[:-1]]
        for group, bounds in zip(theirs[1:-1], ours.panels[feature].bounds[1:-1], strict=True):
            eligible = where[(values >= bounds[0]) & (values <= bounds[1])]
            assert bounds[2] == pytest.approx(len(eligible) / tokens.numel())
            windows = {tuple(flat[p - 5 : p + 6].tolist()) for p in eligible.tolist()}
            assert all(tuple(sequence.token_ids) in windows for sequence in group.seq_data)
            drawn += len(group.seq_data)
        silent = 1 - len(values) / tokens.numel()
        lowest, counted = (float(g[-1].title.split("CONTAINS ")[1].rstrip("%")) / 100 for g in (groups, theirs))
        assert lowest == pytest.approx(counted - silent, abs=2e-5)
    assert drawn > 40


def test_top_examples_and_their_effects_are_stocks(both):
    """Stock looks only where a whole window fits; there, tokens, activations and effects must be its own. It divides by
    the standard deviation with n - 1, without eps, and leaves biases out: 3 % of 16 dimensions' scale."""
    stock, ours = both
    compared = 0
    for feature, theirs in stock.feature_data_dict.items():
        found = {
            tuple(s.token_ids): s
            for g in ours.feature_data_dict[feature].sequence_data.seq_group_data
            for s in g.seq_data
        }
        for sequence in theirs.sequence_data.seq_group_data[0].seq_data:
            mine = found.get(tuple(sequence.token_ids))
            if mine is None:
                continue
            compared += 1
            assert mine.feat_acts == pytest.approx(sequence.feat_acts, abs=2e-4)
            assert mine.token_logits == pytest.approx(sequence.token_logits, abs=2e-4)
            for got, want in zip(mine.top_logits, sequence.top_logits, strict=True):
                assert got == pytest.approx(want, rel=0.08, abs=5e-3)
    assert compared > 20


def test_the_effect_is_the_models_own(both, tl_models, tokens):
    """By brute force: take the contribution out of the final residual stream, unembed with the model itself."""
    _, ours = both
    model, encoder = tl_models[0], autoencoder()
    final = f"blocks.{N_LAYERS - 1}.hook_resid_post"
    _, cache = model.run_with_cache(tokens)
    acts = torch.relu((cache[HOOK] - encoder.b_dec) @ encoder.W_enc + encoder.b_enc)
    checked = 0
    for feature, panel in ours.panels.items():
        without = cache[final] - acts[..., feature, None] * encoder.W_dec[feature]
        before = model.unembed(model.ln_final(cache[final])).log_softmax(-1)
        after = model.unembed(model.ln_final(without)).log_softmax(-1)
        data = ours.feature_data_dict[feature].sequence_data.seq_group_data
        for group, records in zip(data, panel.sequences, strict=True):
            for sequence, record in zip(group.seq_data, records, strict=True):
                start = record.position - record.bold
                for i, (token, loss) in enumerate(zip(sequence.token_ids, sequence.loss_contribution, strict=True)):
                    p = start + i
                    assert token == tokens[record.row, p]
                    assert sequence.feat_acts[i] == pytest.approx(acts[record.row, p, feature].item(), abs=1e-4)
                    if p == 0:
                        continue
                    change = before[record.row, p - 1] - after[record.row, p - 1]
                    assert loss == pytest.approx(-change[token].item(), abs=2e-4)
                    if acts[record.row, p - 1, feature] > 1e-3:
                        assert sequence.top_logits[i] == pytest.approx(change.topk(5).values.tolist(), abs=2e-4)
                        bottom = change.topk(5, largest=False).values.tolist()
                        assert sequence.bottom_logits[i] == pytest.approx(bottom, abs=2e-4)
                        checked += 1
    assert checked > 50


def test_top_activations_are_the_highest(both, tl_models, tokens):
    _, ours = both
    _, cache = tl_models[0].run_with_cache(tokens)
    encoder = autoencoder()
    acts = torch.relu((cache[HOOK] - encoder.b_dec) @ encoder.W_enc + encoder.b_enc)
    for feature, panel in ours.panels.items():
        expected = acts[..., feature].flatten().topk(20).values
        shown = torch.stack([acts[r.row, r.position, feature] for r in panel.sequences[0]])
        torch.testing.assert_close(shown, expected[expected > 0][: len(shown)])
        assert panel.maximum == pytest.approx(acts[..., feature].max().item(), abs=1e-5)


def test_masked_tokens_are_in_no_statistic(tl_models, tokens):
    model, encoder = tl_models[0], autoencoder()
    cfg = sae_vis.SaeVisConfig(hook_point=HOOK, features=[0, 4])
    data = SaeVisData.create(encoder, model, tokens, cfg)
    _, cache = model.run_with_cache(tokens)
    acts = torch.relu((cache[HOOK] - encoder.b_dec) @ encoder.W_enc + encoder.b_enc)[:, 1:]
    assert data.panels[4].density == pytest.approx((acts[..., 4] > 0).float().mean().item())
    assert data.panels[4].maximum == pytest.approx(acts[..., 4].max().item(), abs=1e-5)
    assert ["masked", "BOS (12 tokens), padding (0 tokens)"] in data.page.facts
    shown = [r.position for group in data.panels[4].sequences for r in group]
    assert 0 not in shown


def test_fidelity_is_measured_on_these_tokens(crosscoder_dir, tl_models, tokens):
    dictionary = load_dictionary(crosscoder_dir)
    with pytest.warns(CrossvisWarning, match=r"implausible: FVU .* L0 .* of the variance is not explained"):
        data = SaeVisData.create(dictionary, tl_models, tokens, sae_vis.SaeVisConfig(features=[1]))
    x = [m.run_with_cache(tokens)[1][HOOK][:, 1:].flatten(0, 1) for m in tl_models]
    acts = dictionary.encode(x)
    for site, target, recon in zip(data.page.fidelity["sites"], x, dictionary.decode(acts), strict=True):
        fvu = (target - recon).pow(2).sum() / (target - target.mean(0)).pow(2).sum()
        assert site["fvu"] == pytest.approx(fvu.item(), rel=1e-4)
    assert data.page.fidelity["l0"] == pytest.approx((acts != 0).sum(-1).float().mean().item(), rel=1e-5)
    assert data.page.fidelity["dead"] == pytest.approx(1 - (acts != 0).any(0).float().mean().item())


def test_each_model_has_its_own_effects(crosscoder_dir, tl_models, tokens):
    state = torch.load(crosscoder_dir / "cc_weights.pt", weights_only=True)
    dictionary = load_dictionary(crosscoder_dir)
    data = SaeVisData.create(dictionary, tl_models, tokens, sae_vis.SaeVisConfig(features=[12]))
    panel = data.panels[12]
    caches = [m.run_with_cache(tokens)[1] for m in tl_models]
    acts = dictionary.encode([cache[HOOK] for cache in caches])[..., 12]
    record = panel.sequences[0][0]
    p = record.position
    for m, model in enumerate(tl_models):
        direction = state["W_dec"][12, m]
        table = panel.logits[m].table
        expected = unembedding(model).project(direction).topk(10)
        assert table.top_token_ids == expected.indices.tolist()
        final = caches[m][f"blocks.{N_LAYERS - 1}.hook_resid_post"][record.row, p]
        before = model.unembed(model.ln_final(final[None, None]))[0, 0].log_softmax(-1)
        after = model.unembed(model.ln_final((final - acts[record.row, p] * direction)[None, None]))[0, 0].log_softmax(
            -1
        )
        following = tokens[record.row, p + 1]
        assert record.effects[m].loss[record.bold + 1] == pytest.approx((after - before)[following].item(), abs=2e-4)


def test_a_clts_effect_is_the_sum_of_all_its_decoders(clt_dir, tl_models, tokens):
    dictionary = load_dictionary(clt_dir)
    data = SaeVisData.create(dictionary, tl_models[1], tokens, sae_vis.SaeVisConfig(features=[2, 27, 45]))
    assert [data.panels[f].label for f in (2, 27, 45)] == ["L0F2", "L1F7", "L2F5"]
    assert [data.panels[f].geometry.targets for f in (2, 27, 45)] == [[0, 1, 2], [1, 2], [2]]
    for feature in (2, 27, 45):
        written = sum(dictionary.decoder(torch.tensor([feature]), t)[0] for t in range(N_LAYERS))
        expected = unembedding(tl_models[1]).project(written).topk(10)
        assert data.panels[feature].logits[0].table.top_token_ids == expected.indices.tolist()


def test_json_round_trip(crosscoder_dir, tl_models, tokens, tmp_path):
    data = SaeVisData.create(load_dictionary(crosscoder_dir), tl_models, tokens, sae_vis.SaeVisConfig(features=[3, 5]))
    data.save_json(tmp_path / "d.json")
    again = SaeVisData.load_json(tmp_path / "d.json")
    assert again.panels == data.panels
    assert again.page == data.page
    assert again.feature_stats == data.feature_stats
    assert again.feature_data_dict[3].sequence_data == data.feature_data_dict[3].sequence_data
    (head, payloads), (head_again, payloads_again) = feature_page(data, None), feature_page(again, None)
    assert head_again == head
    assert list(payloads_again) == list(payloads)
    again.save_feature_centric_vis(tmp_path / "again.html")


def test_stock_reads_its_part_of_the_json(crosscoder_dir, tl_models, tokens, tmp_path):
    data = SaeVisData.create(load_dictionary(crosscoder_dir), tl_models, tokens, sae_vis.SaeVisConfig(features=[3]))
    data.save_json(tmp_path / "d.json")
    stock = sae_vis.SaeVisData.load_json(tmp_path / "d.json", data.cfg, tl_models[0], None, None)
    assert stock.feature_data_dict[3].logits_table_data == data.feature_data_dict[3].logits_table_data


def test_json_of_another_kind_or_version_is_refused(tmp_path):
    (tmp_path / "x.json").write_text("{}")
    with pytest.raises(ValueError, match=r"holds no crossvis_tl dashboards"):
        SaeVisData.load_json(tmp_path / "x.json")
    (tmp_path / "x.json").write_text(json.dumps({"crossvis_tl": {"version": 99}}))
    with pytest.raises(ValueError, match=r"is of version 99; this crossvis_tl reads version 3"):
        SaeVisData.load_json(tmp_path / "x.json")


def test_encoder_b_is_correlated_with_its_own_bias(tl_models, tokens):
    encoder, other = autoencoder(9), autoencoder(10)
    cfg = sae_vis.SaeVisConfig(hook_point=HOOK, features=[4])
    data = SaeVisData.create(encoder, tl_models[0], tokens, cfg, other, masking="none")
    x = tl_models[0].run_with_cache(tokens)[1][HOOK].flatten(0, 1)
    a = torch.relu((x - encoder.b_dec) @ encoder.W_enc + encoder.b_enc)[:, 4]
    b = torch.relu((x - other.b_dec) @ other.W_enc + other.b_enc)
    pearson = torch.corrcoef(torch.cat([a[None], b.T]))[0, 1:].nan_to_num(-1)
    table = data.feature_data_dict[4].feature_tables_data
    assert table.correlated_b_features_indices == pearson.topk(3).indices.tolist()
    assert table.correlated_b_features_pearson == pytest.approx(pearson.topk(3).values.tolist(), abs=1e-4)


def test_a_foreign_module_keeps_its_weights(tl_models, tokens):
    """Stock swaps the weights of an encoder that is no AutoEncoder for random ones."""
    encoder = autoencoder()
    foreign = torch.nn.Module()
    for name in ("W_enc", "W_dec", "b_enc", "b_dec"):
        setattr(foreign, name, torch.nn.Parameter(getattr(encoder, name).clone()))
    cfg = sae_vis.SaeVisConfig(hook_point=HOOK, features=[4])
    ours = [SaeVisData.create(e, tl_models[0], tokens, cfg).panels[4] for e in (encoder, foreign)]
    assert ours[0] == ours[1]


def test_a_sae_lens_sae(tl_models, tokens):
    from sae_lens import StandardSAE, StandardSAEConfig

    encoder = autoencoder()
    sae = StandardSAE(
        StandardSAEConfig(d_in=D_MODEL, d_sae=32, device="cpu", dtype="float32", apply_b_dec_to_input=True)
    )
    sae.cfg.metadata.hook_name = HOOK
    sae.load_state_dict({name: getattr(encoder, name) for name in ("W_enc", "W_dec", "b_enc", "b_dec")})
    cfg = sae_vis.SaeVisConfig(features=[4])
    got = SaeVisData.create(sae, tl_models[0], tokens, cfg)
    want = SaeVisData.create(encoder, tl_models[0], tokens, sae_vis.SaeVisConfig(hook_point=HOOK, features=[4]))
    assert got.panels[4].maximum == pytest.approx(want.panels[4].maximum, abs=1e-5)
    assert got.panels[4].logits[0].table.top_token_ids == want.panels[4].logits[0].table.top_token_ids


def test_a_dead_feature_is_shown_as_such(tmp_path, crosscoder_dir, tl_models, tokens):
    state = torch.load(crosscoder_dir / "cc_weights.pt", weights_only=True)
    state["b_enc"][7] = -1e6
    torch.save(state, crosscoder_dir / "cc_weights.pt")
    data = SaeVisData.create(load_dictionary(crosscoder_dir), tl_models, tokens, sae_vis.SaeVisConfig(features=[7, 8]))
    assert data.panels[7].density == 0
    assert data.panels[7].maximum == 0
    assert data.feature_data_dict[7].sequence_data.seq_group_data == []
    data.save_feature_centric_vis(tmp_path / "p.html")
    data.save_prompt_centric_vis("!!", tmp_path / "q.html")


def test_examples_do_not_depend_on_the_company(crosscoder_dir, tl_models, tokens):
    dictionary = load_dictionary(crosscoder_dir)
    alone = SaeVisData.create(dictionary, tl_models, tokens, sae_vis.SaeVisConfig(features=[5], seed=2))
    among = SaeVisData.create(dictionary, tl_models, tokens, sae_vis.SaeVisConfig(features=[9, 5, 1], seed=2))
    assert alone.panels[5].sequences == among.panels[5].sequences


def test_batches_do_not_change_the_result(crosscoder_dir, tl_models, tokens):
    dictionary = load_dictionary(crosscoder_dir)
    cfgs = [sae_vis.SaeVisConfig(features=[5], minibatch_size_tokens=n) for n in (1, 5, 64)]
    results = [SaeVisData.create(dictionary, tl_models, tokens, cfg) for cfg in cfgs]
    for other in results[1:]:
        assert other.panels[5].maximum == pytest.approx(results[0].panels[5].maximum, rel=1e-5)
        assert other.page.fidelity["l0"] == results[0].page.fidelity["l0"]
        rows = [[(r.row, r.position) for r in group] for group in other.panels[5].sequences]
        assert rows == [[(r.row, r.position) for r in group] for group in results[0].panels[5].sequences]


def test_a_second_pass_gives_the_same_effects(crosscoder_dir, tl_models, tokens, monkeypatch):
    """Final residual streams are kept while they fit in memory; past that the shown sequences are run again."""
    dictionary = load_dictionary(crosscoder_dir)
    cfg = sae_vis.SaeVisConfig(features=[5, 12])
    kept = SaeVisData.create(dictionary, tl_models, tokens, cfg)
    monkeypatch.setattr("crossvis_tl.gathering.FINAL_BUDGET", 0)
    again = SaeVisData.create(dictionary, tl_models, tokens, cfg)
    for feature in (5, 12):
        for one, other in zip(kept.panels[feature].sequences, again.panels[feature].sequences, strict=True):
            for a, b in zip(one, other, strict=True):
                assert (a.row, a.position) == (b.row, b.position)
                for m in (0, 1):
                    assert a.effects[m].loss == pytest.approx(b.effects[m].loss, abs=2e-4)


def test_another_seed_gives_other_examples(crosscoder_dir, tl_models, tokens):
    dictionary = load_dictionary(crosscoder_dir)

    def positions(seed: int) -> list:
        cfg = sae_vis.SaeVisConfig(features=[0], seed=seed)
        data = SaeVisData.create(dictionary, tl_models, tokens, cfg)
        return [[(r.row, r.position) for r in group] for group in data.panels[0].sequences]

    assert positions(1) == positions(1)
    assert positions(1)[0] == positions(7)[0]
    assert positions(1) != positions(7)


def test_relative_norms_are_in_training_units(tmp_path, tl_models, tokens):
    """Folding a factor per source into the weights must not change which model a feature is said to live in."""
    scales = [0.25, 4.0]
    plain = load_dictionary(write_crosscoder(tmp_path / "a"))
    folded = load_dictionary(write_crosscoder(tmp_path / "b", input_scale_folded=False), input_scale=scales)
    features = torch.arange(plain.n_features)
    want, got = (site_geometry(d, features, ["base", "tuned"]) for d in (plain, folded))
    assert [g.relative_norm for g in got] == pytest.approx([g.relative_norm for g in want], abs=1e-4)
    assert folded.decoder(features, 1).norm() != pytest.approx(plain.decoder(features, 1).norm().item(), rel=0.5)


def test_wrapped_files_are_of_huggingface_activations(tmp_path):
    folder = write_crosscoder(tmp_path / "a", processing="none")
    cfg = json.loads((folder / "cfg.json").read_text())
    del cfg["processing"]
    (folder / "cfg.json").write_text(json.dumps(cfg))
    assert load_dictionary(folder).sources[0].processing == "tl_default"
    state = torch.load(folder / "cc_weights.pt", weights_only=True)
    torch.save({"model_state_dict": state}, folder / "cc_weights.pt")
    cfg["batch_topk"] = None
    (folder / "cfg.json").write_text(json.dumps(cfg))
    assert load_dictionary(folder).sources[0].processing == "none"
    assert load_dictionary(folder, processing="tl_default").sources[0].processing == "tl_default"


def test_the_deepest_residual_site_is_the_effect(tmp_path, tl_models):
    hooks = ["blocks.2.hook_resid_post", "blocks.0.hook_resid_post"]
    dictionary = load_dictionary(write_crosscoder(tmp_path / "c", hook_point=hooks))
    features = torch.arange(3)
    direction = residual_written(dictionary, features, tl_models[0], 0)
    assert torch.equal(direction.direction, dictionary.decoder(features, 0))


def test_the_verdict_is_printed_where_it_may_speak_and_nothing_where_not(crosscoder_dir, tl_models, tokens, capsys):
    dictionary = load_dictionary(crosscoder_dir)
    SaeVisData.create(dictionary, tl_models, tokens, sae_vis.SaeVisConfig(features=[0]))
    assert not any(capsys.readouterr())
    SaeVisData.create(dictionary, tl_models, tokens, sae_vis.SaeVisConfig(features=[0], verbose=True))
    printed = capsys.readouterr().out
    assert printed.startswith("fidelity implausible: FVU")
    assert "FVU" in printed.splitlines()[1]
    assert "warning:" in printed


def test_tokens_of_any_integer_type_will_do(crosscoder_dir, tl_models, tokens):
    dictionary = load_dictionary(crosscoder_dir)
    cfg = sae_vis.SaeVisConfig(features=[5])
    want = SaeVisData.create(dictionary, tl_models, tokens, cfg)
    for dtype in (torch.uint16, torch.int32):
        assert SaeVisData.create(dictionary, tl_models, tokens.to(dtype), cfg).panels == want.panels


def test_a_layout_may_leave_components_out(crosscoder_dir, tl_models, tokens, tmp_path):
    layout = sae_vis.SaeVisLayoutConfig([Column(LogitsTableConfig(n_rows=3))], height=400)
    cfg = sae_vis.SaeVisConfig(features=[5], feature_centric_layout=layout)
    data = SaeVisData.create(load_dictionary(crosscoder_dir), tl_models, tokens, cfg)
    assert len(data.panels[5].logits[1].table.top_logits) == 3
    assert data.panels[5].sequences == []
    data.save_feature_centric_vis(tmp_path / "p.html")
