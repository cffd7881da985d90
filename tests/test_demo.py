"""The demo's assets are what they are said to be, and `crossvis demo` makes both pages from them."""

import json
import re

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from crossvis_tl import demo, load_dictionary, load_model, load_tokens
from crossvis_tl.capture import Capture
from crossvis_tl.cli import app
from crossvis_tl.gathering import gather
from crossvis_tl.geometry import site_geometry
from crossvis_tl.masking import token_mask
from crossvis_tl.vocabulary import Vocabulary


@pytest.fixture(scope="module")
def models():
    return [load_model(demo.BASE), load_model(demo.TUNED)]


@pytest.fixture(scope="module")
def tokens():
    return load_tokens(demo.TOKENS)


@pytest.fixture(scope="module")
def crosscoder_acts(models, tokens):
    capture = Capture(load_dictionary(demo.CROSSCODER), models)
    mask = token_mask(tokens, models[0].tokenizer)
    return gather(capture, tokens, mask, rows_per_batch=16, keep_final=False)


def report():
    return json.loads((demo.ASSETS / "report.json").read_text())


def test_the_assets_are_small_and_half_precision():
    files = [path for path in demo.ASSETS.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 15e6
    weights = [path for path in files if path.suffix == ".safetensors"]
    assert len(weights) == 10
    for path in weights:
        assert {tensor.dtype for tensor in load_file(path).values()} == {torch.float16}
    crosscoder = torch.load(next(demo.CROSSCODER.rglob("*.pt")), weights_only=True)
    assert {tensor.dtype for tensor in crosscoder.values()} == {torch.float16}


def test_the_tokens_are_many_and_begin_with_bos(tokens, models):
    assert tokens.numel() >= 100_000
    assert (tokens[:, 0] == models[0].tokenizer.bos_token_id).all()


def test_the_crosscoder_says_on_what_it_was_trained():
    cfg = json.loads(next(demo.CROSSCODER.rglob("cfg.json")).read_text())
    assert cfg["processing"] == "none"
    assert cfg["input_scale_folded"] is True
    dictionary = load_dictionary(demo.CROSSCODER)
    assert [site.scale for site in dictionary.sources] == pytest.approx(cfg["input_scale"])
    assert (dictionary.n_features, dictionary.n_models, dictionary.missing) == (1024, 2, ())


def test_the_models_are_better_than_counting(models, tokens):
    """Nats per token on these held-out tokens, beside a unigram model's that has even seen them."""
    counts = torch.bincount(tokens[:, 1:].flatten(), minlength=4096) + 1.0
    unigram = -(counts / counts.sum()).log()[tokens[:, 1:]].mean().item()
    losses = [model(tokens[:128], return_type="loss").item() for model in models]
    assert losses[1] < losses[0] < unigram - 2
    for kind, numbers in report()["nats_per_token"].items():
        assert numbers["base"] < numbers["unigram"] - 2, kind
        assert numbers["tuned"] < numbers["unigram"] - 2, kind
    assert report()["nats_per_token"]["code"]["tuned"] < report()["nats_per_token"]["code"]["base"] - 1


def test_the_crosscoder_is_as_good_as_reported(crosscoder_acts):
    fidelity, said = crosscoder_acts.fidelity, report()["crosscoder"]
    assert fidelity.verdict == "plausible"
    assert [site.fvu for site in fidelity.sites] == pytest.approx([said["fvu"]["base"], said["fvu"]["tuned"]], rel=0.1)
    assert fidelity.l0 == pytest.approx(said["mean_l0"], rel=0.1)
    assert max(site.fvu for site in fidelity.sites) < 0.25
    assert fidelity.l0 < 30
    assert fidelity.dead < 0.1


def test_ten_features_mean_what_they_are_said_to(crosscoder_acts, models, tokens):
    """Of a named feature's forty strongest activations four fifths are where its pattern says; of a thousand tokens
    anywhere, less than a tenth."""
    dictionary = load_dictionary(demo.CROSSCODER)
    vocabulary = Vocabulary(models[0].tokenizer)
    geometry = site_geometry(dictionary, crosscoder_acts.features, ["base", "tuned"])
    n_positions = tokens.shape[1]

    def matches(pattern: str, flat: list[int]) -> float:
        found = 0
        for row, position in (divmod(p, n_positions) for p in flat):
            text = "".join(vocabulary.text(int(i)) for i in tokens[row, max(1, position - 8) : position + 1])
            found += re.search(pattern, text) is not None
        return found / len(flat)

    named = demo.highlights()
    assert len(named) == 10
    assert sum(entry["class"] == "only tuned" for entry in named) >= 3
    anywhere = torch.randperm(tokens.numel(), generator=torch.Generator().manual_seed(0))[:1000].tolist()
    for entry in named:
        where, values = crosscoder_acts.of(entry["feature"])
        assert geometry[entry["feature"]].kind == entry["class"], entry
        assert matches(entry["pattern"], where[values.topk(40).indices].tolist()) >= 0.8, entry
        assert matches(entry["pattern"], anywhere) < 0.1, entry


@pytest.mark.timeout(600)
def test_crossvis_demo(tmp_path):
    result = CliRunner().invoke(app, ["demo", "--out", str(tmp_path / "out")])
    assert result.exit_code == 0, result.output
    pages = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert pages == ["clt.html", "crosscoder.html"]
    for name in pages:
        assert f"open {tmp_path / 'out' / name}" in result.output
    assert result.output.count("fidelity plausible: FVU") == 2
    assert "all together (95." in result.output
    for entry in demo.highlights()[:3]:
        assert f"crosscoder feature {entry['feature']} (only tuned): {entry['meaning']}" in result.output


def verdict_of(models, dictionary, tokens):
    rows = tokens[:24]
    capture = Capture(dictionary, models)
    mask = token_mask(rows, models[0].tokenizer)
    return gather(capture, rows, mask, [0], keep_final=False).fidelity


def test_swapped_models_are_found_out_though_they_still_explain_two_thirds(models, tokens):
    right = verdict_of(models, load_dictionary(demo.CROSSCODER), tokens)
    assert (right.verdict, right.warnings) == ("plausible", [])
    swapped = verdict_of(models[::-1], load_dictionary(demo.CROSSCODER), tokens)
    assert max(site.fvu for site in swapped.sites) < 0.5
    assert swapped.verdict == "implausible"
    cause = r"likely cause: the two models are swapped; give base first, then tuned "
    assert re.match(cause + r"\(FVU would be 0\.1\d instead of 0\.\d+\)", swapped.warnings[0])


def test_the_same_model_twice_is_noticed(models, tokens):
    fidelity = verdict_of([models[1], models[1]], load_dictionary(demo.CROSSCODER), tokens)
    assert fidelity.verdict != "plausible"
    assert "models 1 and 2 (tuned, tuned) are the same" in fidelity.warnings
    assert "its files say it was trained on 'base', not 'tuned'" in fidelity.warnings


@pytest.mark.parametrize("hook", ["blocks.1.hook_resid_post", "blocks.3.hook_resid_post"])
def test_a_wrong_layer_is_named(models, tokens, hook):
    fidelity = verdict_of(models, load_dictionary(demo.CROSSCODER, hook_point=hook), tokens)
    assert fidelity.verdict == "implausible"
    assert fidelity.warnings[0].startswith(f"likely cause: trained at blocks.2.hook_resid_post, not {hook}")


def test_a_wrong_input_of_a_clt_is_named(models, tokens):
    dictionary = load_dictionary(demo.CLT, feature_input_hook="hook_resid_pre")
    fidelity = verdict_of(models[1:], dictionary, tokens)
    assert fidelity.verdict == "implausible"
    assert any("it reads hook_resid_mid, not what its config names" in text for text in fidelity.warnings)


def test_a_clts_layers_have_their_own_figures(models, tokens):
    fidelity = verdict_of(models[1:], load_dictionary(demo.CLT), tokens)
    assert [group.label for group in fidelity.groups] == ["layer 0", "layer 1", "layer 2", "layer 3"]
    assert sum(group.l0 for group in fidelity.groups) == pytest.approx(fidelity.l0)


def test_the_clt_keeps_most_of_what_its_layers_are_worth(models, tokens):
    """The shipped transcoder in place of every MLP: what predictions lose, layer by layer and together."""
    (losses,) = verdict_of(models[1:], load_dictionary(demo.CLT), tokens).losses
    assert losses.clean is not None
    assert losses.together is not None
    assert [site.label for site in losses.sites] == [f"blocks.{layer}.hook_mlp_out" for layer in range(4)]
    for site in losses.sites:
        assert losses.clean < site.loss < losses.clean + 0.3
        assert (site.recovered(losses.clean) or 0) > 0.8
    assert max(site.loss for site in losses.sites) < losses.together.loss < losses.clean + 0.5
    assert (losses.together.recovered(losses.clean) or 0) > 0.9
