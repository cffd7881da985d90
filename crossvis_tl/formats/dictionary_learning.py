"""F2: crosscoders of the dictionary_learning fork of science-of-finetuning (jkminder, Butanium).

`checkpoint_{step}.pt` or `model_final.pt` beside `config.json`, or `model.safetensors` from the hub; `encoder.weight
[S, d, F]`, `encoder.bias [F]`, `decoder.weight [S, F, d]`, `decoder.bias [S, d]`. f = ReLU(sum_s x_s W_enc[s] + b). A
BatchTopK file also has `threshold` and keeps f where f * c > threshold; c is the code normalisation
(`code_normalization_id`): the sum of the decoder norms (1, and where it is not stored), the norm of the decoders side
by side (2), both (3), or 1 (4). Decoding takes f; f * c is comparable between features, and is what is shown. A
DECOUPLED file (5) has a threshold for each source and keeps f there where f * |d_s| is above it; what is shown is the
larger of them, f times the largest |d_s|.

With `activation_mean` and `activation_std` (NaN where there is no normaliser), inputs are
(x - mean) * target_rms / sqrt(sum std^2 + 1e-8), and outputs are taken back. Trained on
HuggingFace's own activations of `model.layers[L].output`.
"""

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from crossvis_tl.activation_fns import Activation, JumpReLU, ReLU
from crossvis_tl.dictionary import Affine, Dictionary, Group, Post, Site
from crossvis_tl.errors import short_list
from crossvis_tl.formats.files import (
    check_floating,
    check_hook,
    check_sizes,
    read_config,
    read_state_dict,
    tensor_names,
)
from crossvis_tl.formats.layers import check_shapes, need

FACTS = {"processing", "hook_point"}
NAME = "a dictionary_learning crosscoder"
TENSORS = ("encoder.weight", "encoder.bias", "decoder.weight", "decoder.bias")
NORMALIZER = ("activation_mean", "activation_std")
STEP = re.compile(r"checkpoint_(\d+)\.pt")
CODE_NORMS = {1: "CROSSCODER", 2: "SAE", 3: "MIXED", 4: "NONE", 5: "DECOUPLED"}


def find(path: Path) -> Path | None:
    """-> the weight file when the path looks like this layout, else None."""
    if path.is_file():
        ours = path.name == "model_final.pt" or STEP.fullmatch(path.name)
        return path if ours else None
    if (path / "model_final.pt").is_file():
        return path / "model_final.pt"
    # a language model's weights have that name too
    if (path / "model.safetensors").is_file() and "encoder.weight" in tensor_names(path / "model.safetensors"):
        return path / "model.safetensors"
    steps = {int(m[1]): p for p in path.glob("*.pt") if (m := STEP.fullmatch(p.name))}
    return steps[max(steps)] if steps else None


def load(_path: Path, file: Path, facts: dict[str, Any]) -> Dictionary:
    """ValueError when tensors are missing, do not fit each other or contradict the config."""
    state = read_state_dict(file, may_be_nan=NORMALIZER)
    state = {re.sub(r"^(_orig_mod\.|module\.)+", "", name): tensor for name, tensor in state.items()}
    need(file, state, TENSORS)
    check_floating(file, state, (*TENSORS, *NORMALIZER, "threshold", "target_rms"))
    if state["encoder.weight"].ndim != 3:
        shape = tuple(state["encoder.weight"].shape)
        raise ValueError(f"{file}: encoder.weight is {shape}; a crosscoder's is [sources, d_model, features]")
    n_sources, width, features = state["encoder.weight"].shape
    expected = {"encoder.bias": (features,), "decoder.weight": (n_sources, features, width)}
    check_shapes(file, state, expected | {name: (n_sources, width) for name in ("decoder.bias", *NORMALIZER)})
    trainer = _trainer(file, {"activation_dim": width, "dict_size": features, "num_layers": n_sources})
    _check_said(file, trainer, state)
    norms = _normalizer(file, state, n_sources)
    code = _code_norm(file, state)
    activation, post = _activation(file, state, code, n_sources)
    W_enc = {s: state["encoder.weight"][s] for s in range(n_sources)}
    W_dec = {s: state["decoder.weight"][s] for s in range(n_sources)}
    group = Group("", W_enc, state["encoder.bias"], activation, W_dec, code_norm=code, post=post)
    layer = trainer.get("layer")
    hook = facts.get("hook_point", None if layer is None else f"blocks.{layer}.hook_resid_post")
    place, processing = check_hook(hook, "hook_point"), facts.get("processing", "none")
    sites = tuple(Site(s, place, width, processing) for s in range(n_sources))
    said = {name: trainer[name] for name in ("lm_name", "code_normalization") if name in trainer}
    kind = "BatchTopK" if "threshold" in state else "L1"
    return Dictionary(
        kind="crosscoder", sources=sites, targets=sites, groups=(group,),
        b_dec=tuple(state["decoder.bias"]), format=f"dictionary_learning {kind} crosscoder (F2)", facts=said,
        normalize=norms, denormalize=norms,
    )  # fmt: skip


def _trainer(file: Path, sizes: dict[str, int]) -> dict[str, Any]:
    """What the config files beside the weights say. ValueError where it is something else than the tensors."""
    said: dict[str, Any] = {}
    for name in ("config.json", "trainer_config.json"):
        if (file.parent / name).is_file():
            cfg = read_config(file.parent / name)
            said |= cfg["trainer"] if isinstance(cfg.get("trainer"), dict) else cfg
    check_sizes(f"the config beside {file}", said, sizes)
    return said


def _check_said(file: Path, trainer: dict[str, Any], state: dict[str, Tensor]) -> None:
    """ValueError where the config speaks of something that the weights do not hold."""
    if ("BatchTopK" in str(trainer.get("dict_class")) or trainer.get("k") is not None) and "threshold" not in state:
        raise ValueError(f"{file} lacks threshold, without which the BatchTopK of its config cannot be told")
    number = int(state["code_normalization_id"]) if "code_normalization_id" in state else 1
    said = str(trainer.get("code_normalization") or CODE_NORMS.get(number)).upper()
    if said != CODE_NORMS.get(number, said):
        raise ValueError(f"{file}: its config says code_normalization = {said}, but the weights {CODE_NORMS[number]}")
    if (NORMALIZER[0] in state) != (NORMALIZER[1] in state):
        raise ValueError(f"{file} holds one of {NORMALIZER[0]} and {NORMALIZER[1]}, and not the other; it is damaged")


def _normalizer(file: Path, state: dict[str, Tensor], n_sources: int) -> dict[int, Affine]:
    """By source; none where the file has no normaliser."""
    mean, std = (state.get(name) for name in NORMALIZER)
    if mean is None or std is None or bool(torch.isnan(mean).all() and torch.isnan(std).all()):
        return {}
    if _is_decoupled(state):
        raise ValueError(
            f"{file} is DECOUPLED and has a normaliser, with which its producer's code normalises inputs twice on one "
            "way and once on the other: its numbers cannot be told"
        )
    target = state.get("target_rms")
    if target is None or target.numel() != 1:
        raise ValueError(f"{file} has a normaliser, but lacks the number target_rms that it normalises to")
    # target_rms / sqrt(sum std^2 + 1e-8): relative variances of the dimensions are kept
    scale = target.float().flatten() / (std.float().pow(2).sum(-1) + 1e-8).sqrt()
    if not bool(torch.isfinite(mean).all() and torch.isfinite(scale).all() and (scale > 0).all()):
        raise ValueError(f"{file}: the normaliser's mean or deviation is not finite or not positive; it is damaged")
    return {s: Affine(mean[s].float(), scale[s].reshape(1)) for s in range(n_sources)}


def _activation(
    file: Path, state: dict[str, Tensor], code: Tensor, n_sources: int
) -> tuple[Activation, dict[int, Post]]:
    """-> the activation, and for a DECOUPLED file what an activation must be above to count at each source: a feature
    fires where it does for one of them at least."""
    threshold = state.get("threshold")
    if threshold is None:
        return ReLU(), {}
    decoupled = _is_decoupled(state)
    expected = n_sources if decoupled else 1
    if threshold.numel() != expected:
        raise ValueError(
            f"{file}: threshold is {tuple(threshold.shape)}; expected {expected} number{'s' if decoupled else ''}"
        )
    if not decoupled:
        return JumpReLU(threshold.float().flatten() / code, relu=True), {}
    norms = state["decoder.weight"].float().norm(dim=-1)
    gates = threshold.float().reshape(-1, 1) / norms.clamp_min(1e-12)
    return JumpReLU(gates.amin(0), relu=True), {s: Post(gate=gates[s]) for s in range(n_sources)}


def _is_decoupled(state: dict[str, Tensor]) -> bool:
    stored = state.get("code_normalization_id")
    return stored is not None and CODE_NORMS.get(int(stored)) == "DECOUPLED"


def _code_norm(file: Path, state: dict[str, Tensor]) -> Tensor:
    """[F], by the decoders as they are stored."""
    stored = state.get("code_normalization_id")
    if stored is not None and stored.numel() != 1:
        raise ValueError(f"{file}: code_normalization_id is {tuple(stored.shape)}; expected one number")
    number = 1 if stored is None else int(stored)
    if number not in CODE_NORMS:
        raise ValueError(f"{file}: code_normalization_id = {number}; known are {short_list(CODE_NORMS)}")
    norms = state["decoder.weight"].float().norm(dim=-1)
    summed, joint = norms.sum(0), norms.pow(2).sum(0).sqrt()
    norms_of = {"CROSSCODER": summed, "SAE": joint, "MIXED": joint + 0.1 * summed, "DECOUPLED": norms.amax(0)}
    return norms_of.get(CODE_NORMS[number], torch.ones_like(summed))
