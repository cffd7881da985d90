"""F7: curt-tigges/crosslayer-coding, the cross-layer transcoders that SAEDashboard knows.

`cfg.json` beside `clt_checkpoint_{step or latest}.safetensors`, `*/model.safetensors` or a `.pt` of `{"config",
"state_dict"}`; `norm_stats.json`. `encoder_module.encoders.{i}.weight [F, d]`, `.bias_param`; decoders untied,
`decoder_module.decoders.{s}->{t}.weight [d, F]`, or tied by source or by target, `decoders.{i}.weight`; the biases of a
target added up, of decoders tied by target once. `feature_offset.{t}`, `feature_scale.{t} [F]`: (a + offset) * scale
where a is not 0, by target. `skip_weights.{t}` or `{s}->{t}`: x @ W.T of the normalised input.
`theta_manager.log_threshold [L, F]`: x where x >= exp(log_threshold). BatchTopK and TokenTopK rank z-scores of all
layers' features together, without ReLU, and store no threshold. Older files lack the prefixes. Inputs are (x - mean) /
(std + 1e-6) and outputs taken back ("mean_std"), or x * sqrt(d) ("sqrt_d_model"). HuggingFace's own activations.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from crossvis_tl.activation_fns import Activation, Identity, JumpReLU, ReLU, TopK
from crossvis_tl.dictionary import Affine, Dictionary, Group, Post, Site
from crossvis_tl.errors import MissingFact, short_list
from crossvis_tl.formats.activations import check_activation, check_k
from crossvis_tl.formats.files import (
    check_floating,
    check_hook,
    near_content,
    read_config,
    read_state_dict,
    tensor_names,
)
from crossvis_tl.formats.layers import HOOK_FACTS, check_shapes, need
from crossvis_tl.normalizers import scaling

FACTS = {"processing", "activation", "k", "normalization_method"} | HOOK_FACTS
NAME = "a crosslayer-coding transcoder"
CHECKPOINT = re.compile(r"(?:clt_)?checkpoint_(\d+|latest)\.safetensors|clt\.safetensors|model\.safetensors")
STEP = re.compile(r"(\d+)")
PREFIX = re.compile(r"^(?:_orig_mod\.|module\.)*(?:encoder_module\.|decoder_module\.|theta_manager\.)?")
SIZES = ("num_layers", "num_features", "d_model")
STD_EPS = 1e-6
KINDS = ("jumprelu", "relu", "batchtopk", "topk")
RANK = re.compile(r"rank_(\d+)_model\.(?:pt|safetensors)")


def find(path: Path) -> list[Path] | None:
    """-> the weight files (several: shares of the features) when the path looks like this layout, else None."""
    if path.is_file():
        return [path] if _is_ours(path) else None
    ranks = {int(m[1]): p for p in path.iterdir() if (m := RANK.fullmatch(p.name))}
    if ranks and _is_ours(ranks[min(ranks)]):
        absent = sorted(set(range(max(ranks) + 1)) - set(ranks))
        if absent:
            raise FileNotFoundError(
                f"{path} lacks the shares of ranks {short_list(absent)}; was the download complete?"
            )
        return [ranks[rank] for rank in sorted(ranks)]
    files = [
        p for p in (*path.glob("*.safetensors"), *path.glob("*/model.safetensors")) if CHECKPOINT.fullmatch(p.name)
    ]
    files += [p for p in path.glob("*.pt") if len(list(path.glob("*.pt"))) == 1]
    for file in sorted(files, key=_newest, reverse=True):
        if _is_ours(file):
            return [file]
    return None


def _newest(file: Path) -> tuple[bool, int, str]:
    """ "latest" before the highest step; of the same step the checkpoint itself."""
    steps = STEP.findall(file.stem) or STEP.findall(file.parent.name)
    return "latest" in (file.stem.split("_")[-1], file.parent.name), int(steps[-1]) if steps else -1, file.name


def _is_ours(file: Path) -> bool:
    if file.suffix == ".safetensors":
        names = tensor_names(file)
    else:
        content = near_content(file)[1]
        inner = content.get("state_dict", content)
        names = list(inner) if isinstance(inner, Mapping) else []
    return any(re.fullmatch(r"encoders\.\d+\.weight", PREFIX.sub("", str(name))) for name in names)


def load(path: Path, files: list[Path], facts: dict[str, Any]) -> Dictionary:
    """ValueError when tensors are missing, do not fit each other or the config, or a fact that encoding needs is not
    there."""
    file = files[0]
    cfg = _config(file) | {name: facts[name] for name in ("normalization_method",) if name in facts}
    state = _joined([_read(one) for one in files])
    n_layers, features, width = (_size(file, cfg, name) for name in SIZES)
    held = sum(re.fullmatch(r"encoders\.\d+\.weight", name) is not None for name in state)
    if held != n_layers:
        raise ValueError(f"{file} holds {held} encoders, but its config says num_layers = {n_layers}")
    shapes = {f"encoders.{i}.weight": (features, width) for i in range(n_layers)}
    shapes |= {f"encoders.{i}.bias_param": (features,) for i in range(n_layers)}
    need(file, state, list(shapes))
    _check_said(file, cfg, state, n_layers)
    check_floating(file, state, state)
    check_shapes(file, state, shapes | {"log_threshold": (n_layers, features)})
    tying = str(cfg.get("decoder_tying", "none"))
    weights, b_dec = _decoders(file, state, tying, n_layers, features, width)
    post = {t: _post(file, state, t, features) for t in range(n_layers)}
    kind = check_activation(file, facts.get("activation", cfg.get("activation_fn")), KINDS)
    activations, joint = _activations(file, state, cfg, facts, kind, n_layers, features)
    groups = tuple(
        Group(
            f"L{i}", {i: state[f"encoders.{i}.weight"].T}, state[f"encoders.{i}.bias_param"], activations[i],
            {t: weights[i, t] for t in range(i, n_layers)},
            post={t: one for t in range(i, n_layers) if (one := post[t]) is not None},
        )
        for i in range(n_layers)
    )  # fmt: skip
    read, written = (_norms(file, cfg, part, n_layers, width) for part in ("inputs", "targets"))
    return Dictionary(
        kind="clt", sources=_sites(cfg, facts, "input", n_layers, width),
        targets=_sites(cfg, facts, "output", n_layers, width), groups=groups, b_dec=b_dec,
        format="crosslayer-coding (F7)", model_names=(cfg.get("model_name"),), facts={"decoder_tying": tying},
        skip=_skip(file, state, n_layers, width), normalize=read, denormalize=written, joint=joint,
    )  # fmt: skip


def _check_said(file: Path, cfg: dict[str, Any], state: dict[str, Tensor], n_layers: int) -> None:
    """ValueError where the config speaks of tensors that are not there."""
    for option, name in (("enable_feature_offset", "feature_offset"), ("enable_feature_scale", "feature_scale")):
        held = [t for t in range(n_layers) if f"{name}.{t}" in state]
        if len(held) != n_layers and (held or cfg.get(option)):
            lacking = next(t for t in range(n_layers) if t not in held)
            raise ValueError(f"{file} lacks the tensor {name}.{lacking}, which its config ({option}) says it has")
    skips = {name.removeprefix("skip_weights.") for name in state if name.startswith("skip_weights.")}
    untied = str(cfg.get("decoder_tying", "none")) == "none" and not any(one.isdecimal() for one in skips)
    pairs = {f"{s}->{t}" for s in range(n_layers) for t in range(s, n_layers)}
    expected = pairs if untied else {str(t) for t in range(n_layers)}
    if (cfg.get("skip_connection") or skips) and skips != expected:
        lacking = short_list(sorted(expected ^ skips))
        raise ValueError(f"{file}: its skip_weights do not fit its config's skip_connection (see {lacking})")


def _config(file: Path) -> dict[str, Any]:
    beside = [folder / "cfg.json" for folder in (file.parent, file.parent.parent)]
    found = next((one for one in beside if one.is_file()), None)
    if found is not None:
        return read_config(found)
    inner = near_content(file)[1].get("config") if file.suffix == ".pt" else None
    if not isinstance(inner, dict):
        raise FileNotFoundError(f"{file.parent} lacks cfg.json, which says its activation and normalisation")
    return inner


def _size(file: Path, cfg: dict[str, Any], name: str) -> int:
    value = cfg.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"the config of {file} says {name} = {value!r}; expected a positive number")
    return value


def _read(file: Path) -> dict[str, Tensor]:
    return {PREFIX.sub("", name): tensor for name, tensor in read_state_dict(file).items()}


def _joined(states: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """The ranks' shares of the features side by side; what is the same size in all is held by each in whole."""
    if len(states) == 1:
        return states[0]
    joined = {}
    for name, first in states[0].items():
        parts = [state[name] for state in states if name in state]
        split = name.startswith("encoders.") or name.startswith(("feature_", "log_threshold"))
        axis = 0 if name.startswith(("encoders.", "feature_")) else -1
        split = split or (name.startswith("decoders.") and name.endswith(".weight"))
        joined[name] = torch.cat(parts, dim=axis) if split else first
    return joined


def _decoders(
    file: Path, state: dict[str, Tensor], tying: str, n_layers: int, features: int, width: int
) -> tuple[dict[tuple[int, int], Tensor], tuple[Tensor, ...]]:
    """-> decoder [F, d] of each pair of layers, and b_dec of each target."""
    if tying not in ("none", "per_source", "per_target"):
        raise ValueError(f"the config of {file} says decoder_tying = {tying!r}; known: none, per_source, per_target")
    pairs = [(s, t) for s in range(n_layers) for t in range(s, n_layers)]
    name = {"none": "{s}->{t}", "per_source": "{s}", "per_target": "{t}"}[tying]
    names = {(s, t): "decoders." + name.format(s=s, t=t) for s, t in pairs}
    need(file, state, sorted({f"{one}.{part}" for one in names.values() for part in ("weight", "bias_param")}))
    check_shapes(file, state, {f"{one}.weight": (width, features) for one in names.values()})
    check_shapes(file, state, {f"{one}.bias_param": (width,) for one in names.values()})
    b_dec = []
    for t in range(n_layers):
        sources = [t] if tying == "per_target" else range(t + 1)
        biases = [state[f"{names[s, t]}.bias_param"].float() for s in sources]
        b_dec.append(torch.stack(biases).sum(0))
    return {pair: state[f"{one}.weight"].T for pair, one in names.items()}, tuple(b_dec)


def _post(file: Path, state: dict[str, Tensor], target: int, features: int) -> Post | None:
    names = (f"feature_offset.{target}", f"feature_scale.{target}")
    check_shapes(file, state, dict.fromkeys(names, (features,)))
    offset, scale = (state.get(name) for name in names)
    return None if offset is None and scale is None else Post(offset, scale)


def _skip(file: Path, state: dict[str, Tensor], n_layers: int, width: int) -> dict[tuple[int, int], Tensor]:
    found = {}
    for name, W in state.items():
        match = re.fullmatch(r"skip_weights\.(\d+)(?:->(\d+))?", name)
        if not match:
            continue
        source, target = int(match[1]), int(match[2] or match[1])
        if not source <= target < n_layers or tuple(W.shape) != (width, width):
            raise ValueError(f"{file}: {name} is {tuple(W.shape)}; expected {(width, width)}, of {n_layers} layers")
        found[source, target] = W.T
    return found


def _activations(
    file: Path, state: dict[str, Tensor], cfg: dict[str, Any], facts: dict[str, Any], kind: str, n_layers: int,
    features: int,
) -> tuple[list[Activation], TopK | None]:  # fmt: skip
    """-> one for each layer, and what ranks all layers together."""
    if kind == "jumprelu":
        need(file, state, ["log_threshold"])
        theta = state["log_threshold"].float().exp()
        return [JumpReLU(theta[i], strict=False) for i in range(n_layers)], None
    if kind == "relu":
        return [ReLU()] * n_layers, None
    if str(cfg.get("topk_mode", "global")) != "global" and kind == "topk":
        raise ValueError(
            f"the config of {file} says topk_mode = {cfg['topk_mode']!r}, with which its producer's code gives zeros "
            "for all features; 'global' can be read"
        )
    k = facts.get("k", cfg.get("batchtopk_k" if kind == "batchtopk" else "topk_k"))
    everything = features * n_layers
    if kind == "topk" and isinstance(k, float) and 0 < k < 1:  # a share of all features, in the producer's float32
        k = int(torch.ceil(torch.tensor(k * everything)))
    if isinstance(k, int | float) and not isinstance(k, bool) and everything < k < float("inf"):
        k = everything  # the producer keeps all then
    joint = TopK(check_k(file, k, everything), relu=False, batch=kind == "batchtopk", zscore=True)
    return [Identity()] * n_layers, joint


def _norms(file: Path, cfg: dict[str, Any], part: str, n_layers: int, width: int) -> dict[int, Affine]:
    places = [folder / "norm_stats.json" for folder in (file.parent, file.parent.parent)]
    stats = next((one for one in places if one.is_file()), None)
    said = cfg.get("normalization_method", None if stats is None else "mean_std")
    if said is None:
        text = f"the config of {file} does not say normalization_method; pass 'none', 'mean_std' or 'sqrt_d_model'"
        raise MissingFact("normalization_method", text, "none")
    method = str(said)
    if method == "none":
        return {}
    if method == "sqrt_d_model":
        return dict.fromkeys(range(n_layers), scaling(width**0.5))
    if stats is None:
        raise FileNotFoundError(
            f"{file.parent} lacks norm_stats.json, with which its config says inputs are normalised ({method})"
        )
    content = read_config(stats)
    norms = {}
    for i in range(n_layers):
        mean, std = (_vector(stats, content, i, part, name, width) for name in ("mean", "std"))
        norms[i] = Affine(mean, 1 / (std + STD_EPS))
    return norms


def _vector(stats: Path, content: dict[str, Any], layer: int, part: str, name: str, width: int) -> Tensor:
    try:
        vector = torch.tensor(content[str(layer)][part][name], dtype=torch.float32)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{stats} lacks the {name} of layer {layer}'s {part}") from error
    if (
        vector.shape != (width,)
        or not bool(torch.isfinite(vector).all())
        or (name == "std" and bool((vector < 0).any()))
    ):
        raise ValueError(f"{stats}: {name} of layer {layer}'s {part} is not {width} finite numbers")
    return vector


def _sites(cfg: dict[str, Any], facts: dict[str, Any], role: str, n_layers: int, width: int) -> tuple[Site, ...]:
    """HuggingFace's paths are what the producer read; TransformerLens' names stand in for them."""
    fact, processing = f"feature_{role}_hook", facts.get("processing", "none")
    if fact in facts:
        hook = check_hook(facts[fact], fact)
        return tuple(Site(0, f"blocks.{i}.{hook}", width, processing) for i in range(n_layers))
    sites = []
    for i in range(n_layers):
        paths = (cfg.get(f"mlp_{role}_template"), cfg.get(f"tl_{role}_template"))
        hf_path, hook = (one.replace("{}", str(i)) if isinstance(one, str) else None for one in paths)
        sites.append(Site(0, hook, width, processing, hf_path=hf_path))
    return tuple(sites)
