"""What other tools get: exports stopped at any line and gone on with, stores of one layer, layers in which nothing
fires, hostile names, texts of any bytes, and commands that end in one line."""

import json
import random
import re
import sys
from pathlib import Path
from types import FrameType

import pytest
import torch
from safetensors import safe_open
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers import models as tokenizer_models
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

import crossvis_tl
from crossvis_tl import (
    NeuronpediaRelease,
    SaeVisConfig,
    SaeVisData,
    export_circuit_tracer,
    export_delphi,
    export_neuronpedia,
    gather,
    load_dictionary,
    load_model,
    load_token_set,
)
from crossvis_tl.export import neuronpedia_folders
from tests.conftest import D_MODEL, N_LAYERS, VOCABULARY, tiny_tokenizer, write_clt
from tests.test_clt_blind import KINDS, dense, direct, invoke
from tests.test_data_blind import LETTERS, entries, run
from tests.test_sae_dashboard_clt import write as write_dashboard_clt

pytestmark = pytest.mark.filterwarnings("ignore::crossvis_tl.CrossvisWarning")
WIDTH, CONTEXT = 9, 12
RELEASE = NeuronpediaRelease("tiny", "Tiny", "Someone")


# Stopped at any line


class Stopper:
    """Raises KeyboardInterrupt at the n-th line run in some of this package's modules."""

    def __init__(self, at: int, *parts: str):
        self.at, self.n, self.parts = at, 0, parts
        self.root = str(Path(crossvis_tl.__file__).parent)

    def __call__(self, frame: FrameType, event: str, arg: object):
        name = frame.f_code.co_filename
        if not name.startswith(self.root) or not any(part in name for part in self.parts):
            return None
        if event == "line":
            self.n += 1
            if self.n == self.at:
                raise KeyboardInterrupt
        return self

    def run(self, job) -> None:
        before = sys.gettrace()
        sys.settrace(self)
        try:
            job()
        except KeyboardInterrupt:
            pass
        finally:
            sys.settrace(before)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def clt(tmp_path_factory):
    return load_dictionary(write_clt(tmp_path_factory.mktemp("clt") / "clt", WIDTH), processing="none")


@pytest.fixture(scope="module")
def store(tmp_path_factory, clt, tl_models, tokens) -> Path:
    folder = tmp_path_factory.mktemp("store") / "store"
    gather(clt, tl_models[1], tokens[:6, :CONTEXT], out=folder)
    return folder


@pytest.fixture(autouse=True)
def same_time(monkeypatch):
    monkeypatch.setattr(neuronpedia_folders, "now", lambda: "2026-11-26T08:00:00")


@pytest.mark.parametrize("job", ["batches", "source", "circuit-tracer", "delphi", "gather"])
def test_stopped_at_any_line_it_goes_on_to_the_same_bytes(tmp_path, monkeypatch, clt, store, tl_models, tokens, job):
    few = {
        "model_id": "m", "source_set": "s", "dictionary": clt, "model": tl_models[1], "features_per_batch": 4,
        "n_quantiles": 1, "top_acts_group_size": 3, "quantile_group_size": 2, "settings": {"outputs_dir": "out"},
    }  # fmt: skip
    make = {
        "batches": lambda folder: export_neuronpedia(store, folder, **few),
        "source": lambda folder: export_neuronpedia(store, folder, layout="source", release=RELEASE, **few),
        "circuit-tracer": lambda folder: export_circuit_tracer(store, folder, dictionary=clt, model=tl_models[1]),
        "delphi": lambda folder: export_delphi(store, folder, n_splits=2),
        "gather": lambda folder: gather(clt, tl_models[1], tokens[:6], out=folder, rows_per_batch=2),
    }[job]
    parts = ("/export/", "/files.py") if job != "gather" else ("gathering", "store", "parts", "files.py", "manifest")
    counter = Stopper(-1, *parts)
    counter.run(lambda: make(tmp_path / "whole"))
    want = contents(tmp_path / "whole")
    for number, at in enumerate(random.Random(job).sample(range(1, counter.n), 9)):  # noqa: S311
        folder = tmp_path / str(number)
        for line in (at, max(1, at // 2)):  # twice
            Stopper(line, *parts).run(lambda folder=folder: make(folder))
            for name, there in contents(folder).items() if folder.exists() else ():
                assert name.endswith((".part", "manifest.json")) or there == want[name]
        make(folder)
        assert contents(folder) == want


def test_a_run_stopped_at_any_line_goes_on_to_the_same_bytes(tmp_path, models_dir, tl_models):
    path = write_dashboard_clt(tmp_path / "clt", "jumprelu", "mean_std")
    texts = tmp_path / "texts.jsonl"
    texts.write_text("\n".join(json.dumps("".join(LETTERS[i : i + CONTEXT])) for i in range(10)))

    def make_at(folder: Path):
        run(folder, path, texts, models_dir, model=tl_models[0], n_prompts_total=8)

    parts = ("/export/", "/files.py", "gathering", "store")
    counter = Stopper(-1, *parts)
    counter.run(lambda: make_at(tmp_path / "whole"))
    want = contents(tmp_path / "whole")
    for number, at in enumerate(random.Random(3).sample(range(1, counter.n), 6)):  # noqa: S311
        folder = tmp_path / str(number)
        Stopper(at, *parts).run(lambda folder=folder: make_at(folder))
        make_at(folder)
        found = contents(folder)
        assert set(found) == set(want)
        for name in want:
            if name.endswith("run_settings.json"):  # says where it was written
                assert found[name].replace(str(folder).encode(), str(tmp_path / "whole").encode()) == want[name]
            else:
                assert found[name] == want[name], name


# Stores of one layer, or of some features


@pytest.fixture(scope="module")
def layer_store(tmp_path_factory, clt, tl_models, tokens) -> Path:
    folder = tmp_path_factory.mktemp("layer") / "store"
    gather(clt, tl_models[1], tokens[:6, :CONTEXT], list(range(WIDTH, 2 * WIDTH)), out=folder)
    return folder


def test_a_store_of_one_layer_exports_that_layer(tmp_path, clt, store, layer_store, tl_models):
    asked = {"model_id": "m", "source_set": "s", "dictionary": clt, "model": tl_models[1]}
    export_neuronpedia(layer_store, tmp_path / "one", **asked)
    export_neuronpedia(store, tmp_path / "all", **asked)
    (folder,) = (tmp_path / "one").iterdir()
    for path in folder.glob("batch-*"):
        assert path.read_bytes() == (tmp_path / "all" / folder.name / path.name).read_bytes()
    assert json.loads((folder / "skipped_indexes.json").read_text())["skipped_indexes"] == []
    assert set(entries(folder)) == set(range(WIDTH))
    with pytest.raises(ValueError, match=r"layer=2.*1"):
        export_neuronpedia(layer_store, tmp_path / "two", layer=2, **asked)
    assert not (tmp_path / "two").exists()

    export_circuit_tracer(layer_store, tmp_path / "tracer", dictionary=clt, model=tl_models[1])
    export_circuit_tracer(store, tmp_path / "tracer all", dictionary=clt, model=tl_models[1])
    sizes = [(tmp_path / "tracer" / f"layer_{i}.bin").stat().st_size for i in range(N_LAYERS)]
    assert (tmp_path / "tracer" / "layer_1.bin").read_bytes() == (tmp_path / "tracer all" / "layer_1.bin").read_bytes()
    assert sizes[1] > max(sizes[0], sizes[2])


def cached(folder: Path) -> dict[int, list[tuple[int, int, float]]]:
    """Of one hook point of a Delphi cache: (row, position, activation) by feature."""
    found: dict[int, list] = {}
    for path in sorted(folder.glob("*.safetensors")):
        first = int(path.stem.split("_")[0])
        with safe_open(path, "pt") as file:
            locations, values = file.get_tensor("locations"), file.get_tensor("activations")
        for (row, position, feature), value in zip(locations.tolist(), values.tolist(), strict=True):
            found.setdefault(first + feature, []).append((row, position, value))
    return found


def test_delphi_has_what_was_gathered_of_one_layer_and_nothing_of_the_others(tmp_path, clt, layer_store, tl_models):
    acts = crossvis_tl.open_store(layer_store)
    export_delphi(layer_store, tmp_path / "cache", n_splits=2)
    folders = {path.name: path for path in (tmp_path / "cache").iterdir() if path.is_dir()}
    name = "blocks.1.hook_resid_mid"
    whole = dense(acts)
    got = torch.zeros_like(whole)
    for feature, places in cached(folders.pop(name)).items():
        for row, position, value in places:
            got[row, position, feature] = value
    torch.testing.assert_close(got, whole, atol=1e-6, rtol=1e-6)
    assert all(cached(folder) == {} for folder in folders.values())


def test_a_layer_in_which_nothing_fires_is_shown_and_exported(tmp_path, tl_models, tokens):
    from safetensors.torch import load_file, save_file

    folder = write_clt(tmp_path / "clt", WIDTH)
    state = load_file(folder / "W_enc_1.safetensors")
    save_file(state | {"threshold_1": torch.full((WIDTH,), 1e6)}, folder / "W_enc_1.safetensors")
    dictionary = load_dictionary(folder, processing="none")
    acts = gather(dictionary, tl_models[1], tokens[:6, :CONTEXT], out=tmp_path / "store")
    assert [round(group.dead, 3) for group in acts.fidelity.groups][1] == 1.0
    assert acts.fidelity.groups[1].l0 == 0
    data = SaeVisData.from_store(acts, dictionary, SaeVisConfig(features=[3, WIDTH + 3]), model=tl_models[1])
    assert data.panels[WIDTH + 3].maximum == 0
    assert sum(lens.share for lens in data.panels[WIDTH + 3].lens) == pytest.approx(1, abs=2e-3)
    data.save_feature_centric_vis(tmp_path / "page.html")
    asked = {"model_id": "m", "source_set": "s", "dictionary": dictionary, "model": tl_models[1]}
    export_neuronpedia(tmp_path / "store", tmp_path / "np", **asked)
    dead = entries(tmp_path / "np" / f"m_s_blocks.1.hook_resid_mid_{WIDTH}")
    assert [(entry["frac_nonzero"], entry["activations"]) for entry in dead.values()] == WIDTH * [(0, [])]
    export_neuronpedia(tmp_path / "store", tmp_path / "src", layout="source", release=RELEASE, **asked)
    export_circuit_tracer(tmp_path / "store", tmp_path / "tracer", dictionary=dictionary, model=tl_models[1])
    export_delphi(tmp_path / "store", tmp_path / "cache")


# Names and texts that strangers choose


@pytest.mark.parametrize("name", ["../up", "a/b", "", "..", ".", "a b", "a\n", "é", "-x", "a\x00b", "/abs"])
@pytest.mark.parametrize("which", ["model_id", "source_set", "sae_id_suffix"])
def test_hostile_names_are_refused_before_anything_is_written(tmp_path, clt, store, name, which):
    asked = {"model_id": "m", "source_set": "s", "dictionary": clt} | {which: name}
    for layout in ("batches", "source"):
        with pytest.raises(ValueError, match=which):
            export_neuronpedia(store, tmp_path / "out", layout=layout, release=RELEASE, **asked)
    assert not list(tmp_path.iterdir())


def bytes_model(folder: Path):
    """A model whose tokens are single bytes."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {"<|endoftext|>": 0} | {piece: i + 1 for i, piece in enumerate(alphabet)}
    raw = Tokenizer(tokenizer_models.BPE(vocab=vocabulary, merges=[]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    end = "<|endoftext|>"
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, bos_token=end, eos_token=end, unk_token=end)
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=len(vocabulary), n_positions=32, n_embd=D_MODEL, n_layer=N_LAYERS, n_head=2, bos_token_id=0,
        eos_token_id=0,
    )  # fmt: skip
    hf = GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        for parameter in hf.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    hf.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return load_model(folder), tokenizer


NASTY = '</script><!-- \x00 "q\\" \n\té漢😀 \x7f\x1b[31m &amp; \ufffe'


def test_texts_of_any_bytes_reach_every_tool_and_stay_data(tmp_path, clt):
    import gzip

    model, tokenizer = bytes_model(tmp_path / "model")
    path = tmp_path / "texts.jsonl"
    path.write_text("\n".join(json.dumps({"text": NASTY[i:] + NASTY}) for i in range(12)))
    tokens = load_token_set(path, tokenizer, 32, packing="each")
    acts = gather(clt, model, tokens, out=tmp_path / "store")
    asked = {"model_id": "m", "source_set": "s", "dictionary": clt, "model": model}
    out = export_neuronpedia(tmp_path / "store", tmp_path / "np", **asked)
    for file in out.rglob("*.json"):
        text = file.read_bytes().decode("utf-8")  # no lone surrogate, no damaged bytes
        assert "\x00" not in text  # Postgres takes neither
        assert "\\u0000" not in text
        json.loads(text)
    for index, entry in entries(out / f"m_s_blocks.0.hook_resid_mid_{WIDTH}").items():
        for one in entry["activations"]:
            assert len(one["tokens"]) == len(one["values"]) == 31
            _, values = acts.of(index)
            assert max(one["values"]) <= float(values.max()) + 1e-3
    out = export_neuronpedia(tmp_path / "store", tmp_path / "src", layout="source", release=RELEASE, **asked)
    for file in out.rglob("*.gz"):
        lines = gzip.decompress(file.read_bytes()).decode("utf-8").split("\n")
        assert all(line == "" or json.loads(line) for line in lines)
    export_circuit_tracer(tmp_path / "store", tmp_path / "tracer", dictionary=clt, model=model)
    export_delphi(tmp_path / "store", tmp_path / "cache")
    data = SaeVisData.from_store(acts, clt, SaeVisConfig(features=[0, 12]), model=model)
    data.save_feature_centric_vis(tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "</script><!--" not in page
    assert "\x00" not in page
    data.save_json(tmp_path / "page.json")
    assert list(SaeVisData.load_json(tmp_path / "page.json").panels) == [0, 12]


# The command line


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["neuronpedia", "--model-id", "a/b", "--source-set", "s"], "a/b"),
        (["neuronpedia", "--model-id", "m", "--source-set", ".."], r"\.\."),
        (["neuronpedia", "--model-id", "m", "--source-set", "s", "--layer", "7"], "there is no layer 7"),
        (["neuronpedia", "--model-id", "m", "--source-set", "s", "--features", "999"], "999"),
        (["neuronpedia", "--model-id", "m", "--source-set", "s", "--features", "L9"], "9"),
        (["neuronpedia", "--model-id", "m", "--source-set", "s", "--start-batch", "4"], "start_batch=4"),
        (["neuronpedia", "--model-id", "m", "--source-set", "s", "--layout", "source"], "release"),
        (["neuronpedia", "--model-id", "m", "--source-set", "s", "--layout", "sauce"], "Did you mean 'source'"),
        (["neuronpedia", "--model-id", "m", "--source-set", "s", "--of-model", "1"], "of_model=1"),
        (["circuit-tracer", "--features", "999"], "999"),
        (["circuit-tracer", "--features", "nothing"], "nothing"),
    ],
)
def test_an_export_that_cannot_be_is_one_line_and_status_2(tmp_path, clt, store, words, said):
    name = clt.name
    folder = write_clt(tmp_path / name, WIDTH)
    result = invoke(
        "export",
        words[0],
        "--store",
        store,
        "--dictionary",
        folder,
        "--no-model",
        "--out",
        tmp_path / "out",
        *words[1:],
    )
    assert result.exit_code == 2, result.output
    lines = [line for line in result.output.splitlines() if line.strip() and not line.startswith(("fidelity", " "))]
    assert len(lines) == 1
    assert re.search(said, lines[0])
    assert not (tmp_path / "out").exists()


def test_what_is_no_store_or_another_dictionarys_is_one_line_and_status_2(tmp_path, store):
    other = write_clt(tmp_path / "other", WIDTH + 1)
    for command in ("delphi", "circuit-tracer", "neuronpedia"):
        more = ["--model-id", "m", "--source-set", "s"] if command == "neuronpedia" else []
        for source in (tmp_path / "missing", tmp_path):
            extra = [] if command == "delphi" else ["--dictionary", other, "--no-model"]
            result = invoke("export", command, "--store", source, "--out", tmp_path / "out", *extra, *more)
            assert result.exit_code == 2
            assert str(source) in result.output
            assert "Traceback" not in result.output
        if command != "delphi":
            words = ["--dictionary", other, "--no-model", *more]
            result = invoke("export", command, "--store", store, "--out", tmp_path / "out", *words)
            assert result.exit_code == 2
            assert "another dictionary" in result.output
    assert not (tmp_path / "out").exists()


# What is exported of other shapes


@pytest.mark.parametrize("kind", list(KINDS))
def test_logits_in_every_export_are_of_all_layers_written(tmp_path, hf_models, tl_models, tokens, kind):
    """A CLT, one that writes a few layers on only, and transcoders with skip connections, from their raw weights."""
    import gzip

    write, facts = KINDS[kind]
    raw = write(tmp_path / "dictionary")
    dictionary = load_dictionary(tmp_path / "dictionary", processing="none", **facts)
    acts = gather(dictionary, tl_models[1], tokens[:6, :CONTEXT])
    asked = {"model_id": "m", "source_set": "s", "dictionary": dictionary, "model": tl_models[1]}
    out = export_neuronpedia(acts, tmp_path / "np", **asked)
    rows = export_neuronpedia(acts, tmp_path / "rows", layout="source", release=RELEASE, **asked)
    folders = sorted(out.iterdir())
    assert len(folders) == N_LAYERS
    texts = tiny_tokenizer().convert_ids_to_tokens(list(range(VOCABULARY)))
    for layer, folder in enumerate(folders):
        lines = gzip.decompress((rows / "m" / f"{layer}-s" / "features" / "batch-0.jsonl.gz").read_bytes())
        by_row = {int(one["index"]): one for one in map(json.loads, lines.decode().splitlines())}
        for index, entry in entries(folder).items():
            whole = direct(
                hf_models[1], torch.stack([W[index] for (s, _), W in raw.decoders.items() if s == layer]).sum(0)
            )
            order = whole.argsort(descending=True)
            assert entry["pos_str"][0] == texts[int(order[0])]
            assert entry["neg_str"][0] == texts[int(order[-1])]
            spread = entry["pos_values"][0] - entry["neg_values"][0]
            assert spread == pytest.approx(float(whole.max() - whole.min()), rel=1e-2, abs=3e-3)
            assert by_row[index]["pos_str"] == entry["pos_str"]
    export_circuit_tracer(acts, tmp_path / "tracer", dictionary=dictionary, model=tl_models[1])
    export_delphi(acts, tmp_path / "cache")
    for layer, folder in enumerate(sorted(path for path in (tmp_path / "cache").iterdir() if path.is_dir())):
        whole = dense(acts)[..., layer * WIDTH : (layer + 1) * WIDTH]
        assert sum(map(len, cached(folder).values())) == int((whole != 0).sum())
