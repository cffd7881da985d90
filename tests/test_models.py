"""Models are HuggingFace's own, activation by activation."""

import pytest
import sae_vis
import torch
from transformer_lens import HookedTransformer
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GemmaConfig,
    GemmaForCausalLM,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PhiConfig,
    PhiForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from crossvis_tl import CrossvisWarning, ModelMismatchError, SaeVisData, attach, load_dictionary, load_model
from crossvis_tl.bridge import BridgedTransformer
from crossvis_tl.conversion import TOLERANCE
from crossvis_tl.models import name_of
from crossvis_tl.processing import is_processed
from crossvis_tl.unembed import unembedding
from tests.conftest import N_LAYERS, tiny_hf, tiny_tokenizer, write_crosscoder


def hf_tensors(model, tokens):
    """What plain forward hooks see, by TransformerLens name."""
    seen, handles = {}, []

    def keep(name, side):
        def hook(_module, inputs, output):
            value = inputs[0] if side == "in" else output
            seen[name] = value[0] if isinstance(value, tuple) else value

        return hook

    for i, block in enumerate(model.transformer.h):
        for name, module, side in (
            (f"blocks.{i}.hook_resid_post", block, "out"),
            (f"blocks.{i}.hook_resid_mid", block.ln_2, "in"),
            (f"blocks.{i}.hook_mlp_out", block.mlp, "out"),
            (f"blocks.{i}.hook_attn_out", block.attn, "out"),
            (f"blocks.{i}.mlp.hook_post", block.mlp.c_proj, "in"),
        ):
            handles.append(module.register_forward_hook(keep(name, side)))
    with torch.no_grad():
        logits = model(tokens).logits
    for handle in handles:
        handle.remove()
    return seen, logits


def test_logits_and_activations_are_huggingfaces(hf_models, tl_models, tokens):
    for hf, model in zip(hf_models, tl_models, strict=True):
        seen, expected = hf_tensors(hf, tokens)
        logits, cache = model.run_with_cache(tokens)
        torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)
        assert len(seen) == 5 * N_LAYERS
        for name, tensor in seen.items():
            torch.testing.assert_close(cache[name], tensor, atol=1e-5, rtol=1e-5)


def test_everything_a_user_does_with_a_model_works(tl_models, tokens):
    model = tl_models[0]
    assert model.W_E.shape[1] == model.cfg.d_model
    assert model.W_out.shape[0] == len(model.blocks) == N_LAYERS
    assert model.to_tokens("!!")[0].tolist() == [0, 1, 1]
    assert model.generate(tokens[:1, :4], max_new_tokens=3, do_sample=False, verbose=False).shape == (1, 7)
    with model.hooks(fwd_hooks=[("blocks.0.hook_mlp_out", lambda x, hook: torch.zeros_like(x))]):
        changed = model(tokens[:1])
    assert not torch.allclose(changed, model(tokens[:1]))


def test_a_model_in_hand_is_left_as_it_was():
    hf = tiny_hf(4)
    before = {name: value.clone() for name, value in hf.state_dict().items()}
    model = load_model(hf)
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert all(parameter.requires_grad for parameter in hf.parameters())
    assert all(torch.equal(value, before[name]) for name, value in hf.state_dict().items())
    with torch.no_grad():
        model.blocks[0].mlp.W_in.zero_()
    assert torch.equal(hf.transformer.h[0].mlp.c_fc.weight, before["transformer.h.0.mlp.c_fc.weight"])


def test_a_hooked_transformer_in_hand_is_returned(tl_models):
    assert load_model(tl_models[0]) is tl_models[0]


def test_a_path_that_names_another_architecture_is_no_trap(tmp_path, models_dir, hf_models, tokens):
    (tmp_path / "llama-gemma-2-clone").symlink_to(models_dir / "base")
    model = load_model(tmp_path / "llama-gemma-2-clone")
    torch.testing.assert_close(model(tokens), hf_models[0](tokens).logits, atol=1e-5, rtol=1e-5)
    assert name_of(model) == "llama-gemma-2-clone"


def test_an_rms_model_loads_too(tmp_path, tokens):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=60, hidden_size=16, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=24, max_position_embeddings=32,
    )  # fmt: skip
    hf = LlamaForCausalLM(config).eval()
    hf.save_pretrained(tmp_path / "m")
    model = load_model(tmp_path / "m")
    torch.testing.assert_close(model(tokens), hf(tokens).logits, atol=1e-5, rtol=1e-5)


def break_weights(monkeypatch) -> None:
    from transformer_lens import loading_from_pretrained

    real = loading_from_pretrained.get_pretrained_state_dict

    def broken(*args, **kwargs):
        state = real(*args, **kwargs)
        state["blocks.0.mlp.W_in"] = state["blocks.0.mlp.W_in"] * 1.5
        return state

    monkeypatch.setattr(loading_from_pretrained, "get_pretrained_state_dict", broken)


def test_a_model_that_comes_out_otherwise_is_bridged(monkeypatch, tokens):
    break_weights(monkeypatch)
    hf = tiny_hf(1)
    model = load_model(hf)
    assert isinstance(model, BridgedTransformer)
    torch.testing.assert_close(model(tokens), hf(tokens).logits, atol=1e-5, rtol=1e-5)


def test_a_model_whose_logits_differ_is_refused(monkeypatch):
    from transformer_lens.model_bridge import TransformerBridge

    def broken(*args, **kwargs):
        raise RuntimeError("no such bridge")

    break_weights(monkeypatch)
    monkeypatch.setattr(TransformerBridge, "boot_transformers", broken)
    with pytest.raises(
        ModelMismatchError,
        match=r"is refused.*as HookedTransformer it gives other logits than HuggingFace's \(off by .*%.*"
        r"as TransformerBridge: RuntimeError: no such bridge",
    ):
        load_model(tiny_hf(1))


KW = {
    "vocab_size": 60, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24,
    "max_position_embeddings": 32,
}  # fmt: skip
GEMMA = {"num_key_value_heads": 1, "head_dim": 8}
SLIDING = {"sliding_window": 16, "query_pre_attn_scalar": 8}
ARCHITECTURES = {
    "gemma": lambda: GemmaForCausalLM(GemmaConfig(**KW, **GEMMA)),
    "gemma 2": lambda: Gemma2ForCausalLM(Gemma2Config(**KW, **GEMMA, **SLIDING)),
    "gemma 3": lambda: Gemma3ForCausalLM(Gemma3TextConfig(**KW, **GEMMA, **SLIDING)),
    "phi": lambda: PhiForCausalLM(PhiConfig(**KW)),
    "llama with biases": lambda: LlamaForCausalLM(LlamaConfig(**KW, attention_bias=True, mlp_bias=True)),
    "neox": lambda: GPTNeoXForCausalLM(GPTNeoXConfig(**KW)),
    "qwen 2": lambda: Qwen2ForCausalLM(Qwen2Config(**KW, num_key_value_heads=1)),
}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_other_architectures(name, tokens, tmp_path):
    """Logits, the final norm and unembedding, and what a user does with a model, for in-hand and stored models."""
    torch.manual_seed(0)
    hf = ARCHITECTURES[name]().eval()
    with torch.no_grad():
        for parameter in hf.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    expected = hf(tokens).logits
    hf.save_pretrained(tmp_path / "m")
    for model in (load_model(hf), load_model(tmp_path / "m")):
        logits, cache = model.run_with_cache(tokens)
        torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)
        final = cache["blocks.1.hook_resid_post"]
        torch.testing.assert_close(unembedding(model).logits(final), expected, atol=1e-4, rtol=1e-4)
        assert not is_processed(model)
        assert isinstance(model, HookedTransformer)
        assert model.W_E.shape == (60, 16)
        assert sum(1 for _ in model.parameters()) > 5
        with model.hooks(fwd_hooks=[("blocks.0.hook_mlp_out", lambda x, hook: torch.zeros_like(x))]):
            changed = model(tokens)
        assert not torch.allclose(changed, expected)
    assert torch.equal(hf(tokens).logits, expected)


def test_a_bridged_model_does_what_users_do_with_one(tokens):
    torch.manual_seed(0)
    model = load_model(ARCHITECTURES["gemma 2"]().eval(), tokenizer=tiny_tokenizer())
    assert isinstance(model, BridgedTransformer)
    assert model.to_tokens("!!")[0].tolist() == [0, 1, 1]
    assert model.generate(tokens[:1, :4], max_new_tokens=3, do_sample=False, verbose=False).shape == (1, 7)
    assert (model.W_in.shape, model.W_out.shape) == ((2, 16, 24), (2, 24, 16))
    assert (model.W_O.shape, model.W_U.shape, len(model.blocks)) == ((2, 2, 8, 16), (16, 60), 2)
    fired = []
    model.add_hook("blocks.0.hook_resid_post", lambda x, hook: fired.append(1))
    model(tokens[:1])
    model.reset_hooks()
    model(tokens[:1])
    assert fired == [1]
    assert model.to(torch.bfloat16) is model
    assert model.W_E.dtype == torch.bfloat16


def test_a_bridged_model_has_dashboards_and_serves_stock_sae_vis(tmp_path, tokens):
    torch.manual_seed(0)
    model = load_model(ARCHITECTURES["gemma 2"]().eval())
    assert isinstance(model, BridgedTransformer)
    dictionary = load_dictionary(write_crosscoder(tmp_path / "cc", n_sources=1))
    with pytest.warns(CrossvisWarning):
        data = SaeVisData.create(dictionary, model, tokens, sae_vis.SaeVisConfig(features=[0, 3, 5]))
    encoder, prepared = attach(dictionary, model, [0, 3, 5])
    stock = sae_vis.SaeVisData.create(encoder=encoder, model=prepared, tokens=tokens, cfg=encoder.config())
    x = model.run_with_cache(tokens)[1]["blocks.1.hook_resid_post"]
    acts = dictionary.encode([x])
    for i, feature in enumerate((0, 3, 5)):
        assert data.panels[feature].maximum == pytest.approx(acts[..., feature].max().item(), abs=1e-5)
        assert stock.feature_stats.max[i] == pytest.approx(acts[..., feature].max().item(), abs=1e-5)


def test_a_transformer_lens_model_without_a_huggingface_twin(monkeypatch, tl_models):
    """The hub is out of reach, so the loading itself stands in: its name and that nothing is processed count."""
    from transformer_lens import HookedTransformer

    asked = {}

    def from_pretrained_no_processing(name, **kwargs):
        asked.update(name=name, **kwargs)
        return tl_models[0]

    monkeypatch.setattr(HookedTransformer, "from_pretrained_no_processing", from_pretrained_no_processing)
    assert load_model("gelu-1l", device="cpu") is tl_models[0]
    assert asked == {"name": "gelu-1l", "device": "cpu", "dtype": torch.float32}


def test_half_precision(models_dir):
    model = load_model(models_dir / "base", dtype=torch.bfloat16)
    assert model.W_E.dtype == torch.bfloat16


def test_processed_models_are_told_apart():
    assert not is_processed(load_model(tiny_hf(1)))
    folded = load_model(tiny_hf(1))
    folded.process_weights_()
    assert is_processed(folded)
    centred = load_model(tiny_hf(1))
    centred.process_weights_(fold_ln=False, center_unembed=False, refactor_factored_attn_matrices=False)
    assert is_processed(centred)


@pytest.mark.parametrize("processed", [False, True])
def test_logits_from_the_final_residual(tokens, processed):
    model = load_model(tiny_hf(1))
    if processed:
        model.process_weights_()
    logits, cache = model.run_with_cache(tokens)
    resid = cache[f"blocks.{N_LAYERS - 1}.hook_resid_post"]
    torch.testing.assert_close(unembedding(model).logits(resid), logits, atol=1e-4, rtol=1e-4)


def test_folded_unembedding_is_gain_and_centring(tl_models):
    model = tl_models[0]
    d_model = model.cfg.d_model
    centring = torch.eye(d_model) - 1 / d_model
    expected = centring @ torch.diag(model.ln_final.w) @ model.W_U
    torch.testing.assert_close(unembedding(model).W, expected, atol=1e-6, rtol=1e-5)


def test_a_final_norm_of_another_kind_is_refused(tl_models, monkeypatch):
    monkeypatch.setattr(tl_models[0].cfg, "normalization_type", "L7")
    with pytest.raises(ValueError, match=r"final norms of type 'L7' are not known"):
        unembedding(tl_models[0])


def test_tolerances_cover_every_dtype_offered():
    assert set(TOLERANCE) >= {torch.float32, torch.bfloat16, torch.float16}


def test_a_half_precision_model_in_hand_loads(hf_models, tokens):
    import copy

    hf = copy.deepcopy(hf_models[0]).bfloat16()
    model = load_model(hf)
    assert model.W_E.dtype == torch.float32
    torch.testing.assert_close(model(tokens), hf_models[0](tokens).logits, atol=0.1, rtol=0.1)
