"""circuit-tracer's layouts (F6): a CLT as `W_enc_{i}` and `W_dec_{i}`, a set of transcoders as `layer_{i}`."""

import re
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import save_file
from torch import Tensor

from crossvis_tl.dictionary import Dictionary, Site
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


def write(dictionary: Dictionary, folder: Path) -> None:
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


def _hook(sites: tuple[Site, ...]) -> str | None:
    """The part of the hooks after "blocks.L.", None where they have no such in common."""
    found = [re.fullmatch(rf"blocks\.{i}\.(.+)", site.hook or "") for i, site in enumerate(sites)]
    rest = {match[1] for match in found if match}
    return rest.pop() if all(found) and len(rest) == 1 else None


def _write_clt_layer(dictionary: Dictionary, i: int, folder: Path) -> None:
    group, n = plain(dictionary, i), len(dictionary.groups)
    encoder = {f"W_enc_{i}": group.W_enc[i].T, f"b_enc_{i}": group.b_enc, f"b_dec_{i}": plain_bias(dictionary, i)}
    if (threshold := above(dictionary.groups[i].activation)) is not None:
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
    if top_k(dictionary.groups[i].activation) is None:
        threshold = above(dictionary.groups[i].activation)
        if threshold is not None:
            state["activation_function.threshold"] = threshold
    layer = dictionary.targets[i].layer
    _save(state | {"b_dec": bias}, folder / f"layer_{i if layer is None else layer}.safetensors")


def _save(state: dict[str, Tensor], file: Path) -> None:
    save_file({name: tensor.contiguous().cpu() for name, tensor in state.items()}, file)
