"""One measurement of SAEDashboard, in its own environment: the same model, tokens and dictionary, as sae_lens' SAE.

    DASHBOARD_PYTHON -m benchmarks.run_dashboard dashboard --scale small --inputs DIR --rows 16 --features 8

SAEDashboard has no logit effects (`perform_ablation_experiments` raises NotImplementedError): its defaults compute
sae_vis' other components, with sae_vis' own batch sizes. Nothing of crossvis_tl is imported here.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from benchmarks.measure import measured
from benchmarks.record import parse_args, write_record
from benchmarks.shapes import SCALES, Scale

if TYPE_CHECKING:
    from transformers import GPT2Config


def load_model(folder: Path) -> Any:
    """TransformerLens' model with HuggingFace's activations, as `crossvis_tl.load_model` makes it."""
    from sae_lens import HookedSAETransformer
    from transformer_lens import HookedTransformerConfig
    from transformer_lens.pretrained.weight_conversions.gpt2 import convert_gpt2_weights
    from transformers import GPT2LMHeadModel

    hf_model = GPT2LMHeadModel.from_pretrained(folder)
    config: GPT2Config = hf_model.config
    cfg = HookedTransformerConfig(
        n_layers=config.n_layer, d_model=config.n_embd, n_heads=config.n_head, d_head=config.n_embd // config.n_head,
        n_ctx=config.n_positions, d_vocab=config.vocab_size, act_fn=config.activation_function,
        normalization_type="LN", eps=config.layer_norm_epsilon, device="cpu",
    )  # fmt: skip
    model = HookedSAETransformer(cfg)
    model.load_and_process_state_dict(
        convert_gpt2_weights(hf_model, cfg), fold_ln=False, center_writing_weights=False, center_unembed=False,
        fold_value_biases=False,
    )  # fmt: skip
    return model.eval().requires_grad_(False)


def load_sae(folder: Path, scale: Scale) -> Any:
    from sae_lens import StandardSAE, StandardSAEConfig

    config = StandardSAEConfig(d_in=scale.d_model, d_sae=scale.dictionary, apply_b_dec_to_input=True)
    config.metadata.hook_name = scale.hook
    sae = StandardSAE(config)
    sae.load_state_dict(torch.load(folder / "autoencoder.pt", weights_only=True))
    return sae.requires_grad_(False)


def main() -> None:
    from sae_dashboard.sae_vis_data import SaeVisConfig  # pyright: ignore[reportMissingImports]
    from sae_dashboard.sae_vis_runner import SaeVisRunner  # pyright: ignore[reportMissingImports]

    args = parse_args(__doc__, ("dashboard",))
    torch.set_num_threads(1)
    scale = SCALES[args.scale]
    model, sae = load_model(args.inputs / "model"), load_sae(args.inputs, scale)
    tokens = torch.load(args.inputs / "tokens.pt", weights_only=True)[: args.rows]
    cfg = SaeVisConfig(hook_point=scale.hook, features=range(args.features), device="cpu", dtype="float32")
    result, cost = measured(lambda: SaeVisRunner(cfg).run(encoder=sae, model=model, tokens=tokens))
    packages = ("torch", "transformer-lens", "sae-lens", "sae-dashboard")
    write_record(args, cost, result, ["SAEDashboard runs in its own environment, on TransformerLens 2"], packages)


if __name__ == "__main__":
    main()
