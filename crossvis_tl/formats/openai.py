"""F12: OpenAI's autoencoders (openai/transformer-debugger and openai/sparse_autoencoder), one `{layer}.pt` each.

`pre_bias [n]`, `encoder.weight [F, n]`, `latent_bias [F]`, `decoder.weight [n, F]` (tied files have
`decoder.linear.weight [F, n]`), `activation` ("ReLU", "TopK", "Identity") and its `activation_state_dict`. Features are
act((x - pre_bias) @ W.T + latent_bias); reconstructions get pre_bias back. openai/sparse_autoencoder normalises the
input of its TopK files at each token and takes that back on the output; transformer-debugger's class does not, and the
file cannot tell which: `input_layer_norm` is a fact (default: with TopK, yes). HuggingFace's own activations.
"""

import re
from pathlib import Path
from typing import Any

import torch
from einops import einsum
from torch import Tensor

from crossvis_tl.activation_fns import Activation, Identity, ReLU, TopK
from crossvis_tl.dictionary import Dictionary, Group, Site, TokenNorm
from crossvis_tl.formats.files import check_floating, check_hook, read_content
from crossvis_tl.formats.layers import check_shapes, need

FACTS = {"processing", "hook_point", "input_layer_norm"}
NAME = "an OpenAI autoencoder"
# Where it reads, as the folders of the published files say.
PLACES = {"mlp_post_act": "mlp.hook_post", "resid_delta_mlp": "hook_mlp_out", "resid_delta_attn": "hook_attn_out"}
PLACES |= {"resid_post_mlp": "hook_resid_post", "resid_post_attn": "hook_resid_mid"}
EPS = 1e-5


def find(path: Path) -> tuple[Path, dict[str, Tensor], dict[str, Any]] | None:
    """-> the weight file, its tensors and what else is in it, when the path looks like this layout, else None."""
    file = path
    if path.is_dir():
        numbered = [p for p in path.glob("*.pt") if p.stem.isdecimal()]
        if len(numbered) != 1:
            return None
        file = numbered[0]
    if file.suffix != ".pt":
        return None
    try:
        tensors, plain = read_content(file)
    except ValueError:
        return None  # another reader says what is wrong with it
    return (file, tensors, plain) if {"pre_bias", "latent_bias"} <= set(tensors) else None


def load(_path: Path, found: tuple[Path, dict[str, Tensor], dict[str, Any]], facts: dict[str, Any]) -> Dictionary:
    """ValueError when tensors are missing or do not fit each other, or the activation is not known."""
    file, state, plain = found
    need(file, state, ("encoder.weight",))
    names = ("pre_bias", "latent_bias", "encoder.weight", "decoder.weight", "decoder.linear.weight")
    check_floating(file, state, names)
    width, features = state["pre_bias"].numel(), state["latent_bias"].numel()
    if not {"decoder.weight", "decoder.linear.weight"} & set(state):
        raise ValueError(f"{file} lacks the tensor decoder.weight, or decoder.linear.weight where it is tied")
    check_shapes(file, state, {"pre_bias": (width,), "latent_bias": (features,)})
    shapes = {"encoder.weight": (features, width), "decoder.weight": (width, features)}
    check_shapes(file, state, shapes | {"decoder.linear.weight": (features, width)})
    W_enc = state["encoder.weight"].T
    W_dec = state["decoder.weight"].T if "decoder.weight" in state else state["decoder.linear.weight"]
    pre_bias = state["pre_bias"].float()
    b_enc = state["latent_bias"].float() - einsum(pre_bias, W_enc.float(), "n, n features -> features")
    activation = _activation(file, plain, features)
    norm = facts.get("input_layer_norm", isinstance(activation, TopK))
    if not isinstance(norm, bool):
        raise ValueError(f"input_layer_norm={norm!r}: expected True or False, whether each token is normalised")
    site = Site(0, _hook(file, facts), width, facts.get("processing", "none"))
    said = "as told" if "input_layer_norm" in facts else "as openai/sparse_autoencoder does with this activation"
    return Dictionary(
        kind="sae", sources=(site,), targets=(site,), groups=(Group("", {0: W_enc}, b_enc, activation, {0: W_dec}),),
        b_dec=(pre_bias,), format="OpenAI autoencoder (F12)", facts={"input_layer_norm": f"{norm}, {said}"},
        normalize={0: TokenNorm(EPS, unbiased=True)} if norm else {}, undone={0: 0} if norm else {},
    )  # fmt: skip


def _activation(file: Path, plain: dict[str, Any], features: int) -> Activation:
    said = plain.get("activation")
    if said == "ReLU":
        return ReLU()
    if said == "Identity":
        return Identity()
    if said != "TopK":
        raise ValueError(f"{file}: its activation is {said!r}; known are ReLU, TopK and Identity")
    inner = plain.get("activation_state_dict")
    inner = inner if isinstance(inner, dict) else {}
    k, after = inner.get("k"), inner.get("postact_fn", "ReLU")
    k = int(k) if isinstance(k, torch.Tensor) and k.numel() == 1 else k
    if not isinstance(k, int) or isinstance(k, bool) or not 1 <= k <= features:
        raise ValueError(f"{file}: TopK needs k, and activation_state_dict says k={k!r} of {features} features")
    if after not in ("ReLU", "Identity"):
        raise ValueError(f"{file}: after its TopK comes {after!r}; known are ReLU and Identity")
    return TopK(k, relu=after == "ReLU")


def _hook(file: Path, facts: dict[str, Any]) -> str | None:
    if "hook_point" in facts:
        return check_hook(facts["hook_point"], "hook_point")
    for part in reversed(file.parent.parts):
        place = PLACES.get(re.sub(r"_v\d+(_\w+)?$", "", part))
        if place is not None and file.stem.isdecimal():
            return f"blocks.{file.stem}.{place}"
    return None
