"""Every way people write a place, and what is said of those that are wrong, ambiguous or a trap."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crossvis_tl import Hook, discover_hook_point_for_layer, find_hook, hook_table, load_model
from tests.architectures import ARCHITECTURES, build

GPT2, GEMMA_2, LLAMA, PHI, OPT, NEOX = (build(n) for n in ("gpt2", "gemma 2", "llama", "phi", "opt", "neox"))

SAME_ON_GPT2 = [
    ("transformer.h.1.mlp output", None, "transformer.h.1.mlp.output", "blocks.1.hook_mlp_out"),
    ("transformer.h[1].mlp.output", None, "transformer.h.1.mlp.output", "blocks.1.hook_mlp_out"),
    ("llm.transformer.h[1].mlp.output", None, "transformer.h.1.mlp.output", "blocks.1.hook_mlp_out"),
    ("h.1.mlp.output", None, "transformer.h.1.mlp.output", "blocks.1.hook_mlp_out"),
    ("mlp.output", 1, "transformer.h.1.mlp.output", "blocks.1.hook_mlp_out"),
    ("transformer.h.{}.mlp.output", 1, "transformer.h.1.mlp.output", "blocks.1.hook_mlp_out"),
    ("resid_delta_mlp", 1, "transformer.h.1.mlp.output", "blocks.1.hook_mlp_out"),
    ("mlp_output", 1, "transformer.h.1.mlp.output", "blocks.1.hook_mlp_out"),
    ("mlps_output[1]", None, "transformer.h.1.mlp.output", "blocks.1.hook_mlp_out"),
    ("hook_mlp_out", 1, "transformer.h.1.mlp.output", "blocks.1.hook_mlp_out"),
    ("transformer.h.1.output", None, "transformer.h.1.output", "blocks.1.hook_resid_post"),
    ("layers_output[1]", None, "transformer.h.1.output", "blocks.1.hook_resid_post"),
    ("residual", 0, "transformer.h.0.output", "blocks.0.hook_resid_post"),
    ("layers_input[1]", None, "transformer.h.1.input", "blocks.1.hook_resid_pre"),
    ("attention_output", 1, "transformer.h.1.attn.output[0]", "blocks.1.hook_attn_out"),
    ("transformer.h.1.attn.output[0]", None, "transformer.h.1.attn.output[0]", "blocks.1.hook_attn_out"),
    ("transformer.h.1.attn.output[1]", None, "transformer.h.1.attn.output[1]", "blocks.1.attn.hook_pattern"),
    ("resid_delta_attn", 0, "transformer.h.0.attn.output[0]", "blocks.0.hook_attn_out"),
    ("mlp_post_act", 1, "transformer.h.1.mlp.c_proj.input", "blocks.1.mlp.hook_post"),
    ("transformer.h.1.mlp.act.output", None, "transformer.h.1.mlp.act.output", "blocks.1.mlp.hook_post"),
    ("transformer.h.1.mlp.c_proj.output", None, "transformer.h.1.mlp.c_proj.output", "blocks.1.hook_mlp_out"),
    ("blocks.{}.ln2.hook_normalized", 1, "transformer.h.1.ln_2.output", "blocks.1.ln2.hook_normalized"),
    ("mlps_input[1]", None, "transformer.h.1.mlp.input", "blocks.1.ln2.hook_normalized"),
    ("attentions_input[1]", None, "transformer.h.1.attn.input", "blocks.1.ln1.hook_normalized"),
    ("transformer.wte.output", None, "transformer.wte.output", "hook_embed"),
]


@pytest.mark.parametrize(("name", "layer", "hf_name", "tl_name"), SAME_ON_GPT2)
def test_spellings(name, layer, hf_name, tl_name):
    for model in (GPT2, load_model(GPT2)):
        hook = find_hook(model, name, layer)
        assert (hook.hf_name, hook.name) == (hf_name, tl_name)
        assert (hook.layer, hook.status) == (
            None if tl_name == "hook_embed" else int(tl_name.split(".")[1]),
            "transformed" if tl_name.endswith("normalized") else "exact",
        )


@pytest.mark.parametrize(
    ("model", "name", "layer", "text"),
    [
        (GPT2, "transformer.h.1.mlp", None, r"its input or its output\? Write 'transformer\.h\.1\.mlp\.input' or"),
        (GPT2, "hook_resid_post", None, r"could be in any layer; which one\? Pass layer=0 to 1"),
        (GPT2, "resid_delta_mlp", None, r"which one\? Pass layer=0 to 1"),
        (GPT2, "mlp.output", None, r"could be transformer\.h\.0\.mlp, transformer\.h\.1\.mlp.*Pass layer="),
        (GPT2, "blocks.{}.hook_mlp_out", None, r"is a template; which layer\?"),
        (GPT2, "blocks.1.hook_mlp_out", 0, r"names layer 1, but layer=0 was given"),
        (GPT2, "layers_output[1]", 0, r"names layer 1, but layer=0 was given"),
        (GPT2, "residual", 2, r"there is no layer 2; this model has layers 0 to 1"),
        (GPT2, "blocks.7.hook_mlp_out", None, r"there is no layer 7.*Did you mean 'blocks\.1\.hook_mlp_out'"),
        (GPT2, "blocks.1.hook_mlp_oot", None, r"is not a hook of this model.*Did you mean 'blocks\.1\.hook_mlp_out'"),
        (GPT2, "transfomer.h.1.mlp.output", None, r"neither a hook nor a module.*Did you mean 'transformer\.h\.1\.mlp"),
        (GPT2, "transformer.h.1.attn.output[7]", None, r"gives no element \[7\]"),
        (GPT2, "transformer.wte.input", None, r"is no activation: no real numbers pass there"),
        (GPT2, "", None, r"the hook's name is empty"),
        (PHI, "blocks.0.hook_resid_mid", None, r"does not exist here: attention and MLP read the same residual stream"),
        (PHI, "blocks.0.ln2.hook_out", None, r"one norm serves both halves of a block here"),
        (NEOX, "resid_mid", 1, r"has no hook_resid_mid in layer 1: attention and MLP read the same"),
    ],
)
def test_what_cannot_be_found_says_why(model, name, layer, text):
    with pytest.raises(ValueError, match=text):
        find_hook(model, name, layer)


def test_traps_are_told():
    raw, added = find_hook(GEMMA_2, "mlp_output", 1), find_hook(GEMMA_2, "blocks.1.hook_mlp_out")
    assert (raw.name, raw.hf_name) == ("blocks.1.mlp.hook_out", "model.layers.1.mlp.output")
    assert "before the post-norm" in raw.note
    assert "blocks.1.hook_mlp_out" in raw.note
    assert added.hf_name == "model.layers.1.post_feedforward_layernorm.output"
    assert "after the post-norm" in added.note
    assert "blocks.1.mlp.hook_out" in added.note
    assert "before the norm's gain" in find_hook(LLAMA, "blocks.1.ln2.hook_normalized").note
    assert "what HuggingFace's MLP reads is blocks.1.mlp.hook_in" in find_hook(LLAMA, "blocks.1.hook_mlp_in").note
    assert "not the activation function's own output" in find_hook(LLAMA, "blocks.1.mlp.hook_post").note
    assert "first sequence of the batch" in find_hook(LLAMA, "model.layers[1].output[0]").note
    assert find_hook(build("gpt-j"), "transformer.h[1].output[0]").note == ""
    gone = find_hook(LLAMA, "model.layers.1.mlp.act_fn.output")
    assert (gone.name, gone.status, gone.reads) == (None, "absent", ())
    assert "between the activation function and its product" in gone.note


def test_an_mlp_without_a_module_of_its_own():
    assert find_hook(OPT, "mlp_output", 1).hf_name == "model.decoder.layers.1.fc2.output"
    assert find_hook(OPT, "mlp_input", 1).hf_name == "model.decoder.layers.1.fc1.input"


@pytest.mark.parametrize("name", list(ARCHITECTURES))
def test_names_lead_back_and_forth(name):
    hf = build(name)
    for model in (hf, load_model(hf)):
        hooks = set(getattr(model, "hook_dict", ()))
        rows = hook_table(model)
        assert len({(row.name, row.hf_name) for row in rows}) == len(rows)
        for row in rows:
            assert json.loads(json.dumps(row.as_dict()))["status"] in ("exact", "transformed", "absent")
            if row.status == "absent":
                assert row.note
                continue
            assert find_hook(model, row.hf_name).hf_name == row.hf_name
            if hooks:
                assert set(row.reads) <= hooks
            if len(row.reads) == 1:
                assert find_hook(model, row.name).name == row.name


def test_the_adapters_function_gives_a_hook_that_is_the_tensor():
    assert discover_hook_point_for_layer(GPT2, 1, "attention_output") == "blocks.1.hook_attn_out"
    assert discover_hook_point_for_layer(GPT2, layer_num=0, hook_type="residual") == "blocks.0.hook_resid_post"
    assert discover_hook_point_for_layer(load_model(GEMMA_2), 1, "mlp_input") == "blocks.1.mlp.hook_in"
    with pytest.raises(ValueError, match=r"no hook of this model holds mlp_input of layer 1 as it is.*affine"):
        discover_hook_point_for_layer(load_model(GPT2), 1, "mlp_input")


@given(
    st.text(max_size=30) | st.from_regex(r"(blocks|transformer\.h)\.[0-9]{1,2}\.[a-z_.\[\]0-9{}]{0,20}", fullmatch=True)
)
@settings(max_examples=120, deadline=None)
def test_junk_is_refused_in_words(name):
    try:
        found = find_hook(GPT2, name, 1)
    except ValueError as error:
        found = str(error)
    assert isinstance(found, Hook) or len(found) > 10
