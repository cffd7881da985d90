"""A HuggingFace model made a HookedTransformer, and held against HuggingFace's logits before anyone sees it.

TransformerLens has no public route for local, fine-tuned or odd-sized checkpoints, so the config goes through its
loader by way of a neutral folder (the loader reads architecture names out of paths). Where that fails or gives other
logits, TransformerLens' bridge runs HuggingFace's own modules (`bridge.BridgedTransformer`).
"""

import copy
import json
import math
import tempfile
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from crossvis_tl.errors import ModelMismatchError, first_line

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer, HookedTransformerConfig
    from transformers import PreTrainedModel

# Largest difference to HuggingFace's logits that rounding explains, as a share of the logits' own size.
TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-3, torch.bfloat16: 8e-2, torch.float16: 2e-2}
FAILURES = (NotImplementedError, KeyError, AttributeError, RuntimeError, ValueError, TypeError, AssertionError)


def quiet_deprecation() -> warnings.catch_warnings:
    """TransformerLens announces the end of HookedTransformer at every construction; we pin the last series with it."""
    return warnings.catch_warnings(action="ignore", category=DeprecationWarning)


def convert(
    hf_model: "PreTrainedModel",
    tokenizer: Any,
    name: str,
    device: str | torch.device,
    dtype: torch.dtype,
    *,
    in_hand: bool = False,
) -> "HookedTransformer":
    """A HookedTransformer with `hf_model`'s logits; `in_hand` models are left as they are.

    `ModelMismatchError`, saying what each way gave, when none has them.
    """
    expected = _reference(hf_model)
    allowed = max(TOLERANCE.get(kind, 1e-3) for kind in (dtype, hf_model.dtype))
    reasons = []
    for way, build in (("HookedTransformer", _hooked), ("TransformerBridge", _bridged)):
        source = copy.deepcopy(hf_model) if in_hand and build is _bridged else hf_model
        try:
            with tempfile.TemporaryDirectory() as folder, quiet_deprecation():
                model = build(source, tokenizer, Path(folder), device, dtype)
            error = _difference(model, *expected)
        except FAILURES as failure:
            reasons.append(f"as {way}: {type(failure).__name__}: {first_line(failure)}")
            continue
        if error <= allowed:
            model.cfg.model_name = name
            model.crossvis_name = name  # type: ignore[assignment]
            model.eval().requires_grad_(False)
            return model
        reasons.append(f"as {way} it gives other logits than HuggingFace's (off by {error:.1%} of the largest)")
    architecture = (hf_model.config.architectures or [type(hf_model).__name__])[0]
    raise ModelMismatchError(
        f"{name} ({architecture}) is refused, since its activations could not be trusted: {'; '.join(reasons)}. "
        "Please report the architecture"
    )


def _hooked(
    hf_model: "PreTrainedModel", tokenizer: Any, folder: Path, device: str | torch.device, dtype: torch.dtype
) -> "HookedTransformer":
    from transformer_lens import HookedTransformer, loading_from_pretrained

    config = _transformer_lens_config(hf_model, folder, device, dtype)
    config.tokenizer_name = None  # ours is handed over; the loader would look for one in the neutral folder
    state = loading_from_pretrained.get_pretrained_state_dict(str(folder), config, hf_model, dtype=dtype)
    model = HookedTransformer(config, _named(tokenizer, folder))
    model.load_and_process_state_dict(
        state, fold_ln=False, center_writing_weights=False, center_unembed=False, fold_value_biases=False
    )
    return model


def _bridged(
    hf_model: "PreTrainedModel", tokenizer: Any, folder: Path, device: str | torch.device, dtype: torch.dtype
) -> "HookedTransformer":
    from transformer_lens.model_bridge import TransformerBridge

    from crossvis_tl.bridge import BridgedTransformer

    hf_model.config.architectures = _write_config(hf_model, folder)["architectures"]
    hf_model = hf_model.to(device=device, dtype=dtype)  # type: ignore[arg-type]
    named = _named(_placeholder() if tokenizer is None else tokenizer, folder)
    bridge = TransformerBridge.boot_transformers(
        str(folder), device=device, dtype=dtype, hf_model=hf_model, tokenizer=named
    )
    if tokenizer is None:
        bridge.tokenizer = None
    else:  # a tokenizer handed over is not asked whether it puts BOS first; to_tokens would put it there again
        ids = bridge.tokenizer("a")["input_ids"]
        bridge.cfg.tokenizer_prepends_bos = bool(ids) and ids[0] == bridge.tokenizer.bos_token_id
    return BridgedTransformer(bridge)


def _placeholder() -> Any:
    """The bridge goes looking for a tokenizer where it is given none, and fails where there is none to find."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel({"?": 0}, unk_token="?")), unk_token="?")  # noqa: S106


def _named(tokenizer: Any, folder: Path) -> Any:
    """TransformerLens loads a tokenizer again by its name; one made in memory gets a folder to be found in."""
    if tokenizer is None or "name_or_path" in tokenizer.init_kwargs:
        return tokenizer
    from transformers import AutoTokenizer

    tokenizer.save_pretrained(folder)
    return AutoTokenizer.from_pretrained(folder)


def _write_config(hf_model: "PreTrainedModel", folder: Path) -> dict[str, Any]:
    config = hf_model.config.to_dict()
    # transformers 5 no longer knows GPT-2's second name for its context length, which TransformerLens still reads.
    if config.get("model_type") == "gpt2":
        config.setdefault("n_ctx", config["n_positions"])
    config["architectures"] = config.get("architectures") or [type(hf_model).__name__]
    (folder / "config.json").write_text(json.dumps(config, default=str))
    return config


def _transformer_lens_config(
    hf_model: "PreTrainedModel", folder: Path, device: str | torch.device, dtype: torch.dtype
) -> "HookedTransformerConfig":
    from transformer_lens import loading_from_pretrained

    config = _write_config(hf_model, folder)
    return loading_from_pretrained.get_pretrained_model_config(str(folder), hf_cfg=config, device=device, dtype=dtype)


def _reference(hf_model: "PreTrainedModel") -> tuple[Tensor, Tensor]:
    """-> a few seeded random tokens and HuggingFace's logits on them, taken before anything touches the model."""
    config = hf_model.config.get_text_config()
    generator = torch.Generator().manual_seed(0)
    length = min(16, int(getattr(config, "max_position_embeddings", 16) or 16))
    tokens = torch.randint(0, int(config.vocab_size), (2, length), generator=generator)
    with torch.inference_mode():
        return tokens, hf_model(tokens.to(hf_model.device)).logits.float().cpu()


def _difference(model: "HookedTransformer", tokens: Tensor, expected: Tensor) -> float:
    """Largest difference of logits as a share of the largest; infinite for another shape."""
    with torch.inference_mode():
        got: Tensor = model(tokens.to(model.cfg.device)).float().cpu()
    if got.shape != expected.shape:
        return float("inf")
    error = ((got - expected).abs().max() / expected.abs().max().clamp_min(1e-6)).item()
    return float("inf") if math.isnan(error) else error
