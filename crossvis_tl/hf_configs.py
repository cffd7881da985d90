"""What TransformerLens asks of a HuggingFace config, and the config behind a model that is already in hand."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PretrainedConfig

# TransformerLens' names for sizes -> HuggingFace's common ones, which every config maps to its own.
SIZES = {
    "n_layers": "num_hidden_layers",
    "d_model": "hidden_size",
    "n_heads": "num_attention_heads",
    "d_vocab": "vocab_size",
}


def write_config(config: "PretrainedConfig", class_name: str, folder: Path) -> dict[str, Any]:
    """Writes `config.json` as TransformerLens' loaders read it and returns what is in it. `class_name`: the model's
    class, for configs that do not name an architecture."""
    content = config.to_dict()
    # transformers 5 no longer knows GPT-2's second name for its context length, which TransformerLens still reads.
    if content.get("model_type") == "gpt2":
        content.setdefault("n_ctx", content["n_positions"])
    content["architectures"] = content.get("architectures") or [class_name]
    (folder / "config.json").write_text(json.dumps(content, default=str))
    return content


def placeholder_tokenizer() -> Any:
    """The bridge goes looking for a tokenizer where it is given none, and fails where there is none to find."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel({"?": 0}, unk_token="?")), unk_token="?")  # noqa: S106


def config_behind(model: Any) -> "PretrainedConfig | None":
    """The HuggingFace config of a HuggingFace model, a bridge or a HookedTransformer; None where there is none.

    A HookedTransformer that was not made by `load_model` knows only its architecture's name and sizes, which is enough
    for the names of its modules.
    """
    if hasattr(model, "to_dict") and hasattr(model, "model_type"):
        return model
    kept = getattr(model, "crossvis_config", None)
    if kept is not None:
        return kept
    bridge = getattr(model, "bridge", model)
    original = getattr(bridge, "original_model", None)
    if original is not None and hasattr(original, "config"):
        return original.config
    config = getattr(model, "config", None)
    if hasattr(config, "to_dict"):
        return config
    return _config_from_sizes(model.cfg)


def _config_from_sizes(cfg: Any) -> "PretrainedConfig | None":
    from transformers import CONFIG_MAPPING
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    by_class = {cls: kind for kind, cls in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.items() if isinstance(cls, str)}
    kind = by_class.get(str(getattr(cfg, "original_architecture", "")))
    if kind is None:
        return None
    config = CONFIG_MAPPING[kind]()
    for ours, theirs in SIZES.items():
        setattr(config, theirs, getattr(cfg, ours))
    # what else the shape of the module tree hangs on
    extra = {"head_dim": cfg.d_head, "num_key_value_heads": cfg.n_key_value_heads or cfg.n_heads}
    extra |= {"use_parallel_residual": bool(cfg.parallel_attn_mlp), "intermediate_size": cfg.d_mlp}
    for name, value in extra.items():
        if hasattr(config, name):
            setattr(config, name, value)
    config.architectures = [str(cfg.original_architecture)]
    return config
