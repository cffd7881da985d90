"""F1: a flat crosscoder state dict, as ckkissane's, neelnanda-io's and tom-pollak's code writes it.

`W_enc [S, d, F]`, `W_dec [F, S, d]`, `b_enc [F]`, `b_dec [S, d]`; a = ReLU(sum_s x_s W_enc[s] + b_enc) on activations
multiplied by one factor per source, which these files do not hold (ckkissane/crosscoder-model-diff-replication,
`crosscoder.py` and `buffer.py`). Our own demo folds the factors in and says so in its config
(`"input_scale_folded": true`). F1b wraps the same tensors in `{"model_state_dict": ...}`. F1c (antebe1's TopK and
"DFC" crosscoders) has `activation_dim` and `k` in its config, TopK of the rectified pre-activations, no input scale,
and perhaps `dec_mask [F, 2]`, with which its decoder is multiplied (`enc_mask` is stored and not used).
"""

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from crossvis_tl.activation_fns import ReLU, TopK
from crossvis_tl.dictionary import Dictionary, Group, Site
from crossvis_tl.errors import short_list
from crossvis_tl.formats.files import (
    check_floating,
    check_hook,
    check_processing,
    read_config,
    read_wrapped,
)

NAME = "a flat crosscoder"
KEYS = {"W_enc", "W_dec", "b_enc", "b_dec"}
FACTS = {"input_scale", "hook_point", "hook_name", "processing"}
SCALE_HELP = (
    "pass input_scale=[one factor per source], the number each source's activations were multiplied with in training "
    "(sqrt(d) / mean norm for these producers), or input_scale=1.0 if the factors are folded into the weights already"
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
    if cfg.get("batch_topk"):
        raise ValueError(f"{config}: batch_topk = {cfg['batch_topk']}; BatchTopK crosscoders cannot be read yet")
    for name, size in (("d_in", width), ("activation_dim", width), ("dict_size", state["b_enc"].shape[0])):
        if cfg.get(name, size) != size:
            raise ValueError(f"{config} says {name} = {cfg[name]}, but in {weights} it is {size}")
    k = _top_k(config, cfg, state["b_enc"].shape[0])
    if k is not None and not wrapped:
        cfg = {"input_scale": [1.0] * n_sources, "input_scale_folded": True, "processing": "none"} | cfg
    scales, folded = _input_scale(weights, cfg, facts, n_sources)
    hooks = _hooks(cfg, facts, n_sources)
    one_model = len(set(hooks)) > 1
    # F1b's producers ran HuggingFace models, F1's TransformerLens' with its default processing.
    default = "none" if wrapped else "tl_default"
    processing = facts.get("processing") or check_processing(cfg.get("processing", default), f"{config}: processing")
    sites = tuple(
        Site(model=0 if one_model else s, hook=hooks[s], width=width, processing=processing, scale=scales[s])
        for s in range(n_sources)
    )
    fold = torch.ones(n_sources) if folded else torch.tensor(scales)
    group = Group(
        name="",
        W_enc={s: _scaled(state["W_enc"][s], fold[s]) for s in range(n_sources)},
        b_enc=state["b_enc"],
        activation=ReLU() if k is None else TopK(k),
        W_dec={s: _scaled(_masked(weights, state, s), 1 / fold[s]) for s in range(n_sources)},
    )
    b_dec = tuple(_scaled(state["b_dec"][s], 1 / fold[s]) for s in range(n_sources))
    said = {name: cfg[name] for name in ("model_name", "activations", "num_tokens") if name in cfg}
    pair = [cfg["model_a"], cfg["model_b"]] if "model_a" in cfg and "model_b" in cfg else [cfg.get("model_name")]
    names = cfg.get("model_names") or pair
    return Dictionary(
        kind="crosscoder", sources=sites, targets=sites, groups=(group,), b_dec=b_dec,
        format="flat crosscoder (F1)" if k is None else "flat TopK crosscoder (F1c)",
        model_names=tuple(names), facts={"input_scale": scales, **said},
    )  # fmt: skip


def _top_k(config: Path | None, cfg: dict[str, Any], features: int) -> int | None:
    """F1c's config names the width `activation_dim` and has k; the other flat crosscoders' do not."""
    if "activation_dim" not in cfg or "k" not in cfg:
        return None
    k = cfg["k"]
    if not isinstance(k, int) or isinstance(k, bool) or not 1 <= k <= features:
        raise ValueError(f"{config}: k = {k!r}; expected how many of the {features} features fire on a token")
    return k


def _masked(path: Path, state: dict[str, Tensor], source: int) -> Tensor:
    W_dec, mask = state["W_dec"][:, source], state.get("dec_mask")
    if mask is None:
        return W_dec
    if tuple(mask.shape) != tuple(state["W_dec"].shape[:2]):
        raise ValueError(f"{path}: dec_mask is {tuple(mask.shape)}; expected {tuple(state['W_dec'].shape[:2])}")
    return W_dec * mask[:, source, None].to(W_dec)


def _scaled(tensor: Tensor, factor: Tensor) -> Tensor:
    """Left as stored where there is nothing to fold, so that half-precision weights stay half the size."""
    return tensor.contiguous() if factor == 1 else tensor.float() * factor


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
        raise ValueError(f"{path} does not hold input_scale; {SCALE_HELP}")
    given = list(value) if isinstance(value, list | tuple) else [value] * n_sources
    numbers = [v for v in given if isinstance(v, int | float) and not isinstance(v, bool) and 0 < v < float("inf")]
    if len(numbers) != len(given) or len(given) != n_sources:
        raise ValueError(f"input_scale={value!r}: expected {n_sources} positive numbers, one per source of {path}")
    return [float(v) for v in numbers], folded


def _hooks(cfg: dict, facts: dict, n_sources: int) -> list[str | None]:
    """One hook for all sources (several models), or one each (several layers of one model)."""
    value = facts.get("hook_point", facts.get("hook_name", cfg.get("hook_point")))
    if isinstance(value, list | tuple):
        if len(value) != n_sources:
            raise ValueError(f"hook_point names {len(value)} hooks; this crosscoder has {n_sources} sources")
        return [check_hook(hook, "hook_point") for hook in value]
    return [check_hook(value, "hook_point")] * n_sources
