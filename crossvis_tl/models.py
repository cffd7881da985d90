"""HuggingFace checkpoints as HookedTransformers whose activations are HuggingFace's own.

No weights are folded or centred: a dictionary trained on HuggingFace activations must meet the same numbers here.
TransformerLens has no public route for local, fine-tuned or odd-sized checkpoints, so the config goes through its
loader by way of a neutral folder (the loader reads architecture names out of paths), and the result is held against
HuggingFace's logits before anyone sees it.
"""

import json
import logging
import tempfile
import warnings
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from crossvis_tl.devices import check_device
from crossvis_tl.errors import ModelMismatchError, first_line, near_misses

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer, HookedTransformerConfig
    from transformers import PreTrainedModel

log = logging.getLogger(__name__)

# Largest difference to HuggingFace's logits that rounding explains, as a share of the logits' own size.
TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-3, torch.bfloat16: 8e-2, torch.float16: 2e-2}
TL_ONLY = ("NeelNanda/", "ArthurConmy/", "Baidicoot/")
LN_TYPES = ("LN", "LNPre")


def load_model(
    model: "str | Path | PreTrainedModel | HookedTransformer",
    *,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    tokenizer: Any = None,
) -> "HookedTransformer":
    """A HookedTransformer with HuggingFace's own activations.

    `model`: a folder with a HuggingFace checkpoint, a HuggingFace id, a TransformerLens name without a HuggingFace twin
    ("gelu-1l"), a `PreTrainedModel` in hand (left unchanged) or a HookedTransformer (returned as it is).
    `device`: default the model's own, else "cuda" where there is one, else "cpu". `dtype`: default float32, for a
    HookedTransformer its own.

    FileNotFoundError when a folder is missing; ValueError when it holds no language model; `ModelMismatchError` when
    TransformerLens' version does not give HuggingFace's logits.
    """
    from transformer_lens import HookedTransformer
    from transformers import PreTrainedModel

    if device is not None:
        check_device(device)
    if isinstance(model, HookedTransformer):
        in_hand: HookedTransformer = model
        in_hand = in_hand if device is None else in_hand.to(device)
        return in_hand if dtype is None else in_hand.to(dtype)
    dtype = dtype or torch.float32
    if isinstance(model, PreTrainedModel):
        return _convert(model, tokenizer or _own_tokenizer(model), _name_of(model), device or model.device, dtype)
    if not isinstance(model, str | Path):
        raise TypeError(
            f"load_model takes a folder, a HuggingFace id, a HuggingFace model or a HookedTransformer; got "
            f"{type(model).__name__}"
        )
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if _is_tl_only(model):
        with _quiet_deprecation():
            return HookedTransformer.from_pretrained_no_processing(str(model), device=str(device), dtype=dtype)
    hf_model, found_tokenizer = _load_huggingface(model, dtype)
    return _convert(hf_model, tokenizer or found_tokenizer, Path(str(model)).name, device, dtype)


def load_models(
    model: Any, device: str | torch.device | None = None, dtype: torch.dtype | None = None
) -> list["HookedTransformer"]:
    """One model or several, each as `load_model` takes it, in order. ValueError for an empty list."""
    given = list(model) if isinstance(model, list | tuple) else [model]
    if not given:
        raise ValueError("no model was given; name the one(s) the dictionary was trained on")
    return [load_model(one, device=device, dtype=dtype) for one in given]


def name_of(model: "HookedTransformer") -> str:
    """What to call a model on a page."""
    return getattr(model, "crossvis_name", None) or str(model.cfg.model_name)


def is_processed(model: "HookedTransformer") -> bool:
    """Whether TransformerLens has folded or centred the weights, so that the activations are not HuggingFace's.

    Folding shows in the config; centring alone shows in the embedding, whose rows then have mean 0 (to rounding).
    """
    kind = str(model.cfg.normalization_type or "")
    if kind.endswith("Pre") or kind not in LN_TYPES:
        return kind.endswith("Pre")
    W_E = model.W_E.detach().float()
    return bool(W_E.mean(-1).abs().max() < 1e-5 * W_E.abs().max())


def centres(model: "HookedTransformer") -> bool:
    """Whether TransformerLens' default processing takes the mean out of this model's residual stream."""
    return str(model.cfg.normalization_type or "") in LN_TYPES


def _is_tl_only(name: str | Path) -> bool:
    from transformer_lens.loading_from_pretrained import get_official_model_name

    if Path(name).exists():
        return False
    try:
        return get_official_model_name(str(name)).startswith(TL_ONLY)
    except ValueError:
        return False


def _load_huggingface(model: str | Path, dtype: torch.dtype) -> tuple["PreTrainedModel", Any]:
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    path = Path(model)
    _check_folder(path, str(model))
    try:
        config = AutoConfig.from_pretrained(str(model))
        hf_model = AutoModelForCausalLM.from_pretrained(str(model), config=config, dtype=dtype)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, SafetensorError) as error:
        raise ValueError(
            f"{model} cannot be loaded as a HuggingFace language model: {first_line(error)}. Expected a folder "
            "with config.json and weights, or the id of a model that this machine can reach or has in its cache"
        ) from error
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(model))
    except (OSError, ValueError, KeyError, TypeError):
        log.warning("%s has no tokenizer; pass tokenizer=... for text prompts and token names", model)
        tokenizer = None
    return hf_model, tokenizer


def _check_folder(path: Path, given: str) -> None:
    if path.is_dir() and not (path / "config.json").is_file():
        inside = sorted(p.name for p in path.iterdir())
        raise ValueError(f"{path} is no model: it has no config.json (it holds {', '.join(inside[:6]) or 'nothing'})")
    if path.is_file():
        raise ValueError(f"{path} is a file; a model is a folder with config.json and weights, or a HuggingFace id")
    if path.exists():
        return
    siblings = [p.name for p in path.parent.iterdir() if (p / "config.json").is_file()] if path.parent.is_dir() else []
    # A slip in a local folder's name must not go looking on the hub for it.
    slip = not _known_on_hub(given) and get_close_matches(path.name, siblings, n=1, cutoff=0.75)
    inside_a_folder = not _known_on_hub(given) and str(path.parent) != "." and path.parent.is_dir()
    if given.startswith((".", "/", "~")) or given.count("/") > 1 or slip or inside_a_folder:
        raise FileNotFoundError(f"the model folder {given} does not exist.{near_misses(path.name, siblings)}")


def _known_on_hub(name: str) -> bool:
    """A name that TransformerLens lists, or that is in the local cache: no slip, whatever folders lie beside it."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError
    from transformer_lens.loading_from_pretrained import get_official_model_name

    try:
        return isinstance(try_to_load_from_cache(name, "config.json"), str) or bool(get_official_model_name(name))
    except (ValueError, HFValidationError):
        return False


def _own_tokenizer(hf_model: "PreTrainedModel") -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(hf_model.name_or_path)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _name_of(hf_model: "PreTrainedModel") -> str:
    return Path(hf_model.name_or_path or "").name or type(hf_model).__name__


def _quiet_deprecation() -> warnings.catch_warnings:
    """TransformerLens announces the end of HookedTransformer at every construction; we pin the last series with it."""
    return warnings.catch_warnings(action="ignore", category=DeprecationWarning)


def _convert(
    hf_model: "PreTrainedModel", tokenizer: Any, name: str, device: str | torch.device, dtype: torch.dtype
) -> "HookedTransformer":
    from transformer_lens import HookedTransformer, loading_from_pretrained

    try:
        with tempfile.TemporaryDirectory() as folder, _quiet_deprecation():
            config = _transformer_lens_config(hf_model, Path(folder), device, dtype)
            config.tokenizer_name = None  # ours is handed over; the loader would look for one in the neutral folder
            state = loading_from_pretrained.get_pretrained_state_dict(folder, config, hf_model, dtype=dtype)
            model = HookedTransformer(config, _named(tokenizer, Path(folder)))
            model.load_and_process_state_dict(
                state, fold_ln=False, center_writing_weights=False, center_unembed=False, fold_value_biases=False
            )
    except (NotImplementedError, KeyError, AttributeError, RuntimeError, ValueError) as error:
        architecture = (hf_model.config.architectures or [type(hf_model).__name__])[0]
        raise ModelMismatchError(
            f"{name} ({architecture}) cannot be made a HookedTransformer: {type(error).__name__}: {first_line(error)}"
        ) from error
    model.cfg.model_name = name
    model.crossvis_name = name  # type: ignore[assignment]
    model.eval().requires_grad_(False)
    check_logits(model, hf_model, name)
    return model


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

    config = hf_model.config.to_dict()
    # transformers 5 no longer knows GPT-2's second name for its context length, which TransformerLens still reads.
    if config.get("model_type") == "gpt2":
        config.setdefault("n_ctx", config["n_positions"])
    config["architectures"] = config.get("architectures") or [type(hf_model).__name__]
    (folder / "config.json").write_text(json.dumps(config, default=str))
    return loading_from_pretrained.get_pretrained_model_config(str(folder), hf_cfg=config, device=device, dtype=dtype)


def check_logits(model: "HookedTransformer", hf_model: "PreTrainedModel", name: str) -> float:
    """Holds a converted model's logits against HuggingFace's on a few seeded random tokens.

    -> largest difference as a share of the largest logit. `ModelMismatchError` above what rounding explains.
    """
    generator = torch.Generator().manual_seed(0)
    length = min(16, int(model.cfg.n_ctx))
    tokens = torch.randint(0, model.cfg.d_vocab, (2, length), generator=generator)
    with torch.inference_mode():
        expected: Tensor = hf_model(tokens.to(hf_model.device)).logits.float().cpu()
        got: Tensor = model(tokens.to(model.W_E.device)).float().cpu()
    if got.shape != expected.shape:
        raise ModelMismatchError(
            f"{name}: TransformerLens gives logits {tuple(got.shape)}, not {tuple(expected.shape)}"
        )
    error = ((got - expected).abs().max() / expected.abs().max().clamp_min(1e-6)).item()
    if not error <= max(TOLERANCE.get(dtype, 1e-3) for dtype in (model.cfg.dtype, hf_model.dtype)):
        raise ModelMismatchError(
            f"{name}: TransformerLens' version of this model gives other logits than HuggingFace's (off by {error:.1%} "
            "of the largest); its activations could not be trusted, so it is refused. Please report the architecture"
        )
    return error
