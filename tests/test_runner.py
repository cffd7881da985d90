"""Runs by SAEDashboard's own settings: what it takes, we take, and what comes out is what gathering and exporting by
hand give."""

import json
import re
from dataclasses import MISSING, fields, replace
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from crossvis_tl import (
    NeuronpediaRelease,
    NeuronpediaRunner,
    NeuronpediaRunnerConfig,
    export_neuronpedia,
    gather,
    load_dictionary,
    load_token_set,
)
from crossvis_tl.cli import app
from crossvis_tl.export import runner
from tests.conftest import N_CTX, N_LAYERS, write_clt, write_crosscoder

pytestmark = pytest.mark.filterwarnings("ignore::crossvis_tl.CrossvisWarning")
ORACLE = Path(__file__).parent / "oracles" / "neuronpedia" / "runner_defaults.json"
FEATURES, CONTEXT, PROMPTS = 20, 16, 30
WIDE = {"COLUMNS": "300", "TERM": "dumb"}


@pytest.fixture(scope="module")
def clt_folder(tmp_path_factory):
    return write_clt(tmp_path_factory.mktemp("dictionary") / "clt", FEATURES)


@pytest.fixture(scope="module")
def texts(tmp_path_factory) -> Path:
    """Forty texts of printable characters, one token each; every fourth is too short for a prompt."""
    generator = torch.Generator().manual_seed(8)
    path = tmp_path_factory.mktemp("texts") / "texts.jsonl"
    lines = []
    for i in range(40):
        n = 5 if i % 4 == 3 else 3 * N_CTX
        letters = torch.randint(33, 91, (n,), generator=generator).tolist()
        lines.append(json.dumps({"text": "".join(map(chr, letters))}))
    path.write_text("\n".join(lines))
    return path


@pytest.fixture
def cfg(clt_folder, texts, models_dir, tmp_path) -> NeuronpediaRunnerConfig:
    return NeuronpediaRunnerConfig(
        sae_set="clt-tiny", sae_path=str(clt_folder), outputs_dir=str(tmp_path / "out"), from_local_sae=True,
        huggingface_dataset_path=str(texts), n_prompts_total=PROMPTS, n_tokens_in_prompt=CONTEXT,
        n_prompts_in_forward_pass=8, n_features_at_a_time=8, hf_model_path=str(models_dir / "tuned"),
        shuffle_tokens=False,
    )  # fmt: skip


def files(folder: Path) -> dict[str, bytes]:
    """What Neuronpedia reads: all but settings, which name the folder, our note of when, and what was gathered."""
    found = {}
    for path in sorted(folder.glob("**/*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and not name.startswith("gathered") and path.name not in OWN:
            found[name] = path.read_bytes()
    return found


def test_it_takes_all_that_saedashboard_takes_with_the_same_defaults():
    theirs = json.loads(ORACLE.read_text())
    ours = {f.name: None if f.default is MISSING else f.default for f in fields(NeuronpediaRunnerConfig)}
    assert len(theirs) > 40
    assert {name: ours[name] for name in theirs} == theirs
    assert list(ours)[: len(theirs)] == list(theirs)  # by position too


def test_a_run_is_a_gathering_and_an_export(cfg, clt_folder, texts, tl_models, tmp_path):
    folder = NeuronpediaRunner(cfg).run(progress=False)
    assert folder == tmp_path / "out"
    by_layer = sorted(path.name for path in folder.iterdir() if path.name != "gathered")
    assert by_layer == [f"tuned_clt-tiny_blocks.{layer}.hook_resid_mid_{FEATURES}" for layer in range(N_LAYERS)]
    dictionary = load_dictionary(clt_folder)
    given = load_token_set(texts, tl_models[1].tokenizer, CONTEXT, n_sequences=PROMPTS, packing="each")
    acts = gather(dictionary, tl_models[1], given)
    by_hand = export_neuronpedia(
        acts, tmp_path / "hand", dictionary=dictionary, model=tl_models[1], model_id="tuned", source_set="clt-tiny",
        features_per_batch=8, dataset=str(texts),
    )  # fmt: skip
    one, other = files(folder), files(by_hand)
    assert list(one) == list(other)
    batches = [name for name in one if "/batch-" in name]
    assert len(batches) == 3 * N_LAYERS
    for name in batches:
        assert json.loads(one[name]) == json.loads(other[name])


def test_the_settings_are_written_down_as_they_were_given(cfg):
    cfg.prefix_str, cfg.ignore_positions, cfg.sparsity_threshold = "A", [2], -4
    folder = NeuronpediaRunner(cfg).run(progress=False)
    for path in folder.glob("*/run_settings.json"):
        said = json.loads(path.read_text())
        theirs = json.loads(ORACLE.read_text())
        assert list(said) == list(theirs)
        kinds = ("use_clt", "use_transcoder", "use_skip_transcoder")  # which need not be said
        given = {name: getattr(cfg, name) for name in theirs if name not in ("outputs_dir", *kinds)}
        assert said == said | {name: value for name, value in given.items() if value is not None and value != ""}
    assert len(list(folder.glob("*/run_settings.json"))) == N_LAYERS


def test_what_was_left_open_is_written_down_as_it_is(cfg):
    """The settings by which SAEDashboard would make the same folder."""
    cfg.outputs_dir, cfg.ignore_positions, cfg.from_local_sae = Path(cfg.outputs_dir), (2, -1), False
    folder = NeuronpediaRunner(cfg).run(progress=False)
    found = sorted(folder.glob("*/run_settings.json"))
    for layer, path in enumerate(found):
        said = json.loads(path.read_text())
        assert list(said) == list(json.loads(ORACLE.read_text()))
        known = {
            "layer": layer, "clt_layer_idx": layer, "model_id": "tuned", "np_set_name": "clt-tiny", "use_clt": True,
            "use_transcoder": False, "from_local_sae": True, "model_dtype": "float32", "sae_dtype": "float32",
            "sae_device": "cpu", "model_device": "cpu", "activation_store_device": "cpu", "model_n_devices": 1,
            "prefix_str": None, "outputs_dir": str(folder), "ignore_positions": [2, -1], "shuffle_tokens": False,
        }  # fmt: skip
        assert said == said | known
    assert len(found) == N_LAYERS


def test_one_layer_and_some_batches_of_it(cfg):
    cfg.use_clt, cfg.clt_layer_idx, cfg.start_batch, cfg.end_batch = True, 1, 1, 1
    folder = NeuronpediaRunner(cfg).run(progress=False)
    (layer,) = [path for path in folder.iterdir() if path.name != "gathered"]
    assert layer.name == f"tuned_clt-tiny_blocks.1.hook_resid_mid_{FEATURES}"
    assert [path.name for path in layer.glob("batch-*.json")] == ["batch-1.json"]
    batch = json.loads((layer / "batch-1.json").read_text())
    assert (batch["model_id"], batch["layer"], batch["sae_set"]) == ("tuned", 1, "clt-tiny")


def shown_texts(folder: Path) -> list[list[str]]:
    found = []
    for path in folder.glob("*/batch-*.json"):
        for feature in json.loads(path.read_text())["features"]:
            found += [one["tokens"] for one in feature["activations"]]
    return found


def test_prefix_suffix_and_ignored_positions_reach_the_examples(cfg):
    cfg.prefix_str, cfg.suffix_str, cfg.ignore_positions = "<<", ">", [3, -1]
    folder = NeuronpediaRunner(cfg).run(progress=False)
    rows = shown_texts(folder)
    assert len(rows) > 50
    assert all(row[:2] == ["<", "<"] and row[-1] == ">" and len(row) == CONTEXT - 1 for row in rows)  # BOS is not shown
    for path in folder.glob("*/batch-*.json"):
        for feature in json.loads(path.read_text())["features"]:
            for one in feature["activations"]:
                assert one["values"][2] == one["values"][-1] == 0


def test_outlying_norms_are_left_out(cfg):
    plain = NeuronpediaRunner(cfg).run(progress=False)
    cfg.outputs_dir, cfg.ignore_high_activation_norm_multiple = f"{cfg.outputs_dir}-filtered", 1.05
    filtered = NeuronpediaRunner(cfg).run(progress=False)

    def density(folder: Path) -> float:
        batches = (json.loads(path.read_text()) for path in folder.glob("*/batch-*.json"))
        return sum(feature["frac_nonzero"] for batch in batches for feature in batch["features"])

    manifest = json.loads((filtered / "gathered" / "clt-tiny" / "manifest.json").read_text())
    (count,) = [n for what, n in manifest["masked"] if "norm" in what]
    assert count > 20
    assert density(plain) != density(filtered)


OWN = ("run_settings.json", "crossvis_export.json")


class Stopped(KeyboardInterrupt):
    pass


@pytest.mark.parametrize("calls", [1, 4])
def test_a_stopped_run_goes_on(cfg, tmp_path, monkeypatch, calls):
    from crossvis_tl.export import neuronpedia_folders

    whole = files(NeuronpediaRunner(replace(cfg, outputs_dir=str(tmp_path / "whole"))).run(progress=False))
    write, left = neuronpedia_folders.write_whole, [calls]

    def stop(path, chunks):
        if path.name.startswith("batch-"):
            left[0] -= 1
            if left[0] < 0:
                raise Stopped
        return write(path, chunks)

    with monkeypatch.context() as patch:
        patch.setattr(neuronpedia_folders, "write_whole", stop)
        with pytest.raises(KeyboardInterrupt, match="the same call or command goes on from there"):
            NeuronpediaRunner(cfg).run(progress=False)
    ran = []
    from crossvis_tl import capture

    before = capture.Capture.run
    monkeypatch.setattr(capture.Capture, "run", lambda self, t, **k: ran.append(t.shape) or before(self, t, **k))
    again = files(NeuronpediaRunner(cfg).run(progress=False))
    assert again == whole
    assert all(len(shape) == 2 and shape[0] == 1 for shape in ran)  # only the look at widths: what fires is kept


def test_the_newer_layout(cfg):
    cfg.layout, cfg.release = "source", NeuronpediaRelease("tiny-release", "Tiny", "somebody")
    folder = NeuronpediaRunner(cfg).run(progress=False)
    assert sorted(path.name for path in (folder / "tuned").iterdir()) == [f"{i}-clt-tiny" for i in range(N_LAYERS)]


def test_an_array_of_ids_and_a_crosscoder_with_a_layer_to_give(cfg, tmp_path, tokens, tl_models, models_dir):
    torch.save(tokens, tmp_path / "tokens.pt")
    cfg.sae_path = str(write_crosscoder(tmp_path / "c", n_sources=1))
    cfg.huggingface_dataset_path, cfg.sae_set, cfg.np_set_name = str(tmp_path / "tokens.pt"), "x", "res-tiny"
    cfg.np_sae_id_suffix, cfg.model_id = "b", "gpt-tiny"
    folder = NeuronpediaRunner(cfg).run(progress=False)
    (layer,) = [path for path in folder.iterdir() if path.name != "gathered"]
    assert layer.name == "gpt-tiny_res-tiny_blocks.1.hook_resid_post_40_b"
    assert (layer / f"tokens_{len(tokens)}.pt").exists()


def sae_of_sae_lens(**said):
    from sae_lens import StandardSAE, StandardSAEConfig
    from sae_lens.saes.sae import SAEMetadata

    torch.manual_seed(3)
    sae = StandardSAE(StandardSAEConfig(
        d_in=16, d_sae=24, metadata=SAEMetadata(hook_name="blocks.1.hook_resid_post", model_name="tuned", **said)
    ))  # fmt: skip
    with torch.no_grad():
        sae.W_enc.normal_(0, 0.4)
        sae.W_dec.normal_(0, 0.4)
    return sae


@pytest.mark.parametrize(
    ("said", "processing"), [({}, "tl_default"), ({"model_from_pretrained_kwargs": {"fold_ln": False}}, "none")]
)
def test_a_release_of_sae_lens(cfg, monkeypatch, said, processing):
    """Found by sae_lens itself; on the weights that SAEDashboard would run."""
    from sae_lens import SAE

    asked = {}

    def from_pretrained(**arguments):
        asked.update(arguments)
        return sae_of_sae_lens(**said)

    monkeypatch.setattr(SAE, "from_pretrained", from_pretrained)
    cfg.from_local_sae, cfg.sae_set, cfg.sae_path, cfg.np_set_name = False, "release", "blocks.1", "res-tiny"
    cfg.sae_converter_name = "gemma_2"
    made = NeuronpediaRunner(cfg)
    dictionary = made._dictionary()
    assert {site.processing for site in dictionary.sources} == {processing}
    assert (asked["release"], asked["sae_id"]) == ("release", "blocks.1")
    assert callable(asked["converter"])
    folder = made.run(progress=False)
    assert len(list(folder.glob("tuned_res-tiny_blocks.1.hook_resid_post_24/batch-*.json"))) == 3
    cfg.sae_converter_name = "gema_2"
    with pytest.raises(ValueError, match=r"sae_converter_name='gema_2' is none of sae_lens'\. .*gemma_2"):
        NeuronpediaRunner(cfg).run(progress=False)


def test_products_in_half_precision(cfg):
    cfg.clt_dtype = "bfloat16"
    dictionary = NeuronpediaRunner(cfg)._dictionary()
    assert {group.dtype for group in dictionary.groups} == {torch.bfloat16}
    assert NeuronpediaRunner(cfg).run(progress=False).exists()


WRONG = {
    "two kinds": ({"use_clt": True, "use_transcoder": True}, "use_transcoder and use_clt contradict each other"),
    "another kind": ({"use_transcoder": True}, "use_transcoder=True, but .*clt holds a clt; leave it out"),
    "attribution": ({"use_dfa": True}, "use_dfa=True: attributions to the heads .* are not made here"),
    "no tokens": ({"huggingface_dataset_path": ""}, "huggingface_dataset_path is empty"),
    "a wrong file": ({"huggingface_dataset_path": "texts.jsnl"}, r"texts\.jsnl"),
    "a type": ({"model_dtype": "float33"}, r"dtype 'float33': expected one of .*float32"),
    "a layout": ({"layout": "batch"}, r"layout='batch'.*batches"),
    "no prompts": ({"n_prompts_total": 0}, "n_prompts_total is 0; expected a whole number of at least 1"),
    "a layer": ({"clt_layer_idx": 7}, "there is no layer 7; this clt has layers 0, 1, 2"),
    "a path": ({"sae_path": "no/such/folder"}, "no/such/folder"),
    "no model": ({"hf_model_path": None, "sae_path": "crosscoder"}, "do not name the model; give model="),
    "a release": ({"layout": "source"}, 'layout="source" needs release='),
    "a name": ({"np_set_name": "a/b"}, "source_set='a/b'; expected Neuronpedia's own name"),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_cannot_be_is_said_before_anything_runs(cfg, tmp_path, monkeypatch, what):
    changes, says = WRONG[what]
    if changes.get("sae_path") == "crosscoder":
        changes = changes | {"sae_path": str(write_crosscoder(tmp_path / "c", n_sources=1))}
    monkeypatch.setattr(runner.RenderJob, "_gathered", lambda *_, **__: pytest.fail("it ran"))
    with pytest.raises((ValueError, OSError), match=says):
        NeuronpediaRunner(replace(cfg, **changes)).run(progress=False)


def test_what_changes_nothing_is_said(cfg, caplog):
    cfg.use_wandb, cfg.quantile_feature_batch_size, cfg.model_n_devices = True, 32, 1
    NeuronpediaRunner(cfg)
    assert re.search("use_wandb=True changes nothing: progress is shown", caplog.text)
    assert re.search("quantile_feature_batch_size=32 changes nothing: features are shown", caplog.text)
    assert "model_n_devices" not in caplog.text


def test_command(clt_folder, texts, models_dir, tmp_path):
    """As SAEDashboard's is written, and with ours beside it."""
    arguments = [
        "neuronpedia", "--sae-set", "clt-tiny", "--sae-path", clt_folder, "--np-set-name", "clt-np", "--dataset-path",
        texts, "--output-dir", tmp_path / "out", "--n-prompts", PROMPTS, "--n-tokens-in-prompt", CONTEXT,
        "--n-features-per-batch", 10, "--sae_dtype", "float32", "--model_dtype", "float32", "--from-local-sae",
        "--use-clt", "--clt-layer-idx", 2, "--hf-model-path", models_dir / "tuned", "--no-prepend-bos",
        "--prefix-str", "AB", "--n-prompts-in-forward-pass", 8, "--start-batch", 0, "--end-batch", 0,
    ]  # fmt: skip
    result = CliRunner().invoke(app, [str(one) for one in arguments])
    assert result.exit_code == 0, result.output
    assert "loss " in result.output
    (batch,) = (tmp_path / "out").glob("*/batch-*.json")
    assert len(json.loads(batch.read_text())["features"]) == 10
    rows = shown_texts(tmp_path / "out")
    assert rows
    assert {row[0] for row in rows} <= {"A", "B"}  # the first token is shown only where it was chosen
    result = CliRunner().invoke(app, [str(one) for one in arguments] + ["--use-transcoder"])
    assert result.exit_code == 2
    assert "contradict each other" in result.output


def test_the_docs_name_an_equal_of_every_setting():
    """Each has one row, whose options exist."""
    text = (Path(__file__).parents[1] / "docs" / "from-sae-dashboard.md").read_text()
    rows = dict(re.findall(r"^\| `(\w+)` \| (.*) \|$", text.split("## `SaeVisConfig`")[0], re.MULTILINE))
    assert set(rows) == set(json.loads(ORACLE.read_text()))
    options = set(re.findall(r"--[\w-]+", CliRunner().invoke(app, ["neuronpedia", "--help"], env=WIDE).output))
    by_hand = set()
    for command in (["gather"], ["export", "neuronpedia"]):
        by_hand |= set(re.findall(r"--[\w-]+", CliRunner().invoke(app, [*command, "--help"], env=WIDE).output))
    for setting, row in rows.items():
        theirs, ours = row.split(" | ")[:2]
        assert set(re.findall(r"--[\w-]+", theirs)) <= options, setting
        assert set(re.findall(r"--[\w-]+", ours)) <= by_hand, setting
