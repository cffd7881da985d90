"""What a review of the exports found: models in hand, several exports at once, names, and layers of some features."""

import gzip
import json
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from typer.testing import CliRunner

import crossvis_tl.export.neuronpedia_parts as parts
import crossvis_tl.export.neuronpedia_tables as tables
from crossvis_tl import (
    NeuronpediaRelease,
    NeuronpediaRunner,
    NeuronpediaRunnerConfig,
    SaeVisConfig,
    SaeVisData,
    export_neuronpedia,
    gather,
    load_dictionary,
    load_model,
)
from crossvis_tl.cli import app
from crossvis_tl.export import export_delphi
from crossvis_tl.export.streaming import StreamedJob, saved
from crossvis_tl.export.zipped import is_whole, zipped
from crossvis_tl.render import StoredJob
from tests.conftest import write_clt

pytestmark = pytest.mark.filterwarnings("ignore::crossvis_tl.CrossvisWarning")
WIDTH = 20
NAMES: dict[str, Any] = {"model_id": "tiny", "source_set": "clt-20"}
RELEASE = NeuronpediaRelease("r", "R", "someone")


@pytest.fixture(scope="module")
def clt_folder(tmp_path_factory) -> Path:
    return write_clt(tmp_path_factory.mktemp("dictionary") / "clt", WIDTH)


@pytest.fixture(scope="module")
def clt(clt_folder):
    return load_dictionary(clt_folder)


@pytest.fixture(scope="module")
def acts(clt, tl_models, tokens):
    return gather(clt, tl_models[1], tokens)


@pytest.fixture(scope="module")
def some(tmp_path_factory, clt, tl_models, tokens) -> Path:
    """A store of the second half of layer 1."""
    folder = tmp_path_factory.mktemp("stores") / "some"
    gather(clt, tl_models[1], tokens, features=range(WIDTH + 10, 2 * WIDTH), out=folder)
    return folder


@pytest.fixture
def cfg(clt_folder, tmp_path, models_dir) -> NeuronpediaRunnerConfig:
    texts = tmp_path / "texts.jsonl"
    texts.write_text("\n".join(json.dumps({"text": f"{i} ABCDEFG 0123456 ABCDEFG HIJK {i}"}) for i in range(12)))
    return NeuronpediaRunnerConfig(
        sae_set="clt-20", sae_path=str(clt_folder), outputs_dir=str(tmp_path / "out"), n_prompts_total=10,
        huggingface_dataset_path=str(texts), n_tokens_in_prompt=16, model_id="tiny", shuffle_tokens=False,
        model=str(models_dir / "tuned"),
    )  # fmt: skip


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# A model in hand


@pytest.mark.parametrize(("asked", "then"), [("", torch.bfloat16), ("float32", torch.float32)])
def test_a_model_in_hand_stays_as_it_is_unless_asked(cfg, models_dir, asked, then):
    cfg.model, cfg.model_dtype = load_model(models_dir / "tuned", dtype=torch.bfloat16), asked
    folder = NeuronpediaRunner(cfg).run(progress=False)
    assert {parameter.dtype for parameter in cfg.model.parameters() if parameter.is_floating_point()} == {then}
    name = str(then).removeprefix("torch.")
    assert json.loads(next(folder.glob("gathered/*/manifest.json")).read_text())["origin"]["dtype"] == name
    for path in folder.glob("*/run_settings.json"):
        assert json.loads(path.read_text())["model_dtype"] == name


def test_a_store_of_a_model_of_any_type_is_opened(cfg, clt_folder, models_dir, tmp_path):
    cfg.model = load_model(models_dir / "tuned", dtype=torch.float64)
    store = next(NeuronpediaRunner(cfg).run(progress=False).glob("gathered/*"))
    job = StreamedJob(store, "0", None, str(clt_folder), models=[str(models_dir / "tuned")])
    models = job.opened(lambda _: None).models
    assert models is not None
    assert next(models[0].parameters()).dtype is torch.float32


def test_paths_and_places_may_be_given_as_such(cfg):
    """They come as JSON has them."""
    cfg.sae_path, cfg.outputs_dir = Path(cfg.sae_path), Path(cfg.outputs_dir)
    cfg.huggingface_dataset_path, cfg.model_device = Path(cfg.huggingface_dataset_path), torch.device("cpu")
    folder = NeuronpediaRunner(cfg).run(progress=False)
    said = json.loads(next(folder.glob("*/run_settings.json")).read_text())
    assert (said["sae_path"], said["model_device"]) == (str(cfg.sae_path), "cpu")


def test_what_json_cannot_hold_is_said_before_anything_runs(cfg, monkeypatch):
    cfg.sparsity_threshold = float("nan")  # type: ignore[assignment]
    monkeypatch.setattr("crossvis_tl.render.RenderJob._gathered", lambda *_, **__: pytest.fail("it ran"))
    with pytest.raises(ValueError, match="settings: 'sparsity_threshold' is nan, which JSON cannot hold"):
        NeuronpediaRunner(cfg).run(progress=False)


@pytest.mark.parametrize("value", [Path("x"), float("inf"), {"a": {1, 2}}, torch.zeros(1)])
def test_settings_are_plain(tmp_path, acts, clt, value):
    with pytest.raises(ValueError, match=r"settings: 'y' is .*, which JSON cannot hold; expected texts"):
        export_neuronpedia(acts, tmp_path / "out", dictionary=clt, **NAMES, settings={"x": 1, "y": value})
    with pytest.raises(ValueError, match=r"dataset=.*Path\('d'\); expected a text"):
        export_neuronpedia(acts, tmp_path / "out", dictionary=clt, **NAMES, dataset=Path("d"))  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()


# Several at once


@pytest.mark.parametrize("layout", ["batches", "source"])
def test_another_export_may_begin_in_the_middle_of_one(tmp_path, acts, clt, monkeypatch, layout):
    settings = NAMES | {"dictionary": clt, "features_per_batch": 8, "layout": layout, "release": RELEASE}
    monkeypatch.setattr("crossvis_tl.export.neuronpedia_folders.now", lambda: "2026-11-26T08:00:00")
    whole = contents(export_neuronpedia(acts, tmp_path / "out", **settings))
    for path in sorted((tmp_path / "out").rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    real, made = parts.feature_entry, []

    def entry(*args):
        made.append(1)
        if len(made) == 4:  # of the first batch, whose file is a draft
            drafts = set((tmp_path / "out").rglob(".*.part"))
            export_neuronpedia(acts, tmp_path / "out", **settings, start_batch=1)
            assert drafts
            assert set((tmp_path / "out").rglob(".*.part")) == drafts
        return real(*args)

    monkeypatch.setattr(parts, "feature_entry", entry)
    export_neuronpedia(acts, tmp_path / "out", **settings, end_batch=0)
    found = contents(tmp_path / "out")
    assert found.keys() == whole.keys()
    assert {name for name in whole if found[name] != whole[name]} <= {name for name in whole if "run_settings" in name}


def test_a_delphi_export_does_not_take_away_anothers_draft(tmp_path, acts, monkeypatch):
    from crossvis_tl.export import delphi

    real, made = delphi._append_values, []

    def append(*args):
        made.append(1)
        if len(made) == 1:
            export_delphi(acts, tmp_path / "out", n_splits=2)
        real(*args)

    whole = contents(export_delphi(acts, tmp_path / "whole", n_splits=2))
    monkeypatch.setattr(delphi, "_append_values", append)
    assert contents(export_delphi(acts, tmp_path / "out", n_splits=2)) == whole


def test_a_store_that_was_begun_is_told_of(cfg, monkeypatch, caplog):
    """Another run may be gathering into it."""
    from crossvis_tl.store import Store

    cfg.n_prompts_in_forward_pass = 2
    with monkeypatch.context() as patch:
        patch.setattr("crossvis_tl.gathering.PART_TOKENS", 32)
        add = Store.add

        def stopped(self, part, number, sums):
            if number:
                raise KeyboardInterrupt
            return add(self, part, number, sums)

        patch.setattr(Store, "add", stopped)
        with pytest.raises(KeyboardInterrupt):
            NeuronpediaRunner(cfg).run(progress=False)
    assert "was begun and is not whole" not in caplog.text
    NeuronpediaRunner(cfg).run(progress=False)
    assert " was begun and is not whole: it is gone on with. If another run is gathering" in caplog.text
    caplog.clear()
    NeuronpediaRunner(cfg).run(progress=False)
    assert "was begun" not in caplog.text


# Files that are looked at from outside


def test_zipped_files_are_gzip_and_tell_whether_they_are_whole(tmp_path):
    mark, content = bytes(range(16)), b"a line\n" * 5000
    with zipped(tmp_path / "a", tmp_path / "a", mark) as file:
        for begin in range(0, len(content), 999):
            file.write(content[begin : begin + 999])
    data = (tmp_path / "a").read_bytes()
    assert gzip.decompress(data) == zlib.decompress(data, 31) == content
    assert len(data) < len(content) / 50
    assert is_whole(tmp_path / "a", mark)
    assert not is_whole(tmp_path / "a", bytes(16))
    for spoilt in (data[:-1], data + b"\0", data[:20], b"", gzip.compress(content)):
        (tmp_path / "b").write_bytes(spoilt)
        assert not is_whole(tmp_path / "b", mark)
    with zipped(tmp_path / "empty", tmp_path / "empty", mark):
        pass
    assert gzip.decompress((tmp_path / "empty").read_bytes()) == b""
    assert is_whole(tmp_path / "empty", mark)


def test_nothing_is_unpacked_to_go_on(tmp_path, acts, clt, monkeypatch):
    settings = NAMES | {"dictionary": clt, "layout": "source", "release": RELEASE}
    whole = contents(export_neuronpedia(acts, tmp_path / "out", **settings))
    monkeypatch.setattr(gzip, "open", lambda *_, **__: pytest.fail("it is unpacked"))
    monkeypatch.setattr(zlib, "decompressobj", lambda *_, **__: pytest.fail("it is unpacked"))
    assert contents(export_neuronpedia(acts, tmp_path / "out", **settings)) == whole


def test_neighbours_of_dashboards_are_looked_up_once_for_each_batch(tmp_path, acts, clt, tl_models, monkeypatch):
    cfg = SaeVisConfig(features=list(range(WIDTH)))
    data = SaeVisData.from_store(acts, clt, cfg, model=tl_models[1])
    real, asked = tables.Partners._made, []
    monkeypatch.setattr(tables.Partners, "_made", lambda self, shown, f: asked.append(f) or real(self, shown, f))
    export_neuronpedia(data, tmp_path / "out", **NAMES, features_per_batch=WIDTH // 2)
    assert len(asked) <= 3 * WIDTH


# Layers of which some features are there

LAYERS = [("all", 1), ("L1", None), ("l1", 1), ("L1,35", None)]


@pytest.mark.parametrize(("features", "layer"), LAYERS)
def test_a_layer_is_what_is_there_of_it(some, clt_folder, features, layer):
    job = StoredJob(some, features, layer, str(clt_folder), without_model=True, effect="none")
    assert list(job.run(lambda _: None).feature_data_dict) == list(range(WIDTH + 10, 2 * WIDTH))
    streamed = StreamedJob(some, features, layer, str(clt_folder), without_model=True)
    assert streamed.opened(lambda _: None).features == list(range(WIDTH + 10, 2 * WIDTH))


def test_the_strongest_of_a_layer_are_of_those_there(some, clt_folder):
    job = StoredJob(some, "top:3", 1, str(clt_folder), without_model=True, effect="none")
    everything = StoredJob(some, "top:3", None, str(clt_folder), without_model=True, effect="none")
    found = list(job.run(lambda _: None).feature_data_dict)
    assert len(found) == 3
    assert found == list(everything.run(lambda _: None).feature_data_dict)


@pytest.mark.parametrize(
    ("features", "layer", "text"),
    [
        ("all", 0, r"--features: no feature of layer 0 is there; there are 10 others, of L1"),
        ("top:2", 2, "no feature of layer 2 is there"), ("L2", None, "no feature of layer 2 is there"),
        ("25", None, "feature 25 was not gathered"), ("L1F3", None, "feature 23 was not gathered"),
        ("0-19", 1, "feature 20 was not gathered"), ("L1,L1F3", None, "feature 23 was not gathered"),
    ],
)  # fmt: skip
def test_what_is_named_must_be_there(some, clt_folder, features, layer, text):
    for kind in (StoredJob, StreamedJob):
        job = kind(some, features, layer, str(clt_folder), without_model=True, effect="none")
        with pytest.raises(ValueError, match=text):
            job.run(lambda _: None) if kind is StoredJob else job.opened(lambda _: None)  # type: ignore[attr-defined]


def test_a_layer_of_saved_dashboards_too(tmp_path, some, clt, clt_folder):
    data = SaeVisData.from_store(some, clt, SaeVisConfig(features=[WIDTH + 11, WIDTH + 12]))
    data.save_json(tmp_path / "data.json")
    assert saved(tmp_path / "data.json", str(clt_folder), {}, "L1").features == [WIDTH + 11, WIDTH + 12]
    with pytest.raises(ValueError, match="no feature of layer 2 is there; there are 2 others, of L1"):
        saved(tmp_path / "data.json", str(clt_folder), {}, "L2")


# Names

UNSAFE = ["con", "nul", "COM1", "Lpt9.x", "aux.", "a.", "x" * 300]


@pytest.mark.parametrize("name", UNSAFE)
@pytest.mark.parametrize("which", ["model_id", "source_set", "sae_id_suffix"])
def test_names_that_no_folder_can_have_everywhere(tmp_path, acts, clt, which, name):
    text = "cannot be a folder's name on Windows" if len(name) < 300 else "too long for a folder's name"
    with pytest.raises(ValueError, match=f"{which}: '{name[:40]}.*{text}"):
        export_neuronpedia(acts, tmp_path / "out", dictionary=clt, **(NAMES | {which: name}))
    assert not (tmp_path / "out").exists()


def test_names_that_are_too_long_together(tmp_path, acts, clt):
    names = {"model_id": "m" * 60, "source_set": "s" * 61}
    with pytest.raises(ValueError, match="model_id, source_set are 121 characters together, too many"):
        export_neuronpedia(acts, tmp_path / "out", dictionary=clt, **names)
    hooks = tuple(replace(site, hook=None, hf_path="model." + "x" * 180) for site in clt.sources)
    with pytest.raises(ValueError, match=r"the folder of layer 0: .* too long for a folder's name"):
        export_neuronpedia(
            SaeVisData.from_store(acts, clt, SaeVisConfig(features=[0])), tmp_path / "out",
            dictionary=replace(clt, sources=hooks), **NAMES,
        )  # fmt: skip
    assert not (tmp_path / "out").exists()
    names["source_set"] = "s" * 60
    assert export_neuronpedia(acts, tmp_path / "out", dictionary=clt, **names, end_batch=0).is_dir()


@pytest.mark.parametrize("name", [*UNSAFE, "a ", "a|b", "a?", "con.x.y"])
def test_delphis_folders_too(tmp_path, acts, name):
    with pytest.raises(ValueError, match=r"modules: '.* folder's name"):
        export_delphi(acts, tmp_path / "out", modules=["a", "b", name])
    assert not (tmp_path / "out").exists()
    for fine in ("console", "com10", "nulls.x", "a.b", "lpt"):
        export_delphi(acts, tmp_path / fine, modules=["a", "b", fine])


# The commands


@pytest.mark.parametrize("words", [["neuronpedia"], ["export", "neuronpedia"], ["export", "delphi"], ["gather"]])
def test_every_option_is_described(words):
    command: Any = typer.main.get_command(app)
    for word in words:
        command = command.commands[word]
    assert len(command.params) > 5
    assert [option.name for option in command.params if not getattr(option, "help", None)] == []
    shown = CliRunner().invoke(app, [*words, "--help"], env={"COLUMNS": "200", "TERM": "dumb"}).output
    assert ("docs/from-sae-dashboard.md" in shown) == (words == ["neuronpedia"])
