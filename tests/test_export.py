"""Exports for other tools, read back as those tools read: written from their loaders' behaviour, not from ours."""

import gzip
import json
import math
import os
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from typer.testing import CliRunner

import crossvis_tl.export.circuit_tracer as tracer_export
import crossvis_tl.export.delphi as delphi_export
from crossvis_tl import SaeVisConfig, SaeVisData, gather, load_dictionary, merge, open_store
from crossvis_tl.cli.exporting import export
from crossvis_tl.export import export_circuit_tracer, export_delphi
from crossvis_tl.feature_acts import FeatureActs
from crossvis_tl.parts import Part
from tests.conftest import D_MODEL, N_CTX, N_LAYERS, write_clt, write_crosscoder

pytestmark = pytest.mark.filterwarnings("ignore::crossvis_tl.CrossvisWarning")
WIDTH = 20  # features of each layer of the CLT

# feature of a hook point -> {(row, position): activation}
Fired = dict[int, dict[tuple[int, int], float]]


@pytest.fixture(scope="module")
def clt(tmp_path_factory):
    return load_dictionary(write_clt(tmp_path_factory.mktemp("dictionary") / "clt", WIDTH))


@pytest.fixture(scope="module")
def clt_store(tmp_path_factory, clt, tl_models, tokens) -> Path:
    """Of six parts."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("crossvis_tl.gathering.PART_TOKENS", 2 * N_CTX)
        folder = tmp_path_factory.mktemp("stores") / "store"
        gather(clt, tl_models[1], tokens, out=folder, rows_per_batch=1)
    return folder


@pytest.fixture(scope="module")
def crosscoder_acts(tmp_path_factory, tl_models, tokens) -> FeatureActs:
    return gather(load_dictionary(write_crosscoder(tmp_path_factory.mktemp("crosscoder"))), tl_models, tokens)


def loudest(store: Path) -> tuple[list[list[int]], int]:
    """-> of each layer the features that fire on the most tokens, and one that never fires"""
    acts = open_store(store)
    counts = acts.starts.diff()
    layers = [n * WIDTH + counts[n * WIDTH : (n + 1) * WIDTH].argsort(descending=True) for n in range(N_LAYERS)]
    return [layer.tolist() for layer in layers], int((counts == 0).nonzero()[0])


@pytest.fixture(scope="module")
def shown(clt, clt_store, tl_models) -> SaeVisData:
    """Dashboards of some features of two of the three layers, in no order; one of them never fires."""
    alive, dead = loudest(clt_store)
    features = [alive[0][1], *alive[1][:2], dead, alive[0][0]]
    return SaeVisData.from_store(clt_store, clt, SaeVisConfig(features=features), model=tl_models[1])


def fired(acts: FeatureActs) -> Fired:
    """By brute force, from the store."""
    found = {}
    for i, feature in enumerate(acts.features.tolist()):
        where, values = acts.of(i)
        found[feature] = {
            divmod(w, acts.tokens.shape[1]): v for w, v in zip(where.tolist(), values.tolist(), strict=True)
        }
    return {feature: one for feature, one in found.items() if one}


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


class DelphiReader:
    """As `LatentDataset` reads a cache folder: every entry is a hook point, and each must have a config."""

    def __init__(self, folder: Path):
        self.folder, self.modules = folder, sorted(os.listdir(folder))
        for module in self.modules:
            assert (folder / module / "config.json").exists(), f"{module} has no config.json"

    def edges(self, module: str) -> list[tuple[int, int]]:
        names = [path.stem.split("_") for path in (self.folder / module).glob("*.safetensors")]
        return sorted((int(first), int(last)) for first, last in names)

    def load(self, module: str, first: int, last: int):
        """-> locations with the hook point's own numbers, activations, tokens"""
        data = load_file(self.folder / module / f"{first}_{last}.safetensors")
        assert data["locations"].dtype in (np.uint16, np.uint32)
        locations = torch.from_numpy(data["locations"].astype(np.int64)).view(-1, 3)
        locations[:, 2] += first
        return locations, torch.tensor(data["activations"]), torch.from_numpy(data["tokens"].astype(np.int64))

    def by_feature(self, module: str) -> Fired:
        found: Fired = {}
        for first, last in self.edges(module):
            locations, values, _ = self.load(module, first, last)
            order = locations[:, 2].argsort(stable=True)
            locations, values = locations[order], values[order]
            features, counts = locations[:, 2].unique_consecutive(return_counts=True)
            parts = zip(features.tolist(), locations.split(counts.tolist()), values.split(counts.tolist()), strict=True)
            for feature, where, acts in parts:
                assert first <= feature <= last
                assert feature not in found
                flat = where[:, 0] * N_CTX + where[:, 1]
                assert (flat.diff() > 0).all()  # windows are told apart by neighbours: it must be in order
                found[feature] = dict(zip(map(tuple, where[:, :2].tolist()), acts.tolist(), strict=True))
        return found

    def of(self, module: str, feature: int):
        """The file that holds a selected feature, found by its borders."""
        edges = self.edges(module)
        borders = torch.tensor([edges[0][0], *(last + 1 for _, last in edges)])
        place = int(torch.bucketize(torch.tensor(feature), borders, right=True))
        return self.load(module, int(borders[place - 1]), int(borders[place]) - 1)


@pytest.mark.parametrize("n_splits", [1, 3, 5, 1000])
def test_delphi_gets_every_activation_of_a_clt(tmp_path, clt_store, tokens, n_splits):
    reader = DelphiReader(export_delphi(clt_store, tmp_path / "cache", n_splits=n_splits))
    assert reader.modules == [f"blocks.{layer}.hook_resid_mid" for layer in range(N_LAYERS)]
    found = {
        layer * WIDTH + feature: one
        for layer, module in enumerate(reader.modules)
        for feature, one in reader.by_feature(module).items()
    }
    assert found == fired(open_store(clt_store))
    assert len(found) > WIDTH
    for module in reader.modules:
        edges = reader.edges(module)
        assert len(edges) == min(n_splits, WIDTH)
        assert [n for first, last in edges for n in range(first, last + 1)] == list(range(WIDTH))
        assert all(torch.equal(reader.load(module, *edge)[2], tokens) for edge in edges)
        for feature in range(WIDTH):
            locations, values, _ = reader.of(module, feature)
            assert len(values[locations[:, 2] == feature]) == len(reader.by_feature(module).get(feature, {}))


def test_delphi_gets_a_crosscoder_as_one_hook_point(tmp_path, crosscoder_acts):
    reader = DelphiReader(export_delphi(crosscoder_acts, tmp_path / "cache"))
    assert reader.modules == ["blocks.1.hook_resid_post"]
    assert reader.by_feature(reader.modules[0]) == fired(crosscoder_acts)
    config = json.loads((tmp_path / "cache" / reader.modules[0] / "config.json").read_text())
    assert (config["cache_ctx_len"], config["ctx_len"], config["n_splits"]) == (N_CTX, N_CTX, 5)
    assert config["n_tokens"] == 12 * N_CTX
    assert config["model_name"]


def test_some_features_in_any_order_and_merged_shards(tmp_path, clt, clt_store, tl_models, tokens):
    shards = [gather(clt, tl_models[1], rows) for rows in tokens.split(5)]
    alive, dead = loudest(clt_store)
    chosen = [*alive[1][1::-1], *alive[2][:2], dead, *alive[0][:3]]
    acts = merge(shards).select_features(chosen)
    reader = DelphiReader(export_delphi(acts, tmp_path / "cache", n_splits=4, modules=["a", "b", "c"], model_name="m"))
    assert reader.modules == ["a", "b", "c"]
    offset = {"a": 0, "b": WIDTH, "c": 2 * WIDTH}
    found = {offset[m] + f: one for m in reader.modules for f, one in reader.by_feature(m).items()}
    assert found == fired(acts)
    assert set(found) == {*chosen} - {dead}
    assert all([*reader.edges(m)] == [(0, 4), (5, 9), (10, 14), (15, 19)] for m in reader.modules)
    assert json.loads((tmp_path / "cache/a/config.json").read_text())["model_name"] == "m"


def test_float16_is_rounded_as_delphi_rounds(tmp_path, crosscoder_acts):
    reader = DelphiReader(export_delphi(crosscoder_acts, tmp_path / "cache", dtype="float16"))
    expected = {
        feature: {at: float(np.float16(value)) for at, value in one.items()}
        for feature, one in fired(crosscoder_acts).items()
    }
    assert reader.by_feature(reader.modules[0]) == expected
    loud = replace(crosscoder_acts, parts=tuple(replace(p, values=p.values * 1e6) for p in crosscoder_acts.parts))
    with pytest.raises(ValueError, match=r"activations up to [\d.e+]+ are too large for float16"):
        export_delphi(loud, tmp_path / "loud", dtype="float16")
    assert not list((tmp_path / "loud").rglob("*.*safetensors*"))


def many_rows(acts: FeatureActs, rows: int) -> FeatureActs:
    """Feature 0 fires at the last position of the last row, all others nowhere."""
    n = len(acts.features)
    starts = torch.ones(n + 1, dtype=torch.long)
    starts[0] = 0
    nothing = torch.zeros(0, 0)
    part = Part(rows, starts, torch.tensor([2 * rows - 1], dtype=torch.int32), torch.tensor([0.25]), nothing,
                torch.zeros(1, 0))  # fmt: skip
    return replace(acts, tokens=torch.full((rows, 2), 7), parts=(part,))


@pytest.mark.parametrize(("rows", "dtype"), [(2**16, np.uint16), (2**16 + 1, np.uint32)])
def test_locations_are_as_small_as_they_can_be_and_never_wrap(tmp_path, crosscoder_acts, rows, dtype):
    reader = DelphiReader(export_delphi(many_rows(crosscoder_acts, rows), tmp_path / "cache", n_splits=2))
    module = reader.modules[0]
    assert load_file(tmp_path / "cache" / module / "0_19.safetensors")["locations"].dtype == dtype
    locations, values, tokens = reader.load(module, 0, 19)
    assert locations.tolist() == [[rows - 1, 1, 0]]
    assert values.tolist() == [0.25]
    assert tokens.shape == (rows, 2)
    locations, values, _ = reader.load(module, 20, 39)  # in which nothing fires
    assert locations.shape == (0, 3)
    assert values.shape == (0,)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_tensors_lie_where_their_types_need_them(tmp_path, crosscoder_acts, dtype):
    for path in export_delphi(crosscoder_acts, tmp_path / "cache", dtype=dtype, n_splits=7).rglob("*.safetensors"):
        raw = path.read_bytes()
        size = int.from_bytes(raw[:8], "little")
        header = json.loads(raw[8 : 8 + size])
        assert size % 8 == 0
        del header["__metadata__"]
        for one in header.values():
            assert one["data_offsets"][0] % (int(one["dtype"][1:]) // 8) == 0


def test_delphi_export_holds_a_few_features_at_a_time(tmp_path, clt_store, monkeypatch):
    acts = open_store(clt_store)
    most = int(acts.starts.diff().max())
    monkeypatch.setattr(delphi_export, "BLOCK", 2 * most)
    asked, appended, block, append = [], [], FeatureActs.block, delphi_export._locations

    def watched(self, begin, end):
        asked.append(int(self.starts[end] - self.starts[begin]))
        return block(self, begin, end)

    def located(*args):
        appended.append(len(append(*args)))
        return append(*args)

    monkeypatch.setattr(FeatureActs, "block", watched)
    monkeypatch.setattr(delphi_export, "_locations", located)
    export_delphi(acts, tmp_path / "cache", n_splits=1)
    assert max(asked) <= 2 * most
    assert max(appended) <= 2 * most < sum(appended) / 2
    assert sum(asked) == int(acts.starts[-1])  # each is read once


def stopped_after(monkeypatch, module, name: str, calls: int) -> Callable:
    """The function stops the process at its so-manieth call, as Ctrl+C does."""
    real, count = getattr(module, name), Counter()

    def stops(*args, **kwargs):
        count["calls"] += 1
        if count["calls"] > calls:
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    monkeypatch.setattr(module, name, stops)
    return real


def killed_long_ago(path: Path) -> None:
    path.write_bytes(b"of a run that was killed")
    os.utime(path, (0, 0))


@pytest.mark.parametrize("calls", [0, 1, 4, 7])
def test_a_stopped_delphi_export_goes_on(tmp_path, clt_store, monkeypatch, calls):
    whole = contents(export_delphi(clt_store, tmp_path / "whole", n_splits=3))
    folder = tmp_path / "cache"
    real = stopped_after(monkeypatch, delphi_export, "_append_values", calls)
    with pytest.raises(KeyboardInterrupt):
        export_delphi(clt_store, folder, n_splits=3)
    done = {path: path.stat().st_mtime_ns for path in folder.rglob("*.safetensors")}
    assert len(done) == calls
    assert not list(folder.rglob("*.part"))
    with pytest.raises(AssertionError, match="has no config"):  # what is not whole is not read as if it were
        DelphiReader(folder)
    killed_long_ago(folder / "blocks.0.hook_resid_mid" / ".0_5.safetensors.0123abcd.part")
    monkeypatch.setattr(delphi_export, "_append_values", real)
    export_delphi(clt_store, folder, n_splits=3)
    assert contents(folder) == whole
    assert {path: path.stat().st_mtime_ns for path in done} == done  # what was whole is not made again


def foreign(folder: Path) -> None:
    (folder / "notes.txt").write_text("mine")


def damaged(folder: Path) -> None:
    path = folder / "blocks.1.hook_resid_mid/10_19.safetensors"
    path.write_bytes(path.read_bytes()[:-5])


def strange_tensors(folder: Path) -> None:
    """Said to be of this export."""
    path = folder / "blocks.1.hook_resid_mid/10_19.safetensors"
    with safe_open(path, "np") as file:
        about = file.metadata()
    save_file({"locations": np.zeros((0, 3), np.uint16)}, path, about)


def file_for_folder(folder: Path) -> None:
    shutil.rmtree(folder / "blocks.0.hook_resid_mid")
    (folder / "blocks.0.hook_resid_mid").write_text("")


FIRST = "blocks.0.hook_resid_mid"
HOSTILE: dict[str, tuple[Callable[[Path], object], str]] = {
    "other files": (foreign, r"holds notes\.txt, which is not of this export for Delphi; give an empty or a new "),
    "other splits": (lambda f: shutil.copy(f / FIRST / "0_9.safetensors", f / FIRST / "0_7.safetensors"),
                     r"holds 0_7\.safetensors, which is not of this"),
    "a damaged file": (damaged, r"10_19\.safetensors is damaged \(.*\); delete it, and the export makes it again"),
    "strange tensors": (strange_tensors, r"10_19\.safetensors is of another export"),
    "a file for a folder": (file_for_folder, r"blocks\.0\.hook_resid_mid is a file"),
    "a config of others": (lambda f: (f / "blocks.2.hook_resid_mid/config.json").write_text("{}"),
                           r"config\.json is of another export, with other features, tokens or settings"),
    "a damaged config": (lambda f: (f / FIRST / "config.json").write_text("{"), r"config\.json is damaged"),
}  # fmt: skip


@pytest.mark.parametrize("what", HOSTILE)
def test_delphi_export_refuses_what_is_not_its_own(tmp_path, clt_store, what):
    spoil, text = HOSTILE[what]
    folder = export_delphi(clt_store, tmp_path / "cache", n_splits=2)
    spoil(folder)
    before = contents(folder)
    with pytest.raises((FileExistsError, ValueError), match=text):
        export_delphi(clt_store, folder, n_splits=2)
    assert contents(folder) == before


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("change", [{"dtype": "float16"}, {"n_splits": 3}, {"model_name": "other"}, {"features": [0]}])
def test_delphi_export_does_not_mix_with_another(tmp_path, clt_store, change, whole):
    acts = open_store(clt_store)
    folder = export_delphi(acts, tmp_path / "cache", n_splits=2)
    for config in [] if whole else folder.rglob("config.json"):
        config.unlink()
    before = contents(folder)
    asked: dict[str, Any] = {"n_splits": 2, **change}
    features = asked.pop("features", None)
    with pytest.raises(FileExistsError, match=r"give another folder|give an empty or a new folder"):
        export_delphi(acts.select(features) if features else acts, folder, **asked)
    assert contents(folder) == before


@pytest.mark.parametrize(
    ("asked", "text"),
    [
        ({"n_splits": 0}, "n_splits=0; expected a number of files, 1 or more"),
        ({"dtype": "bfloat16"}, "dtype='bfloat16'; expected 'float32', 'float16'"),
        ({"modules": ["a"]}, r"modules names 1 hook points \(a\); these features are of 3"),
        ({"modules": ["a", "b", "a"]}, "modules names a hook point twice"),
        ({"modules": ["a", "b", "../c"]}, r"modules: '\.\./c' is empty, begins with a dot"),
        ({"modules": ["a", "b", "c/d"]}, "modules: 'c/d' cannot be a folder's name"),
    ],
)
def test_delphi_export_says_what_cannot_be(tmp_path, clt_store, asked, text):
    with pytest.raises(ValueError, match=text):
        export_delphi(clt_store, tmp_path / "cache", **asked)
    assert not (tmp_path / "cache").exists()


def test_a_store_cannot_choose_where_it_is_written(tmp_path, clt_store):
    acts = open_store(clt_store)
    hooks = [["../../elsewhere", "b", "c"], acts.manifest.hooks[1]]
    labels = acts.manifest.labels | {"groups": [["../up", WIDTH], ["L1", WIDTH], ["L2", WIDTH]]}
    export_delphi(replace(acts, manifest=replace(acts.manifest, hooks=hooks, labels=labels)), tmp_path / "cache")
    assert sorted(os.listdir(tmp_path / "cache")) == ["group_0", "group_1", "group_2"]


class FrontEnd:
    """As the graph's page asks a local server for a node's feature, by the number that a graph's node holds."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.index = json.loads(gzip.decompress((folder / "index.json.gz").read_bytes()))

    def node(self, layer: int, feature: int) -> int:
        return (layer + feature) * (layer + feature + 1) // 2 + feature

    def feature(self, node: int) -> dict:
        diagonal = (math.isqrt(8 * node + 1) - 1) // 2
        index = node - (diagonal * diagonal + diagonal) // 2
        layer = self.index[str(diagonal - index)]
        start, end = layer["offsets"][index], layer["offsets"][index + 1]
        data = (self.folder / layer["filename"]).read_bytes()[start : end + 1]  # a Range's end is in it
        length = data[0] | data[1] << 8 | data[2] << 16 | data[3] << 24
        return json.loads(gzip.decompress(data[4 : 4 + length]))


def test_a_graphs_nodes_show_the_examples(tmp_path, shown, clt, clt_store, tokens):
    acts, page = open_store(clt_store), FrontEnd(export_circuit_tracer(shown, tmp_path / "features"))
    dense = torch.zeros(len(acts.features), tokens.numel())
    for i in range(len(acts.features)):
        where, values = acts.of(i)
        dense[i, where] = values
    tokenizer = shown.models[0].tokenizer
    for feature in shown.feature_data_dict:
        layer, index = clt.locate(feature)
        found = page.feature(page.node(layer, index))
        assert (found["layer"], found["feature"]) == (layer, index)
        groups = shown.feature_data_dict[feature].sequence_data.seq_group_data
        if not len(acts.of(feature)[0]):
            assert found["examples_quantiles"] == [{"quantile_name": "Never fired on these tokens", "examples": []}]
            continue
        assert len(found["examples_quantiles"]) == len(groups) > 0
        for group, quantile, records in zip(
            groups, found["examples_quantiles"], shown.panels[feature].sequences, strict=True
        ):
            assert quantile["quantile_name"] == group.title.replace("<br>", ", ").capitalize()
            assert len(quantile["examples"]) == len(group.seq_data)
            for example, record in zip(quantile["examples"], records, strict=True):
                n, chosen = len(example["tokens"]), example["train_token_ind"]
                first = record.row * N_CTX + record.position - chosen
                ids = tokens.flatten()[first : first + n].tolist()
                assert example["tokens"] == [tokenizer.decode([i]) for i in ids]
                expected = dense[feature, first : first + n]
                assert torch.allclose(torch.tensor(example["tokens_acts_list"]), expected, atol=6e-5)
                assert expected[chosen] > 0
                assert example["is_repeated_datapoint"] is False
        table = shown.panels[feature].logits[0].table
        assert found["top_logits"] == [tokenizer.decode([i]) for i in table.top_token_ids]
        assert found["bottom_logits"] == [tokenizer.decode([i]) for i in table.bottom_token_ids]
        assert found["act_min"] == 0
        assert found["act_max"] == pytest.approx(float(dense[feature].max()), abs=1e-4)
        assert found["activation_frequency"] == pytest.approx(len(acts.of(feature)[0]) / acts.n_counted)


def test_every_node_has_something_to_show(tmp_path, shown):
    page = FrontEnd(export_circuit_tracer(shown, tmp_path / "features"))
    assert set(page.index) == {"version", "format", "0", "1", "2"}
    for layer in range(N_LAYERS):
        assert len(page.index[str(layer)]["offsets"]) == WIDTH + 1
        for index in range(WIDTH):
            found = page.feature(page.node(layer, index))
            assert found["top_logits"]  # none, and the page leaves those of the feature before
            if layer * WIDTH + index not in shown.feature_data_dict:
                assert found["examples_quantiles"] == [
                    {"quantile_name": "Not among the features exported", "examples": []}
                ]


def test_parts_of_characters_are_written_as_the_front_end_joins_them(tmp_path, shown):
    vocabulary = {i: text for i, text in shown.page.vocabulary.items()}
    feature = next(iter(shown.feature_data_dict))
    some = shown.feature_data_dict[feature].sequence_data.seq_group_data[0].seq_data[0].token_ids
    vocabulary[some[0]] = b"\xe2\x82".decode(errors="surrogateescape")
    data = replace(shown, page=replace(shown.page, vocabulary=vocabulary))
    page = FrontEnd(export_circuit_tracer(data, tmp_path / "features"))
    example = page.feature(page.node(0, feature))["examples_quantiles"][0]["examples"][0]
    assert example["tokens"][0] == "\\xe2\\x82"


def write_transcoders(folder: Path) -> Path:
    """A random set of transcoders in circuit-tracer's layout."""
    generator = torch.Generator().manual_seed(11)

    def normal(*shape: int) -> np.ndarray:
        return torch.randn(*shape, generator=generator).numpy()

    folder.mkdir()
    names = []
    for layer in range(N_LAYERS):
        state = {
            "W_enc": 0.5 * normal(8, D_MODEL), "b_enc": 0.1 * normal(8), "W_dec": 0.3 * normal(8, D_MODEL),
            "b_dec": 0.1 * normal(D_MODEL),
        }  # fmt: skip
        save_file(state, folder / f"layer_{layer}.safetensors")
        names.append(f"- layer_{layer}.safetensors\n")
    (folder / "config.yaml").write_text(
        "model_name: tuned\nmodel_kind: transcoder_set\nfeature_input_hook: hook_resid_mid\n"
        "feature_output_hook: hook_mlp_out\nscan: test\ntranscoders:\n" + "".join(names)
    )
    return folder


def test_a_set_of_transcoders_is_exported_by_layer(tmp_path, tl_models, tokens):
    dictionary = load_dictionary(write_transcoders(tmp_path / "set"), activation="relu")
    acts = gather(dictionary, tl_models[1], tokens)
    data = SaeVisData.from_store(acts, dictionary, SaeVisConfig(features=[1, 9, 23]), model=tl_models[1])
    page = FrontEnd(export_circuit_tracer(data, tmp_path / "features"))
    for feature in (1, 9, 23):
        assert page.feature(page.node(*divmod(feature, 8)))["act_max"] > 0
    reader = DelphiReader(export_delphi(acts, tmp_path / "cache"))
    found = {8 * n + f: one for n, m in enumerate(reader.modules) for f, one in reader.by_feature(m).items()}
    assert found == fired(acts)


@pytest.mark.parametrize("calls", [0, 2, 4])
def test_a_stopped_export_of_dashboards_goes_on(tmp_path, shown, monkeypatch, calls):
    whole = contents(export_circuit_tracer(shown, tmp_path / "whole"))
    folder = tmp_path / "features"
    identity = tracer_export._identity(shown, shown.encoder, tracer_export._layers(shown.encoder))
    monkeypatch.setattr(tracer_export, "_identity", lambda *args: identity)
    real = stopped_after(monkeypatch, tracer_export, "feature_record", calls)
    with pytest.raises(KeyboardInterrupt):
        export_circuit_tracer(shown, folder)
    assert not (folder / "index.json.gz").exists()
    assert not list(folder.glob(".*"))
    killed_long_ago(folder / ".layer_1.bin.0123abcd.part")
    done = {path: path.stat().st_mtime_ns for path in folder.glob("layer_*.bin")}
    monkeypatch.setattr(tracer_export, "feature_record", real)
    export_circuit_tracer(shown, folder)
    assert contents(folder) == whole
    assert {path: path.stat().st_mtime_ns for path in done} == done  # what was whole is not made again


def test_dashboards_from_json_are_exported_the_same(tmp_path, shown, clt):
    whole = contents(export_circuit_tracer(shown, tmp_path / "whole"))
    shown.save_json(tmp_path / "data.json")
    loaded = SaeVisData.load_json(tmp_path / "data.json")
    with pytest.raises(ValueError, match="loaded without their dictionary; pass dictionary="):
        export_circuit_tracer(loaded, tmp_path / "features")
    assert contents(export_circuit_tracer(loaded, tmp_path / "features", dictionary=clt)) == whole


def test_without_the_model_there_are_examples_and_no_tokens(tmp_path, shown, clt, clt_store):
    feature = next(iter(shown.feature_data_dict))
    data = SaeVisData.from_store(clt_store, clt, SaeVisConfig(features=[feature]))
    page = FrontEnd(export_circuit_tracer(data, tmp_path / "features"))
    found = page.feature(page.node(*clt.locate(feature)))
    assert found["examples_quantiles"][0]["examples"]
    assert found["top_logits"] == found["bottom_logits"] == [""]


def test_dictionaries_without_layers_are_refused(tmp_path, crosscoder_acts, tl_models):
    dictionary = load_dictionary(write_crosscoder(tmp_path / "crosscoder"))
    data = SaeVisData.from_store(crosscoder_acts, dictionary, SaeVisConfig(features=[3]), model=tl_models)
    with pytest.raises(ValueError, match="is a crosscoder, whose features are not numbered by layer"):
        export_circuit_tracer(data, tmp_path / "features")
    assert not (tmp_path / "features").exists()


def test_dashboards_of_another_dictionary_are_refused(tmp_path, shown):
    other = load_dictionary(write_clt(tmp_path / "narrow", WIDTH - 1))
    with pytest.raises(ValueError, match=r"are of another dictionary: feature \d+ is L1F\d+ there"):
        export_circuit_tracer(shown, tmp_path / "features", dictionary=other)


def layer_without_end(folder: Path) -> None:
    path = folder / "layer_1.bin"
    path.write_bytes(path.read_bytes()[:-3])


def layer_too_short(folder: Path) -> None:
    offsets = json.loads(gzip.decompress((folder / "index.json.gz").read_bytes()))["1"]["offsets"]
    path = folder / "layer_1.bin"
    path.write_bytes(path.read_bytes()[: offsets[-2]])


NOTE = "crossvis_export.json"
UNWELCOME: dict[str, tuple[Callable[[Path], object], str]] = {
    "other files": (foreign, r"holds notes\.txt, which is not of this export for circuit-tracer"),
    "files of others": (lambda f: (f / NOTE).unlink(), "holds feature files that crossvis_tl did not write"),
    "a layer cut": (layer_without_end, r"layer_1\.bin is damaged: its records do not end where it does"),
    "features cut": (layer_too_short, r"layer_1\.bin is damaged: it holds 19 features of 20; delete it"),
    "a damaged note": (lambda f: (f / NOTE).write_text("["), r"crossvis_export\.json is damaged"),
    "another note": (lambda f: (f / NOTE).write_text("[]"), "holds another export, of other dashboards"),
}  # fmt: skip


@pytest.mark.parametrize("what", UNWELCOME)
def test_export_of_dashboards_refuses_what_is_not_its_own(tmp_path, shown, what):
    spoil, text = UNWELCOME[what]
    folder = export_circuit_tracer(shown, tmp_path / "features")
    spoil(folder)
    before = contents(folder)
    with pytest.raises((FileExistsError, ValueError), match=text):
        export_circuit_tracer(shown, folder)
    assert contents(folder) == before


def test_export_of_dashboards_does_not_mix_with_another(tmp_path, shown, clt, clt_store, tl_models):
    folder = export_circuit_tracer(shown, tmp_path / "features")
    fewer = SaeVisData.from_store(clt_store, clt, SaeVisConfig(features=[3]), model=tl_models[1])
    no_tokens = SaeVisData.from_store(clt_store, clt, SaeVisConfig(features=list(shown.feature_data_dict)))
    for other in (fewer, no_tokens):
        with pytest.raises(FileExistsError, match="holds another export, of other dashboards or another dictionary"):
            export_circuit_tracer(other, folder)


def command(*arguments: object):
    return CliRunner().invoke(export, [str(argument) for argument in arguments])


def test_command_for_delphi(tmp_path, clt_store):
    whole = contents(export_delphi(clt_store, tmp_path / "whole", n_splits=2))
    done = command("delphi", "--store", clt_store, "--out", tmp_path / "cache", "--splits", 2)
    assert done.exit_code == 0
    assert "6 files of features in" in done.output
    assert contents(tmp_path / "cache") == whole
    refused = command("delphi", "--store", clt_store, "--out", tmp_path / "cache", "--splits", 3)
    assert refused.exit_code == 2
    assert refused.stderr.startswith("error: ")
    assert refused.stderr.count("\n") == 1
    nowhere = command("delphi", "--store", tmp_path / "none", "--out", tmp_path / "cache")
    assert nowhere.exit_code == 2
    assert "there is no store" in nowhere.stderr


def test_command_for_circuit_tracer(tmp_path, shown, models_dir, tl_models, tokens):
    folder = write_clt(tmp_path / "clt", WIDTH)
    shown.save_json(tmp_path / "data.json")
    done = command(
        "circuit-tracer", "--data", tmp_path / "data.json", "--dictionary", folder, "--out", tmp_path / "one"
    )
    assert done.exit_code == 0, done.output
    assert contents(tmp_path / "one") == contents(export_circuit_tracer(shown, tmp_path / "two"))
    store = tmp_path / "store"
    gather(load_dictionary(folder), tl_models[1], tokens, out=store)
    asked = ("circuit-tracer", "--store", store, "--dictionary", folder, "--out", tmp_path / "three")
    done = command(*asked, "--features", "L0F3,L1F1", "--model", models_dir / "tuned")
    assert done.exit_code == 0, done.output
    page = FrontEnd(tmp_path / "three")
    assert page.feature(page.node(1, 1))["top_logits"]
    for wrong, text in [
        (("circuit-tracer", "--out", tmp_path / "x"), "give --store or --data, one of the two"),
        (("circuit-tracer", "--out", tmp_path / "x", "--data", tmp_path / "data.json"), "--data needs --dictionary"),
        ((*asked, "--no-model", "--model", models_dir / "tuned"), "contradict each other"),
    ]:
        refused = command(*wrong)
        assert refused.exit_code == 2
        assert text in refused.stderr
        assert refused.stderr.count("\n") == 1
