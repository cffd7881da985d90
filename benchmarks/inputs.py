"""Random models, tokens and dictionaries of a scale, written once into a folder that every measurement reads.

    python -m benchmarks.inputs --scale full --kind single --folder DIR

"single": `model/`, `tokens.pt`, `autoencoder.pt`. "pair": `model_0/`, `model_1/`, `tokens.pt`, `crosscoder/`. Each
feature's bias puts its threshold at the quantile of its pre-activations that makes it fire on `Scale.density` of the
tokens; `facts.json` says on how many of others it then does.
"""

import argparse
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from sae_vis.model_fns import AutoEncoder, AutoEncoderConfig
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

from benchmarks.shapes import SCALES, Scale

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer

# Rows that thresholds are set on, and as many more that the density is checked on.
SAMPLE_ROWS = 16


def write_model(folder: Path, scale: Scale, layers: int, seed: int) -> None:
    torch.manual_seed(seed)
    config = GPT2Config(
        n_layer=layers, n_embd=scale.d_model, n_head=scale.heads, vocab_size=scale.vocabulary, bos_token_id=0,
        eos_token_id=0,
    )  # fmt: skip
    GPT2LMHeadModel(config).eval().save_pretrained(folder)


def load_model(folder: Path) -> "HookedTransformer":
    """As users load it, without a tokenizer (the folder holds none, and an empty one would be made up)."""
    import crossvis_tl

    model = crossvis_tl.load_model(folder)
    model.tokenizer = None
    return model


def load_tokens(folder: Path, rows: int) -> Tensor:
    return torch.load(folder / "tokens.pt", weights_only=True)[:rows]


def load_autoencoder(folder: Path) -> AutoEncoder:
    state = torch.load(folder / "autoencoder.pt", weights_only=True)
    d_in, features = state["W_enc"].shape
    encoder = AutoEncoder(AutoEncoderConfig(d_in=d_in, d_hidden=features))
    encoder.load_state_dict(state)
    return encoder.requires_grad_(False)


@torch.inference_mode()
def activations(model: "HookedTransformer", tokens: Tensor, hooks: Sequence[str]) -> list[Tensor]:
    """[tokens, d_model] at each hook."""
    _, cache = model.run_with_cache(tokens, names_filter=list(hooks), return_type=None)
    return [cache[hook].flatten(0, 1) for hook in hooks]


def threshold(pre: Tensor, density: float) -> Tensor:
    """Of each column, the value that `density` of the rows exceed."""
    return pre.kthvalue(max(1, math.ceil((1 - density) * len(pre))), dim=0).values


def write_tokens(folder: Path, scale: Scale) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, scale.vocabulary, (scale.rows, scale.positions), generator=generator)
    torch.save(tokens, folder / "tokens.pt")
    return tokens


def write_single(folder: Path, scale: Scale) -> float:
    """-> share of tokens, others than the thresholds were set on, that a feature fires on."""
    write_model(folder / "model", scale, scale.layers, seed=1)
    tokens, half = write_tokens(folder, scale), min(SAMPLE_ROWS, scale.rows // 2)
    torch.manual_seed(2)
    encoder = AutoEncoder(AutoEncoderConfig(d_in=scale.d_model, d_hidden=scale.dictionary)).requires_grad_(False)
    (x,) = activations(load_model(folder / "model"), tokens[: 2 * half], [scale.hook])
    encoder.b_dec.copy_(x.mean(0))
    pre = (x - encoder.b_dec) @ encoder.W_enc
    sample, others = pre.split(half * scale.positions)
    encoder.b_enc.copy_(-threshold(sample, scale.density))
    torch.save(encoder.state_dict(), folder / "autoencoder.pt")
    return float((others + encoder.b_enc > 0).float().mean())


def write_pair(folder: Path, scale: Scale) -> float:
    """A flat crosscoder over the same two hooks of two models, source by source -> density, as `write_single`."""
    tokens, half = write_tokens(folder, scale), min(SAMPLE_ROWS, scale.rows // 2)
    xs: list[Tensor] = []
    for index in (0, 1):
        write_model(folder / f"model_{index}", scale, scale.pair_layers, seed=10 + index)
        xs += activations(load_model(folder / f"model_{index}"), tokens[: 2 * half], scale.pair_hooks)
    generator = torch.Generator().manual_seed(3)
    W_enc = torch.randn(len(xs), scale.d_model, scale.dictionary, generator=generator) / scale.d_model**0.5
    W_dec = torch.randn(scale.dictionary, len(xs), scale.d_model, generator=generator) / scale.d_model**0.5
    pre = torch.stack([x @ W for x, W in zip(xs, W_enc, strict=True)]).sum(0)
    sample, others = pre.split(half * scale.positions)
    b_enc = -threshold(sample, scale.density)
    b_dec = torch.stack([x.mean(0) for x in xs])
    weights = {"W_enc": W_enc, "W_dec": W_dec, "b_enc": b_enc, "b_dec": b_dec}
    (folder / "crosscoder").mkdir(exist_ok=True)
    torch.save(weights, folder / "crosscoder" / "cc_weights.pt")
    sites = [
        {"model": model, "hook": hook, "hf_path": None, "processing": "none"}
        for model in (0, 1)
        for hook in scale.pair_hooks
    ]
    config = {"sources": sites, "input_scale": 1.0, "input_scale_folded": True, "processing": "none"}
    config |= {"d_in": scale.d_model, "dict_size": scale.dictionary, "hook_point": [site["hook"] for site in sites]}
    (folder / "crosscoder" / "cfg.json").write_text(json.dumps(config))
    return float((others + b_enc > 0).float().mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", choices=SCALES, required=True)
    parser.add_argument("--kind", choices=("single", "pair"), required=True)
    parser.add_argument("--folder", type=Path, required=True)
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    write = write_single if args.kind == "single" else write_pair
    density = write(args.folder, SCALES[args.scale])
    # Written last: a folder without it is not finished.
    (args.folder / "facts.json").write_text(json.dumps({"density": round(density, 5)}))


if __name__ == "__main__":
    main()
