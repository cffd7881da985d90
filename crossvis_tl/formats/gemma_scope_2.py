"""F4: Gemma Scope 2 (google/gemma-scope-2-*): cross-layer transcoders, crosscoders and single transcoders.

A folder such as `clt/width_262k_l0_medium_affine`, `crosscoder/layer_7_13_17_22_width_262k_l0_medium` or
`transcoder_all/layer_5_width_16k_l0_big_affine` with `config.json` and `params_layer_{i}.safetensors` (i counts the
sources, it is no layer) or `params.safetensors`: `w_enc [d, F]`, `b_enc`, `threshold`, `w_dec [F, targets, d]` (zeros
where a feature does not write), `b_dec`, perhaps `affine_skip_connection [d_in, d_out]` (recon += x @ A, same layer).
Features are relu(x) where x > threshold, and belong to one source each, of crosscoders too. HuggingFace's own
activations at `hf_hook_point_in` and `hf_hook_point_out`.
"""

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from crossvis_tl.activation_fns import JumpReLU
from crossvis_tl.dictionary import Dictionary, Group, Kind, Site
from crossvis_tl.errors import MissingFact, short_list, whole_numbers
from crossvis_tl.formats.files import check_floating, read_config, read_state_dict
from crossvis_tl.formats.layers import all_or_none, check_shapes, need
from crossvis_tl.weights import is_large

FACTS = {"processing", "layers"}
PARAMS = re.compile(r"params_layer_(\d+)\.safetensors")
NAME = "a Gemma Scope 2 dictionary"
LOOKED_AT = 512
TENSORS = ("w_enc", "b_enc", "threshold", "w_dec", "b_dec")
LAYERS_IN_NAME = re.compile(r"layer_(\d+(?:_\d+)*)_width")


def find(path: Path) -> list[Path] | None:
    """-> the weight files in order when the path looks like this layout, else None."""
    if not path.is_dir():
        return None
    numbered = {int(m[1]): p for p in path.iterdir() if (m := PARAMS.fullmatch(p.name))}
    if numbered:
        absent = sorted(set(range(max(numbered) + 1)) - set(numbered))
        if absent:
            names = short_list(f"params_layer_{i}.safetensors" for i in absent)
            raise FileNotFoundError(f"{path} lacks {names}; was the download complete?")
        return [numbered[i] for i in sorted(numbered)]
    single = path / "params.safetensors"
    return [single] if single.is_file() else None


def load(path: Path, files: list[Path], facts: dict[str, Any]) -> Dictionary:
    """ValueError when the config is missing or says something else than the tensors."""
    if not (path / "config.json").is_file():
        raise FileNotFoundError(f"{path} lacks config.json, which says where the dictionary reads and writes")
    cfg = read_config(path / "config.json")
    states = [_read(file, len(files)) for file in files]
    width = states[0]["w_enc"].shape[0]
    if any(state["w_enc"].shape[0] != width for state in states):
        raise ValueError(f"{path}: its files are of different widths")
    kind, layers = _kind(path, cfg, len(files)), _layers(path, cfg, facts, len(files))
    if (total := sum(state["b_enc"].shape[0] for state in states)) != cfg.get("width", total):
        raise ValueError(f"{path / 'config.json'} says width = {cfg['width']}, but there are {total} features")
    names = [f"L{layer}" if len(files) > 1 else "" for layer in layers]
    groups = tuple(_group(name, place, state) for place, (name, state) in enumerate(zip(names, states, strict=True)))
    all_or_none(path, states, "affine_skip_connection")
    if cfg.get("affine_connection") is True and "affine_skip_connection" not in states[0]:
        raise ValueError(f"{path} lacks affine_skip_connection, which its config says it has")
    skip = {(i, i): s["affine_skip_connection"] for i, s in enumerate(states) if "affine_skip_connection" in s}
    processing = facts.get("processing", "none")

    def sites(key: str) -> tuple[Site, ...]:
        template = cfg.get(key)
        if not isinstance(template, str):
            raise ValueError(f"{path / 'config.json'}: {key} is {template!r}; expected a HuggingFace path")
        places = [template.replace("{layer}", str(layer)) for layer in layers]
        return tuple(Site(0, None, width, processing, hf_path=place) for place in places)

    return Dictionary(
        kind=kind, sources=sites("hf_hook_point_in"), targets=sites("hf_hook_point_out"), groups=groups,
        b_dec=tuple(state["b_dec"] for state in states), format="Gemma Scope 2 (F4)",
        model_names=(cfg.get("model_name"),), facts={"l0": cfg["l0"]} if "l0" in cfg else {}, skip=skip,
    )  # fmt: skip


def _kind(path: Path, cfg: dict[str, Any], n: int) -> Kind:
    said = str(cfg.get("type", "")).lower()
    kinds: dict[str, Kind] = {"clt": "clt", "crosscoder": "crosscoder", "transcoder": "plt", "sae": "sae"}
    if n == 1:
        return kinds.get(said, "plt")
    for word in (said, *(part.lower() for part in reversed(path.parts))):
        if word in ("clt", "crosscoder"):
            return kinds[word]
    return "clt" if "post_feedforward_layernorm" in str(cfg.get("hf_hook_point_out")) else "crosscoder"


def _layers(path: Path, cfg: dict[str, Any], facts: dict[str, Any], n: int) -> list[int]:
    """The model's layer of each source: in the folder's name, or all of them. ValueError where it is not known."""
    if "layers" in facts:
        layers = whole_numbers(facts["layers"], "layers", f"{n} layer numbers")
        if len(layers) != n:
            raise ValueError(f"layers names {len(layers)} layers; {path} has {n} sources")
        return layers
    match = LAYERS_IN_NAME.search(path.name)
    layers = [int(part) for part in match[1].split("_")] if match else []
    if len(layers) == n:
        return layers
    if "{layer}" not in f"{cfg.get('hf_hook_point_in')}{cfg.get('hf_hook_point_out')}":
        found = re.search(r"\.(\d+)\.", str(cfg.get("hf_hook_point_in")))
        return [int(found[1]) if found else 0] * n
    if "clt" in (str(cfg.get("type")), *path.parts):
        return list(range(n))
    raise MissingFact(
        "layers", f"{path} does not say which layers it reads; pass layers=[...], {n} numbers", list(range(n))
    )


def _read(file: Path, n_targets: int) -> dict[str, Tensor]:
    state = dict(read_state_dict(file))
    need(file, state, TENSORS)
    check_floating(file, state, (*TENSORS, "affine_skip_connection"))
    if state["w_enc"].ndim != 2:
        raise ValueError(f"{file}: w_enc is {tuple(state['w_enc'].shape)}; expected [d_model, features]")
    width, features = state["w_enc"].shape
    if state["w_dec"].ndim == 2 and n_targets == 1:
        state["w_dec"] = state["w_dec"].unsqueeze(1)
    shapes = {"b_enc": (features,), "threshold": (features,), "w_dec": (features, n_targets, width), "b_dec": (width,)}
    check_shapes(file, state, shapes | {"affine_skip_connection": (width, width)})
    return state


def _group(name: str, source: int, state: dict[str, Tensor]) -> Group:
    """A feature writes where its decoder is not all zeros: a CLT's to its own layer and the later ones. In a file too
    large to read whole, that is looked up at some features evenly spread."""
    W_dec = state["w_dec"]
    step = max(1, len(W_dec) // LOOKED_AT) if is_large(W_dec) else 1
    written = [t for t in range(W_dec.shape[1]) if bool(torch.any(W_dec[::step, t] != 0))]
    activation = JumpReLU(state["threshold"], relu=True)
    return Group(name, {source: state["w_enc"]}, state["b_enc"], activation, {t: W_dec[:, t] for t in written})
