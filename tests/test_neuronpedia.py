"""What Neuronpedia imports, read back by brute force; stopped, gone on with, refused. What SAEDashboard itself writes
of the same weights is in test_neuronpedia_compat.py."""

import gzip
import json
import os
import shutil
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

import crossvis_tl.export.neuronpedia_folders as folders
import crossvis_tl.export.neuronpedia_parts as parts
import crossvis_tl.export.neuronpedia_tables as tables
from crossvis_tl import (
    Column,
    NeuronpediaRelease,
    SaeVisConfig,
    SaeVisData,
    SaeVisLayoutConfig,
    SequencesConfig,
    export_circuit_tracer,
    export_neuronpedia,
    gather,
    load_dictionary,
    open_store,
)
from crossvis_tl.cli.exporting import export
from crossvis_tl.export.batches import split
from crossvis_tl.export.neuronpedia_features import Words, share
from crossvis_tl.feature_acts import FeatureActs
from crossvis_tl.geometry import decoder_vectors
from crossvis_tl.unembed import unembedding
from tests.conftest import D_MODEL, N_CTX, N_LAYERS, write_clt, write_crosscoder
from tests.test_export import write_transcoders

pytestmark = pytest.mark.filterwarnings("ignore::crossvis_tl.CrossvisWarning")
WIDTH, ROWS = 20, 12
NAMES: dict[str, Any] = {"model_id": "tiny-it", "source_set": "clt-20"}
SIZES: dict[str, Any] = {"n_quantiles": 3, "top_acts_group_size": 4, "quantile_group_size": 2}
RELEASE = NeuronpediaRelease("tiny-release", "Tiny CLTs", "Someone", "https://example.org", "CLT - 20", "me/clt", "all")
TIME = "2026-11-26T08:00:00"


@pytest.fixture(scope="module")
def clt_folder(tmp_path_factory) -> Path:
    return write_clt(tmp_path_factory.mktemp("dictionary") / "clt", WIDTH)


@pytest.fixture(scope="module")
def clt(clt_folder):
    return load_dictionary(clt_folder)


@pytest.fixture(scope="module")
def store(tmp_path_factory, clt, tl_models, tokens) -> Path:
    folder = tmp_path_factory.mktemp("stores") / "store"
    gather(clt, tl_models[1], tokens, out=folder)
    return folder


@pytest.fixture(scope="module")
def asked(clt, tl_models) -> dict[str, Any]:
    return NAMES | SIZES | {"dictionary": clt, "model": tl_models[1], "features_per_batch": 8, "dataset": "random"}


@pytest.fixture(autouse=True)
def same_time(monkeypatch):
    monkeypatch.setattr(folders, "now", lambda: TIME)


def sub(layer: int) -> str:
    return f"tiny-it_clt-20_blocks.{layer}.hook_resid_mid_{WIDTH}"


def entries(folder: Path) -> dict[int, dict]:
    """By index, of all batches in order."""
    files = sorted(folder.glob("batch-*.json"), key=lambda path: int(path.stem.split("-")[1]))
    found = [entry for path in files for entry in json.loads(path.read_text())["features"]]
    indices = [entry["feature_index"] for entry in found]
    assert indices == sorted(set(indices))
    return {entry["feature_index"]: entry for entry in found}


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def dense(acts: FeatureActs) -> torch.Tensor:
    """[features, rows, positions]"""
    found = torch.zeros(len(acts.features), acts.tokens.numel())
    for i in range(len(acts.features)):
        where, values = acts.of(i)
        found[i, where] = values
    return found.view(-1, *acts.tokens.shape)


@pytest.fixture(scope="module")
def written(tmp_path_factory, store, clt, tl_models) -> Path:
    settings = NAMES | SIZES | {"dictionary": clt, "model": tl_models[1], "features_per_batch": 8, "dataset": "random"}
    return export_neuronpedia(store, tmp_path_factory.mktemp("neuronpedia") / "whole", **settings)


def test_a_clt_has_a_folder_for_each_layer(written, tokens):
    assert sorted(path.name for path in written.iterdir()) == [sub(layer) for layer in range(N_LAYERS)]
    for layer in range(N_LAYERS):
        folder = written / sub(layer)
        files = {"crossvis_export.json", "run_settings.json", "skipped_indexes.json", f"tokens_{ROWS}.pt"}
        assert {path.name for path in folder.iterdir()} == files | {f"batch-{n}.json" for n in range(3)}
        batch = json.loads((folder / "batch-1.json").read_text())
        assert list(batch) == ["model_id", "layer", "sae_set", "sae_id_suffix", "features"]
        assert [batch[key] for key in list(batch)[:-1]] == ["tiny-it", layer, "clt-20", None]
        assert list(entries(folder)) == list(range(WIDTH))
        settings = json.loads((folder / "run_settings.json").read_text())
        assert (settings["use_clt"], settings["clt_layer_idx"], settings["layer"]) == (True, layer, layer)
        assert torch.equal(torch.load(folder / f"tokens_{ROWS}.pt", weights_only=True), tokens)


def test_logits_and_neurons_are_of_all_decoders_together(written, clt, tl_models):
    W = unembedding(tl_models[1]).W
    vectors = decoder_vectors(clt, torch.arange(clt.n_features))
    for layer in range(N_LAYERS):
        for index, entry in entries(written / sub(layer)).items():
            vector = torch.stack([vectors[t][layer * WIDTH + index] for t in range(layer, N_LAYERS)]).sum(0)
            logits = vector @ W
            assert entry["pos_values"] == pytest.approx(logits.topk(10).values.tolist(), abs=6e-4)
            assert entry["neg_values"] == pytest.approx((-logits).topk(10).values.neg().tolist(), abs=6e-4)
            ids = logits.topk(10).indices.tolist()
            assert entry["pos_str"] == [tl_models[1].tokenizer.decode([i]) for i in ids]
            assert sum(entry["logits_hist_data_bar_heights"]) == len(logits)
            assert entry["neuron_alignment_indices"] == vector.topk(3).indices.tolist()
            assert entry["neuron_alignment_values"] == pytest.approx(vector.topk(3).values.tolist(), abs=6e-4)
            shares = vector.topk(3).values.abs() / vector.abs().sum()
            assert entry["neuron_alignment_l1"] == pytest.approx(shares.tolist(), abs=6e-4)


def test_every_example_is_a_row_of_the_tokens(written, store, tokens, tl_models):
    acts, tokenizer = open_store(store), tl_models[1].tokenizer
    texts = [[tokenizer.decode([i]) for i in row] for row in tokens.tolist()]
    values, seen = dense(acts), 0
    for layer in range(N_LAYERS):
        for index, entry in entries(written / sub(layer)).items():
            own = values[layer * WIDTH + index]
            fired = int((own > 0).sum())
            assert entry["frac_nonzero"] == pytest.approx(fired / acts.n_counted, abs=6e-6)
            assert sum(entry["freq_hist_data_bar_heights"]) == fired
            assert bool(entry["activations"]) == bool(fired)
            for one in entry["activations"]:
                at = one["qualifying_token_index"] + 1  # BOS is not shown
                row = next(
                    r for r in range(ROWS)
                    if one["tokens"] == texts[r][1:] and np.allclose(one["values"], own[r, 1:].numpy(), atol=6e-4)
                )  # fmt: skip
                assert own[row, at] > 0
                top = one["bin_min"] == -1
                assert top or one["bin_min"] - 6e-4 <= float(own[row, at]) <= one["bin_max"] + 6e-4
                assert one["bin_contains"] == -1 if top else 0 < one["bin_contains"] < 1
                seen += 1
            strongest = [one["values"][one["qualifying_token_index"]] for one in entry["activations"][:1]]
            assert strongest == pytest.approx([float(own.max())] * len(strongest), abs=6e-4)
    assert seen > 100


def test_neighbours_are_of_the_same_layer_by_brute_force(written, store):
    acts = open_store(store)
    values = dense(acts)[:, acts.counted].double().numpy()
    with np.errstate(invalid="ignore", divide="ignore"):
        everything = np.nan_to_num(np.corrcoef(values))
    for layer in range(N_LAYERS):
        own = everything[layer * WIDTH : (layer + 1) * WIDTH, layer * WIDTH : (layer + 1) * WIDTH]
        for index, entry in entries(written / sub(layer)).items():
            if not entry["frac_nonzero"]:
                assert entry["correlated_features_indices"] == entry["correlated_neurons_indices"] == []
                continue
            found = entry["correlated_features_indices"]
            assert len(set(found)) == 3
            assert index not in found
            others = np.delete(own[index], index)
            assert entry["correlated_features_pearson"] == pytest.approx(np.sort(others)[::-1][:3], abs=6e-4)
            assert own[index][found] == pytest.approx(np.sort(others)[::-1][:3], abs=1e-6)
            assert all(0 <= neuron < D_MODEL for neuron in entry["correlated_neurons_indices"])


def test_neighbours_are_the_same_however_many_are_looked_for_at_once(tmp_path, written, store, asked, monkeypatch):
    monkeypatch.setattr(tables, "SPAN", 1)
    monkeypatch.setattr("crossvis_tl.statistics.PRODUCTS", 1)
    assert contents(export_neuronpedia(store, tmp_path / "one", **asked)).keys() == contents(written).keys()
    for layer in range(N_LAYERS):
        assert entries(tmp_path / "one" / sub(layer)) == entries(written / sub(layer))


def test_many_activations_are_correlated_within_a_batch_as_saedashboard_does(tmp_path, store, asked, monkeypatch):
    monkeypatch.setattr(tables, "BLOCK", 10)
    folder = export_neuronpedia(store, tmp_path / "out", **asked, layer=1) / sub(1)
    assert json.loads((folder / "crossvis_export.json").read_text())["correlated_features"] == "batch"
    for number in range(3):
        batch = json.loads((folder / f"batch-{number}.json").read_text())["features"]
        own = {entry["feature_index"] for entry in batch}
        assert all(set(entry["correlated_features_indices"]) < own for entry in batch)
        assert any(entry["correlated_features_indices"] for entry in batch)
    with pytest.raises(FileExistsError, match="another export"):
        export_neuronpedia(store, tmp_path / "out", **asked, layer=1, correlated="source")


def test_some_features_of_one_layer(tmp_path, store, clt, asked):
    features = [2 * WIDTH + 7, WIDTH + 3, WIDTH + 19, WIDTH + 4]
    folder = export_neuronpedia(store, tmp_path / "out", **asked, layer=1, features=features)
    assert [path.name for path in folder.iterdir()] == [sub(1)]
    assert list(entries(folder / sub(1))) == [3, 4, 19]
    skipped = json.loads((folder / sub(1) / "skipped_indexes.json").read_text())
    assert skipped["skipped_indexes"] == [i for i in range(WIDTH) if i not in (3, 4, 19)]
    assert (skipped["layer"], skipped["log_sparsity"]) == ("1", -6)
    export_neuronpedia(store, tmp_path / "all", **asked, features=features)
    assert sorted(path.name for path in (tmp_path / "all").iterdir()) == [sub(1), sub(2)]


def test_features_that_never_fire_can_be_skipped(tmp_path, store, written, asked):
    folder = export_neuronpedia(store, tmp_path / "out", **asked, skip_dead=True)
    n_dead = 0
    for layer in range(N_LAYERS):
        everything, kept = entries(written / sub(layer)), entries(folder / sub(layer))
        dead = [index for index, entry in everything.items() if not entry["frac_nonzero"]]
        assert list(kept) == [index for index in everything if index not in dead]
        assert json.loads((folder / sub(layer) / "skipped_indexes.json").read_text())["skipped_indexes"] == dead
        n_dead += len(dead)
    assert n_dead


def test_a_layer_that_never_fires_is_left_out(tmp_path, store, asked):
    counts = open_store(store).starts.diff()
    dead = int((counts == 0).nonzero()[0])
    alive = next(i for i in range(len(counts)) if counts[i] and i // WIDTH != dead // WIDTH)
    folder = export_neuronpedia(store, tmp_path / "out", **asked, skip_dead=True, features=[dead, alive])
    assert [path.name for path in folder.iterdir()] == [sub(alive // WIDTH)]
    with pytest.raises(ValueError, match="none of the features fires, and skip_dead leaves those out"):
        export_neuronpedia(store, tmp_path / "none", **asked, skip_dead=True, features=[dead])
    assert not (tmp_path / "none").exists()


def test_batches_can_be_written_one_by_one(tmp_path, store, written, asked):
    for number in (2, 0, 1):
        export_neuronpedia(store, tmp_path / "out", **asked, start_batch=number, end_batch=number)
        batches = {path.name for path in (tmp_path / "out" / sub(0)).glob("batch-*.json")}
        assert f"batch-{number}.json" in batches
    export_neuronpedia(store, tmp_path / "out", **asked)
    there, whole = contents(tmp_path / "out"), contents(written)
    assert {name: there[name] for name in there if "batch-" in name} == {
        name: whole[name] for name in whole if "batch-" in name
    }


@settings(deadline=None)
@given(st.integers(1, 400), st.integers(1, 150))
def test_batches_are_as_numpy_splits(n, most):
    numbers = np.arange(n)
    expected = [part.tolist() for part in np.array_split(numbers, int(np.ceil(n / most)))]
    assert split(numbers.tolist(), most) == expected


@settings(deadline=None)
@given(st.floats(0, 1))
def test_a_density_is_0_only_where_nothing_fires(fraction):
    assert (share(fraction) == 0) == (fraction == 0)
    assert share(fraction) == pytest.approx(fraction, abs=5.1e-6)
    if fraction > 1e-5:
        assert share(fraction) == float(f"{fraction:.3%}"[:-1]) / 100


def test_texts_are_what_json_and_databases_take():
    words = Words({0: "a", 1: "\udce2", 2: "#2", 3: "x\0", 7: "#8"})
    assert words.of([0, 1, 2, 3, 7]) == ["a", "\\xe2", "<|outofrange|>", "x\\x00", "#8"]
    assert Words({5: "#5", 6: "#6"}).of([5, 6]) == ["#5", "#6"]  # no tokenizer: the number says more


def stopped_at(monkeypatch, calls: int) -> None:
    """`feature_entry` is interrupted after so many calls."""
    real, made = parts.feature_entry, []

    def entry(*args):
        if len(made) == calls:
            raise KeyboardInterrupt
        made.append(args)
        return real(*args)

    monkeypatch.setattr(parts, "feature_entry", entry)


@pytest.mark.parametrize("layout", ["batches", "source"])
@pytest.mark.parametrize("calls", [0, 3, 8, 13, 27, 59])
def test_a_stopped_export_goes_on(tmp_path, store, asked, layout, calls):
    settings = asked | {"layout": layout, "release": RELEASE}
    whole = contents(export_neuronpedia(store, tmp_path / "out", **settings))
    shutil.rmtree(tmp_path / "out")
    done = sum(calls >= 7 * n for n in (1, 2))  # for the text: batches are 7, 7 and 6 features
    with pytest.MonkeyPatch.context() as patch:
        stopped_at(patch, calls)
        with pytest.raises(KeyboardInterrupt, match=r"lacks \d of 9 batches; the same call or command goes on") as stop:
            export_neuronpedia(store, tmp_path / "out", **settings)
        if calls < 20:
            assert f"lacks {9 - done} of 9" in str(stop.value)
    assert not list((tmp_path / "out").rglob(".*"))
    there = contents(tmp_path / "out")
    assert there.items() <= whole.items()
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*batch-*")}
    export_neuronpedia(store, tmp_path / "out", **settings)
    assert contents(tmp_path / "out") == whole
    assert {path: path.stat().st_mtime_ns for path in times} == times  # what was whole is not made again


def left_long_ago(path: Path) -> None:
    path.write_text("{")
    os.utime(path, (0, 0))


def test_the_rest_of_a_killed_run_is_taken_away(tmp_path, store, asked, written):
    folder = tmp_path / "out"
    export_neuronpedia(store, folder, **asked, end_batch=0)
    left_long_ago(folder / sub(0) / ".batch-1.json.0123abcd.part")
    export_neuronpedia(store, folder, **asked)
    assert not list(folder.rglob(".*"))
    assert entries(folder / sub(0)) == entries(written / sub(0))


def cut(name: str) -> Callable[[Path], object]:
    def spoil(folder: Path) -> None:
        path = folder / name
        path.write_bytes(path.read_bytes()[:-5])

    return spoil


def append(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\0")


HOSTILE: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "other files": ("batches", lambda f: (f / "notes.txt").write_text("mine"),
                    r"holds notes\.txt, which is not of this export for Neuronpedia"),
    "a batch cut": ("batches", cut("batch-1.json"), r"batch-1\.json is damaged: .* delete it, and it is made again"),
    "files of others": ("batches", lambda f: (f / "crossvis_export.json").unlink(),
                        "holds files that crossvis_tl did not write"),
    "a damaged note": ("batches", lambda f: (f / "crossvis_export.json").write_text("["), r"export\.json is damaged"),
    "a strange note": ("batches", lambda f: (f / "crossvis_export.json").write_text("[]"), "holds another export"),
    "features cut": ("source", cut("features/batch-2.jsonl.gz"), r"batch-2\.jsonl\.gz is damaged: .*; delete it"),
    "activations cut": ("source", cut("activations/batch-0.jsonl.gz"), r"batch-0\.jsonl\.gz is damaged"),
    "features lost": ("source", lambda f: (f / "features/batch-0.jsonl.gz").write_bytes(gzip.compress(b"{}\n")),
                      r"batch-0\.jsonl\.gz is damaged: it is not as it was written; delete it"),
    "another batch": ("source", lambda f: shutil.copy(f / "features/batch-0.jsonl.gz", f / "features/batch-1.jsonl.gz"),
                      r"batch-1\.jsonl\.gz is damaged"),
    "one for the other": ("source", lambda f: shutil.copy(f / "features/batch-0.jsonl.gz", f / "activations"),
                          r"activations.batch-0\.jsonl\.gz is damaged"),
    "bytes behind it": ("source", lambda f: append(f / "features/batch-0.jsonl.gz"), r"batch-0\.jsonl\.gz is damaged"),
    "foreign features": ("source", lambda f: (f / "features/more.gz").write_bytes(b""), r"holds more\.gz"),
}  # fmt: skip


@pytest.mark.parametrize("what", HOSTILE)
def test_what_is_not_its_own_is_refused(tmp_path, store, asked, what):
    layout, spoil, text = HOSTILE[what]
    settings = asked | {"layout": layout, "release": RELEASE, "layer": 0}
    root = export_neuronpedia(store, tmp_path / "out", **settings)
    spoil(root / (sub(0) if layout == "batches" else "tiny-it/0-clt-20"))
    before = contents(root)
    with pytest.raises((FileExistsError, ValueError), match=text):
        export_neuronpedia(store, root, **settings)
    assert contents(root) == before


@pytest.mark.parametrize(
    "change",
    [{"n_quantiles": 2}, {"features_per_batch": 9}, {"dataset": "other"}, {"seed": 1}, {"features": [0, 1, 2]},
     {"model": None}, {"distinct": False}, {"skip_dead": True}, {"top_acts_group_size": 5}],
)  # fmt: skip
def test_exports_do_not_mix(tmp_path, store, asked, change):
    settings = asked | {"layer": 0}
    root = export_neuronpedia(store, tmp_path / "out", **settings, end_batch=0)
    before = contents(root)
    with pytest.raises(FileExistsError, match=r"holds another export, with other features, tokens or settings|holds "):
        export_neuronpedia(store, root, **(settings | change))
    assert contents(root) == before


def test_as_many_other_features_are_another_export(tmp_path, store, asked):
    root = export_neuronpedia(store, tmp_path / "out", **asked, features=[0, 1, 2])
    with pytest.raises(FileExistsError, match="holds another export"):
        export_neuronpedia(store, root, **asked, features=[0, 1, 3])


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "layout": ({"layout": "batch"}, "layout='batch'; expected 'batches', 'source'. Did you mean 'batches'"),
    "release": ({"layout": "source"}, 'layout="source" needs release=NeuronpediaRelease'),
    "model_id": ({"model_id": "google/gemma-2-2b"}, "model_id='google/gemma-2-2b'; expected Neuronpedia's own name"),
    "set": ({"source_set": "../up"}, r"source_set='\.\./up'; expected Neuronpedia's own name"),
    "suffix": ({"sae_id_suffix": ""}, "sae_id_suffix=''; expected"),
    "size": ({"features_per_batch": 0}, "features_per_batch=0; expected a whole number of at least 1"),
    "start": ({"start_batch": 3}, "start_batch=3; there are 3 batches, from 0 on"),
    "end": ({"start_batch": 2, "end_batch": 1}, "end_batch=1 comes before start_batch=2"),
    "layer": ({"layer": 3}, "layer=3: there are features of layers 0, 1, 2"),
    "features": ({"features": [1, 60]}, r"features names 60, but .* holds 60 others"),
    "twice": ({"features": [1, 1]}, "features names feature 1 twice"),
    "of_model": ({"of_model": 1}, "of_model=1; these features are of 1 models, 0 to 0"),
    "correlated": ({"correlated": "all"}, "correlated='all'; expected 'source', 'batch'"),
    "dictionary": ({"dictionary": None}, "a store does not hold the dictionary it was gathered with; pass dictionary="),
    "unit": ({"unit_decoders": True}, "unit_decoders=True, but features of clt have several decoder rows"),
    "per_document": ({"per_document": 0}, "per_document is 0; expected"),
    "quantiles": ({"n_quantiles": -1}, r"SequencesConfig\.n_quantiles is -1"),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_cannot_be_is_said_before_anything_is_written(tmp_path, store, asked, what):
    change, text = WRONG[what]
    with pytest.raises(ValueError, match=text):
        export_neuronpedia(store, tmp_path / "out", **(asked | change))
    assert not (tmp_path / "out").exists()


def test_a_store_of_another_dictionary_is_refused(tmp_path, store, asked):
    other = load_dictionary(write_clt(tmp_path / "narrow", WIDTH - 1))
    with pytest.raises(ValueError, match="was gathered with another dictionary"):
        export_neuronpedia(store, tmp_path / "out", **(asked | {"dictionary": other}))


# Columns of Neuronpedia's tables, in order (SAEDashboard, neuronpedia_export.py).
FEATURE_COLUMNS = (
    "modelId layer index creatorId createdAt maxActApprox hasVector vector vectorLabel vectorDefaultSteerStrength "
    "hookName topkCosSimIndices topkCosSimValues neuron_alignment_indices neuron_alignment_values neuron_alignment_l1 "
    "correlated_neurons_indices correlated_neurons_pearson correlated_neurons_l1 correlated_features_indices "
    "correlated_features_pearson correlated_features_l1 neg_str neg_values pos_str pos_values frac_nonzero "
    "freq_hist_data_bar_heights freq_hist_data_bar_values logits_hist_data_bar_heights logits_hist_data_bar_values "
    "decoder_weights_dist sourceSetName"
)
ACTIVATION_COLUMNS = (
    "id tokens index layer modelId maxValue maxValueTokenIndex minValue values creatorId dataSource dataIndex "
    "dfaValues dfaTargetIndex dfaMaxValue createdAt lossValues logitContributions binMin binMax binContains "
    "qualifyingTokenIndex zIndices zValues"
)
ABOUT_COLUMNS = {
    "release.jsonl": "name description creatorName creatorId visibility isNewUi featured descriptionShort urls "
    "creatorEmail creatorNameShort defaultSourceSetName defaultSourceId defaultUmapSourceIds createdAt",
    "model.jsonl": "id instruct creatorId displayNameShort displayName tlensId dimension visibility "
    "defaultSourceSetName defaultSourceId inferenceEnabled layers neuronsPerLayer createdAt owner updatedAt website",
    "sourceset.jsonl": "modelId name creatorId hasDashboards visibility description type creatorName urls creatorEmail "
    "releaseName defaultOfModelId defaultRange defaultShowBreaks showDfa showCorrelated showHeadAttribution showUmap "
    "createdAt",
    "source.jsonl": "id modelId setName creatorId hasDashboards inferenceEnabled inferenceHosts saelensConfig "
    "saelensRelease saelensSaeId hfRepoId hfFolderId visibility defaultOfModelId hasUmap hasUmapLogSparsity "
    "hasUmapClusters num_prompts num_tokens_in_prompt dataset notes createdAt",
}


def rows(path: Path) -> list[dict]:
    text = (gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()).decode()
    assert text.endswith("\n")
    return [json.loads(line) for line in text.splitlines()]


def test_rows_for_the_bulk_import_are_those_of_the_batch_files(tmp_path, store, written, asked):
    settings = asked | {"layout": "source", "release": RELEASE, "sae_id_suffix": "l0-10"}
    root = export_neuronpedia(store, tmp_path / "out", **settings)
    names = [f"{layer}-clt-20__l0-10" for layer in range(N_LAYERS)]
    assert sorted(path.name for path in (root / "tiny-it").iterdir()) == names
    ids = set()
    for layer, name in enumerate(names):
        folder, batches = root / "tiny-it" / name, entries(written / sub(layer))
        for file, columns in ABOUT_COLUMNS.items():
            (row,) = rows(folder / file)
            assert list(row) == columns.split()
            assert row["createdAt"] == TIME
        (source,) = rows(folder / "source.jsonl")
        assert (source["id"], source["setName"], source["modelId"]) == (name, "clt-20", "tiny-it")
        assert (source["num_prompts"], source["num_tokens_in_prompt"]) == (ROWS, N_CTX)
        (model,) = rows(folder / "model.jsonl")
        assert model["instruct"] is True
        assert sorted(path.name for path in (folder / "features").iterdir()) == [
            f"batch-{n}.jsonl.gz" for n in range(3)
        ]
        for number in range(3):
            features = rows(folder / "features" / f"batch-{number}.jsonl.gz")
            activations = rows(folder / "activations" / f"batch-{number}.jsonl.gz")
            for feature in features:
                assert list(feature) == FEATURE_COLUMNS.split()
                batch = batches.pop(feature["index"])
                own = [row for row in activations if row["index"] == feature["index"]]
                assert len(own) == len(batch["activations"])
                assert feature["layer"] == name
                assert feature["hookName"] == f"blocks.{layer}.hook_resid_mid"
                assert feature["pos_str"] == batch["pos_str"]
                assert feature["pos_values"] == pytest.approx(batch["pos_values"], abs=6e-4)
                assert feature["maxActApprox"] == max((row["maxValue"] for row in own), default=0.0)
                for row, one in zip(own, batch["activations"], strict=True):
                    assert list(row) == ACTIVATION_COLUMNS.split()
                    assert row["tokens"] == one["tokens"]
                    assert row["values"] == pytest.approx(one["values"], abs=6e-4)
                    assert (row["maxValue"], row["minValue"]) == (max(row["values"]), min(row["values"]))
                    assert row["values"][row["maxValueTokenIndex"]] == row["maxValue"]
                    assert (row["binMin"], row["binMax"]) == (one["bin_min"], one["bin_max"])
                    assert (row["binContains"], row["qualifyingTokenIndex"]) == (
                        one["bin_contains"], one["qualifying_token_index"],
                    )  # fmt: skip
                    ids.add(row["id"])
                    assert len(row["id"]) == 25
        assert not batches
    total = sum(
        len(entry["activations"]) for layer in range(N_LAYERS) for entry in entries(written / sub(layer)).values()
    )
    assert len(ids) == total


def test_a_set_of_transcoders_has_a_folder_for_each_layer(tmp_path, tl_models, tokens):
    dictionary = load_dictionary(write_transcoders(tmp_path / "set"), activation="relu")
    acts = gather(dictionary, tl_models[1], tokens)
    root = export_neuronpedia(
        acts, tmp_path / "out", dictionary=dictionary, model=tl_models[1], unit_decoders=True, **NAMES
    )
    raw = export_neuronpedia(acts, tmp_path / "raw", dictionary=dictionary, model=tl_models[1], **NAMES)
    with pytest.raises(FileExistsError, match="holds another export"):
        export_neuronpedia(acts, tmp_path / "out", dictionary=dictionary, model=tl_models[1], **NAMES)
    W = unembedding(tl_models[1]).W
    for layer in range(N_LAYERS):
        folder = f"tiny-it_clt-20_blocks.{layer}.hook_resid_mid_8"
        assert json.loads((root / folder / "run_settings.json").read_text())["use_transcoder"] is True
        rows = dictionary.decoder(torch.arange(8) + 8 * layer, layer)
        lengths = rows.norm(dim=-1).tolist()
        for index, entry in entries(root / folder).items():
            logits = rows[index] / lengths[index] @ W
            assert entry["pos_values"] == pytest.approx(logits.topk(10).values.tolist(), abs=6e-4)
            for one, other in zip(entry["activations"], entries(raw / folder)[index]["activations"], strict=True):
                assert one["tokens"] == other["tokens"]
                scaled = np.asarray(other["values"]) * lengths[index]
                assert one["values"] == pytest.approx(scaled.tolist(), abs=2e-3)
                assert one["bin_max"] == pytest.approx(other["bin_max"] * lengths[index], abs=2e-3)


def test_a_crosscoder_has_the_layer_of_its_hook_and_the_logits_of_one_model(tmp_path, tl_models, tokens):
    dictionary = load_dictionary(write_crosscoder(tmp_path / "crosscoder"))
    acts = gather(dictionary, tl_models, tokens)
    vectors = decoder_vectors(dictionary, torch.arange(dictionary.n_features))
    for number in (0, 1):
        root = export_neuronpedia(
            acts, tmp_path / f"of_{number}", model_id="pair", source_set="cc", dictionary=dictionary, model=tl_models,
            of_model=number,
        )  # fmt: skip
        folder = root / "pair_cc_blocks.1.hook_resid_post_40"
        assert json.loads((folder / "batch-0.json").read_text())["layer"] == 1
        logits = vectors[number] @ unembedding(tl_models[number]).W
        for index, entry in entries(folder).items():
            assert entry["pos_values"] == pytest.approx(logits[index].topk(10).values.tolist(), abs=6e-4)
            assert entry["neuron_alignment_indices"] == vectors[number][index].topk(3).indices.tolist()
    again = export_neuronpedia(
        acts, tmp_path / "named", model_id="pair", source_set="cc", dictionary=dictionary, layer=7
    )
    assert json.loads((next(again.iterdir()) / "batch-0.json").read_text())["layer"] == 7


def test_a_crosscoder_of_several_layers_needs_a_number(tmp_path, tl_models, tokens):
    hooks = ["blocks.0.hook_resid_post", "blocks.2.hook_resid_post"]
    dictionary = load_dictionary(write_crosscoder(tmp_path / "crosscoder", hook_point=hooks))
    acts = gather(dictionary, tl_models[1], tokens)
    named = {"model_id": "tiny", "source_set": "cc", "dictionary": dictionary}
    with pytest.raises(ValueError, match=r"reads blocks\.0.* which is not one layer; give the number .* layer="):
        export_neuronpedia(acts, tmp_path / "out", **named)
    root = export_neuronpedia(acts, tmp_path / "out", **named, layer=0)
    assert [path.name for path in root.iterdir()] == ["tiny_cc_crosscoder_40"]
    entry = next(iter(entries(next(root.iterdir())).values()))
    assert entry["pos_str"] == entry["pos_values"] == entry["logits_hist_data_bar_heights"] == []  # without the model


def test_padding_before_a_row_is_no_part_of_it(tmp_path, tl_models, tokens):
    """The first token of a row is dropped wherever it stands."""
    padded = tokens.clone()
    padded[::2, 5:] = tokens[::2, :-5]
    padded[::2, :5] = 0  # the tokenizer pads with BOS: the last of the run is BOS
    dictionary = load_dictionary(write_crosscoder(tmp_path / "crosscoder", 1))
    acts = gather(dictionary, tl_models[1], padded)
    assert set(acts.mask.lead.tolist()) == {0} or set(acts.mask.lead.tolist()) == {0, 5}
    root = export_neuronpedia(acts, tmp_path / "out", model_id="t", source_set="s", dictionary=dictionary, **SIZES)
    lengths = set()
    for entry in entries(next(root.iterdir())).values():
        for one in entry["activations"]:
            assert "<|endoftext|>" not in one["tokens"] or 5 not in acts.mask.lead.tolist()
            assert one["values"][one["qualifying_token_index"]] > 0
            lengths.add(len(one["tokens"]))
    assert N_CTX - 1 in lengths
    assert lengths == {N_CTX - 1 - int(lead) for lead in acts.mask.lead}


def made(store: Path, clt, model, buffer: tuple[int, int], features: list[int]) -> SaeVisData:
    """Dashboards whose layout is an export's, or shows less of each example."""
    cfg = SaeVisConfig(features=features)
    full = SaeVisData.from_store(store, clt, cfg, model=model).cfg.feature_centric_layout
    others = [part for name, part in full.components.items() if name != "Sequences"]
    sequences = SequencesConfig(
        buffer=buffer, n_quantiles=3, top_acts_group_size=4, quantile_group_size=2, random_group_size=3
    )
    layout = SaeVisLayoutConfig([Column(*others, sequences)])
    return SaeVisData.from_store(
        store, clt, SaeVisConfig(features=features, feature_centric_layout=layout), model=model, effect="none"
    )


def test_dashboards_that_were_made_are_exported_too(tmp_path, store, written, clt, tl_models, asked):
    features = [WIDTH + i for i in (3, 4, 5, 11)]
    data = made(store, clt, tl_models[1], (N_CTX, N_CTX), features)
    settings = NAMES | {"dataset": "random"}
    whole = contents(export_neuronpedia(data, tmp_path / "out", **settings))
    found, expected = entries(tmp_path / "out" / sub(1)), entries(written / sub(1))
    assert list(found) == [3, 4, 5, 11]
    for index, entry in found.items():
        neighbours = {key for key in entry if key.startswith("correlated_features")}
        assert {k: v for k, v in entry.items() if k not in neighbours} == {
            k: v for k, v in expected[index].items() if k not in neighbours
        }
        assert set(entry["correlated_features_indices"]) <= set(range(WIDTH)) - {index}
    data.save_json(tmp_path / "data.json")
    loaded = SaeVisData.load_json(tmp_path / "data.json")
    with pytest.raises(ValueError, match="loaded without their dictionary; pass dictionary="):
        export_neuronpedia(loaded, tmp_path / "loaded", **settings)
    again = contents(export_neuronpedia(loaded, tmp_path / "loaded", **settings, dictionary=clt))
    same = {name for name in whole if "run_settings" not in name}  # which says where it lies
    assert {name: again[name] for name in same} == {name: whole[name] for name in same}


def test_dashboards_of_short_windows_keep_them(tmp_path, store, clt, tl_models, tokens):
    features = list(range(WIDTH))
    data = made(store, clt, tl_models[1], (2, 3), features)
    root = export_neuronpedia(data, tmp_path / "out", **NAMES)
    lengths = set()
    for index, entry in entries(root / sub(0)).items():
        shown = [one for group in data.panels[index].sequences[:4] for one in group]
        assert len(entry["activations"]) == len(shown)  # those drawn at random are left out
        for one, origin in zip(entry["activations"], shown, strict=True):
            first = max(origin.position - 2, 1)  # BOS is not shown
            assert one["qualifying_token_index"] == origin.position - first
            assert len(one["tokens"]) == min(origin.position + 3, N_CTX - 1) - first + 1
            lengths.add(len(one["tokens"]))
    assert max(lengths) == 6


def test_dashboards_of_another_dictionary_are_refused(tmp_path, store, clt, tl_models):
    data = SaeVisData.from_store(store, clt, SaeVisConfig(features=[WIDTH]), model=tl_models[1])
    other = load_dictionary(write_clt(tmp_path / "narrow", WIDTH - 1))
    with pytest.raises(ValueError, match="are of another dictionary: feature 20 is L1F0 there"):
        export_neuronpedia(data, tmp_path / "out", **NAMES, dictionary=other)


class Alive:
    """How many dashboards, and how many features in them, are in memory at once at most."""

    def __init__(self, monkeypatch):
        self.most, self.made = 0, 0
        alive: weakref.WeakSet = weakref.WeakSet()
        real = SaeVisData.from_acts.__func__

        def from_acts(cls, acts, *args, **kwargs):
            data = real(cls, acts, *args, **kwargs)
            alive.add(data)
            self.made += len(data.feature_data_dict)
            self.most = max(self.most, sum(len(one.feature_data_dict) for one in alive))
            return data

        monkeypatch.setattr(SaeVisData, "from_acts", classmethod(from_acts))
        # dataclasses that compare by value have no hash
        monkeypatch.setattr(SaeVisData, "__hash__", object.__hash__)


@pytest.fixture(scope="module")
def wide(tmp_path_factory, tl_models, tokens):
    """A CLT of 9,000 features, and its store."""
    clt = load_dictionary(write_clt(tmp_path_factory.mktemp("wide") / "clt", 3000))
    store = tmp_path_factory.mktemp("wide") / "store"
    gather(clt, tl_models[1], tokens[:2, :6], out=store)
    return clt, store


def test_no_more_than_a_batch_is_in_memory(tmp_path, wide, monkeypatch):
    clt, store = wide
    alive = Alive(monkeypatch)
    export_neuronpedia(
        store, tmp_path / "out", **NAMES, dictionary=clt, n_quantiles=0, top_acts_group_size=1, correlated="batch",
        features_per_batch=256,
    )  # fmt: skip
    assert alive.made == clt.n_features == 9000
    assert alive.most <= 256


def test_circuit_tracers_files_are_streamed_too(tmp_path, store, clt, tl_models, monkeypatch):
    whole = SaeVisData.from_store(store, clt, SaeVisConfig(), model=tl_models[1], effect="none")
    expected = contents(export_circuit_tracer(whole, tmp_path / "whole"))
    monkeypatch.setattr("crossvis_tl.export.circuit_tracer.AT_A_TIME", 7)
    alive = Alive(monkeypatch)
    found = contents(export_circuit_tracer(store, tmp_path / "streamed", dictionary=clt, model=tl_models[1]))
    assert alive.made == clt.n_features
    assert alive.most == 7
    assert {n: c for n, c in found.items() if n != "crossvis_export.json"} == {
        n: c for n, c in expected.items() if n != "crossvis_export.json"
    }
    with pytest.raises(FileExistsError, match="holds another export"):
        export_circuit_tracer(store, tmp_path / "streamed", dictionary=clt)
    with pytest.raises(ValueError, match="pass dictionary="):
        export_circuit_tracer(store, tmp_path / "other")


def test_a_stopped_stream_of_circuit_tracers_files_goes_on(tmp_path, store, clt, tl_models, monkeypatch):
    settings = {"dictionary": clt, "model": tl_models[1], "features": [1, 5, WIDTH, WIDTH + 2, 2 * WIDTH + 1]}
    whole = contents(export_circuit_tracer(store, tmp_path / "whole", **settings))
    real, made = SaeVisData.from_acts, []

    def from_acts(*args, **kwargs):
        if len(made) == 1:
            raise KeyboardInterrupt
        made.append(1)
        return real(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(SaeVisData, "from_acts", from_acts)
        with pytest.raises(KeyboardInterrupt, match="holds 1 of 3 layers; the same call or command goes on from there"):
            export_circuit_tracer(store, tmp_path / "out", **settings)
    assert not list((tmp_path / "out").glob(".*"))
    assert contents(export_circuit_tracer(store, tmp_path / "out", **settings)) == whole


def command(*arguments: object):
    return CliRunner().invoke(export, [str(argument) for argument in arguments])


def test_command(tmp_path, store, written, clt_folder, models_dir, clt, tl_models, monkeypatch):
    names = ("--model-id", "tiny-it", "--source-set", "clt-20")
    sizes = ("--batch", 8, "--quantiles", 3, "--top", 4, "--per-quantile", 2, "--dataset", "random")
    start = ("neuronpedia", "--store", store, "--dictionary", clt_folder, *names, *sizes)
    with_model = ("--model", models_dir / "tuned")
    with monkeypatch.context() as patch:
        stopped_at(patch, 10)
        stopped = command(*start, *with_model, "--out", tmp_path / "one")
    assert stopped.exit_code == 130
    assert "lacks 8 of 9 batches; the same call or command goes on from there" in stopped.stderr.replace("\n", " ")
    done = command(*start, *with_model, "--out", tmp_path / "one")
    assert done.exit_code == 0, done.output
    assert "9 files of features in" in done.output
    for layer in range(N_LAYERS):
        assert entries(tmp_path / "one" / sub(layer)) == entries(written / sub(layer))
    source = command(
        *start, "--no-model", "--out", tmp_path / "two", "--layout", "source", "--release", "r", "--title", "t",
        "--creator", "me", "--features", "L1F3,L1F4", "--suffix", "x",
    )  # fmt: skip
    assert source.exit_code == 0, source.output
    assert [row["index"] for row in rows(tmp_path / "two/tiny-it/1-clt-20__x/features/batch-0.jsonl.gz")] == [3, 4]
    top = command(*start, "--no-model", "--out", tmp_path / "three", "--features", "top:5")
    assert top.exit_code == 0, top.output
    assert sum(len(entries(folder)) for folder in (tmp_path / "three").iterdir()) == 5
    made(store, clt, tl_models[1], (2, 2), [0, 1]).save_json(tmp_path / "data.json")
    saved = command(
        "neuronpedia", "--data", tmp_path / "data.json", "--dictionary", clt_folder, *names, "--out", tmp_path / "four"
    )
    assert saved.exit_code == 0, saved.output
    assert list(entries(tmp_path / "four" / sub(0))) == [0, 1]


def test_a_stopped_command_for_delphi_says_how_to_go_on(tmp_path, store, monkeypatch):
    def stop(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("crossvis_tl.export.delphi._write", stop)
    stopped = command("delphi", "--store", store, "--out", tmp_path / "cache")
    assert stopped.exit_code == 130
    assert "the same command goes on from there" in stopped.stderr


def test_command_says_what_is_wrong(tmp_path, store, clt_folder):
    names = ("--model-id", "tiny-it", "--source-set", "clt-20", "--out", tmp_path / "out")
    given_ = ("neuronpedia", "--store", store, "--dictionary", clt_folder, *names)
    (tmp_path / "data.json").write_text("{}")
    for wrong, text in [
        (("neuronpedia", *names), "give --store or --data, one of the two"),
        (("neuronpedia", "--data", tmp_path / "data.json", *names), "--data needs --dictionary"),
        (("neuronpedia", "--store", store, *names), "does not say what it was gathered with; give --dictionary"),
        ((*given_, "--no-model", "--model", "x"), "contradict each other"),
        ((*given_, "--no-model", "--layout", "source"), "--layout source needs --release, --title and --creator"),
        ((*given_, "--no-model", "--features", "L9F0"), "there is no layer 9"),
    ]:
        refused = command(*wrong)
        assert refused.exit_code == 2, refused.output
        assert text in refused.stderr
        assert not (tmp_path / "out").exists()


def test_a_left_out_feature_store_of_an_unordered_selection(tmp_path, store, asked, written):
    """Features gathered in any order are exported in that of their numbers."""
    acts = open_store(store)
    mixed = acts.select(torch.randperm(len(acts.features), generator=torch.Generator().manual_seed(1)).tolist())
    folder = export_neuronpedia(mixed, tmp_path / "out", **asked)
    for layer in range(N_LAYERS):
        assert entries(folder / sub(layer)) == entries(written / sub(layer))
    twice = replace(acts, features=acts.features[[0, 0]], columns=acts.columns[[0, 0]])
    with pytest.raises(ValueError, match="a feature was gathered twice"):
        export_neuronpedia(twice, tmp_path / "twice", **asked)
