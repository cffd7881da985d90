"""F6: a transcoder for each layer, as circuit-tracer stores them (`transcoder/single_layer_transcoder.py`), and Gemma
Scope 1's.

`config.yaml` with `model_kind: transcoder_set`; `layer_{i}.safetensors` with `W_enc [F, d]`, `W_dec [F, d]`, `b_enc`,
`b_dec`, perhaps `W_skip [d_out, d_in]` (recon += x @ W_skip.T) and `activation_function.threshold [F]` (JumpReLU, raw);
older files have `W_dec [d, F]`. The config may name the files instead (`transcoders: [hf://...]`). `activation: topk`
and `k` stand in the config; circuit-tracer's TopK has no ReLU. Gemma Scope 1 (google/gemma-scope-2b-pt-transcoders):
`layer_{i}/width_*/average_l0_*/params.npz` with `W_enc [d, F]`, `W_dec [F, d]`, `threshold`; it reads
`ln2.hook_normalized` and writes `hook_mlp_out`. Trained on weights without processing.
"""

import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from crossvis_tl.activation_fns import Activation, JumpReLU, ReLU, TopK
from crossvis_tl.dictionary import Dictionary, Group
from crossvis_tl.errors import short_list
from crossvis_tl.formats.activations import check_activation, check_k
from crossvis_tl.formats.files import check_floating, check_tensors, read_config, read_state_dict
from crossvis_tl.formats.layers import HOOK_FACTS, all_or_none, check_shapes, layer_sites, need
from crossvis_tl.hub import referred

FACTS = {"processing", "activation", "k"} | HOOK_FACTS
LAYER_FILE = re.compile(r"layer_(\d+)\.safetensors")
LAYER_FOLDER = re.compile(r"layer_(\d+)")
GEMMA_SCOPE = {"feature_input_hook": "ln2.hook_normalized", "feature_output_hook": "hook_mlp_out"}
NAME = "a set of transcoders"
ACTIVATIONS = ("relu", "jumprelu", "topk")


def find(path: Path) -> dict[int, Path] | None:
    """-> the file of each layer when the path looks like this layout, else None."""
    if not path.is_dir():
        return None
    files = {int(m[1]): p for p in path.iterdir() if (m := LAYER_FILE.fullmatch(p.name))}
    if files:
        return dict(sorted(files.items()))
    archives = {
        int(m[1]): sorted(p.glob("**/params.npz")) for p in path.iterdir() if (m := LAYER_FOLDER.fullmatch(p.name))
    }
    found = {layer: paths for layer, paths in archives.items() if paths}
    if not found and (path / "config.yaml").is_file():
        return _referred(path) or None
    several = [layer for layer, paths in found.items() if len(paths) > 1]
    if several:
        raise ValueError(
            f"{path}: layer {several[0]} has {len(found[several[0]])} transcoders "
            f"({short_list((p.parent.name for p in found[several[0]]), 4)}); keep one of each layer, or link them so"
        )
    return {layer: paths[0] for layer, paths in sorted(found.items())} or None


def _referred(path: Path) -> dict[int, Path]:
    """A set may be a config alone, which names the file of each layer in order."""
    named = read_config(path / "config.yaml").get("transcoders")
    if not isinstance(named, list):
        return {}
    for name in named:
        if not isinstance(name, str) or not name.endswith((".safetensors", ".npz")):
            raise ValueError(
                f"{path / 'config.yaml'}: transcoders names {name!r}; expected a weight file of each layer"
            )
    return {layer: referred(name, path) for layer, name in enumerate(named)}


def load(path: Path, files: dict[int, Path], facts: dict[str, Any]) -> Dictionary:
    """ValueError when tensors are missing, do not fit, or the config asks for what is not known."""
    cfg = read_config(path / "config.yaml") if (path / "config.yaml").is_file() else {}
    gemma = all(file.suffix == ".npz" for file in files.values())
    cfg = GEMMA_SCOPE | cfg if gemma else cfg
    kind = cfg.get("model_kind", "transcoder_set")
    if kind != "transcoder_set":
        raise ValueError(f"{path / 'config.yaml'}: model_kind {kind!r}, but the files are a transcoder for each layer")
    layers = list(files)
    if layers != list(range(layers[0], layers[-1] + 1)):
        raise FileNotFoundError(
            f"{path} has layers {short_list(layers)}, with gaps between; was the download complete?"
        )
    states = [_read(file) for file in files.values()]
    for name in ("W_skip", "threshold"):
        all_or_none(path, states, name)
    if gemma and "threshold" not in states[0]:
        raise ValueError(
            f"{path}: params.npz lacks threshold, of which Gemma Scope's JumpReLU has one for each feature"
        )
    if not cfg and "threshold" not in states[0]:
        how = "activation='relu', or activation='topk' and k=... (its config.yaml would; was the download complete?)"
        check_activation(path, facts.get("activation"), ACTIVATIONS, how)
    widths = {state["W_enc"].shape[1] for state in states}
    if len(widths) > 1:
        raise ValueError(f"{path}: the layers are of different widths, {short_list(sorted(widths))}")
    width, processing = widths.pop(), facts.get("processing", "none")
    groups, skip = [], {}
    for place, (layer, state) in enumerate(zip(layers, states, strict=True)):
        groups.append(Group(
            f"L{layer}", {place: state["W_enc"].T}, state["b_enc"], _activation(path, state, cfg, facts),
            {place: state["W_dec"]},
        ))  # fmt: skip
        if "W_skip" in state:
            skip[place, place] = state["W_skip"].T
    return Dictionary(
        kind="plt", sources=layer_sites(cfg, facts, "input", layers, width, processing),
        targets=layer_sites(cfg, facts, "output", layers, width, processing), groups=tuple(groups),
        b_dec=tuple(state["b_dec"] for state in states),
        format="Gemma Scope 1 transcoders" if gemma else "circuit-tracer transcoders (F6)",
        model_names=(cfg.get("model_name"),), skip=skip, facts=_said(cfg, facts, groups),
    )  # fmt: skip


def _said(cfg: dict[str, Any], facts: dict[str, Any], groups: list[Group]) -> dict[str, object]:
    said: dict[str, object] = {"scan": cfg["scan"]} if "scan" in cfg else {}
    told = "activation" in cfg or "activation" in facts
    if not told and any(isinstance(group.activation, ReLU) for group in groups):
        said["activation"] = "ReLU, as circuit-tracer reads files without threshold; activation='topk' says otherwise"
    return said


def _read(file: Path) -> dict[str, Tensor]:
    """-> W_enc [F, d], W_dec [F, d], b_enc, b_dec and, where they are, W_skip [d, d] and threshold [F]."""
    state = _read_npz(file) if file.suffix == ".npz" else dict(read_state_dict(file))
    if "activation_function.threshold" in state:
        state["threshold"] = state.pop("activation_function.threshold")
    need(file, state, ("W_enc", "W_dec", "b_enc", "b_dec"))
    check_floating(file, state, ("W_enc", "W_dec", "b_enc", "b_dec", "threshold", "W_skip"))
    if state["W_enc"].ndim != 2 or state["b_enc"].ndim != 1:
        raise ValueError(f"{file}: W_enc is {tuple(state['W_enc'].shape)}; expected [features, d_model]")
    features = state["b_enc"].shape[0]
    if file.suffix == ".npz":
        state["W_enc"] = state["W_enc"].T
    width = state["W_enc"].shape[1]
    if tuple(state["W_dec"].shape) == (width, features) and width != features:
        state["W_dec"] = state["W_dec"].T  # as circuit-tracer wrote it first
    shapes = {"W_enc": (features, width), "W_dec": (features, width), "b_dec": (width,), "threshold": (features,)}
    check_shapes(file, state, shapes | {"W_skip": (width, width)})
    return state


def _read_npz(file: Path) -> dict[str, Tensor]:
    try:
        with np.load(file, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
        state = {name: torch.from_numpy(array) for name, array in arrays.items()}
    except Exception as error:  # numpy and zipfile each raise their own kinds for damaged files
        raise ValueError(f"{file} is no readable .npz file; was the download complete?") from error
    check_tensors(file, state)
    return state


def _activation(path: Path, state: dict[str, Tensor], cfg: dict[str, Any], facts: dict[str, Any]) -> Activation:
    """A threshold means JumpReLU; else what the config or the caller says, else ReLU, as circuit-tracer reads it."""
    said = str(facts.get("activation", cfg.get("activation", ""))).lower()
    if said and said not in ACTIVATIONS:
        raise ValueError(f"{path}: activation={said!r}; expected one of {short_list(ACTIVATIONS)}")
    if "threshold" in state:
        if said in ("relu", "topk"):
            raise ValueError(
                f"{path}: the config says activation {said!r}, but the files hold thresholds of a JumpReLU"
            )
        return JumpReLU(state["threshold"])
    if said == "jumprelu":
        raise ValueError(f"{path}: the config says activation 'jumprelu', but the files hold no threshold")
    if said != "topk":
        return ReLU()
    k = facts.get("k", cfg.get("k"))
    return TopK(check_k(path, k, state["b_enc"].shape[0]), relu=False)
