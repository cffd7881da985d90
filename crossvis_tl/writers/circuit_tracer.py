"""circuit-tracer's layouts (F6): a CLT as `W_enc_{i}` and `W_dec_{i}`, a set of transcoders as `layer_{i}`.

circuit-tracer (decoderesearch/circuit-tracer, and its release 0.5.0) makes attribution graphs of a model with one
encoder for each of its layers, counted from 0, all of the same size. It runs the model's own weights, neither folded
nor centred. It loads the folder from the hub, or as `load_transcoder_from_hub(its name, cache_dir=where it lies)`.
"""

import re
import warnings
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import save_file
from torch import Tensor

from crossvis_tl.activation_fns import ReLU
from crossvis_tl.dictionary import Dictionary, Site
from crossvis_tl.errors import CrossvisWarning, short_list
from crossvis_tl.writers.plain import (
    above,
    check_plain,
    model_name,
    plain,
    plain_bias,
    plain_skip,
    refusal,
    stored_sites,
    top_k,
)

LAYOUT = "a circuit-tracer dictionary"
# circuit-tracer names TransformerLens' hooks, of models whose `mlp` it wraps with a hook on either side. What they are
# of HuggingFace's modules: `mlp.hook_in` after the norm's gain and bias, `hook_mlp_out` after Gemma's second norm.
HOOKS = (
    (re.compile(r"(^|\.)(mlp\.input|pre_feedforward_layernorm(\.output)?|ln_2(\.output)?)$"), "mlp.hook_in"),
    (re.compile(r"(^|\.)mlp(\.output)?$"), "mlp.hook_out"),
    (re.compile(r"(^|\.)post_feedforward_layernorm(\.output)?$"), "hook_mlp_out"),
)
# Of whoever called `Dictionary.save`.
CALLER = 4


def check(dictionary: Dictionary) -> None:
    """ValueError where the layout has no place for what the dictionary does."""
    check_plain(dictionary, LAYOUT)
    name = dictionary.name
    if dictionary.kind not in ("clt", "plt"):
        raise ValueError(
            f"{name} is a {dictionary.kind}; circuit-tracer's layouts hold transcoders of a model's layers"
        )
    n = len(dictionary.groups)
    one_each = len(dictionary.sources) == len(dictionary.targets) == n
    if not one_each or any(list(group.W_enc) != [i] for i, group in enumerate(dictionary.groups)):
        raise refusal(dictionary, LAYOUT, "its features do not read one layer each")
    for i, group in enumerate(dictionary.groups):
        ahead = [t for t in group.W_dec if t < i or (dictionary.kind == "plt" and t != i)]
        if ahead:
            raise refusal(dictionary, LAYOUT, f"features of {group.name} write to layer {ahead[0]}")
        if (ranked := top_k(group.activation)) and (dictionary.kind == "clt" or ranked.relu):
            raise refusal(dictionary, LAYOUT, f"its {ranked.name} is another than circuit-tracer's")
    if dictionary.kind == "clt" and dictionary.skip:
        raise refusal(dictionary, LAYOUT, "that of a CLT has no skip connection")
    if any(s != t for s, t in dictionary.skip):
        raise refusal(dictionary, LAYOUT, "its skip connections go to other layers")
    _check_sizes(dictionary)
    _check_sites(dictionary)


def _check_sizes(dictionary: Dictionary) -> None:
    """ValueError where layers differ in what circuit-tracer has one of for all."""
    groups = dictionary.groups
    features = sorted({group.n_features for group in groups})
    if len(features) > 1:
        raise refusal(dictionary, LAYOUT, f"its layers have different numbers of features ({short_list(features)})")
    widths = sorted({site.width for site in (*dictionary.sources, *dictionary.targets)} - {0})
    if len(widths) > 1:
        raise refusal(dictionary, LAYOUT, f"it reads and writes different widths ({short_list(widths)})")
    ks = {ranked.k if (ranked := top_k(group.activation)) else None for group in groups}
    if len(ks) > 1:
        raise refusal(dictionary, LAYOUT, "its layers have different activations, or different k")


def _check_sites(dictionary: Dictionary) -> None:
    """ValueError where circuit-tracer would read other activations."""
    if any(site.processing == "tl_default" for site in dictionary.sources):
        raise refusal(
            dictionary,
            LAYOUT,
            "it was trained on weights folded and centred by TransformerLens, and circuit-tracer runs the model's own "
            "(of a model with RMSNorm both have the same residual stream: load it with processing='none' then)",
        )
    for role, sites in (("reads", dictionary.sources), ("writes", dictionary.targets)):
        layers = [site.layer for site in sites]
        expected = list(range(len(sites)))
        if dictionary.kind == "clt" and None not in layers and layers != expected:
            reason = f"it {role} layers {short_list(map(str, layers))}, and that of a CLT counts them from 0"
            raise refusal(dictionary, LAYOUT, reason)


def write(dictionary: Dictionary, folder: Path) -> None:
    """Warns of what circuit-tracer would do otherwise, or not at all."""
    config: dict[str, Any] = {
        "model_name": model_name(dictionary),
        "model_kind": "cross_layer_transcoder" if dictionary.kind == "clt" else "transcoder_set",
        "feature_input_hook": _hook(dictionary.sources),
        "feature_output_hook": _hook(dictionary.targets),
        "scan": dictionary.facts.get("scan"),
        "sources": stored_sites(dictionary.sources),
        "targets": stored_sites(dictionary.targets),
    }
    if ranked := top_k(dictionary.groups[0].activation):
        config |= {"activation": "topk", "k": ranked.k}
    for i in range(len(dictionary.groups)):
        if dictionary.kind == "clt":
            _write_clt_layer(dictionary, i, folder)
        else:
            _write_transcoder(dictionary, i, folder)
    (folder / "config.yaml").write_text(yaml.safe_dump({k: v for k, v in config.items() if v is not None}))
    for text in _doubts(dictionary, config):
        warnings.warn(f"{dictionary.name}: {text}", CrossvisWarning, stacklevel=CALLER)


def _doubts(dictionary: Dictionary, config: dict[str, Any]) -> list[str]:
    doubts = []
    if "k" in config:
        doubts.append(
            "circuit-tracer's repository reads `activation: topk` in config.yaml since April 2026; its release 0.5.0 "
            "does not, and takes these transcoders for ReLU ones: there, set transcoder.activation_function = "
            f"TopK({config['k']}) of each after loading"
        )
    lacking = [name for name in ("feature_input_hook", "feature_output_hook") if config[name] is None]
    if lacking:
        doubts.append(
            f"its files do not say what circuit-tracer calls {' and '.join(lacking)}; write it into config.yaml, or "
            "give it to circuit-tracer's load_clt or load_transcoder_set"
        )
    layers = [_layer(dictionary, i) for i in range(len(dictionary.groups))]
    if layers != list(range(len(layers))):
        doubts.append(
            f"circuit-tracer's graphs need a transcoder for every layer of the model, from 0; these are of layers "
            f"{short_list(layers)}"
        )
    return doubts


def _layer(dictionary: Dictionary, i: int) -> int:
    """Under which number a transcoder is written."""
    layer = dictionary.targets[i].layer
    return i if layer is None else layer


def _hook(sites: tuple[Site, ...]) -> str | None:
    """What circuit-tracer calls the place in every layer; None where it has no name in common."""
    found = {_named(site, i if site.layer is None else site.layer) for i, site in enumerate(sites)}
    return found.pop() if len(found) == 1 else None


def _named(site: Site, layer: int) -> str | None:
    """HuggingFace's module counts before the hook that stands in for it, as when a site is read."""
    if site.hf_path:
        known = next((hook for pattern, hook in HOOKS if pattern.search(site.hf_path)), None)
        if known is not None:
            return known
    match = re.fullmatch(rf"blocks\.{layer}\.(.+)", site.hook or "")
    return match[1] if match else None


def _write_clt_layer(dictionary: Dictionary, i: int, folder: Path) -> None:
    group, n = plain(dictionary, i), len(dictionary.groups)
    encoder = {f"W_enc_{i}": group.W_enc[i].T, f"b_enc_{i}": group.b_enc, f"b_dec_{i}": plain_bias(dictionary, i)}
    if (threshold := _threshold(dictionary, i)) is not None:
        encoder[f"threshold_{i}"] = threshold
    _save(encoder, folder / f"W_enc_{i}.safetensors")
    written = next(iter(group.W_dec.values()), group.W_enc[i].T)
    nothing = torch.zeros(len(group.b_enc), dictionary.targets[i].width, dtype=written.dtype, device=written.device)
    rows = [group.W_dec.get(t, nothing) for t in range(i, n)]
    _save({f"W_dec_{i}": torch.stack(rows, dim=1)}, folder / f"W_dec_{i}.safetensors")


def _write_transcoder(dictionary: Dictionary, i: int, folder: Path) -> None:
    group, bias = plain(dictionary, i), plain_bias(dictionary, i)
    state = {"W_enc": group.W_enc[i].T, "b_enc": group.b_enc, "W_dec": group.W_dec[i]}
    if (i, i) in dictionary.skip:
        skip, constant = plain_skip(dictionary, i, i)
        state["W_skip"], bias = skip.T, bias.float() + constant
    elif dictionary.skip:  # circuit-tracer's have one in every layer or in none
        width = dictionary.sources[i].width
        state["W_skip"] = torch.zeros(width, width, dtype=bias.dtype)
    if (threshold := _threshold(dictionary, i)) is not None:
        state["activation_function.threshold"] = threshold
    _save(state | {"b_dec": bias}, folder / f"layer_{_layer(dictionary, i)}.safetensors")


def _threshold(dictionary: Dictionary, i: int) -> Tensor | None:
    """What pre-activations of layer i must be above, None where no layer has thresholds: then it is ReLU, and that is a
    threshold of 0 beside others."""
    activations = [group.activation for group in dictionary.groups]
    if any(top_k(one) for one in activations) or all(isinstance(one, ReLU) for one in activations):
        return None
    threshold = above(activations[i])
    return torch.zeros_like(dictionary.groups[i].b_enc, dtype=torch.float32) if threshold is None else threshold


def _save(state: dict[str, Tensor], file: Path) -> None:
    save_file({name: tensor.contiguous().cpu() for name, tensor in state.items()}, file)
