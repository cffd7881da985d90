"""Stock sae_vis, untouched, gets the right feature activations out of what `attach` gives it."""

import pytest
import sae_vis
import torch
from sae_vis.data_fetching_fns import compute_feat_acts
from sae_vis.model_fns import TransformerLensWrapper

from crossvis_tl import attach, load_dictionary
from tests.conftest import write_clt, write_crosscoder
from tests.test_golden import GOLDEN
from tests.test_models import hf_tensors

FEATURES = [3, 0, 17]


def stock_acts(encoder, model, tokens, features):
    """As `SaeVisData.create` computes them."""
    _, acts = TransformerLensWrapper(model, encoder.hook_point)(tokens, return_logits=False)
    return compute_feat_acts(acts, features, encoder)


def test_two_models_relu(crosscoder_dir, hf_models, tl_models, tokens):
    state = torch.load(crosscoder_dir / "cc_weights.pt", weights_only=True)
    x = [hf_tensors(hf, tokens)[0]["blocks.1.hook_resid_post"] for hf in hf_models]
    pre = sum(torch.einsum("bpd,df->bpf", x[s], state["W_enc"][s]) for s in range(2)) + state["b_enc"]
    encoder, model = attach(load_dictionary(crosscoder_dir), tl_models, FEATURES)
    got = stock_acts(encoder, model, tokens, FEATURES)
    torch.testing.assert_close(got, torch.relu(pre)[..., FEATURES], atol=1e-4, rtol=1e-4)
    assert (got > 0).any()


def test_one_model_several_hooks(tmp_path, hf_models, tl_models, tokens):
    hooks = ["blocks.0.hook_resid_post", "blocks.2.hook_mlp_out", "blocks.1.hook_resid_mid"]
    folder = write_crosscoder(tmp_path / "layers", n_sources=3, hook_point=hooks)
    state = torch.load(folder / "cc_weights.pt", weights_only=True)
    seen, _ = hf_tensors(hf_models[0], tokens)
    pre = sum(torch.einsum("bpd,df->bpf", seen[h], state["W_enc"][s]) for s, h in enumerate(hooks)) + state["b_enc"]
    dictionary = load_dictionary(folder)
    assert dictionary.n_models == 1
    encoder, model = attach(dictionary, tl_models[0], FEATURES)
    got = stock_acts(encoder, model, tokens, FEATURES)
    torch.testing.assert_close(got, torch.relu(pre)[..., FEATURES], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("jumprelu", [True, False])
def test_a_clt(tmp_path, hf_models, tl_models, tokens, jumprelu):
    from safetensors.torch import load_file

    folder = write_clt(tmp_path / "clt", jumprelu=jumprelu)
    seen, _ = hf_tensors(hf_models[1], tokens)
    expected = []
    for i in range(3):
        weights = load_file(folder / f"W_enc_{i}.safetensors")
        pre = seen[f"blocks.{i}.hook_resid_mid"] @ weights[f"W_enc_{i}"].T + weights[f"b_enc_{i}"]
        expected.append(pre * (pre > weights[f"threshold_{i}"]) if jumprelu else torch.relu(pre))
    features = [1, 25, 44]
    encoder, model = attach(load_dictionary(folder), tl_models[1], features)
    got = stock_acts(encoder, model, tokens, features)
    torch.testing.assert_close(got, torch.cat(expected, -1)[..., features], atol=1e-4, rtol=1e-4)


def test_the_whole_stock_call(crosscoder_dir, tl_models, tokens, tmp_path):
    encoder, model = attach(load_dictionary(crosscoder_dir), tl_models, FEATURES)
    cfg = sae_vis.SaeVisConfig(hook_point=encoder.hook_point, features=FEATURES)
    data = sae_vis.SaeVisData.create(encoder=encoder, model=model, tokens=tokens, cfg=cfg)
    assert list(data.feature_data_dict) == FEATURES
    acts = stock_acts(encoder, model, tokens, FEATURES)
    top = data.feature_data_dict[3].sequence_data.seq_group_data[0]
    assert top.title.endswith(f"{acts[..., 0].max():.3f}")
    data.save_feature_centric_vis(tmp_path / "stock.html")
    data.save_prompt_centric_vis('!"#$', tmp_path / "prompt.html", seq_pos=2)
    assert (tmp_path / "prompt.html").stat().st_size > 10_000


def test_the_config_it_offers_has_no_table_of_its_own_features(crosscoder_dir, tl_models, tokens):
    encoder, model = attach(load_dictionary(crosscoder_dir), tl_models, FEATURES)
    cfg = encoder.config(batch_size=4)
    assert (cfg.hook_point, cfg.features, cfg.batch_size) == (encoder.hook_point, FEATURES, 4)
    data = sae_vis.SaeVisData.create(encoder=encoder, model=model, tokens=tokens, cfg=cfg)
    assert not data.feature_data_dict[0].feature_tables_data.correlated_neurons_indices


@pytest.mark.parametrize("which", [0, 1])
def test_logits_are_the_chosen_models(crosscoder_dir, tl_models, tokens, which):
    state = torch.load(crosscoder_dir / "cc_weights.pt", weights_only=True)
    encoder, model = attach(load_dictionary(crosscoder_dir), tl_models, FEATURES, logits_of=which)
    data = sae_vis.SaeVisData.create(encoder=encoder, model=model, tokens=tokens, cfg=encoder.config())
    real = tl_models[which]
    direction = state["W_dec"][17, which]
    logits = ((direction - direction.mean()) * real.ln_final.w) @ real.W_U
    expected = logits.topk(10)
    table = data.feature_data_dict[17].logits_table_data
    assert table.top_token_ids == expected.indices.tolist()
    torch.testing.assert_close(torch.tensor(table.top_logits), expected.values, atol=1e-4, rtol=1e-4)


def test_the_users_models_are_only_read(crosscoder_dir, tl_models, tokens):
    before = [{name: value.clone() for name, value in model.state_dict().items()} for model in tl_models]
    names = [list(model.hook_dict) for model in tl_models]
    logits = [model(tokens) for model in tl_models]
    encoder, model = attach(load_dictionary(crosscoder_dir), tl_models, FEATURES)
    sae_vis.SaeVisData.create(encoder=encoder, model=model, tokens=tokens, cfg=encoder.config())
    for model, state, hooks, expected in zip(tl_models, before, names, logits, strict=True):
        assert list(model.hook_dict) == hooks
        assert not any(point.fwd_hooks or point.ctx for point in model.hook_dict.values())
        assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
        assert torch.equal(model(tokens), expected)


def test_the_prepared_model_is_still_the_model(crosscoder_dir, tl_models, tokens):
    _, model = attach(load_dictionary(crosscoder_dir), tl_models, FEATURES)
    assert torch.equal(model(tokens), tl_models[0](tokens))
    assert torch.equal(model.run_with_cache(tokens)[1]["blocks.0.hook_mlp_out"],
                       tl_models[0].run_with_cache(tokens)[1]["blocks.0.hook_mlp_out"])  # fmt: skip
    assert torch.equal(model.W_E, tl_models[0].W_E)


def test_features_that_were_not_attached_are_named(crosscoder_dir, tl_models, tokens):
    encoder, model = attach(load_dictionary(crosscoder_dir), tl_models, FEATURES)
    cfg = sae_vis.SaeVisConfig(hook_point=encoder.hook_point, features=[5])
    with pytest.raises(ValueError, match=r"features 5 were not attached \(attached: 3, 0, 17\)"):
        sae_vis.SaeVisData.create(encoder=encoder, model=model, tokens=tokens, cfg=cfg)


def test_negative_activations_are_refused(tmp_path, tl_models, tokens):
    from safetensors.torch import load_file, save_file

    folder = write_clt(tmp_path / "clt")
    weights = load_file(folder / "W_enc_0.safetensors")
    weights["threshold_0"] = torch.full_like(weights["threshold_0"], -9.0)
    save_file(weights, folder / "W_enc_0.safetensors")
    encoder, model = attach(load_dictionary(folder), tl_models[1], [0, 1, 2])
    with pytest.raises(ValueError, match=r"cannot show the negative activations.*crossvis_tl\.SaeVisData\.create"):
        stock_acts(encoder, model, tokens, [0])


def test_a_site_without_logit_effects_is_refused(tmp_path, tl_models):
    folder = write_crosscoder(tmp_path / "norm", n_sources=1, hook_point="blocks.1.ln1.hook_normalized")
    with pytest.raises(ValueError, match=r"does not write to the residual stream of base"):
        attach(load_dictionary(folder), tl_models[0], [0])


def test_too_many_features_are_refused(crosscoder_dir, tl_models, monkeypatch):
    monkeypatch.setattr("crossvis_tl.adapter.LARGEST_SELECTION", 39)
    with pytest.raises(ValueError, match=r"40 are too many \(at most 39\)"):
        attach(load_dictionary(crosscoder_dir), tl_models)


def test_what_is_scaled_at_each_token_is_refused(tl_models):
    """Stock sae_vis adds an activation times one direction; a token's own scale has no place in that."""
    path = GOLDEN[0].parent / "f12_openai_topk_ln_rawkeys/checkpoint/6.pt"
    dictionary = load_dictionary(path, input_layer_norm=True, hook_point="blocks.1.hook_mlp_out")
    with pytest.raises(ValueError, match=r"writes is not its activation times a direction"):
        attach(dictionary, tl_models[0], features=[0])
