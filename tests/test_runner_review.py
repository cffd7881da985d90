"""What an independent tester found of runs by SAEDashboard's settings, held."""

import json

import pytest
import torch
from sae_lens import StandardSAE, StandardSAEConfig
from sae_lens.saes.sae import SAEMetadata

from crossvis_tl import (
    NeuronpediaRelease,
    calibrate,
    gather,
    load_dictionary,
    load_token_set,
)
from crossvis_tl.calibration import calibrated_as, calibration_of
from crossvis_tl.capture import Capture
from crossvis_tl.fingerprints import dictionary_fingerprint
from tests.conftest import D_MODEL, tiny_tokenizer, write_clt
from tests.test_clt_blind import invoke
from tests.test_data_blind import CONTEXT, entries, run, texts  # noqa: F401
from tests.test_sae_dashboard_clt import write as write_dashboard_clt

pytestmark = pytest.mark.filterwarnings("ignore::crossvis_tl.CrossvisWarning")


@pytest.fixture(scope="module")
def dashboard_clt(tmp_path_factory):
    return write_dashboard_clt(tmp_path_factory.mktemp("clt") / "clt", "jumprelu", "mean_std")


def sae_folder(folder, **meta):
    torch.manual_seed(0)
    where = SAEMetadata(hook_name="blocks.1.hook_resid_post", model_name="base", **meta)
    made = StandardSAE(StandardSAEConfig(d_in=D_MODEL, d_sae=12, metadata=where))
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.copy_(0.4 * torch.randn_like(parameter))
    made.save_model(folder)
    return folder


def own_tokens(out):
    return torch.load(next(out.rglob("tokens_*.pt")))


# Settings of the export are looked at before the whole gathering
@pytest.mark.parametrize(
    "changes",
    [
        {"model_id": "a/b"},
        {"sae_set": "x/y"},
        {"np_sae_id_suffix": "x/y"},
        {"layout": "source"},
        {"n_quantiles": -1},
        {"top_acts_group_size": -1},
        {"quantile_group_size": -1},
        {"start_batch": -1},
        {"start_batch": 3, "end_batch": 1},
        {"start_batch": 100},
    ],
    ids=str,
)
def test_export_settings_are_checked_before_the_gathering(tmp_path, dashboard_clt, texts, models_dir, changes):  # noqa: F811
    with pytest.raises(ValueError):  # noqa: PT011
        run(tmp_path / "out", dashboard_clt, texts, models_dir, **changes)
    assert not (tmp_path / "out" / "gathered").exists()


# BOS, EOS and padding inside a row do not count, as in SAEDashboard's runner
def test_bos_and_eos_inside_a_row_are_ignored_as_saedashboard_does(tmp_path, dashboard_clt, models_dir):
    rows = [[0, 5, 6, 0, 7, 8, 9, 10, 0, 11, 12, 13], [0, 15, 16, 0, 17, 18, 19, 20, 0, 21, 22, 23]]
    (tmp_path / "ids.jsonl").write_text("\n".join(json.dumps({"tokens": row}) for row in rows))
    out = run(tmp_path / "out", dashboard_clt, tmp_path / "ids.jsonl", models_dir, clt_layer_idx=1)
    (folder,) = (path for path in out.iterdir() if path.name != "gathered")
    shown = [one["tokens"][one["qualifying_token_index"]] for e in entries(folder).values() for one in e["activations"]]
    assert "<|endoftext|>" not in shown


# prepend_bos=None is "what the SAE was trained with" (metadata.prepend_bos)
def test_prepend_bos_is_the_saes_own_unless_said(tmp_path, texts, models_dir):  # noqa: F811
    folder = sae_folder(tmp_path / "sae", prepend_bos=False)
    out = run(tmp_path / "out", folder, texts, models_dir, from_local_sae=True)
    assert not (own_tokens(out)[:, 0] == 0).any()


# One outputs_dir for several runs, such as a loop over a CLT's layers
def test_layers_one_after_another_into_one_folder(tmp_path, dashboard_clt, texts, models_dir):  # noqa: F811
    for layer in range(3):
        run(tmp_path / "out", dashboard_clt, texts, models_dir, use_clt=True, clt_layer_idx=layer)


# Without a dataset it is the one the SAE was trained on
def test_the_dataset_is_the_saes_own_unless_said(tmp_path, texts, models_dir):  # noqa: F811
    folder = sae_folder(tmp_path / "sae", dataset_path=str(texts))
    run(tmp_path / "out", folder, texts, models_dir, from_local_sae=True, huggingface_dataset_path="")


# A ranking over the batch gets a threshold on the run's own prompts
@pytest.mark.parametrize("activation", ["batchtopk", "topk"])
def test_rankings_over_the_batch_run(tmp_path, texts, models_dir, activation):  # noqa: F811
    folder = write_dashboard_clt(tmp_path / "clt", activation)
    run(tmp_path / "out", folder, texts, models_dir, use_clt=True, clt_layer_idx=1)


# --layer numbers features within the layer in exports too
def test_features_are_numbered_within_the_layer_in_exports_too(tmp_path, tl_models, tokens):
    folder = write_clt(tmp_path / "clt", 9)
    gather(load_dictionary(folder, processing="none"), tl_models[1], tokens, out=tmp_path / "store")
    result = invoke(
        "export", "neuronpedia", "--store", tmp_path / "store", "--dictionary", folder, "--no-model", "--out",
        tmp_path / "out", "--model-id", "m", "--source-set", "s", "--layer", 1, "--features", "0-3",
    )  # fmt: skip
    assert result.exit_code == 0, result.output


# calibrate takes what gather takes
def test_calibrate_takes_a_token_set(tmp_path, tl_models):
    dictionary = load_dictionary(write_dashboard_clt(tmp_path / "clt", "batchtopk"))
    (tmp_path / "t.jsonl").write_text("\n".join(json.dumps({"text": "ABCDEFGHIJKLMN"[i:]}) for i in range(5)))
    calibrate(dictionary, tl_models[0], load_token_set(tmp_path / "t.jsonl", tiny_tokenizer(), 6))


# A release's name and texts go into Neuronpedia's files
@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"name": ""}, "the release's name is ''; expected letters"), ({"name": "a/b"}, "the release's name is 'a/b'"),
        ({"name": "r\x00"}, "the release's name is"), ({"title": "t\x00"}, "the release's title is 't\\\\x00'"),
        ({"creator": 3}, "the release's creator is 3; expected a text"),
    ],
    ids=repr,
)  # fmt: skip
def test_a_release_is_checked_as_other_names_are(changes, says):
    with pytest.raises(ValueError, match=says):
        NeuronpediaRelease(**{"name": "r", "title": "t", "creator": "c"} | changes)


# A path that is not here, without from_local_sae
def test_a_mistyped_path_is_named(tmp_path, texts, models_dir):  # noqa: F811
    with pytest.raises((ValueError, OSError), match="mistyped"):
        run(tmp_path / "out", tmp_path / "mistyped", texts, models_dir, sae_set="my-own-set")


# The same on the command line, and a store of it opened again
def test_a_ranking_over_the_batch_on_the_command_line(tmp_path, texts, models_dir, monkeypatch):  # noqa: F811
    folder = write_dashboard_clt(tmp_path / "clt", "batchtopk")
    common = ["--model", models_dir / "base", "--dictionary", folder, "--tokens", texts, "--context", CONTEXT]
    result = invoke("gather", *common, "--out", tmp_path / "store")
    assert result.exit_code == 2
    assert "or --calibrate" in result.output
    result = invoke("gather", *common, "--calibrate", "--out", tmp_path / "store")
    assert result.exit_code == 0, result.output
    result = invoke("render", "--store", tmp_path / "store", "--features", "top:3", "--out", tmp_path / "page.html")
    assert result.exit_code == 0, result.output
    assert "its threshold taken from" in (tmp_path / "page.html").read_text(encoding="utf-8")
    # what was found is kept: nothing is looked for again, on no machine whose rounding is another
    monkeypatch.setattr("crossvis_tl.render.calibrated_on", lambda *_, **__: pytest.fail("it was calibrated again"))
    out = ["--out", tmp_path / "np", "--model-id", "m", "--source-set", "s"]
    result = invoke("export", "neuronpedia", "--store", tmp_path / "store", "--no-model", *out)
    assert result.exit_code == 0, result.output
    result = invoke("render", "--store", tmp_path / "store", "--no-model", "--out", tmp_path / "b.html")
    assert result.exit_code == 0, result.output
    result = invoke("gather", *common, "--calibrate", "--out", tmp_path / "store")
    assert result.exit_code == 0, result.output
    result = invoke("export", "neuronpedia", "--store", tmp_path / "store", "--layout", "source", *out)
    assert result.exit_code == 2
    assert "--layout source needs --release" in result.output


def test_a_kept_threshold_of_other_groups_is_refused(tmp_path):
    dictionary = load_dictionary(write_dashboard_clt(tmp_path / "clt", "batchtopk"))
    with pytest.raises(ValueError, match=r"is damaged: calibration\.0\.threshold is \(3,\)"):
        calibrated_as(dictionary, {"calibration.0.threshold": torch.zeros(3)}, "so")


@pytest.mark.parametrize("activation", ["batchtopk", "topk"])
def test_what_calibrating_found_is_enough_to_have_it_again(tmp_path, tl_models, tokens, activation):
    dictionary = load_dictionary(write_dashboard_clt(tmp_path / "clt", activation))
    there = calibrate(dictionary, tl_models[0], tokens)
    again = calibrated_as(dictionary, calibration_of(there), "so")
    assert dictionary_fingerprint(again) == dictionary_fingerprint(there)
    inputs = Capture(there, tl_models[:1]).run(tokens).sources
    assert torch.equal(again.encode(inputs), there.encode(inputs))


def test_a_threshold_is_found_on_as_many_tokens_as_there_is_room_for(tmp_path, tl_models, tokens, monkeypatch):
    dictionary = load_dictionary(write_dashboard_clt(tmp_path / "clt", "batchtopk"))
    k = dictionary.joint.k if dictionary.joint else dictionary.groups[0].activation.k
    monkeypatch.setattr("crossvis_tl.calibration.HELD", 3 * k * (tokens.shape[1] - 1))
    few = calibrate(dictionary, tl_models[0], tokens)
    monkeypatch.undo()
    assert f"from {3 * (tokens.shape[1] - 1)} tokens" in few.facts["calibrated"]
    assert calibration_of(few).keys() == calibration_of(calibrate(dictionary, tl_models[0], tokens[:3])).keys()
    for one, other in zip(
        calibration_of(few).values(), calibration_of(calibrate(dictionary, tl_models[0], tokens[:3])).values(),
        strict=True,
    ):  # fmt: skip
        torch.testing.assert_close(one, other)
