"""Readers of layered dictionaries: what they say of damaged, incomplete and contradicting files, and what they feed."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from crossvis_tl import CrossvisWarning, SaeVisData, load_dictionary
from crossvis_tl.activation_fns import TopK
from tests.conftest import D_MODEL, N_LAYERS

GOLDEN = Path(__file__).parent / "golden"
GEMMA_CLT = "checkpoint/clt/width_120_l0_medium_affine"
GEMMA_CROSSCODER = "checkpoint/crosscoder/layer_7_13_17_22_width_160_l0_medium"


def copied(tmp_path: Path, name: str, inside: str = "checkpoint") -> Path:
    target = tmp_path / Path(inside).name
    shutil.copytree(GOLDEN / name / inside, target)
    return target


def change(file: Path, **tensors: torch.Tensor | None) -> None:
    """Writes the file again with these tensors put in, or taken out for None."""
    state = load_file(file) | tensors
    save_file({name: tensor.contiguous() for name, tensor in state.items() if tensor is not None}, file)


@given(st.integers(1, 9), st.booleans(), st.integers(0, 2**31))
@settings(max_examples=40, deadline=None)
def test_topk_keeps_the_largest(k, relu, seed):
    pre = torch.randn(5, 12, generator=torch.Generator().manual_seed(seed))
    got = TopK(k, relu)(pre)
    kept = pre >= pre.sort(-1, descending=True).values[:, k - 1 : k]
    want = torch.where(kept, pre, torch.zeros(()))
    assert torch.equal(got, torch.relu(want) if relu else want)


def test_a_skip_connection_asks_for_the_inputs():
    dictionary = load_dictionary(GOLDEN / "f6_plt_jumprelu_skip/checkpoint")
    inputs = [torch.randn(4, 16) for _ in range(3)]
    acts = dictionary.encode(inputs)
    with pytest.raises(ValueError, match=r"has a skip connection.*give decode\(features, inputs\)"):
        dictionary.decode(acts)
    with pytest.raises(ValueError, match=r"3 here; got 2 tensors"):
        dictionary.decode(acts, inputs[:2])
    without = replace(dictionary, skip={}).decode(acts)
    state = load_file(GOLDEN / "f6_plt_jumprelu_skip/checkpoint/layer_1.safetensors")
    passed = dictionary.decode(acts, inputs)[1] - without[1]
    torch.testing.assert_close(passed, inputs[1] @ state["W_skip"].T, atol=1e-5, rtol=1e-5)


def test_gemma_scope_says_where_it_reads():
    """HuggingFace paths with the layer put in; a CLT's feature writes to its own layer and the later ones."""
    clt = load_dictionary(GOLDEN / "f4_gs2_clt_affine" / GEMMA_CLT)
    assert clt.sources[2].place == "model.layers.2.pre_feedforward_layernorm.output"
    assert clt.writes(clt.find("L1F3")) == [1, 2]
    crosscoder = load_dictionary(GOLDEN / "f4_gs2_crosscoder" / GEMMA_CROSSCODER)
    assert (crosscoder.kind, crosscoder.n_models, crosscoder.n_features) == ("crosscoder", 1, 160)
    assert [site.layer for site in crosscoder.sources] == [7, 13, 17, 22]
    assert crosscoder.label(45) == "L13F5"


def test_gemma_scope_without_its_folders_name_asks_for_the_layers(tmp_path):
    folder = copied(tmp_path, "f4_gs2_crosscoder", GEMMA_CROSSCODER).rename(tmp_path / "download")
    with pytest.raises(ValueError, match=r"does not say which layers it reads; pass layers=\[\.\.\.\], 4 numbers"):
        load_dictionary(folder)
    assert [s.layer for s in load_dictionary(folder, layers=[7, 13, 17, 22]).sources] == [7, 13, 17, 22]
    with pytest.raises(ValueError, match=r"layers names 2 layers"):
        load_dictionary(folder, layers=[7, 13])


def gemma_width(folder):
    cfg = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(cfg | {"width": 99}))


def forge_layers(folder):
    cfg = json.loads((folder / "clt_cfg.json").read_text())
    (folder / "clt_cfg.json").write_text(json.dumps(cfg | {"n_layers": 7}))


ZEROS = torch.zeros(3)
DAMAGE = {
    "a gap": ("f4_gs2_clt_affine", GEMMA_CLT, lambda p: (p / "params_layer_1.safetensors").unlink(),
              r"lacks params_layer_1\.safetensors; was the download complete"),
    "no config": ("f4_gs2_clt_affine", GEMMA_CLT, lambda p: (p / "config.json").unlink(), r"lacks config\.json"),
    "another width": ("f4_gs2_clt_affine", GEMMA_CLT, gemma_width, r"says width = 99, but there are 120 features"),
    "no threshold": ("f4_gs2_clt_affine", GEMMA_CLT, lambda p: change(p / "params_layer_0.safetensors", threshold=None),
                     r"params_layer_0\.safetensors lacks the tensor threshold"),
    "a short decoder": ("f4_gs2_clt_affine", GEMMA_CLT,
                        lambda p: change(p / "params_layer_0.safetensors", w_dec=torch.zeros(40, 2, 16) + 1),
                        r"w_dec is \(40, 2, 16\); expected \(40, 3, 16\)"),
    "a set with a gap": ("f6_plt_topk", "checkpoint", lambda p: (p / "layer_1.safetensors").unlink(),
                         r"with gaps between"),
    "an integer encoder": ("f6_plt_topk", "checkpoint",
                           lambda p: change(p / "layer_1.safetensors", W_enc=torch.ones(40, 16, dtype=torch.int32)),
                           r"W_enc holds torch\.int32 numbers"),
    "an unknown activation": ("f6_plt_topk", "checkpoint",
                              lambda p: (p / "config.yaml").write_text("activation: gelu\n"),
                              r"activation='gelu'; expected one of relu, jumprelu, topk"),
    "no k": ("f6_plt_topk", "checkpoint", lambda p: (p / "config.yaml").write_text("activation: topk\n"),
             r"does not say k, how many features fire.*pass k=\.\.\."),
    "a threshold against the config": ("f6_plt_jumprelu_skip", "checkpoint",
                                       lambda p: (p / "config.yaml").write_text("activation: relu\n"),
                                       r"activation 'relu', but the files hold thresholds"),
    "an npz that is none": ("f6_gemmascope1_npz", "checkpoint",
                            lambda p: next(p.glob("layer_1/**/params.npz")).write_bytes(b"PK"), r"no readable \.npz"),
    "two of a layer": ("f6_gemmascope1_npz", "checkpoint",
                       lambda p: shutil.copytree(p / "layer_1/width_16k/average_l0_6", p / "layer_1/width_16k/other"),
                       r"layer 1 has 2 transcoders"),
    "a missing rank": ("f10_cltforge_sharded", "checkpoint", lambda p: (p / "rank0_clt_weights.safetensors").unlink(),
                       r"lacks rank0_clt_weights\.safetensors"),
    "other layers than said": ("f10_cltforge", "checkpoint", forge_layers,
                               r"says n_layers = 7.*in the weights it is 3"),
    "a factor of zero": ("f10_cltforge", "checkpoint",
                         lambda p: change(p / "clt_weights.safetensors", estimated_norm_scaling_factor_in=ZEROS),
                         r"a scaling factor is not positive"),
    "NaN": ("f10_cltforge", "checkpoint",
            lambda p: change(p / "clt_weights.safetensors", b_enc=torch.full((3, 40), float("nan"))), r"holds NaN"),
    "half a standardizer": ("f9_clt_jumprelu_unfolded", "checkpoint",
                            lambda p: change(p / "checkpoint.safetensors", **{"input_standardizer.std": None}),
                            r"holds one of input_standardizer\.mean and input_standardizer\.std"),
    "no nonlinearity": ("f9_clt_topk", "checkpoint", lambda p: (p / "config.yaml").unlink(),
                        r"pass activation='relu', or activation='topk' and k="),
    "a missing decoder": ("f9_clt_topk", "checkpoint",
                          lambda p: change(p / "checkpoint.safetensors", **{"decoder.W_2": None}),
                          r"lacks the tensor decoder\.W_2"),
}  # fmt: skip


@pytest.mark.parametrize("what", DAMAGE)
def test_what_is_wrong_is_said(what, tmp_path):
    name, inside, damage, text = DAMAGE[what]
    folder = copied(tmp_path, name, inside)
    load_dictionary(folder)
    damage(folder)
    with pytest.raises((ValueError, FileNotFoundError), match=text):
        load_dictionary(folder)


def test_facts_stand_in_for_a_lost_config(tmp_path):
    folder = copied(tmp_path, "f9_clt_topk")
    whole = load_dictionary(folder)
    (folder / "config.yaml").unlink()
    told = load_dictionary(folder, activation="topk", k=5)
    inputs = [torch.randn(4, 16) for _ in range(3)]
    assert torch.equal(told.encode(inputs), whole.encode(inputs))


def change_pt(file: Path, **tensors: torch.Tensor) -> None:
    torch.save(torch.load(file, weights_only=True) | tensors, file)


@pytest.mark.parametrize(
    ("tensors", "text"),
    [
        ({"code_normalization_id": torch.tensor(9)}, r"code_normalization_id = 9; known are 1, 2, 3, 4, 5"),
        (
            {"code_normalization_id": torch.tensor(5)},
            r"its config says code_normalization = CROSSCODER, but the weights DECOUPLED",
        ),
        ({"threshold": torch.ones(2)}, r"threshold is \(2,\); expected 1 number"),
        ({"activation_std": torch.zeros(2, 16)}, None),
        ({"activation_mean": torch.full((2, 16), float("inf"))}, r"the normaliser's mean or deviation is not finite"),
        ({"decoder.bias": torch.zeros(2, 3)}, r"decoder\.bias is \(2, 3\); expected \(2, 16\)"),
        ({"encoder.bias": torch.full((40,), float("nan"))}, r"'encoder\.bias' holds NaN"),
    ],
)
def test_a_damaged_dictionary_learning_file(tmp_path, tensors, text):
    folder = copied(tmp_path, "f2_batchtopk_norm_pt")
    change_pt(folder / "model_final.pt", **tensors)
    if text is None:
        assert torch.isfinite(load_dictionary(folder).groups[0].b_enc).all()
        return
    with pytest.raises(ValueError, match=text):
        load_dictionary(folder)


def test_a_dictionary_learning_config_that_says_otherwise(tmp_path):
    folder = copied(tmp_path, "f2_batchtopk_norm_pt")
    cfg = json.loads((folder / "config.json").read_text())
    cfg["trainer"]["dict_size"] = 64
    (folder / "config.json").write_text(json.dumps(cfg))
    with pytest.raises(ValueError, match=r"says dict_size = 64, but in the weights it is 40"):
        load_dictionary(folder)


@pytest.mark.parametrize(
    ("change_cfg", "text"),
    [
        ({"architecture": "jumprelo"}, r"no architecture 'jumprelo'.*Did you mean 'jumprelu'"),
        ({"d_sae": 41}, r"says d_sae = 41, but in sae_weights\.safetensors it is 40"),
        ({"d_in": "sixteen"}, r"says d_in = sixteen, but"),
        ({"architecture": "jumprelu"}, r"sae_lens cannot load it"),
    ],
)
def test_a_sae_lens_config_that_does_not_fit(tmp_path, change_cfg, text):
    folder = copied(tmp_path, "f13_standard_sae")
    cfg = json.loads((folder / "cfg.json").read_text())
    (folder / "cfg.json").write_text(json.dumps(cfg | change_cfg))
    with pytest.raises(ValueError, match=text):
        load_dictionary(folder)
    (folder / "cfg.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"lacks cfg\.json"):
        load_dictionary(folder)


def test_what_normalises_every_token_asks_for_the_inputs():
    """sae_lens keeps the scales of what it encoded last; another batch's would be wrong without a word."""
    dictionary = load_dictionary(GOLDEN / "f13_standard_sae_layernorm/checkpoint")
    one, other = torch.randn(4, 16), 5 * torch.randn(4, 16)
    acts = dictionary.encode([one])
    want = dictionary.decode(acts, [one])[0]
    dictionary.encode([other])
    torch.testing.assert_close(dictionary.decode(acts, [one])[0], want)
    with pytest.raises(ValueError, match=r"normalises every token.*give decode\(features, inputs\)"):
        dictionary.decode(acts)


def test_on_what_weights_a_sae_lens_model_ran_is_asked_for(tl_models):
    dictionary = load_dictionary(GOLDEN / "f13_standard_sae/checkpoint")
    assert dictionary.missing == ("processing",)
    with pytest.raises(ValueError, match=r"do not say it: load_dictionary\(path, processing=\.\.\.\)"):
        SaeVisData.create(dictionary, tl_models[0], torch.zeros(1, 4, dtype=torch.long))
    assert load_dictionary(GOLDEN / "f13_standard_sae/checkpoint", processing="tl_default").missing == ()


def test_models_and_hookpoints_of_a_model_diffing_crosscoder():
    """Hookpoints vary faster than models; the names come from the experiment's config, tuples and all."""
    dictionary = load_dictionary(GOLDEN / "f3b_jumprelu_folded/checkpoint")
    assert [(s.model, s.hook) for s in dictionary.sources] == [
        (0, "blocks.4.hook_resid_post"), (0, "blocks.9.hook_resid_post"),
        (1, "blocks.4.hook_resid_post"), (1, "blocks.9.hook_resid_post"),
    ]  # fmt: skip
    assert dictionary.model_names == ("gemma-2-2b", "gemma-2-2b-it")
    assert dictionary.missing == ("processing",)
    state = torch.load(GOLDEN / "f3b_jumprelu_folded/checkpoint/model.pt", weights_only=True)
    scales = state["folded_scaling_factors_X"].flatten().tolist()
    assert [site.scale for site in dictionary.sources] == pytest.approx(scales)


def test_one_source_that_writes_to_several_layers():
    folder = GOLDEN / "f3c_clt_skip/checkpoint"
    dictionary = load_dictionary(folder)
    assert dictionary.n_models == 1
    assert dictionary.missing == ("hook_point", "hook_point_out", "processing")
    outs = [f"blocks.{i}.hook_mlp_out" for i in range(3)]
    told = load_dictionary(folder, hook_point="blocks.0.hook_mlp_in", hook_point_out=outs, processing="none")
    assert (told.missing, [site.hook for site in told.targets], told.n_models) == ((), outs, 1)


@pytest.mark.parametrize(
    ("name", "tensors", "text"),
    [
        ("f3b_jumprelu_folded", {"is_folded": torch.tensor(False)}, r"is not folded and does not hold input_scale"),
        ("f3b_jumprelu_folded", {"W_enc_XDH": torch.zeros(2, 2, 16, 7)}, r"but b_enc_H holds 40 features"),
        ("f3b_jumprelu_folded", {"W_dec_HXD": torch.zeros(40, 3, 16)}, r"W_dec_HXD is .* does not fit W_enc_XDH"),
        ("f3b_jumprelu_folded", {"hidden_activation.log_threshold_H": torch.zeros(3)}, r"is \(3,\); expected \(40,\)"),
        ("f3b_jumprelu_folded", {"folded_scaling_factors_X": torch.zeros(2, 2)}, r"does not hold 4 positive factors"),
        ("f3c_clt_skip", {"W_skip_DPD": torch.zeros(16, 2, 16)}, r"W_skip_DPD is \(16, 2, 16\)"),
    ],
)
def test_a_damaged_model_diffing_file(tmp_path, name, tensors, text):
    folder = copied(tmp_path, name)
    change_pt(folder / "model.pt", **tensors)
    with pytest.raises(ValueError, match=text):
        load_dictionary(folder)


def test_a_model_diffing_activation_that_is_not_named_is_asked_for(tmp_path):
    folder = copied(tmp_path, "f3b_topk_folded")
    whole = load_dictionary(folder)
    (folder / "model_cfg.yaml").unlink()
    with pytest.raises(ValueError, match=r"pass activation='relu', or activation='topk' or 'batchtopk' and k="):
        load_dictionary(folder)
    with pytest.raises(ValueError, match=r"does not say k"):
        load_dictionary(folder, activation="topk")
    inputs = [torch.randn(4, 16) for _ in range(2)]
    told = load_dictionary(folder, activation="topk", k=5)
    assert torch.equal(told.encode(inputs), whole.encode(inputs))


def test_unfolded_weights_are_folded_with_the_scales_given(tmp_path):
    """The producer folds W_enc * f and decoders / f: taken back by hand, and put in again by input_scale."""
    folder = copied(tmp_path, "f3b_jumprelu_folded")
    folded = load_dictionary(folder)
    state = torch.load(folder / "model.pt", weights_only=True)
    f = state["folded_scaling_factors_X"]
    change_pt(
        folder / "model.pt", is_folded=torch.tensor(False), W_enc_XDH=state["W_enc_XDH"] / f[..., None, None],
        W_dec_HXD=state["W_dec_HXD"] * f[..., None], b_dec_XD=state["b_dec_XD"] * f[..., None],
    )  # fmt: skip
    told = load_dictionary(folder, input_scale=f.flatten().tolist())
    inputs = [torch.randn(4, 16) for _ in range(4)]
    acts = folded.encode(inputs)
    torch.testing.assert_close(told.encode(inputs), acts, atol=1e-4, rtol=1e-4)
    for one, other in zip(told.decode(acts), folded.decode(acts), strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


def test_a_yaml_that_would_run_code_is_refused(tmp_path):
    folder = copied(tmp_path, "f3b_topk_folded")
    (folder / "model_cfg.yaml").write_text("hidden_activation_classname: !!python/object/apply:os.getcwd []\n")
    with pytest.raises(ValueError, match=r"is no readable yaml file"):
        load_dictionary(folder)


def test_the_folders_of_openais_files_say_where_they_read(tmp_path):
    folder = tmp_path / "gpt2-small" / "resid_delta_mlp_v4" / "autoencoders"
    shutil.copytree(GOLDEN / "f12_tdb_relu/checkpoint", folder)
    assert load_dictionary(folder / "6.pt").sources[0].hook == "blocks.6.hook_mlp_out"
    assert load_dictionary(folder).missing == ()
    bare = load_dictionary(GOLDEN / "f12_tdb_relu/checkpoint/6.pt")
    assert bare.missing == ("hook_point",)
    told = load_dictionary(GOLDEN / "f12_tdb_relu/checkpoint/6.pt", hook_point="blocks.6.mlp.hook_post")
    assert (told.missing, told.sources) == ((), told.targets)


def test_openais_normalisation_is_a_fact_and_is_reported():
    path = GOLDEN / "f12_openai_topk_ln_rawkeys/checkpoint/6.pt"
    with_norm, without = load_dictionary(path), load_dictionary(path, input_layer_norm=False)
    assert with_norm.facts["input_layer_norm"].startswith("True, as openai/sparse_autoencoder does")
    assert without.facts["input_layer_norm"] == "False, as told"
    x = torch.randn(5, 16)
    torch.testing.assert_close(with_norm.encode([3 * x + 1]), with_norm.encode([x]), atol=1e-4, rtol=1e-3)
    acts = with_norm.encode([x])
    with pytest.raises(ValueError, match=r"takes back the normalisation of every token.*decode\(features, inputs\)"):
        with_norm.decode(acts)
    assert not torch.allclose(without.encode([x]), acts)
    with pytest.raises(ValueError, match=r"expected True or False"):
        load_dictionary(path, input_layer_norm="yes")


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ({"activation": "GELU"}, r"its activation is 'GELU'; known are ReLU, TopK and Identity"),
        ({"activation_state_dict": {}}, r"TopK needs k, and activation_state_dict says k=None of 40 features"),
        ({"activation_state_dict": {"k": 5, "postact_fn": "Tanh"}}, r"after its TopK comes 'Tanh'"),
        ({"decoder.weight": torch.zeros(40, 16)}, r"decoder\.weight is \(40, 16\); expected \(16, 40\)"),
    ],
)
def test_a_damaged_openai_file(tmp_path, content, text):
    folder = copied(tmp_path, "f12_openai_topk_ln_rawkeys")
    change_pt(folder / "6.pt", **content)
    with pytest.raises(ValueError, match=text):
        load_dictionary(folder)


def test_what_a_feature_of_a_normalised_token_writes_is_scaled_at_each_token(tl_models):
    from crossvis_tl.logit_effects import residual_written

    path = GOLDEN / "f12_openai_topk_ln_rawkeys/checkpoint/6.pt"
    for norm in (True, False):
        dictionary = load_dictionary(path, input_layer_norm=norm, hook_point="blocks.1.hook_mlp_out")
        written = residual_written(dictionary, torch.tensor([0, 3]), tl_models[0], 0)
        assert written is not None
        assert written.scaled == (0 if norm else None)


def test_a_language_model_is_no_dictionary(models_dir):
    with pytest.raises(ValueError, match=r"is no dictionary that can be read"):
        load_dictionary(models_dir / "base")


def test_a_dashboard_shows_the_comparable_value(tmp_path, tl_models, tokens):
    """Gathering multiplies by the code normalisation; effects on logits are those of the producer's own feature."""
    folder = copied(tmp_path, "f2_batchtopk_mixed_pt")
    cfg = json.loads((folder / "config.json").read_text())
    cfg["trainer"]["layer"] = 1
    (folder / "config.json").write_text(json.dumps(cfg))
    change_pt(folder / "model_final.pt", threshold=torch.tensor(0.1))
    dictionary = load_dictionary(folder)
    assert [site.hook for site in dictionary.sources] == ["blocks.1.hook_resid_post"] * 2
    with pytest.warns(CrossvisWarning):
        data = SaeVisData.create(dictionary, tl_models, tokens)
    inputs = [model.run_with_cache(tokens)[1]["blocks.1.hook_resid_post"][:, 1:] for model in tl_models]
    acts = dictionary.encode(inputs) * dictionary.groups[0].code_norm
    for feature in (0, 7, 21):
        assert data.panels[feature].maximum == pytest.approx(acts[..., feature].max().item(), abs=1e-4)


def test_what_gathering_needs_is_listed_not_guessed():
    forge = load_dictionary(GOLDEN / "f10_cltforge/checkpoint")
    assert forge.missing == ("processing",)
    assert load_dictionary(GOLDEN / "f10_cltforge/checkpoint", processing="none").missing == ()


@pytest.mark.parametrize("activation", ["relu", "topk"])
def test_a_set_of_skip_transcoders_has_dashboards(tmp_path, tl_models, tokens, activation):
    """Hooks that only a bridge has ("mlp.hook_in") on a HookedTransformer; negative activations of TopK are shown."""
    generator = torch.Generator().manual_seed(11)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    for i in range(N_LAYERS):
        state = {"W_enc": normal(20, D_MODEL), "W_dec": 0.3 * normal(20, D_MODEL), "b_enc": normal(20) - 1}
        state |= {"b_dec": 0.1 * normal(D_MODEL), "W_skip": 0.2 * normal(D_MODEL, D_MODEL)}
        save_file(state, tmp_path / f"layer_{i}.safetensors")
    (tmp_path / "config.yaml").write_text(
        f"model_kind: transcoder_set\nfeature_input_hook: mlp.hook_in\nfeature_output_hook: mlp.hook_out\n"
        f"activation: {activation}\nk: 18\n"
    )
    dictionary = load_dictionary(tmp_path)
    model = tl_models[1]
    with pytest.warns(CrossvisWarning):
        data = SaeVisData.create(dictionary, model, tokens)
    assert list(data.feature_data_dict) == list(range(60))
    _, cache = model.run_with_cache(tokens)
    norm = model.blocks[1].ln2
    inputs = cache["blocks.1.ln2.hook_normalized"] * norm.w + norm.b
    state = load_file(tmp_path / "layer_1.safetensors")
    pre = (inputs @ state["W_enc"].T + state["b_enc"])[:, 1:]
    want = torch.relu(pre) if activation == "relu" else TopK(18, relu=False)(pre)
    assert data.panels[23].maximum == pytest.approx(want[..., 3].max().item(), abs=1e-4)
    assert data.panels[23].density == pytest.approx((want[..., 3] != 0).float().mean().item(), abs=1e-6)
    data.save_feature_centric_vis(tmp_path / "page.html")
    assert (tmp_path / "page.html").stat().st_size > 10_000
