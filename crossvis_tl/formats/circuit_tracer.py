"""F6: circuit-tracer's cross-layer transcoders (decoderesearch/circuit-tracer, `cross_layer_transcoder.py`).

`config.yaml`; for each layer i `W_enc_i.safetensors` with `W_enc_i [F, d]`, `b_enc_i [F]`, `b_dec_i [d]` and, for
JumpReLU, the raw `threshold_i [F]`; `W_dec_i.safetensors` with `W_dec_i [F, L - i, d]`, decoders to layers i to L-1.
A reconstruction at layer l is b_dec_l plus what the features of layers 0 .. l write there. Trained on weights without
processing.
"""

import re
from pathlib import Path
from typing import Any

from torch import Tensor

from crossvis_tl.activation_fns import JumpReLU, ReLU
from crossvis_tl.dictionary import Dictionary, Group
from crossvis_tl.errors import short_list
from crossvis_tl.formats.files import check_floating, read_config, read_state_dict
from crossvis_tl.formats.layers import all_or_none, layer_sites

NAME = "a circuit-tracer CLT"
FACTS = {"processing", "feature_input_hook", "feature_output_hook"}


def find(path: Path) -> bool | None:
    """-> True when the path looks like this layout, else None."""
    return True if path.is_dir() and any(path.glob("W_enc_*.safetensors")) else None


def load(path: Path, _found: bool, facts: dict[str, Any]) -> Dictionary:
    """ValueError when a layer's file is missing or its tensors do not fit."""
    n_layers = _count_layers(path)
    cfg = read_config(path / "config.yaml") if (path / "config.yaml").is_file() else {}
    kind = cfg.get("model_kind", "cross_layer_transcoder")
    if kind != "cross_layer_transcoder":
        raise ValueError(f"{path / 'config.yaml'}: model_kind {kind!r} cannot be read; 'cross_layer_transcoder' can")
    processing = facts.get("processing", "none")
    layers: list[dict[str, Tensor]] = []
    for layer in range(n_layers):
        layers.append(_read_layer(path, layer, n_layers, first=layers[0] if layers else None))
    all_or_none(path, layers, "threshold")
    width = layers[0]["W_enc"].shape[1]

    read, written = (layer_sites(cfg, facts, role, range(n_layers), width, processing) for role in ("input", "output"))
    groups = tuple(_group(layer, index, n_layers) for index, layer in enumerate(layers))
    return Dictionary(
        kind="clt", sources=read, targets=written, groups=groups,
        b_dec=tuple(layer["b_dec"] for layer in layers), format="circuit-tracer CLT (F6)",
        model_names=(cfg.get("model_name"),), facts={"scan": cfg["scan"]} if "scan" in cfg else {},
    )  # fmt: skip


def _count_layers(path: Path) -> int:
    pattern = re.compile(r"W_(?:enc|dec)_(\d+)\.safetensors")
    layers = {int(match[1]) for file in path.iterdir() if (match := pattern.fullmatch(file.name))}
    n_layers = max(layers) + 1
    wanted = [f"W_{part}_{layer}.safetensors" for layer in range(n_layers) for part in ("enc", "dec")]
    absent = [name for name in wanted if not (path / name).is_file()]
    if absent:
        raise FileNotFoundError(
            f"{path} lacks {short_list(absent)} of its {n_layers} layers; was the download complete?"
        )
    return n_layers


def _read_layer(path: Path, layer: int, n_layers: int, first: dict[str, Tensor] | None) -> dict[str, Tensor]:
    """-> W_enc [F, d], b_enc, b_dec, W_dec [F, L - layer, d] and, where there is one, threshold [F]."""
    file = path / f"W_enc_{layer}.safetensors"
    state = {name.removesuffix(f"_{layer}"): tensor for name, tensor in read_state_dict(file).items()}
    state.update(W_dec=read_state_dict(path / f"W_dec_{layer}.safetensors").get(f"W_dec_{layer}"))  # type: ignore[arg-type]
    for name in ("W_enc", "b_enc", "b_dec", "W_dec"):
        if state.get(name) is None:
            raise ValueError(f"{path}: layer {layer} lacks the tensor {name}_{layer}")
    check_floating(file, state, ("W_enc", "b_enc", "b_dec", "W_dec", "threshold"))
    W_enc = state["W_enc"]
    if W_enc.ndim != 2:
        raise ValueError(f"{file}: W_enc_{layer} is {tuple(W_enc.shape)}; expected [features, d_model]")
    if first is not None and W_enc.shape[1] != first["W_enc"].shape[1]:
        raise ValueError(
            f"{path}: W_enc_{layer} is {tuple(W_enc.shape)}, but layer 0's is {tuple(first['W_enc'].shape)}"
        )
    features, width = W_enc.shape
    written = state["W_dec"].shape[1] if state["W_dec"].ndim == 3 else n_layers - layer
    if written > n_layers - layer:
        raise ValueError(
            f"{path}: W_dec_{layer} writes to {written} layers from {layer} on, but there are files for {n_layers} "
            "layers only; was the download complete?"
        )
    shapes = {"b_enc": (features,), "b_dec": (width,), "W_dec": (features, n_layers - layer, width)}
    shapes["threshold"] = (features,)
    for name, shape in shapes.items():
        if name in state and tuple(state[name].shape) != shape:
            raise ValueError(f"{path}: {name}_{layer} is {tuple(state[name].shape)}; expected {shape}")
    return state


def _group(state: dict[str, Tensor], layer: int, n_layers: int) -> Group:
    threshold = state.get("threshold")
    return Group(
        name=f"L{layer}",
        W_enc={layer: state["W_enc"].T},
        b_enc=state["b_enc"],
        activation=ReLU() if threshold is None else JumpReLU(threshold),
        W_dec={target: state["W_dec"][:, target - layer] for target in range(layer, n_layers)},
    )
