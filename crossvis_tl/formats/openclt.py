"""F11: openCLT (etredal/openCLT), one `.pt`: `{"encoders", "decoders", "feature_importance", "config"}`.

`encoders["{i}.weight"] [F, d]`, `encoders["{i}.bias"]`; `decoders["{s}_{t}.weight"] [d, F]` and `.bias` for each pair
of layers s <= t, the biases of a target added up. It reads HuggingFace's MLP inputs through a layer norm without gain
and bias, and reconstructs MLP outputs after one: there is no way back from there, so what a feature adds to the model
is not defined. Its activation (JumpReLU with one threshold a layer, ReLU, or TopK without ReLU), threshold and k are
not stored.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from crossvis_tl.activation_fns import Activation, JumpReLU, ReLU, TopK
from crossvis_tl.dictionary import Dictionary, Group, Site, TokenNorm
from crossvis_tl.errors import MissingFact
from crossvis_tl.formats.activations import check_activation, check_k
from crossvis_tl.formats.files import check_floating, check_sizes, check_tensors, near_content, one_number_each
from crossvis_tl.formats.layers import HOOK_FACTS, check_shapes, layer_sites, need

FACTS = {"processing", "activation", "threshold", "k"} | HOOK_FACTS
NAME = "an openCLT transcoder"
PARTS = ("encoders", "decoders", "config")
# Of `F.layer_norm` without weights: the biased deviation, eps inside the root.
LAYER_NORM = TokenNorm(1e-5, unbiased=False, inside=True)


def find(path: Path) -> tuple[Path, Mapping[str, Any]] | None:
    """-> the weight file and what it holds when the path looks like this layout, else None."""
    file, content = near_content(path)
    return (file, content) if all(isinstance(content.get(part), dict) for part in PARTS) else None


def load(_path: Path, found: tuple[Path, Mapping[str, Any]], facts: dict[str, Any]) -> Dictionary:
    """ValueError when tensors are missing, do not fit each other, or a fact that encoding needs was not given."""
    file, content = found
    cfg = content["config"]
    state = {f"{part}.{name}": t for part in PARTS[:2] for name, t in content[part].items() if isinstance(t, Tensor)}
    check_tensors(file, state)
    check_floating(file, state, state)
    layers = {int(m[1]) for name in state if (m := re.fullmatch(r"encoders\.(\d+)\.weight", name))}
    n_layers = max(layers, default=-1) + 1
    pairs = [(s, t) for s in range(n_layers) for t in range(s, n_layers)]
    names = [f"encoders.{i}.{part}" for i in range(n_layers) for part in ("weight", "bias")]
    need(file, state, names or ["encoders.0.weight"])
    need(file, state, [f"decoders.{s}_{t}.{part}" for s, t in pairs for part in ("weight", "bias")])
    first = state["encoders.0.weight"]
    if first.ndim != 2:
        raise ValueError(f"{file}: encoders' 0.weight is {tuple(first.shape)}; expected [features, hidden_size]")
    features, width = first.shape
    shapes: dict[str, tuple[int, ...]] = {}
    for i in range(n_layers):
        shapes |= {f"encoders.{i}.weight": (features, width), f"encoders.{i}.bias": (features,)}
    for s, t in pairs:
        shapes |= {f"decoders.{s}_{t}.weight": (width, features), f"decoders.{s}_{t}.bias": (width,)}
    check_shapes(file, state, shapes)
    sizes = {"num_features": features, "num_layers": n_layers, "hidden_size": width}
    check_sizes(f"{file}: its config", cfg, sizes)
    activations = _activations(file, facts, n_layers, features)
    groups = tuple(
        Group(
            f"L{i}", {i: state[f"encoders.{i}.weight"].T}, state[f"encoders.{i}.bias"], activations[i],
            {t: state[f"decoders.{i}_{t}.weight"].T for t in range(i, n_layers)},
        )
        for i in range(n_layers)
    )  # fmt: skip
    biases = [[state[f"decoders.{s}_{t}.bias"].float() for s in range(t + 1)] for t in range(n_layers)]
    read, written = (_sites(facts, role, n_layers, width) for role in ("input", "output"))
    norms = dict.fromkeys(range(n_layers), LAYER_NORM)
    return Dictionary(
        kind="clt", sources=read, targets=written, groups=groups, b_dec=tuple(sum(b, b[0] * 0) for b in biases),
        format="openCLT (F11)", model_names=(cfg.get("model_name"),), normalize=norms, target_norm=norms,
    )  # fmt: skip


def _sites(facts: dict[str, Any], role: str, n_layers: int, width: int) -> tuple[Site, ...]:
    """Its code knows models of GPT-2's build alone."""
    processing = facts.get("processing", "none")
    if f"feature_{role}_hook" in facts:
        return layer_sites({}, facts, role, range(n_layers), width, processing)
    return tuple(Site(0, None, width, processing, hf_path=f"transformer.h.{i}.mlp.{role}") for i in range(n_layers))


def _activations(file: Path, facts: dict[str, Any], n_layers: int, features: int) -> list[Activation]:
    how = (
        "activation='jumprelu' and threshold=[one number per layer], activation='relu', or activation='topk' and k=..."
    )
    kind = check_activation(file, facts.get("activation"), ("jumprelu", "relu", "topk"), how)
    unused = {"jumprelu": "k", "relu": "k and threshold", "topk": "threshold"}[kind].split(" and ")
    for name in unused:
        if name in facts:
            raise ValueError(f"{name}={facts[name]!r} says nothing about activation={kind!r}; leave it out")
    if kind == "relu":
        return [ReLU()] * n_layers
    if kind == "topk":
        return [TopK(check_k(file, facts.get("k"), features), relu=False)] * n_layers
    threshold = facts.get("threshold")
    if threshold is None:
        raise MissingFact(
            "threshold",
            f"{file} does not hold the JumpReLU's threshold; pass threshold=[one number per layer] (training starts "
            "with 0.03, and its own loader takes that whatever it became)",
            0.03,
        )
    numbers = one_number_each("threshold", threshold, n_layers, f"layer of {file}")
    return [JumpReLU(torch.full((features,), v)) for v in numbers]
