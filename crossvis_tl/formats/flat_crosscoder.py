"""F1: a flat crosscoder state dict, as ckkissane's, neelnanda-io's and tom-pollak's code writes it.

`W_enc [S, d, F]`, `W_dec [F, S, d]`, `b_enc [F]`, `b_dec [S, d]`; a = ReLU(sum_s x_s W_enc[s] + b_enc) on activations
multiplied by one factor per source, which these files do not hold (ckkissane/crosscoder-model-diff-replication,
`crosscoder.py` and `buffer.py`). Our own demo folds the factors in and says so in its config
(`"input_scale_folded": true`). F1b wraps the same tensors in `{"model_state_dict": ...}`; with `batch_topk` in its
config, the rectified pre-activations are ranked over the whole batch. F1c (antebe1's TopK and "DFC" crosscoders) has
`activation_dim` and `k` in its config, TopK of the rectified pre-activations, no input scale, and perhaps `dec_mask
[F, 2]`, with which its decoder is multiplied (`enc_mask` is stored and not used). A file without a config is read as
F1's producers write it, with ReLU, unless `activation` and `k` say otherwise.
"""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from crossvis_tl.activation_fns import Activation
from crossvis_tl.dictionary import Dictionary, Group, Site
from crossvis_tl.errors import MissingFact, short_list
from crossvis_tl.formats.activations import RELU_OR_TOP_K, check_activation, relu_or_top_k
from crossvis_tl.formats.files import (
    check_floating,
    check_hook,
    check_processing,
    one_number_each,
    read_config,
    read_wrapped,
)
from crossvis_tl.formats.layers import stored_sites
from crossvis_tl.normalizers import scaling

NAME = "a flat crosscoder"
KEYS = {"W_enc", "W_dec", "b_enc", "b_dec"}
FACTS = {"input_scale", "hook_point", "hook_name", "processing", "activation", "k"}
SCALE_HELP = (
    "pass input_scale=[one factor per source], the number each source's activations were multiplied with in training "
    "(sqrt(d) / mean norm for these producers), or input_scale=1.0 if the factors are folded into the weights already; "
    "crossvis_tl.estimate_input_scale(models, tokens, hook_point, processing=...) measures them"
)


def find(path: Path) -> tuple[Path, Path | None] | None:
    """-> (weights, config or None) when the path looks like this layout, else None."""
    if path.is_file():
        if path.suffix != ".pt":
            return None
        names = (f"{path.stem}_cfg.json", "cfg.json", "cc_cfg.json", "config.json")
        configs = [path.parent / name for name in names]
        return path, next((config for config in configs if config.is_file()), None)
    numbered = [p for p in path.glob("*.pt") if re.fullmatch(r"\d+", p.stem)]
    if numbered:
        return find(max(numbered, key=lambda p: int(p.stem)))
    for name in ("cc_weights.pt", "model.pt"):
        if (path / name).is_file():
            return find(path / name)
    inside = sorted({p.parent for p in path.glob("*/cc_weights.pt")})
    return find(inside[0]) if len(inside) == 1 else None


def load(_path: Path, found: tuple[Path, Path | None], facts: dict[str, Any]) -> Dictionary:
    """ValueError when tensors are missing, do not fit each other, or a fact that encoding needs was not given."""
    weights, config = found
    state, wrapped = read_wrapped(weights)
    cfg = read_config(config) if config else {}
    _check_shapes(weights, state)
    n_sources, width, _ = state["W_enc"].shape
    for name, size in (("d_in", width), ("activation_dim", width), ("dict_size", state["b_enc"].shape[0])):
        if cfg.get(name, size) != size:
            raise ValueError(f"{config} says {name} = {cfg[name]}, but in {weights} it is {size}")
    if wrapped and "batch_topk" not in cfg and "activation" not in facts:
        check_activation(
            config or weights, None, RELU_OR_TOP_K, "activation='relu', or activation='batchtopk' and k=..."
        )
    activation = _activation(config or weights, cfg, facts, state["b_enc"].shape[0])
    unscaled = "activation_dim" in cfg and "k" in cfg and not wrapped
    if unscaled:
        cfg = {"input_scale": [1.0] * n_sources, "input_scale_folded": True, "processing": "none"} | cfg
    scales, folded = _input_scale(weights, cfg, facts, n_sources)
    hooks = _hooks(cfg, facts, n_sources)
    one_model = len(set(hooks)) > 1
    # F1b's producers ran HuggingFace models, F1's TransformerLens' with its default processing.
    default = "none" if wrapped else "tl_default"
    processing = facts.get("processing") or check_processing(cfg.get("processing", default), f"{config}: processing")
    sites = tuple(
        Site(
            model=0 if one_model else s, hook=hooks[s], width=width, processing=processing,
            scale=scales[s] if folded else 1.0,
        )
        for s in range(n_sources)
    )  # fmt: skip
    stored = stored_sites(cfg, "sources", facts, width)
    if len(stored) == n_sources and not {"hook_point", "hook_name"} & set(facts):
        sites = tuple(replace(site, scale=one.scale) for site, one in zip(stored, sites, strict=True))
    if "dec_mask" not in state and any(cfg.get(name) for name in ("n_a", "n_b")):
        raise ValueError(f"{weights} lacks dec_mask, which says what features of one model alone write to the other")
    group = Group(
        name="",
        W_enc={s: state["W_enc"][s] for s in range(n_sources)},
        b_enc=state["b_enc"],
        activation=activation,
        W_dec={s: _masked(weights, state, s) for s in range(n_sources)},
    )
    norms = {} if folded else {s: scaling(scale) for s, scale in enumerate(scales) if scale != 1}
    said = {name: cfg[name] for name in ("model_name", "activations", "num_tokens") if name in cfg}
    pair = [cfg["model_a"], cfg["model_b"]] if "model_a" in cfg and "model_b" in cfg else [cfg.get("model_name")]
    names = cfg.get("model_names") or pair
    if config is None and "activation" not in facts:
        said["activation"] = "ReLU, as the producers of this layout use; the file has no config that says it"
    return Dictionary(
        kind="crosscoder", sources=sites, targets=sites, groups=(group,), b_dec=tuple(state["b_dec"]),
        format="flat TopK crosscoder (F1c)" if unscaled else "flat crosscoder (F1b)" if wrapped else
        "flat crosscoder (F1)", model_names=tuple(names), facts={"input_scale": scales, **said},
        normalize=norms, denormalize=norms,
    )  # fmt: skip


def _activation(where: Path, cfg: dict[str, Any], facts: dict[str, Any], features: int) -> Activation:
    """F1b's config has `batch_topk`; F1c's names the width `activation_dim` and has k; the other flat ones' do not."""
    kind, k = "relu", facts.get("k")
    if cfg.get("batch_topk") is not None and cfg["batch_topk"] is not False:
        kind, k = "batchtopk", facts.get("k", cfg["batch_topk"])
    elif "activation_dim" in cfg and "k" in cfg:
        kind, k = "topk", facts.get("k", cfg["k"])
    kind = check_activation(where, facts.get("activation", kind), RELU_OR_TOP_K)
    if kind == "relu" and "k" in facts:
        raise ValueError(f"k={facts['k']!r} says nothing about ReLU; pass activation='topk' too, if it is that")
    return relu_or_top_k(where, kind, k, features)


def _masked(path: Path, state: dict[str, Tensor], source: int) -> Tensor:
    W_dec, mask = state["W_dec"][:, source], state.get("dec_mask")
    if mask is None:
        return W_dec
    if tuple(mask.shape) != tuple(state["W_dec"].shape[:2]):
        raise ValueError(f"{path}: dec_mask is {tuple(mask.shape)}; expected {tuple(state['W_dec'].shape[:2])}")
    if not bool(((mask == 0) | (mask == 1)).all()):
        raise ValueError(f"{path}: dec_mask holds other numbers than 0 and 1; it is damaged")
    return W_dec * mask[:, source, None].to(W_dec)


def _check_shapes(path: Path, state: dict[str, Tensor]) -> None:
    missing = KEYS - set(state)
    if missing:
        found = short_list(sorted(state))
        raise ValueError(f"{path} is no crosscoder: it lacks {short_list(sorted(missing))} (it holds {found})")
    check_floating(path, state, KEYS)
    W_enc = state["W_enc"]
    if W_enc.ndim != 3:
        raise ValueError(f"{path}: W_enc is {tuple(W_enc.shape)}; a crosscoder's is [sources, d_model, features]")
    sources, width, features = W_enc.shape
    expected = {"W_dec": (features, sources, width), "b_enc": (features,), "b_dec": (sources, width)}
    for name, shape in expected.items():
        if tuple(state[name].shape) != shape:
            raise ValueError(
                f"{path}: {name} is {tuple(state[name].shape)}, but W_enc {tuple(W_enc.shape)} asks for {shape}"
            )


def _input_scale(path: Path, cfg: dict, facts: dict, n_sources: int) -> tuple[list[float], bool]:
    """-> (factor per source, whether the file's weights hold them already)."""
    folded = bool(cfg.get("input_scale_folded", False))
    if folded and "input_scale" in facts:
        raise ValueError(f"{path}: its config says the input scales are folded in already; leave input_scale out")
    value = cfg.get("input_scale") if folded else facts.get("input_scale")
    if value is None:
        raise MissingFact("input_scale", f"{path} does not hold input_scale; {SCALE_HELP}", 1.0)
    return one_number_each("input_scale", value, n_sources, f"source of {path}", positive=True), folded


def _hooks(cfg: dict, facts: dict, n_sources: int) -> list[str | None]:
    """One hook for all sources (several models), or one each (several layers of one model)."""
    value = facts.get("hook_point", facts.get("hook_name", cfg.get("hook_point")))
    if isinstance(value, list | tuple):
        if len(value) != n_sources:
            raise ValueError(f"hook_point names {len(value)} hooks; this crosscoder has {n_sources} sources")
        return [check_hook(hook, "hook_point") for hook in value]
    hook = check_hook(value, "hook_point")  # F1b's producers write Python: model.layers[16].mlp.output
    return [hook and re.sub(r"\[(\d+)\]", r".\1", hook)] * n_sources
