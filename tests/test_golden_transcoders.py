"""Cross-layer transcoders and sets of transcoders of every family, from their producers' files to a page of all layers
and to each tool's export, read back as that tool reads it."""

import json
from pathlib import Path

import pytest
import torch
from transformers import Gemma3ForCausalLM, Gemma3TextConfig

from crossvis_tl import (
    NeuronpediaRunner,
    NeuronpediaRunnerConfig,
    SaeVisConfig,
    SaeVisData,
    calibrate,
    gather,
    load_dictionary,
    load_model,
)
from crossvis_tl.capture import Capture
from crossvis_tl.export import export_circuit_tracer, export_delphi, export_neuronpedia
from tests.architectures import GEMMA
from tests.page.page_reader import read_page
from tests.test_export import DelphiReader, FrontEnd
from tests.test_golden import GOLDEN, read

pytestmark = pytest.mark.filterwarnings("ignore::crossvis_tl.CrossvisWarning")
EACH = 3  # features shown of each layer


def transcoders() -> list[Path]:
    found = []
    for folder in GOLDEN:
        meta, _, _ = read(folder)
        if load_dictionary(folder / meta["load_path"], **meta["needs_from_user"]).kind in ("clt", "plt"):
            found.append(folder)
    return found


TRANSCODERS = transcoders()
FAMILIES = {"f4", "f6", "f7", "f8", "f9", "f10", "f11"}


def test_every_family_is_there():
    assert {folder.name.split("_")[0] for folder in TRANSCODERS} == FAMILIES
    assert len(TRANSCODERS) == 44


@pytest.fixture(scope="module")
def gemma():
    """Gemma 3 as wide as the golden files, its weights large enough to matter; of six layers, for the one of layer
    5."""
    torch.manual_seed(4)
    model = Gemma3ForCausalLM(Gemma3TextConfig(**GEMMA | {"num_hidden_layers": 6})).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return load_model(model)


@pytest.fixture(params=TRANSCODERS, ids=lambda folder: folder.name)
def case(request, tl_models, gemma, tokens):
    """-> name, dictionary, model"""
    folder = request.param
    meta, _, _ = read(folder)
    dictionary = load_dictionary(folder / meta["load_path"], **meta["needs_from_user"])
    if dictionary.missing:
        assert dictionary.missing == ("processing",)
        dictionary = load_dictionary(folder / meta["load_path"], **meta["needs_from_user"], processing="none")
    model = gemma if folder.name.startswith("f4") else tl_models[0]
    if dictionary.batch_dependent:
        dictionary = calibrate(dictionary, model, tokens)
    return folder.name, dictionary, model


def chosen(dictionary, counts) -> list[int]:
    """Of each layer those that fire most."""
    found = []
    for begin, end in zip(dictionary.offsets, dictionary.offsets[1:], strict=False):
        found += (begin + counts[begin:end].topk(EACH).indices).tolist()
    return found


def test_all_layers_in_one_gathering_one_page_and_every_export(case, tokens, tmp_path):
    _, dictionary, model = case
    layers = len(dictionary.groups)
    acts = gather(dictionary, model, tokens, out=tmp_path / "store", masking="none", masked_positions=[0])
    dense = dictionary.encode(Capture(dictionary, [model]).run(tokens).sources)[:, 1:]
    counts = (dense != 0).flatten(0, 1).sum(0)
    torch.testing.assert_close(acts.starts.diff(), counts)
    features = chosen(dictionary, counts)
    data = SaeVisData.from_store(acts, dictionary, SaeVisConfig(features=features), model=model)
    data.save_feature_centric_vis(tmp_path / "page.html")
    check_page(tmp_path / "page.html", data, dictionary, features)
    check_delphi(export_delphi(acts, tmp_path / "delphi"), dense, layers)
    check_neuronpedia(export_neuronpedia(
        acts, tmp_path / "np", dictionary=dictionary, model=model, model_id="tiny", source_set="golden", layer=None,
    ), dictionary, dense)  # fmt: skip
    if layers == 1:
        with pytest.raises(ValueError, match="not numbered by layer"):
            export_circuit_tracer(data, tmp_path / "graphs")
        return
    page = FrontEnd(export_circuit_tracer(data, tmp_path / "graphs"))
    for feature in features:
        layer, index = dictionary.locate(feature)
        record = page.feature(page.node(layer, index))
        assert (record["layer"], record["feature"]) == (layer, index)
        assert record["activation_frequency"] == pytest.approx(float(counts[feature]) / acts.n_counted)


def check_page(path: Path, data: SaeVisData, dictionary, features: list[int]) -> None:
    head, payloads = read_page(path.read_text(encoding="utf-8"))
    layers, targets = len(dictionary.groups), len(dictionary.targets)
    assert list(payloads) == features
    assert len(head["fidelity"]["sites"]) == targets
    assert len(head["fidelity"]["groups"]) == (layers if layers > 1 else 0)
    (loss,) = head["fidelity"]["losses"]
    if dictionary.target_norm:
        assert loss["note"].startswith("not measured: what the dictionary reconstructs is normalised")
        assert loss["sites"] == []
    else:
        assert len(loss["sites"]) == targets
        assert (loss["together"] is None) == (targets == 1)
        assert loss["note"] == ("" if dictionary.joint is None else loss["note"])
    if layers > 1:
        (measure,) = [one for one in head["features"]["measures"] if one["name"] == "layer"]
        assert measure["values"] == [dictionary.locate(feature)[0] for feature in features]
    for feature, payload in payloads.items():
        written = dictionary.writes(feature)
        assert payload["sites"]["target_index"] == written
        assert len(payload["sites"]["norms"]) == len(written)
        lenses = [lens for lens in payload["sites"]["lens"] if lens]
        if dictionary.target_norm or data.panels[feature].maximum == 0:
            continue
        if dictionary.kind == "clt" and len(written) > 1:
            shares = [lens.get("share") for lens in lenses]
            assert len(shares) == len(written)
            assert sum(share or 0 for share in shares) == pytest.approx(1, abs=2e-3)


def check_delphi(folder: Path, dense: torch.Tensor, layers: int) -> None:
    reader = DelphiReader(folder)
    assert len(reader.modules) == layers
    width = dense.shape[-1] // layers
    for layer, module in enumerate(reader.modules):
        found = reader.by_feature(module)
        for feature, fired in found.items():
            want = dense[..., layer * width + feature]
            assert len(fired) == int((want != 0).sum())
            for (row, position), value in fired.items():
                assert value == pytest.approx(float(want[row, position - 1]), rel=1e-4, abs=1e-5)


def check_neuronpedia(folder: Path, dictionary, dense: torch.Tensor) -> None:
    """A folder for each layer, whose features are counted within it."""
    found = {}
    for path in sorted(folder.glob("*/batch-*.json")):
        batch = json.loads(path.read_text())
        for entry in batch["features"]:
            found[batch["layer"], entry["feature_index"]] = entry
    assert len(found) == dictionary.n_features
    n_tokens = dense[..., 0].numel()
    for feature in range(dictionary.n_features):
        _, index = dictionary.locate(feature)
        layer = dictionary.sources[dictionary.locate(feature)[0]].layer
        entry = found[layer, index]
        assert entry["frac_nonzero"] == pytest.approx(int((dense[..., feature] != 0).sum()) / n_tokens, abs=1e-3)
        top = [max(one["values"]) for one in entry["activations"] if one["bin_contains"] == -1]
        if top:
            assert max(top) == pytest.approx(float(dense[..., feature].max()), abs=2e-3)


@pytest.mark.parametrize("folder", [f for f in TRANSCODERS if f.name.startswith("f7")], ids=lambda f: f.name)
def test_what_saedashboard_runs_or_fails_at_is_run_by_its_settings(folder, models_dir, tmp_path):
    """TopK, BatchTopK, tied decoders, ReLU and each normalisation."""
    meta, _, _ = read(folder)
    generator = torch.Generator().manual_seed(8)
    texts = ["".join(map(chr, torch.randint(33, 91, (40,), generator=generator).tolist())) for _ in range(12)]
    (tmp_path / "texts.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts))
    facts = dict(meta["needs_from_user"])
    cfg = NeuronpediaRunnerConfig(
        sae_set="golden", sae_path=str(folder / meta["load_path"]), outputs_dir=str(tmp_path / "out"), facts=facts,
        huggingface_dataset_path=str(tmp_path / "texts.jsonl"), n_prompts_total=12, n_tokens_in_prompt=16,
        hf_model_path=str(models_dir / "base"), n_features_at_a_time=64,
    )  # fmt: skip
    out = NeuronpediaRunner(cfg).run(progress=False)
    fires = [
        feature["frac_nonzero"]
        for path in out.glob("*/batch-*.json")
        for feature in json.loads(path.read_text())["features"]
    ]
    assert len(fires) == load_dictionary(folder / meta["load_path"], **facts).n_features
    assert sum(fires) > 0.5
