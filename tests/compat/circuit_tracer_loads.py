"""What circuit-tracer makes of dictionaries that this project saved: the second half of a check run by hand.

In an environment of its own with circuit-tracer 0.5.0 (`pip install torch circuit-tracer`, which brings transformers 4
and TransformerLens 3); it needs nothing of this project, no model hub and no network:

    HF_HUB_OFFLINE=1 python circuit_tracer_loads.py FOLDER

FOLDER is what `circuit_tracer_writes.py` wrote. Every dictionary is loaded by circuit-tracer's own loader, with its
weights in memory and left on disk; its activations and reconstructions are held against ours. Then an attribution graph
is made of each model and dictionary, saved as circuit-tracer saves it (`graphs/{name}.pt`, `graphs/files/{name}.json`),
and its nodes are held against the features that fire by our own capture: the same layers, numbers and activations.
Exits with 1 where something differs.
"""

import json
import math
import sys
from pathlib import Path
from typing import Any

import torch
import yaml
from circuit_tracer import attribute
from circuit_tracer.replacement_model.replacement_model_transformerlens import TransformerLensReplacementModel
from circuit_tracer.transcoder.activation_functions import TopK
from circuit_tracer.transcoder.single_layer_transcoder import TranscoderSet, load_relu_transcoder
from circuit_tracer.utils.create_graph_files import create_graph_files
from circuit_tracer.utils.hf_utils import load_transcoder_from_hub
from safetensors.torch import load_file
from torch import Tensor
from transformer_lens import loading_from_pretrained
from transformers import AutoModelForCausalLM, AutoTokenizer

TOLERANCE = 1e-4
CPU = torch.device("cpu")


def report(line: str) -> None:
    sys.stdout.write(f"{line}\n")


def loaded(path: Path, *, lazy: bool = False) -> tuple[Any, list[str]]:
    """By its own loader, from a folder that it takes for its cache. -> transcoders, and what is said of them."""
    config = yaml.safe_load((path / "config.yaml").read_text())
    files = sorted(path.glob("layer_*.safetensors"))
    if config["model_kind"] == "transcoder_set" and not (path / "layer_0.safetensors").exists():
        layer = int(files[0].stem.removeprefix("layer_"))
        one = load_relu_transcoder(str(files[0]), layer, CPU, torch.float32, lazy, lazy)
        hooks = (config["feature_input_hook"], config["feature_output_hook"])
        return TranscoderSet({0: one}, *hooks), [f"one transcoder, of layer {layer}, by itself"]
    ours = {"cache_dir": str(path.parent), "device": CPU, "dtype": torch.float32}
    transcoders, _ = load_transcoder_from_hub(path.name, **ours, lazy_encoder=lazy, lazy_decoder=lazy)
    if config.get("activation") != "topk":
        return transcoders, []
    read = {type(one.activation_function).__name__ for one in transcoders}
    if read == {"TopK"}:
        return transcoders, []
    for one in transcoders:
        one.activation_function = TopK(config["k"])
    return transcoders, ["read as ReLU, its config's TopK set by hand"]


def stacked(tensors: dict[str, Tensor], name: str) -> Tensor:
    n = sum(key.startswith(f"{name}.") for key in tensors)
    return torch.stack([tensors[f"{name}.{i}"] for i in range(n)])


def numbers(path: Path, expected: dict[str, Tensor], *, lazy: bool) -> tuple[float, float, list[str]]:
    """-> the largest differences of activations and reconstructions from ours."""
    transcoders, said = loaded(path, lazy=lazy)
    inputs, acts = stacked(expected, "input"), stacked(expected, "acts")
    with torch.no_grad():
        encoded = transcoders.encode(inputs)
        decoded = transcoders.decode(acts, inputs)
    positions = decoded.shape[1]  # a CLT's end with the last token on which something fires
    recon = stacked(expected, "recon")[:, :positions]
    return float((encoded - acts).abs().max()), float((decoded - recon).abs().max()), said


def check_numbers(folder: Path) -> list[str]:
    failed = []
    for path in sorted(p for p in (folder / "golden").iterdir() if p.is_dir()):
        expected = load_file(folder / "golden" / f"{path.name}.safetensors")
        found = [numbers(path, expected, lazy=lazy) for lazy in (False, True)]
        encoded, decoded = (max(one[i] for one in found) for i in range(2))
        ok = max(encoded, decoded) < TOLERANCE
        failed += [] if ok else [path.name]
        line = "; ".join([f"encode {encoded:.1e}, decode {decoded:.1e}", *found[0][2]])
        report(f"{'ok  ' if ok else 'FAIL'} {path.name}: {line}")
    return failed


def unpaired(number: int) -> tuple[int, int]:
    """Cantor's pairing undone, as circuit-tracer's page does it to find a feature's file: -> layer, number in it."""
    total = (math.isqrt(8 * number + 1) - 1) // 2
    feature = number - total * (total + 1) // 2
    return total - feature, feature


def fired(acts: Tensor) -> dict[tuple[int, int, int], float]:
    """[layer, position, feature] -> what is not 0, without position 0, which circuit-tracer leaves out."""
    acts = acts.clone()
    acts[:, 0] = 0
    return {(layer, pos, feat): float(acts[layer, pos, feat]) for layer, pos, feat in acts.nonzero().tolist()}


def replacement_model(folder: Path, transcoders: Any) -> TransformerLensReplacementModel:
    """As its `from_pretrained_and_transcoders` makes it, of a model that no hub has: TransformerLens' `from_pretrained`
    takes the names it knows alone."""
    hf_model = AutoModelForCausalLM.from_pretrained(folder, torch_dtype=torch.float32)
    cfg = loading_from_pretrained.get_pretrained_model_config(str(folder), fold_ln=False, device="cpu")
    cfg.tokenizer_name = str(folder)
    weights = loading_from_pretrained.get_pretrained_state_dict(str(folder), cfg, hf_model)
    model = TransformerLensReplacementModel(cfg, AutoTokenizer.from_pretrained(folder))
    model.load_and_process_state_dict(weights, fold_ln=False, center_writing_weights=False, center_unembed=False)
    model._configure_replacement_model(transcoders)
    return model


def check_graph(folder: Path, path: Path) -> str:
    """-> what was found. AssertionError where nodes are not the features that fire."""
    transcoders, _ = loaded(path)
    expected = load_file(path.with_suffix(".safetensors"))
    model = replacement_model(folder / "models" / path.name.split("-")[0], transcoders)
    graph = attribute(expected["tokens"], model, batch_size=64)
    found = [tuple(row) for row in graph.active_features.tolist()]
    values = dict(zip(found, graph.activation_values.tolist(), strict=True))
    want = fired(expected["acts"])
    assert set(values) == set(want), f"other features: {len(set(values) ^ set(want))} of {len(want)}"
    worst = max(abs(values[key] - want[key]) for key in want)
    assert worst < TOLERANCE, f"activations differ by {worst:.1e}"
    graph.to_pt(str(folder / "graphs" / f"{path.name}.pt"))
    files = folder / "graphs" / "files"
    create_graph_files(graph, path.name, str(files), scan="saved by crossvis_tl", node_threshold=0.95)
    page = json.loads((files / f"{path.name}.json").read_text())
    nodes = [node for node in page["nodes"] if node["feature_type"] == "cross layer transcoder"]
    for node in nodes:
        layer, feature = unpaired(node["feature"])
        assert node["layer"] == str(layer), f"{node['node_id']} is a node of another layer"
        assert (layer, node["ctx_idx"], feature) in want, f"{node['node_id']} is none that fires"
    assert nodes, "the graph has no features"
    assert page["links"], "the graph has no edges"
    edges = int((graph.adjacency_matrix != 0).sum())
    return (
        f"{len(want)} features fire, activations within {worst:.1e}; {edges} edges; {len(nodes)} features and "
        f"{len(page['links'])} links are left in its file"
    )


def check_graphs(folder: Path) -> list[str]:
    failed = []
    for path in sorted(p for p in (folder / "graphs").iterdir() if (p / "config.yaml").is_file()):
        try:
            report(f"ok   {path.name}: {check_graph(folder, path)}")
        except Exception as error:
            report(f"FAIL {path.name}: {type(error).__name__}: {str(error)[:300]}")
            failed.append(path.name)
    return failed


if __name__ == "__main__":
    torch.set_num_threads(1)
    root = Path(sys.argv[1])
    wrong = check_numbers(root) + check_graphs(root)
    report(f"wrong: {', '.join(wrong) or 'none'}")
    sys.exit(1 if wrong else 0)
