"""The hook table against plain HuggingFace forward hooks, and gathering by any of the names."""

import json
from dataclasses import replace

import pytest
import torch
import transformers
from transformer_lens.model_bridge import TransformerBridge
from typer.testing import CliRunner

from crossvis_tl import ModelMismatchError, find_hook, hook_table, load_dictionary, load_model
from crossvis_tl.bridge import BridgedTransformer
from crossvis_tl.capture import Capture
from crossvis_tl.cli import app
from crossvis_tl.hooks.find import Finder
from crossvis_tl.hooks.writing import residual_write
from crossvis_tl.processing import is_processed
from crossvis_tl.unembed import unembedding
from tests.architectures import ARCHITECTURES, GEMMA, GROUPED, build
from tests.conftest import tiny_hf, write_clt, write_crosscoder
from tests.hook_matrix import TOKENS, bridged, compare, hf_tensors, read

NAMES = list(ARCHITECTURES)


@pytest.mark.parametrize("name", NAMES)
def test_every_tensor_of_every_module(name):
    """As `load_model` gives the model and as a bridge: exact to rounding, transformed so, or absent with a reason."""
    hf = build(name)
    for model in (load_model(hf), bridged(hf)):
        outcome = compare(hf, model)
        assert not outcome.wrong
        assert outcome.counts["exact"] > 2 * outcome.counts["absent"]
        assert max(outcome.worst.values()) < 1e-4
        # what no hook holds: inside a gated MLP, between queries and rotation, and OPT's mask that is no activation
        gone = {"act_fn", "activation_fn", "q_norm", "k_norm", "embed_positions"}
        assert outcome.absent <= gone


@pytest.mark.parametrize("name", NAMES)
def test_the_measured_rows_are_there(name):
    """Not only nothing wrong, but nothing missing: each architecture has its rows."""
    rows = {row.name.split(".", 2)[2]: row for row in hook_table(build(name), 1) if row.name}
    parallel = name in ("neox", "phi", "gpt-j")
    there = {"hook_resid_pre", "hook_resid_post", "hook_mlp_in", "hook_attn_out", "hook_mlp_out", "mlp.hook_post"}
    there |= {"mlp.hook_pre", "attn.hook_z", "attn.hook_pattern", "ln1.hook_normalized", "ln2.hook_normalized"}
    assert all(rows[short].status != "absent" for short in there)
    assert (rows["hook_resid_mid"].status == "absent") == parallel
    ungated = ("gpt2", "neox", "phi", "opt", "gpt-j", "gpt-neo")
    if name != "phi 3":
        assert (rows["mlp.hook_pre_linear"].status == "absent") == name.startswith(ungated)
    for row in hook_table(build(name), 1):
        assert row.note or row.status != "absent"


@pytest.mark.parametrize("name", NAMES)
def test_the_table_needs_only_the_config(name, tmp_path):
    config = build(name).config
    folder = tmp_path / "llama-gemma"
    config.save_pretrained(folder)
    assert {p.name for p in folder.iterdir()} <= {"config.json", "generation_config.json"}
    assert hook_table(folder) == hook_table(build(name))
    assert find_hook(folder / "config.json", "residual", 1) == find_hook(build(name), "residual", 1)


@pytest.mark.parametrize("name", NAMES)
def test_a_dictionary_on_huggingface_paths_gets_huggingfaces_tensors(name, tmp_path):
    hf = build(name)
    seen = hf_tensors(hf)
    model = load_model(hf)
    places = ["residual", "mlp_input", "mlp_output", "attention_input", "attention_output"]
    hooks = [find_hook(hf, place, 1) for place in places]
    folder = write_crosscoder(tmp_path / "cc", n_sources=5, hook_point=[hook.hf_name for hook in hooks])
    captured = Capture(load_dictionary(folder), [model]).run(TOKENS)
    for hook, got in zip(hooks, captured.sources, strict=True):
        want = seen[hook.hf_path, hook.side, hook.index]
        torch.testing.assert_close(got, want.reshape(got.shape), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_logits_from_the_final_residual_of_every_architecture(name):
    hf = build(name)
    with torch.no_grad():
        expected = hf(TOKENS).logits
    for model in (load_model(hf), bridged(hf)):
        _, cache = model.run_with_cache(TOKENS)
        final = cache[f"blocks.{model.cfg.n_layers - 1}.hook_resid_post"]
        torch.testing.assert_close(unembedding(model).logits(final), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_what_the_places_write(name):
    """Through the module's matrix, then the post-norm's gain; what a norm follows is no part of the stream."""
    hf = build(name)
    model = load_model(hf)
    finder = Finder(model)
    order = []
    for layer in (0, 1):
        for place in ("resid_pre", "resid_mid", "resid_post"):
            if place == "resid_mid" and name in ("neox", "phi", "gpt-j"):
                continue
            write = residual_write(model, find_hook(model, place, layer).name, finder)
            assert write.kind == "residual"
            order.append(write.order)
    assert order == sorted(order)
    for place, norm in (("mlp_hidden", "ln2_post"), ("attn.hook_z", "ln1_post")):
        hook = find_hook(hf, place if "." not in place else f"blocks.1.{place}", 1)
        write = residual_write(model, hook.hf_name, finder)
        v = torch.randn(4, hook.width, generator=torch.Generator().manual_seed(1))
        want = _linear(hf.get_submodule(hook.hf_path), v)
        post = name in ("gemma 2", "gemma 3")
        assert write.norm == (f"blocks.1.{norm}" if post else None)
        if post:
            module = {"ln2_post": "post_feedforward_layernorm", "ln1_post": "post_attention_layernorm"}[norm]
            want = want * (1 + hf.model.layers[1].get_submodule(module).weight)
            assert write.scale_hook == f"blocks.1.{norm}.hook_scale"
        torch.testing.assert_close(write.through(v, model), want, atol=1e-5, rtol=1e-5)
    for place in ("mlp_input", "attention_input"):
        write = residual_write(model, find_hook(hf, place, 1).hf_name, finder)
        assert write.kind == "none"
        with pytest.raises(ValueError, match=r"nothing is written to the residual stream from there"):
            write.through(torch.zeros(1, 16), model)


def _linear(module, v):
    """The module without its bias."""
    with torch.no_grad():
        return module(v[None])[0] - module(torch.zeros_like(v)[None])[0]


@pytest.mark.parametrize("name", ["gemma 2", "gemma 3"])
def test_a_raw_output_reaches_the_stream_by_the_frozen_norm(name):
    """A thousandth of a vector added to HuggingFace's MLP output, to first order with the norm's scale held."""
    hf = build(name)
    model = load_model(hf)
    write = residual_write(model, "model.layers.1.mlp.output")
    assert (write.kind, write.norm) == ("added", "blocks.1.ln2_post")
    assert residual_write(model, "blocks.1.hook_mlp_out").norm is None
    seen = hf_tensors(hf)
    raw = seen["model.layers.1.mlp", "output", None]
    norm = hf.model.layers[1].post_feedforward_layernorm
    scale = (raw.pow(2).mean(-1, keepdim=True) + norm.eps).sqrt()
    vector = torch.randn(1, 16, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        frozen = (raw + vector) / scale * (1 + norm.weight) - raw / scale * (1 + norm.weight)
    torch.testing.assert_close(write.through(vector, model) / scale, frozen, atol=1e-5, rtol=1e-4)


def test_what_a_feature_behind_a_post_norm_writes_is_scaled_at_each_token(tmp_path):
    from crossvis_tl.logit_effects import residual_written

    model = load_model(build("gemma 2"))
    for place, scaled in (("model.layers.1.mlp.output", 0), ("blocks.1.hook_mlp_out", None)):
        dictionary = load_dictionary(write_crosscoder(tmp_path / place, n_sources=1, hook_point=place))
        written = residual_written(dictionary, torch.tensor([0, 3]), model, 0)
        assert written is not None
        assert written.scaled == scaled


def processed(seed: int):
    model = load_model(tiny_hf(seed))
    model.process_weights_()
    return model


def biased(seed: int):
    """A GPT-2 whose value biases are large enough to be seen."""
    hf = tiny_hf(seed)
    with torch.no_grad():
        for block in hf.transformer.h:
            block.attn.c_attn.bias.add_(1.0)
    return hf


@pytest.mark.parametrize("hook", ["attn.hook_z", "mlp.hook_post", "ln2.hook_normalized", "hook_mlp_in", "mlp.hook_pre"])
def test_raw_models_give_what_processed_ones_have(hook, tmp_path, tokens):
    place = f"blocks.1.{hook}"
    width = {"mlp.hook_post": 64, "mlp.hook_pre": 64}.get(hook, 16)
    dictionary = load_dictionary(write_crosscoder(tmp_path / "cc", n_sources=1, hook_point=place, processing="none"))
    sites = tuple(replace(site, processing="tl_default", width=width) for site in dictionary.sources)
    raw = load_model(biased(1))
    model = load_model(biased(1))
    model.process_weights_()
    dictionary = replace(dictionary, sources=sites, targets=sites)
    got = Capture(dictionary, [raw]).run(tokens).sources[0]
    same = Capture(dictionary, [model]).run(tokens).sources[0]
    torch.testing.assert_close(got, same, atol=1e-4, rtol=1e-4)


def test_grouped_value_heads_lose_their_biases(tmp_path):
    hf = build("qwen 2")
    dictionary = load_dictionary(write_crosscoder(tmp_path / "cc", n_sources=1, hook_point="blocks.1.attn.hook_z"))
    sites = tuple(replace(site, processing="tl_default") for site in dictionary.sources)
    dictionary = replace(dictionary, sources=sites, targets=sites)
    model = load_model(hf)
    model.process_weights_()
    want = Capture(dictionary, [model]).run(TOKENS).sources[0]
    for raw in (load_model(hf), bridged(hf)):
        torch.testing.assert_close(Capture(dictionary, [raw]).run(TOKENS).sources[0], want, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("hook", "gone"),
    [
        ("blocks.1.hook_mlp_out", "the mean of"),
        ("blocks.1.attn.hook_z", "may lack the value bias"),
        ("transformer.h.1.mlp.input", "folded"),
    ],
)
def test_a_processed_model_is_refused_where_something_is_gone(hook, gone, tmp_path):
    dictionary = load_dictionary(write_crosscoder(tmp_path / "cc", n_sources=1, hook_point=hook))
    with pytest.raises(ModelMismatchError, match=rf"(?s){gone}.*Load it with|{gone}.*Load the model with"):
        Capture(dictionary, [processed(1)])


def test_a_processed_model_serves_where_nothing_is_gone(tmp_path, hf_models, tokens):
    dictionary = load_dictionary(write_crosscoder(tmp_path / "cc", n_sources=1, hook_point="blocks.1.mlp.hook_post"))
    sites = tuple(replace(site, width=64) for site in dictionary.sources)
    got = Capture(replace(dictionary, sources=sites, targets=sites), [processed(1)]).run(tokens).sources[0]
    seen = hf_tensors(hf_models[0], tokens)
    torch.testing.assert_close(got, seen["transformer.h.1.mlp.c_proj", "input", None], atol=1e-4, rtol=1e-4)


def test_a_bridge_in_hand(tmp_path):
    hf = build("llama")
    inner = bridged(hf).bridge
    assert isinstance(inner, TransformerBridge)
    model = load_model(inner)
    assert isinstance(model, BridgedTransformer)
    assert model.bridge is inner
    assert not is_processed(model)
    assert find_hook(inner, "mlp_input", 1).name == "blocks.1.mlp.hook_in"
    dictionary = load_dictionary(write_crosscoder(tmp_path / "cc", n_sources=1, hook_point="model.layers.1.output"))
    got = Capture(dictionary, [model]).run(TOKENS).sources[0]
    torch.testing.assert_close(got, hf_tensors(hf)["model.layers.1", "output", None], atol=1e-5, rtol=1e-5)


def test_a_bridge_with_processed_weights_is_told_apart(tmp_path):
    model = load_model(bridged(build("gpt2")).bridge)
    model.enable_compatibility_mode(disable_warnings=True)
    assert is_processed(model)
    for place in ("blocks.1.hook_resid_post", "transformer.h.1.mlp.input"):
        dictionary = load_dictionary(write_crosscoder(tmp_path / place, n_sources=1, hook_point=place))
        with pytest.raises(ModelMismatchError, match=r"processed by TransformerLens"):
            Capture(dictionary, [model])


def test_a_hooked_transformer_of_ones_own_has_huggingface_names():
    """Made without `load_model`, so that only its architecture's name and its sizes are known."""
    for name in ("gpt2", "llama", "neox, sequential"):
        model = load_model(build(name))
        del model.crossvis_config
        layer = find_hook(build(name), "residual", 1)
        assert find_hook(model, layer.hf_name).name == "blocks.1.hook_resid_post"
        assert find_hook(model, "mlp_input", 1).hf_name == find_hook(build(name), "mlp_input", 1).hf_name


def test_a_model_without_a_huggingface_twin_still_has_its_hooks(tl_models):
    model = load_model(tiny_hf(3))
    del model.crossvis_config
    model.cfg.original_architecture = "neel"
    assert find_hook(model, "blocks.1.hook_mlp_out").name == "blocks.1.hook_mlp_out"
    assert find_hook(model, "residual", 1).name == "blocks.1.hook_resid_post"
    with pytest.raises(ValueError, match=r"'blocks.1.hook_mlp_outt' is not a hook of this model. Did you mean"):
        find_hook(model, "blocks.1.hook_mlp_outt")
    with pytest.raises(ValueError, match=r"this model has no HuggingFace twin.*model.hook_dict"):
        hook_table(model)


def test_two_models_of_different_dtypes(tmp_path):
    """A crosscoder between a float32 model and a bfloat16 one: each runs as it is, features are float32."""
    first, second = build("llama"), build("llama", seed=5)
    models = [load_model(first), load_model(second, dtype=torch.bfloat16)]
    folder = write_crosscoder(tmp_path / "cc", hook_point="model.layers.1.output")
    captured = Capture(load_dictionary(folder), models).run(TOKENS)
    assert {x.dtype for x in captured.sources} == {torch.float32}
    for hf, got, tolerance in zip((first, second), captured.sources, (1e-5, 5e-2), strict=True):
        torch.testing.assert_close(got, hf_tensors(hf)["model.layers.1", "output", None], atol=tolerance, rtol=0.1)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_models_keep_the_table(dtype):
    for name in ("gpt2", "gemma 2"):
        hf = build(name)
        model = load_model(hf, dtype=dtype)
        hook = find_hook(model, "mlp_input", 1)
        want = hf_tensors(hf)[hook.hf_path, "input", None]
        torch.testing.assert_close(read(model, hook).float(), want, atol=0.1, rtol=0.1)


ROTATIONS = {
    "llama3": {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64},
    "linear": {"factor": 4.0},
    "yarn": {"factor": 4.0, "original_max_position_embeddings": 64},
}


@pytest.mark.parametrize("kind", ROTATIONS)
def test_scaled_rotations_are_right_far_from_the_start(kind):
    fields = GROUPED | {"max_position_embeddings": 512}
    rope = {"rope_type": kind, "rope_theta": 10000.0} | ROTATIONS[kind]
    hf = transformers.LlamaForCausalLM(transformers.LlamaConfig(**fields, rope_parameters=rope)).eval()
    model = load_model(hf)
    tokens = torch.randint(2, 60, (1, 400), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(model(tokens), hf(tokens).logits, atol=1e-4, rtol=1e-3)


def test_a_sliding_window_is_right_beyond_its_width():
    hf = transformers.MistralForCausalLM(
        transformers.MistralConfig(**GROUPED | {"max_position_embeddings": 128}, sliding_window=40)
    ).eval()
    model = load_model(hf)
    tokens = torch.randint(2, 60, (1, 100), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(model(tokens), hf(tokens).logits, atol=1e-4, rtol=1e-3)


def test_a_model_that_reads_images_too_is_its_language_model(tmp_path, monkeypatch):
    """TransformerLens' bridge, given the whole, would install packages for an image processor: nothing is run."""
    import subprocess

    monkeypatch.setattr(subprocess, "check_call", lambda *a, **k: pytest.fail("something was to be installed"))
    text = transformers.Gemma3TextConfig(**GEMMA).to_dict()
    vision = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision |= {"image_size": 16, "patch_size": 8}
    config = transformers.Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4)
    hf = transformers.Gemma3ForConditionalGeneration(config).eval()
    with torch.no_grad():
        expected = hf(TOKENS).logits
    for model in (load_model(hf), load_model(_saved(hf, tmp_path / "m"))):
        torch.testing.assert_close(model(TOKENS), expected, atol=1e-4, rtol=1e-4)
        assert find_hook(model, "model.language_model.layers.1.mlp.output").name == "blocks.1.mlp.hook_out"
    assert find_hook(hf, "model.language_model.layers.1.output").name == "blocks.1.hook_resid_post"
    assert torch.equal(hf(TOKENS).logits, expected)


def _saved(hf, folder):
    hf.save_pretrained(folder)
    return folder


def test_the_context_is_the_models_own():
    config = transformers.Qwen3Config(**GROUPED | {"max_position_embeddings": 4096, "head_dim": 8})
    assert load_model(transformers.Qwen3ForCausalLM(config)).cfg.n_ctx == 4096
    config.max_position_embeddings = 65536
    assert load_model(transformers.Qwen3ForCausalLM(config)).cfg.n_ctx == 8192
    assert load_model(transformers.Qwen3ForCausalLM(config), n_ctx=20000).cfg.n_ctx == 20000


def test_a_clt_by_huggingface_paths(tmp_path):
    """circuit-tracer's hooks are templates after "blocks.L."; a dictionary's sites can be any names."""
    hf = transformers.GPT2LMHeadModel(transformers.GPT2Config(n_embd=16, n_layer=3, n_head=2, vocab_size=60)).eval()
    clt = load_dictionary(write_clt(tmp_path / "clt"))
    sources = tuple(replace(s, hook=None, hf_path=f"transformer.h.{i}.mlp.input") for i, s in enumerate(clt.sources))
    targets = tuple(replace(t, hook=None, hf_path=f"transformer.h.{i}.mlp.output") for i, t in enumerate(clt.targets))
    capture = Capture(replace(clt, sources=sources, targets=targets), [load_model(hf)])
    captured = capture.run(TOKENS)
    seen = hf_tensors(hf)
    for i in range(3):
        want = seen[f"transformer.h.{i}.mlp", "input", None]
        torch.testing.assert_close(captured.sources[i], want, atol=1e-5, rtol=1e-5)
    assert [site.hook for site in capture.dictionary.targets] == [f"blocks.{i}.hook_mlp_out" for i in range(3)]
    assert [site.layer for site in sources] == [0, 1, 2]


def run_cli(*args: str):
    return CliRunner().invoke(app, [str(arg) for arg in args])


def test_the_command_prints_the_table(models_dir):
    shown = run_cli("hooks", models_dir / "base")
    assert shown.exit_code == 0
    assert "blocks.{L}.hook_resid_post" in shown.output
    assert "transformer.h.{L}.mlp.c_proj.input" in shown.output
    one = run_cli("hooks", models_dir / "base", "--layer", "1")
    assert "blocks.1.hook_mlp_out" in one.output
    rows = json.loads(run_cli("hooks", models_dir / "base", "--json").output)
    assert {"name": "blocks.2.hook_resid_post", "hf_path": "transformer.h.2", "side": "output", "index": None,
            "transform": "none", "width": 16, "status": "exact", "note": "", "layer": 2} in rows  # fmt: skip
    found = run_cli("hooks", models_dir / "base", "--find", "transformer.h[1].mlp input")
    assert "blocks.1.ln2.hook_normalized" in found.output
    assert "times the norm's gain, plus its bias" in found.output


@pytest.mark.parametrize(
    ("args", "text"),
    [
        (["--layer", "7"], "there is no layer 7; this model has layers 0 to 2"),
        (["--find", "blocks.1.hook_mlp_ouut"], "Did you mean 'blocks.1.hook_mlp_out'"),
        (["--find", "mlp.output"], "Pass layer=..."),
    ],
)
def test_the_command_says_what_is_wrong(models_dir, args, text):
    shown = run_cli("hooks", models_dir / "base", *args)
    assert shown.exit_code == 2
    assert text in shown.output.replace("\n", "")


def test_a_folder_without_a_config_has_no_table(tmp_path):
    with pytest.raises(ValueError, match=r"has no config\.json"):
        hook_table(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"cannot be read"):
        hook_table(tmp_path / "nothing")
