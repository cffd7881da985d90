"""The activations a dictionary gets are the ones it was trained on."""

import pytest
import torch

from crossvis_tl import ModelMismatchError, load_dictionary, load_model
from crossvis_tl.capture import Capture
from crossvis_tl.fused import fused, fused_gelu
from tests.conftest import tiny_hf, write_clt, write_crosscoder
from tests.test_models import hf_tensors


def processed(seed: int):
    model = load_model(tiny_hf(seed))
    model.process_weights_()
    return model


def test_unprocessed_activations_are_huggingfaces(clt_dir, tl_models, hf_models, tokens):
    captured = Capture(load_dictionary(clt_dir), tl_models[:1]).run(tokens, final=True)
    seen, _ = hf_tensors(hf_models[0], tokens)
    for i in range(3):
        torch.testing.assert_close(captured.sources[i], seen[f"blocks.{i}.hook_resid_mid"], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(captured.targets[i], seen[f"blocks.{i}.hook_mlp_out"], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(captured.final[0], seen["blocks.2.hook_resid_post"], atol=1e-5, rtol=1e-5)


def test_default_processing_is_put_in(tmp_path, tokens):
    """A raw model's activations, as a dictionary of processed ones needs them, are those of a processed model."""
    hooks = ["blocks.0.hook_resid_pre", "blocks.1.hook_mlp_out", "blocks.2.hook_resid_mid", "blocks.0.hook_attn_out"]
    folder = write_crosscoder(tmp_path / "cc", n_sources=4, hook_point=hooks, processing="tl_default")
    dictionary = load_dictionary(folder)
    got = Capture(dictionary, [load_model(tiny_hf(1))]).run(tokens)
    model = processed(1)
    _, cache = model.run_with_cache(tokens)
    in_hand = Capture(dictionary, [model]).run(tokens)
    for hook, x, same in zip(hooks, got.sources, in_hand.sources, strict=True):
        torch.testing.assert_close(x, cache[hook], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(same, cache[hook], atol=1e-5, rtol=1e-5)


def test_a_processed_model_is_refused_for_unprocessed_dictionaries(crosscoder_dir, tl_models):
    with pytest.raises(ModelMismatchError, match=r"trained on unprocessed weights.*the mean of .* is gone.*load_model"):
        Capture(load_dictionary(crosscoder_dir), [processed(1), tl_models[1]])


def test_heads_stand_side_by_side(tmp_path, tl_models, hf_models, tokens):
    folder = write_crosscoder(tmp_path / "z", n_sources=1, hook_point="blocks.1.attn.hook_z")
    got = Capture(load_dictionary(folder), tl_models[:1]).run(tokens).sources[0]
    seen = {}
    projection = hf_models[0].transformer.h[1].attn.c_proj
    handle = projection.register_forward_hook(lambda module, inputs, output: seen.update(z=inputs[0]))
    with torch.no_grad():
        hf_models[0](tokens)
    handle.remove()
    torch.testing.assert_close(got, seen["z"], atol=1e-5, rtol=1e-5)


def test_a_setting_that_a_hook_needs_is_made_and_restored(tmp_path, tl_models, hf_models, tokens):
    folder = write_crosscoder(tmp_path / "in", n_sources=1, hook_point="blocks.1.hook_mlp_in")
    model = tl_models[0]
    got = Capture(load_dictionary(folder), [model]).run(tokens).sources[0]
    seen, _ = hf_tensors(hf_models[0], tokens)
    torch.testing.assert_close(got, seen["blocks.1.hook_resid_mid"], atol=1e-5, rtol=1e-5)
    assert model.cfg.use_hook_mlp_in is False
    model.set_use_hook_mlp_in(True)
    Capture(load_dictionary(folder), [model]).run(tokens)
    assert model.cfg.use_hook_mlp_in is True
    model.set_use_hook_mlp_in(False)


def test_settings_are_restored_after_an_error(tmp_path, tl_models):
    folder = write_crosscoder(tmp_path / "in", n_sources=1, hook_point="blocks.1.hook_mlp_in")
    capture = Capture(load_dictionary(folder), tl_models[:1])
    with pytest.raises(IndexError):
        capture.run(torch.full((1, 3), 10_000))
    assert tl_models[0].cfg.use_hook_mlp_in is False


def test_a_hook_that_never_fires_is_an_error(tmp_path, tl_models, monkeypatch):
    folder = write_crosscoder(tmp_path / "in", n_sources=1, hook_point="blocks.1.hook_mlp_in")
    monkeypatch.setattr("crossvis_tl.hooks.table.FLAGS", {})
    with pytest.raises(
        ValueError, match=r"the hook 'blocks\.1\.hook_mlp_in' of base never fired: TransformerLens lists"
    ):
        Capture(load_dictionary(folder), tl_models[:1])


def test_a_clt_without_its_config_can_be_told_its_hooks(tmp_path, tl_models, tokens):
    folder = write_clt(tmp_path / "clt")
    with_config = load_dictionary(folder)
    (folder / "config.yaml").unlink()
    without = load_dictionary(folder)
    assert without.missing == ("feature_input_hook", "feature_output_hook")
    with pytest.raises(ValueError, match=r"load_dictionary\(path, feature_input_hook=\.\.\., feature_output_hook="):
        Capture(without, tl_models[1:])
    told = load_dictionary(folder, feature_input_hook="hook_resid_mid", feature_output_hook="hook_mlp_out")
    assert told.sources == with_config.sources
    Capture(told, tl_models[1:]).run(tokens)


def test_models_run_no_further_than_needed(crosscoder_dir, tl_models, tokens):
    ran = []
    with tl_models[0].hooks(fwd_hooks=[("blocks.2.hook_resid_pre", lambda x, hook: ran.append(1))]):
        capture = Capture(load_dictionary(crosscoder_dir), tl_models)
        capture.run(tokens)
        assert not ran
        capture.run(tokens, final=True)
    assert ran


def test_gelu_in_one_pass_is_gelu_and_the_model_is_as_before(tl_models, tokens):
    model = tl_models[0]
    before = [block.mlp.act_fn for block in model.blocks]
    _, plain = model.run_with_cache(tokens)
    with fused(model):
        assert all(block.mlp.act_fn is fused_gelu for block in model.blocks)
        _, cache = model.run_with_cache(tokens)
    for name in ("blocks.0.mlp.hook_post", "blocks.2.hook_resid_post"):
        torch.testing.assert_close(cache[name], plain[name], atol=1e-5, rtol=1e-5)
    with pytest.raises(RuntimeError, match="stopped"), fused(model):
        raise RuntimeError("stopped")
    assert [block.mlp.act_fn for block in model.blocks] == before
