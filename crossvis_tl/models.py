"""HuggingFace checkpoints as HookedTransformers whose activations are HuggingFace's own.

No weights are folded or centred: a dictionary trained on HuggingFace activations must meet the same numbers here.
"""

import logging
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError

from crossvis_tl.conversion import convert, quiet_deprecation
from crossvis_tl.devices import check_device
from crossvis_tl.errors import first_line, near_misses

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import PreTrainedModel

log = logging.getLogger(__name__)

TL_ONLY = ("NeelNanda/", "ArthurConmy/", "Baidicoot/")


def load_model(
    model: "str | Path | PreTrainedModel | HookedTransformer | TransformerBridge",
    *,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    tokenizer: Any = None,
    n_ctx: int | None = None,
) -> "HookedTransformer":
    """A HookedTransformer with HuggingFace's own activations.

    `model`: a folder with a HuggingFace checkpoint, a HuggingFace id, a TransformerLens name without a HuggingFace twin
    ("gelu-1l"), a `PreTrainedModel` in hand (left unchanged), a HookedTransformer (returned as it is) or a
    TransformerBridge (stood in for by a HookedTransformer that passes everything on to it).
    `device`: default the model's own, else "cuda" where there is one, else "cpu". `dtype`: default float32, for a
    HookedTransformer its own. `n_ctx`: the longest sequence it must take, where that is more than 8,192.

    FileNotFoundError when a folder is missing; ValueError when it holds no language model; `ModelMismatchError` when
    TransformerLens' version does not give HuggingFace's logits.
    """
    from transformer_lens import HookedTransformer
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import PreTrainedModel

    from crossvis_tl.bridge import BridgedTransformer

    if device is not None:
        check_device(device)
    if isinstance(model, HookedTransformer | TransformerBridge):
        in_hand = BridgedTransformer(model) if isinstance(model, TransformerBridge) else model
        in_hand = in_hand if device is None else in_hand.to(device)  # type: ignore[assignment]
        return in_hand if dtype is None else in_hand.to(dtype)
    dtype = dtype or torch.float32
    if isinstance(model, PreTrainedModel):
        own = tokenizer or _own_tokenizer(model)
        return convert(model, own, _name_of(model), device or model.device, dtype, in_hand=True, n_ctx=n_ctx)
    if not isinstance(model, str | Path):
        raise TypeError(
            f"load_model takes a folder, a HuggingFace id, a HuggingFace model, a HookedTransformer or a "
            f"TransformerBridge; got "
            f"{type(model).__name__}"
        )
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if _is_tl_only(model):
        with quiet_deprecation():
            return HookedTransformer.from_pretrained_no_processing(str(model), device=str(device), dtype=dtype)
    hf_model, found_tokenizer = _load_huggingface(model, dtype)
    return convert(hf_model, tokenizer or found_tokenizer, Path(str(model)).name, device, dtype, n_ctx=n_ctx)


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
    slip = get_close_matches(path.name, siblings, n=1, cutoff=0.75)
    inside_a_folder = str(path.parent) != "." and path.parent.is_dir()
    looks_local = given.startswith((".", "/", "~")) or given.count("/") > 1
    if looks_local or ((slip or inside_a_folder) and not _known_on_hub(given)):
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
