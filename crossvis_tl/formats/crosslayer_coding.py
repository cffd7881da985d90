"""F7: curt-tigges/crosslayer-coding, the cross-layer transcoders that SAEDashboard knows.

`cfg.json` beside the weights (`crosslayer_files`), and `norm_stats.json`. `encoder_module.encoders.{i}.weight [F, d]`,
`.bias_param`; decoders untied, `decoder_module.decoders.{s}->{t}.weight [d, F]`, or tied by source or by target,
`decoders.{i}.weight`; the biases of a target added up, of decoders tied by target once. `feature_offset.{t}`,
`feature_scale.{t} [F]`: (a + offset) * scale where a is not 0, by target. `skip_weights.{t}` or `{s}->{t}`: x @ W.T of
the normalised input. `theta_manager.log_threshold [L, F]`: x where x >= exp(log_threshold). BatchTopK and TokenTopK
rank z-scores of all layers' features together, without ReLU, and store no threshold. Older files lack the prefixes.
Inputs are (x - mean) / (std + 1e-6) and outputs taken back ("mean_std"), or x * sqrt(d) ("sqrt_d_model").

`mlp_input_template` names HuggingFace's modules, whose own activations the producer trained on; it counts before
`tl_input_template`, the TransformerLens hook that stands in for it, by which SAEDashboard reads. A config with the hook
alone does not say on which weights (SAEDashboard 0.8.0 folds them, later ones do not): `processing` is a fact then.
"""

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from crossvis_tl.activation_fns import Activation, Identity, JumpReLU, ReLU, TopK
from crossvis_tl.dictionary import Affine, Dictionary, Group, Post, Site
from crossvis_tl.errors import MissingFact, check_word, short_list
from crossvis_tl.formats.activations import check_activation, check_k
from crossvis_tl.formats.crosslayer_files import NAME, SIZES, chosen, config, find, read, size, statistics
from crossvis_tl.formats.files import check_floating, check_hook
from crossvis_tl.formats.layers import HOOK_FACTS, check_shapes, need
from crossvis_tl.normalizers import scaling

__all__ = ["FACTS", "NAME", "find", "load"]

FACTS = {"processing", "activation", "k", "normalization_method", "topk_mode", "weights_filename"} | HOOK_FACTS
STD_EPS = 1e-6
KINDS = ("jumprelu", "relu", "batchtopk", "topk")
TOPK_MODES = ("global", "per_layer")
METHODS = ("none", "mean_std", "sqrt_d_model")
# As the producer's CLTConfig.from_json reads older configs.
OLD_METHODS = {
    "auto": "mean_std", "estimated_mean_std": "mean_std", "auto_sqrt_d_model": "sqrt_d_model",
    "estimated_mean_std_sqrt_d_model": "sqrt_d_model",
}  # fmt: skip
# TransformerLens before 3 calls a LayerNorm's hook so after its gain and bias, an RMSNorm's before its gain.
NORMALIZED = re.compile(r"ln\w*\.hook_normalized$")


def load(path: Path, files: list[Path], facts: dict[str, Any]) -> Dictionary:
    """ValueError when tensors are missing, do not fit each other or the config, or a fact that encoding needs is not
    there."""
    files = chosen(path, files, facts.get("weights_filename"))
    file, state = files[0], read(files)
    cfg = config(file)
    n_layers, features, width = (size(file, cfg, name) for name in SIZES)
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
    stats = _statistics(file, cfg, facts)
    norms, back = (_norms(stats, part, n_layers, width) for part in ("inputs", "targets"))
    return Dictionary(
        kind="clt", sources=_sites(file, cfg, facts, "input", n_layers, width),
        targets=_sites(file, cfg, facts, "output", n_layers, width), groups=groups, b_dec=b_dec,
        format="crosslayer-coding (F7)", model_names=(cfg.get("model_name"),), facts={"decoder_tying": tying},
        skip=_skip(file, state, n_layers, width), normalize=norms, denormalize=back, joint=joint,
    )  # fmt: skip


def _check_said(file: Path, cfg: dict[str, Any], state: dict[str, Tensor], n_layers: int) -> None:
    """ValueError where the config speaks of tensors that are not there."""
    tied = str(cfg.get("decoder_tying", "none")) != "none"  # untied decoders have neither, whatever the config says
    for option, name in (("enable_feature_offset", "feature_offset"), ("enable_feature_scale", "feature_scale")):
        held = [t for t in range(n_layers) if f"{name}.{t}" in state]
        if len(held) != n_layers and (held or (tied and cfg.get(option))):
            lacking = next(t for t in range(n_layers) if t not in held)
            raise ValueError(f"{file} lacks the tensor {name}.{lacking}, which its config ({option}) says it has")
    skips = {name.removeprefix("skip_weights.") for name in state if name.startswith("skip_weights.")}
    untied = not tied and not any(one.isdecimal() for one in skips)
    pairs = {f"{s}->{t}" for s in range(n_layers) for t in range(s, n_layers)}
    expected = pairs if untied else {str(t) for t in range(n_layers)}
    if (cfg.get("skip_connection") or skips) and skips != expected:
        lacking = short_list(sorted(expected ^ skips))
        raise ValueError(f"{file}: its skip_weights do not fit its config's skip_connection (see {lacking})")


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
    k, batch = facts.get("k", cfg.get("batchtopk_k" if kind == "batchtopk" else "topk_k")), kind == "batchtopk"
    if _topk_mode(file, cfg, facts) == "per_layer":
        return [TopK(_whole_k(file, k, kind, features), relu=False, batch=batch)] * n_layers, None
    joint = TopK(_whole_k(file, k, kind, features * n_layers), relu=False, batch=batch, zscore=True)
    return [Identity()] * n_layers, joint


def _topk_mode(file: Path, cfg: dict[str, Any], facts: dict[str, Any]) -> str:
    mode = facts.get("topk_mode", cfg.get("topk_mode") or "global")
    check_word("topk_mode", mode, TOPK_MODES)
    if mode == "per_layer" and "topk_mode" not in facts:
        raise MissingFact(
            "topk_mode",
            f"the config of {file} says topk_mode = 'per_layer', with which its producer's code gives zeros for all "
            "features; pass topk_mode='per_layer' to keep the k largest pre-activations of each layer, as the producer "
            "registers it for one layer, or topk_mode='global'",
            "global",
        )
    return mode


def _whole_k(file: Path, k: Any, kind: str, features: int) -> int:
    """-> k of that many features: TokenTopK's may be a share of them, and the producer keeps all where k is more."""
    if kind == "topk" and isinstance(k, float) and 0 < k < 1:
        k = int(torch.ceil(torch.tensor(k * features)))  # in the producer's float32
    if isinstance(k, int | float) and not isinstance(k, bool) and features < k < float("inf"):
        k = features
    return check_k(file, k, features)


def _statistics(
    file: Path, cfg: dict[str, Any], facts: dict[str, Any]
) -> tuple[str, tuple[Path, dict[str, Any]] | None]:
    """-> how inputs and outputs are normalised, and the file that says with what."""
    stats = statistics(file)
    said = facts.get("normalization_method", cfg.get("normalization_method"))
    if "normalization_method" not in facts and cfg.get("sqrt_d_model_normalize") is True:
        said = "sqrt_d_model"
    if said is None and stats is None:
        text = f"the config of {file} does not say normalization_method; pass 'none', 'mean_std' or 'sqrt_d_model'"
        raise MissingFact("normalization_method", text, "none")
    method = "mean_std" if said is None else OLD_METHODS.get(str(said), str(said))
    check_word("normalization_method", method, METHODS)
    if method == "mean_std" and stats is None:
        raise FileNotFoundError(
            f"{file.parent} lacks norm_stats.json, with which its config says inputs are normalised ({said}); pass "
            "normalization_method='none' only where they were not"
        )
    return method, stats


def _norms(
    how: tuple[str, tuple[Path, dict[str, Any]] | None], part: str, n_layers: int, width: int
) -> dict[int, Affine]:
    method, stats = how
    if method == "sqrt_d_model":
        return dict.fromkeys(range(n_layers), scaling(width**0.5))
    if method == "none" or stats is None:
        return {}
    norms = {}
    for i in range(n_layers):
        mean, std = (_vector(*stats, i, part, name, width) for name in ("mean", "std"))
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


def _sites(
    file: Path, cfg: dict[str, Any], facts: dict[str, Any], role: str, n_layers: int, width: int
) -> tuple[Site, ...]:
    """In HuggingFace's modules where the config names them and nothing else was asked for, else at TransformerLens'
    hooks. `role`: "input" or "output"."""
    fact, processing = f"feature_{role}_hook", facts.get("processing")
    paths, hooks = (_places(file, cfg, f"{kind}_{role}_template", n_layers) for kind in ("mlp", "tl"))
    if paths and "hook_" in paths[0]:  # a hook, as SAEDashboard takes it
        paths, hooks = None, hooks or paths
    if paths and processing is None:
        processing = "none"  # the producer ran HuggingFace's own model
    if fact in facts:
        hook = check_hook(facts[fact], fact)
        paths, hooks = None, [f"blocks.{i}.{hook}" for i in range(n_layers)] if hook else None
    elif processing == "tl_default":
        _check_folded(file, fact, paths, hooks)
        paths = None
    elif processing == "none" and not paths:
        _check_unfolded(file, fact, hooks)
    nowhere = [None] * n_layers
    return tuple(
        Site(0, hook, width, processing, hf_path=path)
        for hook, path in zip(hooks or nowhere, paths or nowhere, strict=True)
    )


def _places(file: Path, cfg: dict[str, Any], name: str, n_layers: int) -> list[str] | None:
    """-> a template with each layer's number, None where there is none."""
    template = cfg.get(name)
    if not isinstance(template, str) or not template:
        return None
    template = template.replace("{0}", "{}")
    if "{}" not in template and n_layers > 1:
        raise ValueError(
            f"the config of {file} says {name} = {template!r}; expected '{{}}' where the layer's number goes, or all "
            "layers would read the same place"
        )
    return [template.replace("{}", str(i)) for i in range(n_layers)]


def _check_folded(file: Path, fact: str, paths: list[str] | None, hooks: list[str] | None) -> None:
    """`MissingFact` where folded weights are asked for, and only HuggingFace's modules are named, which have none."""
    if paths and not hooks:
        text = (
            f"processing='tl_default', but the config of {file} names {paths[0]} alone, a module of HuggingFace's, "
            f"whose weights are not folded; pass {fact}=, the part of TransformerLens' hook after 'blocks.L.'"
        )
        raise MissingFact(fact, text, "hook_resid_mid")


def _check_unfolded(file: Path, fact: str, hooks: list[str] | None) -> None:
    """`MissingFact` where a hook's name means another tensor in each version of TransformerLens."""
    if hooks and NORMALIZED.search(hooks[0]):
        norm = hooks[0].removeprefix("blocks.0.").removesuffix(".hook_normalized")
        text = (
            f"the config of {file} reads {hooks[0]} of unprocessed weights. In a LayerNorm model that is after the "
            "norm's gain and bias in TransformerLens 1 and 2 (with which SAEDashboard ran), and before them in "
            f"TransformerLens 3; pass {fact}='{norm}.hook_out' for after (what the MLP reads), or "
            f"{fact}='{norm}.hook_normalized' for before (RMSNorm models: in every version)"
        )
        raise MissingFact(fact, text, f"{norm}.hook_out")
