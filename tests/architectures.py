"""Tiny random HuggingFace checkpoints of every architecture the hook table covers, odd-sized variants among them.

Every parameter is moved away from its initial value, so that a norm's gain, a bias or a tie that were forgotten would
show in the numbers.
"""

from collections.abc import Callable

import torch
import transformers as hf

V, CTX = 60, 32
LLAMA = {
    "vocab_size": V, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24,
    "max_position_embeddings": CTX,
}  # fmt: skip
GROUPED = LLAMA | {"num_key_value_heads": 1}
HEADS = {"num_key_value_heads": 1, "head_dim": 12}  # 2 x 12 is not the hidden size
GEMMA = LLAMA | HEADS | {"sliding_window": 6, "query_pre_attn_scalar": 12}
GPT = {"vocab_size": V, "n_positions": CTX, "n_embd": 16, "n_layer": 2, "n_head": 2}


def _llama(cls: str, config: str, **fields) -> Callable[[], torch.nn.Module]:
    return lambda: getattr(hf, cls)(getattr(hf, config)(**fields))


ARCHITECTURES: dict[str, Callable[[], torch.nn.Module]] = {
    "gpt2": _llama("GPT2LMHeadModel", "GPT2Config", **GPT),
    "gpt2, wide mlp": _llama("GPT2LMHeadModel", "GPT2Config", **GPT | {"n_inner": 40, "n_layer": 3}),
    "llama": _llama("LlamaForCausalLM", "LlamaConfig", **GROUPED),
    "llama, biases": _llama("LlamaForCausalLM", "LlamaConfig", **GROUPED, attention_bias=True, mlp_bias=True),
    "llama, head_dim": _llama("LlamaForCausalLM", "LlamaConfig", **LLAMA | HEADS),
    "llama, tied": _llama("LlamaForCausalLM", "LlamaConfig", **GROUPED, tie_word_embeddings=True),
    "mistral": _llama("MistralForCausalLM", "MistralConfig", **GROUPED, sliding_window=6),
    "qwen 2": _llama("Qwen2ForCausalLM", "Qwen2Config", **GROUPED),
    "qwen 3": _llama("Qwen3ForCausalLM", "Qwen3Config", **LLAMA | HEADS),
    "gemma": _llama("GemmaForCausalLM", "GemmaConfig", **LLAMA | HEADS),
    "gemma 2": _llama("Gemma2ForCausalLM", "Gemma2Config", **GEMMA),
    "gemma 3": _llama("Gemma3ForCausalLM", "Gemma3TextConfig", **GEMMA),
    "neox": _llama("GPTNeoXForCausalLM", "GPTNeoXConfig", **LLAMA),
    "neox, sequential": _llama("GPTNeoXForCausalLM", "GPTNeoXConfig", **LLAMA, use_parallel_residual=False),
    "phi": _llama("PhiForCausalLM", "PhiConfig", **LLAMA),
    "phi 3": _llama("Phi3ForCausalLM", "Phi3Config", **GROUPED, pad_token_id=0),
    "opt": _llama(
        "OPTForCausalLM",
        "OPTConfig",
        vocab_size=V,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        ffn_dim=24,
        max_position_embeddings=CTX,
        word_embed_proj_dim=16,
        pad_token_id=1,
    ),
    "gpt-j": _llama("GPTJForCausalLM", "GPTJConfig", **GPT, rotary_dim=4),
    "gpt-neo": _llama(
        "GPTNeoForCausalLM",
        "GPTNeoConfig",
        vocab_size=V,
        max_position_embeddings=CTX,
        hidden_size=16,
        num_layers=2,
        num_heads=2,
        intermediate_size=24,
        attention_types=[[["global", "local"], 1]],
        window_size=6,
    ),
}


def build(name: str, seed: int = 0) -> torch.nn.Module:
    """The named architecture with random weights, in evaluation mode."""
    torch.manual_seed(seed)
    model = ARCHITECTURES[name]().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model
