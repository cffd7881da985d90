"""F10: CLT-Forge's cross-layer transcoders (`clt_cfg.json` beside `clt_weights.safetensors`).

`W_enc [L, d, F]`, `b_enc [L, F]`, `log_threshold [L, F]` (x where x > exp(log_threshold)), `W_dec [pairs, F, d]` and
`b_dec [pairs, d]` for each pair (source, target >= source) in the order of `torch.triu_indices`, the biases of a target
added up; without `cross_layer_decoders`, `[L, ...]`. Inputs are multiplied by `estimated_norm_scaling_factor_in [L]`,
reconstructions divided by `..._out`. A training on several devices leaves `rank{r}_...` files, each
with a share of the features and the same `b_dec`.
"""

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from crossvis_tl.activation_fns import JumpReLU
from crossvis_tl.dictionary import Dictionary, Group
from crossvis_tl.errors import short_list
from crossvis_tl.formats.files import check_floating, check_sizes, read_config, read_state_dict
from crossvis_tl.formats.layers import HOOK_FACTS, check_shapes, layer_sites, need
from crossvis_tl.normalizers import scaling
from crossvis_tl.weights import Weight, side_by_side

FACTS = {"processing"} | HOOK_FACTS
NAME = "a CLT-Forge transcoder"
WEIGHTS = "clt_weights.safetensors"
RANK = re.compile(r"rank(\d+)_clt_weights\.safetensors")
TENSORS = ("W_enc", "b_enc", "log_threshold", "W_dec", "b_dec")
FACTORS = ("estimated_norm_scaling_factor_in", "estimated_norm_scaling_factor_out")
HOOKS = {"feature_input_hook": "ln2.hook_normalized", "feature_output_hook": "hook_mlp_out"}


def find(path: Path) -> list[Path] | None:
    """-> the weight files, by rank, when the path looks like this layout, else None."""
    if not path.is_dir():
        return None
    if (path / WEIGHTS).is_file():
        return [path / WEIGHTS]
    ranks = {int(m[1]): p for p in path.iterdir() if (m := RANK.fullmatch(p.name))}
    if not ranks:
        return None
    absent = sorted(set(range(max(ranks) + 1)) - set(ranks))
    if absent:
        names = short_list(f"rank{r}_{WEIGHTS}" for r in absent)
        raise FileNotFoundError(f"{path} lacks {names}; was the download complete?")
    return [ranks[rank] for rank in sorted(ranks)]


def load(path: Path, files: list[Path], facts: dict[str, Any]) -> Dictionary:
    """ValueError when tensors are missing, do not fit each other or contradict the config."""
    cfg = read_config(path / "clt_cfg.json") if (path / "clt_cfg.json").is_file() else {}
    states = [_read(file) for file in files]
    state = states[0]
    n_layers, width, _ = state["W_enc"].shape
    across = state["W_dec"].shape[0] != n_layers or n_layers == 1
    sources, targets = torch.triu_indices(n_layers, n_layers).tolist() if across else (range(n_layers),) * 2
    for file, share in zip(files, states, strict=True):
        _check(file, share, n_layers, width, pairs=len(list(sources)))
    b_enc = torch.cat([share["b_enc"] for share in states], dim=1)
    threshold = torch.cat([share["log_threshold"] for share in states], dim=1).float().exp()
    features = b_enc.shape[1]
    said = {"n_layers": n_layers, "d_in": width, "d_latent": features}
    check_sizes(str(path / "clt_cfg.json"), cfg, said)
    if (FACTORS[0] in state) != (FACTORS[1] in state):
        raise ValueError(f"{path} holds one of {FACTORS[0]} and {FACTORS[1]}, and not the other; it is damaged")
    ones = torch.ones(n_layers)
    f_in, f_out = (state.get(name, ones).float() for name in FACTORS)
    if bool((f_in <= 0).any()) or bool((f_out <= 0).any()):
        raise ValueError(f"{path}: a scaling factor is not positive; the file is damaged")
    W_dec: list[dict[int, Weight]] = [{} for _ in range(n_layers)]
    b_dec = torch.zeros(n_layers, width)
    for pair, (source, target) in enumerate(zip(sources, targets, strict=True)):
        W_dec[source][target] = side_by_side([share["W_dec"][pair] for share in states], axis=0)
        b_dec[target] += state["b_dec"][pair].float()
    W_enc = [side_by_side([share["W_enc"][i] for share in states], axis=1) for i in range(n_layers)]
    groups = tuple(Group(f"L{i}", {i: W_enc[i]}, b_enc[i], JumpReLU(threshold[i]), W_dec[i]) for i in range(n_layers))
    layers, processing = range(n_layers), facts.get("processing")
    read, written = (layer_sites(HOOKS, facts, role, layers, width, processing) for role in ("input", "output"))
    return Dictionary(
        kind="clt" if across else "plt", sources=read, targets=written, groups=groups, b_dec=tuple(b_dec),
        format="CLT-Forge (F10)", model_names=(cfg.get("model_name"),),
        normalize={i: scaling(f_in[i]) for i in layers}, denormalize={i: scaling(f_out[i]) for i in layers},
    )  # fmt: skip


def _read(file: Path) -> dict[str, Tensor]:
    state = dict(read_state_dict(file))
    need(file, state, TENSORS)
    check_floating(file, state, (*TENSORS, *FACTORS))
    for name, axes in (("W_enc", 3), ("W_dec", 3), ("b_enc", 2), ("log_threshold", 2), ("b_dec", 2)):
        if state[name].ndim != axes:
            raise ValueError(f"{file}: {name} is {tuple(state[name].shape)}; expected {axes} axes")
    return state


def _check(file: Path, share: dict[str, Tensor], n_layers: int, width: int, pairs: int) -> None:
    """ValueError when a rank's share does not fit the first rank's."""
    features = share["b_enc"].shape[1]
    shapes = {"W_enc": (n_layers, width, features), "b_enc": (n_layers, features), "W_dec": (pairs, features, width)}
    shapes |= {"log_threshold": (n_layers, features), "b_dec": (pairs, width)} | dict.fromkeys(FACTORS, (n_layers,))
    check_shapes(file, share, shapes)
