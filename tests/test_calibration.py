"""Rankings over a batch made thresholds, and input scales measured."""

from pathlib import Path

import pytest
import sae_vis
import torch

from crossvis_tl import SaeVisData, calibrate, estimate_input_scale, load_dictionary
from crossvis_tl.capture import Capture
from crossvis_tl.masking import token_mask

GOLDEN = Path(__file__).parent / "golden"
CASES = {"f7_untied_batchtopk": {}, "f7_untied_topk": {}}
CASES["f1b_liuhaozhe_batchtopk"] = {"input_scale": 1.0, "hook_point": "blocks.1.hook_mlp_out"}


def opened(name: str, tl_models: list):
    dictionary = load_dictionary(GOLDEN / name / "checkpoint", **CASES[name])
    return dictionary, tl_models[: dictionary.n_models]


def counted_inputs(dictionary, models, tokens) -> list[torch.Tensor]:
    counted = token_mask(tokens, models[0].tokenizer, "special").counted
    return [x[counted] for x in Capture(dictionary, models, calibrating=True).run(tokens).sources]


@pytest.mark.parametrize("name", CASES)
def test_calibrated_on_a_batch_is_ranked_over_that_batch(name, tl_models, tokens):
    """Calibrated on all tokens, features fire as they do where all tokens are one batch, and each token alone."""
    dictionary, models = opened(name, tl_models)
    inputs = counted_inputs(dictionary, models, tokens)
    whole = dictionary.encode(inputs)
    fixed = calibrate(dictionary, models, tokens, rows_per_batch=5)
    torch.testing.assert_close(fixed.encode(inputs), whole, atol=1e-4, rtol=1e-4)
    assert not fixed.batch_dependent
    alone = torch.cat([fixed.encode([x[i : i + 1] for x in inputs]) for i in range(len(inputs[0]))])
    torch.testing.assert_close(alone, whole, atol=1e-4, rtol=1e-4)
    apart = torch.cat([dictionary.encode([x[i : i + 7] for x in inputs]) for i in range(0, len(inputs[0]), 7)])
    assert not torch.allclose(apart, whole)


def test_a_batch_dependent_dictionary_is_not_gathered(tl_models, tokens):
    dictionary, models = opened("f7_untied_batchtopk", tl_models)
    text = r"has a BatchTopK that ranks over the batch.*crossvis_tl\.calibrate\(dictionary, models, tokens\)"
    with pytest.raises(ValueError, match=text):
        SaeVisData.create(dictionary, models, tokens, sae_vis.SaeVisConfig(features=[0]))


@pytest.mark.filterwarnings("ignore::crossvis_tl.CrossvisWarning")
def test_the_page_says_what_was_calibrated(tl_models, tokens):
    dictionary, models = opened("f7_untied_batchtopk", tl_models)
    fixed = calibrate(dictionary, models, tokens)
    data = SaeVisData.create(fixed, models, tokens, sae_vis.SaeVisConfig(features=[0, 50]))
    said = dict(data.page.facts)["calibrated"]
    assert said == "BatchTopK with k = 6, its threshold taken from 276 tokens; none was stored"
    assert data.page.fidelity is not None
    assert data.page.fidelity["l0"] == pytest.approx(6)


def test_there_must_be_something_to_calibrate(tl_models, tokens):
    dictionary = load_dictionary(GOLDEN / "f7_untied_jumprelu_tie_ge/checkpoint")
    with pytest.raises(ValueError, match=r"\(JumpReLU\) does not depend on the batch: nothing to calibrate"):
        calibrate(dictionary, tl_models[:1], tokens)
    with pytest.raises(ValueError, match="every token is BOS or padding"):
        calibrate(opened("f7_untied_topk", tl_models)[0], tl_models[:1], torch.zeros(2, 6, dtype=torch.long))


def test_input_scales_are_those_of_huggingface_activations(tl_models, hf_models, tokens):
    scales = estimate_input_scale(tl_models, tokens, "blocks.1.hook_resid_pre", processing="none", rows_per_batch=5)
    for scale, hf in zip(scales, hf_models, strict=True):
        with torch.no_grad():
            hidden = hf(tokens, output_hidden_states=True).hidden_states[1]
        assert scale == pytest.approx(float(4 / hidden[:, 1:].norm(dim=-1).mean()), rel=1e-5)
    hooks = ["blocks.0.hook_resid_post", "blocks.2.mlp.hook_post"]
    layers = estimate_input_scale(tl_models[0], tokens, hooks, processing="none")
    assert layers[0] == pytest.approx(scales[0])
    with pytest.raises(ValueError, match=r"3 hook points for 2 models"):
        estimate_input_scale(tl_models, tokens, ["hook_embed"] * 3, processing="none")
    with pytest.raises(ValueError, match=r"blocks\.9\.hook_resid_post"):
        estimate_input_scale(tl_models, tokens, "blocks.9.hook_resid_post", processing="none")


def test_padding_on_the_left_changes_no_scale(tl_models, tokens):
    rows = tokens[:, :18]
    padded = torch.cat([torch.zeros(len(rows), 4, dtype=torch.long), rows], dim=1)
    want, got = (
        estimate_input_scale(tl_models[0], some, "blocks.1.hook_resid_post", processing="none")
        for some in (rows, padded)
    )
    assert got == pytest.approx(want, rel=1e-5)
