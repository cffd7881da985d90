"""F3: the line of oli-clive-griffin's crosscoders: `crosscoders`, `model_diffing` (chainik1125) and `crosscode`.

Named axes in the tensors' names: `W_enc_LID [L, F, d]` or `W_enc_ID [F, d]` with `W_dec_LDI [L, d, F]` (ReLU);
`W_enc_XDH [*X, d, F]` with `W_dec_HXD [F, *X, d]`; `_W_enc_XiDiL` with `_W_dec_LXoDo`, perhaps `W_skip_DPD
[d, targets, d]` (recon += x @ W_skip). X is (models, hookpoints): source = model * hookpoints + hookpoint. JumpReLU's
theta = exp(log_threshold); TopK has no ReLU, so activations can be negative. `model_diffing` and `crosscode` save with
the input scales folded in (`is_folded`, `folded_scaling_factors_*`). `model_cfg.yaml` names the activation,
`experiment_config.yaml` the hookpoints and models.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from crossvis_tl.activation_fns import Activation, JumpReLU, ReLU
from crossvis_tl.dictionary import Dictionary, Group, Site
from crossvis_tl.errors import MissingFact, short_list
from crossvis_tl.formats.activations import RELU_OR_TOP_K, relu_or_top_k
from crossvis_tl.formats.files import check_floating, check_hook, one_number_each, read_config, read_state_dict
from crossvis_tl.formats.layers import check_shapes
from crossvis_tl.normalizers import scaling

FACTS = {"processing", "hook_point", "hook_point_out", "activation", "k", "input_scale"}
NAME = "a crosscoder of the model_diffing line"
FILES = ("model.pt", "crosscoder.pt")


@dataclass(frozen=True)
class Layout:
    """Names of the tensors; `theta`: of the logarithm of the threshold; `scales`: of the folded factors, in and out."""

    W_enc: str
    W_dec: str
    b_enc: str
    b_dec: str
    theta: str | None = None
    scales: tuple[str, str] | None = None
    skip: str | None = None


IN_OUT = ("folded_scaling_factors_in_Xi", "folded_scaling_factors_out_Xo")
X = "folded_scaling_factors_X"
LAYOUTS = (
    Layout("W_enc_LID", "W_dec_LDI", "b_enc_I", "b_dec_LD"),
    Layout("W_enc_ID", "W_dec_LDI", "b_enc_I", "b_dec_LD"),
    Layout("W_enc_XDH", "W_dec_HXD", "b_enc_H", "b_dec_XD", "hidden_activation.log_threshold_H", (X, X), "W_skip_XdXd"),
    Layout("_W_enc_XiDiL", "_W_dec_LXoDo", "b_enc_L", "_b_dec_XoDo", "_activation_fn.log_threshold_L", IN_OUT,
           "W_skip_DPD"),
)  # fmt: skip


def find(path: Path) -> tuple[Path, dict[str, Tensor], Layout] | None:
    """-> the weight file, its tensors and their layout when the path looks like this one, else None."""
    file = path if path.is_file() else next((path / name for name in FILES if (path / name).is_file()), None)
    if file is None or file.suffix != ".pt":
        return None
    try:
        state = read_state_dict(file)
    except ValueError:
        return None  # another reader says what is wrong with it
    layout = next((one for one in LAYOUTS if one.W_enc in state and one.W_dec in state), None)
    return None if layout is None else (file, state, layout)


def load(_path: Path, found: tuple[Path, dict[str, Tensor], Layout], facts: dict[str, Any]) -> Dictionary:
    """ValueError when tensors are missing, do not fit each other, or a fact that encoding needs was not given."""
    file, state, layout = found
    absent = [name for name in (layout.b_enc, layout.b_dec) if name not in state]
    if absent:
        raise ValueError(f"{file} lacks the tensor {absent[0]}")
    check_floating(file, state, [name for name in state if name != "is_folded"])
    check_shapes(file, state, {"is_folded": (), layout.b_enc: (state[layout.b_enc].numel(),)})
    W_enc, W_dec, b_dec = _in_one_order(file, state, layout)
    n_sources, width, features = W_enc.shape
    n_targets = W_dec.shape[0]
    scales = _scales(file, state, layout, facts, n_sources, n_targets)
    cfg = _config(file, "model_cfg.yaml")
    activation = _activation(file, state, layout, cfg, facts, features)
    unfolded = not bool(state.get("is_folded", torch.tensor(True)))
    group = Group(
        "", {s: W_enc[s] for s in range(n_sources)}, state[layout.b_enc], activation,
        {t: W_dec[t] for t in range(n_targets)},
    )  # fmt: skip
    read, written = ({i: scaling(f) for i, f in enumerate(part) if unfolded and f != 1} for part in scales)
    folded = ([1.0] * n_sources, [1.0] * n_targets) if unfolded else scales
    sources, names = _sites(file, facts, "hook_point", folded[0], width)
    alike = n_targets == n_sources and "hook_point_out" not in facts
    targets = sources if alike else _sites(file, facts, "hook_point_out", folded[1], width)[0]
    return Dictionary(
        kind="crosscoder", sources=sources, targets=targets, groups=(group,),
        b_dec=tuple(b_dec), format="model_diffing crosscoder (F3)", model_names=names,
        skip=_skip(file, state, layout, n_sources, n_targets, width), normalize=read, denormalize=written,
    )  # fmt: skip


def _in_one_order(file: Path, state: dict[str, Tensor], layout: Layout) -> tuple[Tensor, Tensor, Tensor]:
    """-> W_enc [S, d, F], W_dec [T, F, d], b_dec [T, d]."""
    W_enc, W_dec = state[layout.W_enc], state[layout.W_dec]
    if min(W_enc.ndim, W_dec.ndim, state[layout.b_dec].ndim + 1) < 2:
        raise ValueError(f"{file}: {layout.W_enc}, {layout.W_dec} or {layout.b_dec} has too few axes; it is damaged")
    features = state[layout.b_enc].numel()
    if layout.W_dec == "W_dec_LDI":
        W_enc = W_enc.transpose(-1, -2)
        W_dec = W_dec.transpose(-1, -2)
    elif W_dec.ndim >= 2:
        W_dec = W_dec.flatten(1, -2).transpose(0, 1) if W_dec.ndim > 2 else W_dec[None]
    W_enc = W_enc.reshape(-1, *W_enc.shape[-2:])
    b_dec = state[layout.b_dec].reshape(-1, state[layout.b_dec].shape[-1])
    if W_enc.ndim != 3 or W_enc.shape[-1] != features:
        shape = tuple(state[layout.W_enc].shape)
        raise ValueError(f"{file}: {layout.W_enc} is {shape}, but {layout.b_enc} holds {features} features")
    width = W_enc.shape[1]
    for name, tensor, expected in (
        (layout.W_dec, W_dec, (b_dec.shape[0], features, width)),
        (layout.b_dec, b_dec, (W_dec.shape[0], width)),
    ):
        if tuple(tensor.shape) != expected:
            raise ValueError(f"{file}: {name} is {tuple(state[name].shape)}, which does not fit {layout.W_enc}")
    return W_enc, W_dec, b_dec


def _scales(
    file: Path, state: dict[str, Tensor], layout: Layout, facts: dict[str, Any], n_sources: int, n_targets: int
) -> tuple[list[float], list[float]]:
    """The factors of training, by source and target: 1 where the layout has none. ValueError where they are unknown."""
    given = facts.get("input_scale")
    if layout.scales is None or (layout.skip == "W_skip_DPD" and layout.skip in state and given is None):
        return [1.0] * n_sources, [1.0] * n_targets  # a skip connection keeps the producer from scaling
    if bool(state.get("is_folded", torch.tensor(False))):
        if given is not None:
            raise ValueError(f"{file}: the input scales are folded in already; leave input_scale out")
        read = [state[name].float().flatten().tolist() if name in state else [] for name in layout.scales]
        if (len(read[0]), len(read[1])) != (n_sources, n_targets) or min(read[0] + read[1]) <= 0:
            raise ValueError(f"{file}: {layout.scales[0]} does not hold {n_sources} positive factors; it is damaged")
        return read[0], read[1]
    if given is None:
        raise MissingFact(
            "input_scale",
            f"{file} is not folded and does not hold input_scale; pass input_scale=[one factor per source], the number "
            "that each source's activations were multiplied with in training",
            1.0,
        )
    if n_targets != n_sources:
        raise ValueError(f"input_scale={given!r}: expected {n_sources} positive numbers, one per source of {file}")
    values = one_number_each("input_scale", given, n_sources, f"source of {file}", positive=True)
    return values, values


def _activation(
    file: Path, state: dict[str, Tensor], layout: Layout, cfg: dict[str, Any], facts: dict[str, Any], features: int
) -> Activation:
    theta = state.get(layout.theta) if layout.theta else None
    if theta is not None:
        if theta.numel() != features:
            raise ValueError(f"{file}: {layout.theta} is {tuple(theta.shape)}; expected ({features},)")
        return JumpReLU(theta.float().flatten().exp())
    if layout.theta is None:
        return ReLU()
    inner = cfg.get("activation_fn")
    part = inner if isinstance(inner, dict) else cfg
    said = str(facts.get("activation") or part.get("classname") or part.get("hidden_activation_classname") or "")
    options = part.get("cfg") or part.get("hidden_activation_cfg") or {}
    kind = said.lower().removesuffix("activation")
    if kind in RELU_OR_TOP_K:
        k = facts.get("k", options.get("k") if isinstance(options, dict) else None)
        return relu_or_top_k(file, kind, k, features, relu=False)
    text = f"{file}: the activation is {said!r}, which cannot be read; pass activation='relu', or activation='topk' or "
    text += "'batchtopk' and k=..., if it is that"
    raise ValueError(text) if "activation" in facts else MissingFact("activation", text, "relu")


def _skip(
    file: Path, state: dict[str, Tensor], layout: Layout, n_sources: int, n_targets: int, width: int
) -> dict[tuple[int, int], Tensor]:
    W_skip = state.get(layout.skip) if layout.skip else None
    if W_skip is None:
        return {}
    if layout.skip == "W_skip_XdXd":  # of all sources side by side, to all targets
        if tuple(W_skip.shape) != (n_sources * width, n_targets * width):
            expected = (n_sources * width, n_targets * width)
            raise ValueError(f"{file}: {layout.skip} is {tuple(W_skip.shape)}; expected {expected}")
        parts = W_skip.reshape(n_sources, width, n_targets, width)
        return {(s, t): parts[s, :, t] for s in range(n_sources) for t in range(n_targets)}
    if n_sources != 1 or tuple(W_skip.shape) != (width, n_targets, width):
        raise ValueError(
            f"{file}: {layout.skip} is {tuple(W_skip.shape)}; a skip connection is read from one source, as "
            f"{(width, n_targets, width)}"
        )
    return {(0, t): W_skip[:, t] for t in range(n_targets)}


def _config(file: Path, name: str) -> dict[str, Any]:
    return read_config(file.parent / name) if (file.parent / name).is_file() else {}


def _sites(
    file: Path, facts: dict[str, Any], fact: str, scales: list[float], width: int
) -> tuple[tuple[Site, ...], tuple[str | None, ...]]:
    """Sites, and the models' names. Hookpoints vary faster than models."""
    experiment = _config(file, "experiment_config.yaml")
    inner: Any = experiment
    for name in ("data", "activations_harvester", "llms"):
        inner = inner.get(name) if isinstance(inner, dict) else None
    llms = inner if isinstance(inner, list) else []
    said = facts.get(fact, experiment.get("hookpoints") if fact == "hook_point" else None)
    hooks = said if isinstance(said, list | tuple) else [said]
    if fact == "hook_point_out" and hooks == [None]:
        hooks = [None] * len(scales)  # one source writes to several layers of its own model
    if not hooks or len(scales) % len(hooks):
        raise ValueError(f"{file}: {len(scales)} sites and {short_list(hooks)} do not fit; give {fact} as a list")
    checked = [check_hook(hook, fact) for hook in hooks]
    sites = tuple(
        Site(i // len(hooks), checked[i % len(hooks)], width, facts.get("processing"), scale=scale)
        for i, scale in enumerate(scales)
    )
    names = tuple(llm.get("name") for llm in llms if isinstance(llm, dict))
    return sites, names
