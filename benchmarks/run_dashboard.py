"""One measurement of SAEDashboard, in its own environment: the same model, tokens and dictionary, as sae_lens' SAE.

    DASHBOARD_PYTHON -m benchmarks.run_dashboard dashboard --scale small --inputs DIR --rows 16 --features 8

SAEDashboard has no logit effects (`perform_ablation_experiments` raises NotImplementedError): its defaults compute
sae_vis' other components, with sae_vis' own batch sizes. `dashboard_np`: batch files for Neuronpedia, as its
`NeuronpediaRunner.run` makes them. Nothing of crossvis_tl is imported here.
"""

import tempfile
from collections.abc import Callable
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


def neuronpedia(model: Any, sae: Any, tokens: torch.Tensor, scale: Scale, features: int) -> Callable[[], None]:
    """Batches of features one after another, each with the runner's own layout, written as JSON."""
    from sae_dashboard import components_config as parts  # pyright: ignore[reportMissingImports]
    from sae_dashboard.layout import Column, SaeVisLayoutConfig  # pyright: ignore[reportMissingImports]
    from sae_dashboard.neuronpedia.neuronpedia_converter import (  # pyright: ignore[reportMissingImports]
        NeuronpediaConverter,
    )
    from sae_dashboard.neuronpedia.neuronpedia_runner_config import (  # pyright: ignore[reportMissingImports]
        NeuronpediaRunnerConfig,
    )
    from sae_dashboard.sae_vis_data import SaeVisConfig  # pyright: ignore[reportMissingImports]
    from sae_dashboard.sae_vis_runner import SaeVisRunner  # pyright: ignore[reportMissingImports]

    folder = Path(tempfile.mkdtemp())
    run = NeuronpediaRunnerConfig("set", "path", str(folder), model_id="gpt2", layer=scale.layer)
    vocabulary = {i: f"t{i}" for i in range(scale.vocabulary)}
    sequences = parts.SequencesConfig(
        stack_mode="stack-all", buffer=None, compute_buffer=True, n_quantiles=run.n_quantiles,
        top_acts_group_size=run.top_acts_group_size, quantile_group_size=run.quantile_group_size,
    )  # fmt: skip
    others = (parts.ActsHistogramConfig(), parts.LogitsHistogramConfig(), parts.LogitsTableConfig())
    layout = SaeVisLayoutConfig(columns=[Column(sequences, *others, parts.FeatureTablesConfig(n_rows=3))])

    def call() -> None:
        for number, first in enumerate(range(0, features, run.n_features_at_a_time)):
            cfg = SaeVisConfig(
                hook_point=scale.hook, features=list(range(first, min(first + run.n_features_at_a_time, features))),
                minibatch_size_features=run.n_features_at_a_time, minibatch_size_tokens=run.n_prompts_in_forward_pass,
                feature_centric_layout=layout, device="cpu", dtype="float32", cache_dir=folder / "cache",
            )  # fmt: skip
            data = SaeVisRunner(cfg).run(encoder=sae, model=model, tokens=tokens)
            text = NeuronpediaConverter.convert_to_np_json(model, data, run, vocabulary)
            (folder / f"batch-{number}.json").write_text(text)

    return call


def main() -> None:
    from sae_dashboard.sae_vis_data import SaeVisConfig  # pyright: ignore[reportMissingImports]
    from sae_dashboard.sae_vis_runner import SaeVisRunner  # pyright: ignore[reportMissingImports]

    args = parse_args(__doc__, ("dashboard", "dashboard_np"))
    torch.set_num_threads(1)
    scale = SCALES[args.scale]
    model, sae = load_model(args.inputs / "model"), load_sae(args.inputs, scale)
    tokens = torch.load(args.inputs / "tokens.pt", weights_only=True)[: args.rows]
    call: Callable[[], Any] = neuronpedia(model, sae, tokens, scale, args.features)
    if args.what == "dashboard":
        cfg = SaeVisConfig(hook_point=scale.hook, features=range(args.features), device="cpu", dtype="float32")

        def call() -> Any:
            return SaeVisRunner(cfg).run(encoder=sae, model=model, tokens=tokens)

    result, cost = measured(call)
    packages = ("torch", "transformer-lens", "sae-lens", "sae-dashboard")
    write_record(args, cost, result, ["SAEDashboard runs in its own environment, on TransformerLens 2"], packages)


if __name__ == "__main__":
    main()
