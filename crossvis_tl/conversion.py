"""A HuggingFace model made a HookedTransformer, and held against HuggingFace's logits before anyone sees it.

TransformerLens has no public route for local, fine-tuned or odd-sized checkpoints, so the config goes through its
loader by way of a neutral folder (the loader reads architecture names out of paths). Where that fails or gives other
logits, TransformerLens' bridge runs HuggingFace's own modules (`bridge.BridgedTransformer`).
"""

import copy
import math
import tempfile
import warnings
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from crossvis_tl.errors import ModelMismatchError, first_line
from crossvis_tl.hf_configs import placeholder_tokenizer, write_config

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer, HookedTransformerConfig
    from transformers import PreTrainedModel

# Largest difference to HuggingFace's logits that rounding explains, as a share of the logits' own size.
TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-3, torch.bfloat16: 8e-2, torch.float16: 2e-2}
# Rotation tables are kept for every position and layer: 128 k positions of an 8 B model would be 4 GB of them.
LONGEST = 8192
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
    n_ctx: int | None = None,
) -> "HookedTransformer":
    """A HookedTransformer with `hf_model`'s logits; `in_hand` models are left as they are. `n_ctx`: the longest
    sequence it must take, where positions enter by rotation (default: the model's own, at most `LONGEST`).

    `ModelMismatchError`, saying what each way gave, when none has them.
    """
    expected = _reference(hf_model)
    hf_model = _language_model(hf_model)
    config = copy.deepcopy(hf_model.config)
    allowed = max(TOLERANCE.get(kind, 1e-3) for kind in (dtype, hf_model.dtype))
    reasons = []
    for way, build in (("HookedTransformer", partial(_hooked, n_ctx=n_ctx)), ("TransformerBridge", _bridged)):
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
            model.crossvis_config = config  # type: ignore[assignment]
            model.eval().requires_grad_(False)
            return model
        reasons.append(f"as {way} it gives other logits than HuggingFace's (off by {error:.1%} of the largest)")
    architecture = (hf_model.config.architectures or [type(hf_model).__name__])[0]
    raise ModelMismatchError(
        f"{name} ({architecture}) is refused, since its activations could not be trusted: {'; '.join(reasons)}. "
        "Please report the architecture"
    )


def _hooked(
    hf_model: "PreTrainedModel",
    tokenizer: Any,
    folder: Path,
    device: str | torch.device,
    dtype: torch.dtype,
    n_ctx: int | None,
) -> "HookedTransformer":
    from transformer_lens import HookedTransformer, loading_from_pretrained

    config = _transformer_lens_config(hf_model, folder, device, dtype)
    if config.positional_embedding_type == "rotary":
        own = int(getattr(hf_model.config.get_text_config(), "max_position_embeddings", config.n_ctx) or config.n_ctx)
        config.n_ctx = n_ctx or min(own, LONGEST)
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

    hf_model.config.architectures = write_config(hf_model.config, type(hf_model).__name__, folder)["architectures"]
    hf_model = hf_model.to(device=device, dtype=dtype)  # type: ignore[arg-type]
    hf_model.set_attn_implementation("eager")  # the others have no attention pattern for a hook to hold
    named = _named(placeholder_tokenizer() if tokenizer is None else tokenizer, folder)
    bridge = TransformerBridge.boot_transformers(
        str(folder), device=device, dtype=dtype, hf_model=hf_model, tokenizer=named
    )
    if tokenizer is None:
        bridge.tokenizer = None
    else:  # a tokenizer handed over is not asked whether it puts BOS first; to_tokens would put it there again
        ids = bridge.tokenizer("a")["input_ids"]
        bridge.cfg.tokenizer_prepends_bos = bool(ids) and ids[0] == bridge.tokenizer.bos_token_id
    return BridgedTransformer(bridge)


def _named(tokenizer: Any, folder: Path) -> Any:
    """TransformerLens loads a tokenizer again by its name; one made in memory gets a folder to be found in."""
    if tokenizer is None or "name_or_path" in tokenizer.init_kwargs:
        return tokenizer
    from transformers import AutoTokenizer

    tokenizer.save_pretrained(folder)
    return AutoTokenizer.from_pretrained(folder)


def _transformer_lens_config(
    hf_model: "PreTrainedModel", folder: Path, device: str | torch.device, dtype: torch.dtype
) -> "HookedTransformerConfig":
    from transformer_lens import loading_from_pretrained

    config = write_config(hf_model.config, type(hf_model).__name__, folder)
    return loading_from_pretrained.get_pretrained_model_config(str(folder), hf_cfg=config, device=device, dtype=dtype)


def _reference(hf_model: "PreTrainedModel") -> tuple[Tensor, Tensor]:
    """-> a few seeded random tokens and HuggingFace's logits on them, taken before anything touches the model."""
    config = hf_model.config.get_text_config()
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, int(config.vocab_size), (2, _telling_length(config)), generator=generator)
    with torch.inference_mode():
        return tokens, hf_model(tokens.to(hf_model.device)).logits.float().cpu()


def _language_model(hf_model: "PreTrainedModel") -> "PreTrainedModel":
    """Of a model that reads images too, the part that reads text, sharing its modules; any other model as it is.

    Given the whole, TransformerLens' bridge looks for an image processor and installs packages to have one.
    """
    from transformers import AutoModelForCausalLM

    text_config = hf_model.config.get_text_config()
    if text_config is hf_model.config:
        return hf_model
    decoder: Any = getattr(hf_model.get_decoder(), "language_model", None) or hf_model.get_decoder()
    with torch.device("meta"):
        alone = AutoModelForCausalLM.from_config(text_config).eval()
    if type(decoder) is not type(alone.base_model):
        raise ModelMismatchError(
            f"{type(hf_model).__name__} reads more than text, and its language model ({type(decoder).__name__}) is "
            "none that HuggingFace has alone; only models of text can be loaded"
        )
    setattr(alone, alone.base_model_prefix, decoder)
    alone.set_output_embeddings(hf_model.get_output_embeddings())
    return alone


def _telling_length(config: Any) -> int:
    """How many positions it takes to see a difference: rotations that are scaled differ from plain ones only far from
    the start, and a sliding window only beyond its width."""
    length = 16
    rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    kinds = {str(part.get("rope_type", part.get("type"))) for part in (rope, *rope.values()) if isinstance(part, dict)}
    if kinds - {"default", "None"}:
        length = 512
    window = getattr(config, "sliding_window", None) or getattr(config, "window_size", None)
    if isinstance(window, int) and window < 512:
        length = max(length, window + 8)
    return max(2, min(length, int(getattr(config, "max_position_embeddings", length) or length)))


def _difference(model: "HookedTransformer", tokens: Tensor, expected: Tensor) -> float:
    """Largest difference of logits as a share of the largest; infinite for another shape."""
    with torch.inference_mode():
        got: Tensor = model(tokens.to(model.cfg.device)).float().cpu()
    if got.shape != expected.shape:
        return float("inf")
    error = ((got - expected).abs().max() / expected.abs().max().clamp_min(1e-6)).item()
    return float("inf") if math.isnan(error) else error
