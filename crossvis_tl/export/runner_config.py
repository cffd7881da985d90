"""SAEDashboard's settings for a Neuronpedia run, under their own names and with their defaults."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from crossvis_tl.render import parse_dtype

# Settings that change nothing here, and why; they are taken so that a config can be handed on as it is.
WITHOUT_EFFECT = {
    "quantile_feature_batch_size": (64, "features are shown one after another in bounded memory"),
    "activation_store_device": (None, "activations are kept by feature, in memory or on disk"),
    "model_n_devices": (None, "a model runs on one device"),
    "use_wandb": (False, "progress is shown, and what is there can be seen in the folder"),
}

# The least that numbers can be.
LEAST = {
    "n_prompts_total": 1, "n_tokens_in_prompt": 2, "n_prompts_in_forward_pass": 1, "n_features_at_a_time": 1,
    "start_batch": 0, "n_quantiles": 0, "top_acts_group_size": 0, "quantile_group_size": 0,
}  # fmt: skip


@dataclass
class NeuronpediaRunnerConfig:
    """What SAEDashboard 0.8's class of the same name takes (jbloomAus/SAEDashboard, neuronpedia_runner_config.py), and
    at the end what is ours.

    `sae_path`: a folder or file that `load_dictionary` takes (SAE, transcoder, CLT, crosscoder), or, where nothing lies
    there and `from_local_sae` is False, the id of a sae_lens release `sae_set`. `huggingface_dataset_path`: a dataset's
    id or anything local that `load_token_set` takes, default what an SAE says it was trained on. Each text gives one
    prompt, the first `n_tokens_in_prompt` of its tokens; an array of ids is taken as it is. `use_transcoder`,
    `use_skip_transcoder`, `use_clt`: need not be said; a path that holds something else is refused. `clt_layer_idx`:
    one layer, where SAEDashboard cannot do without; here None means all. `sae_dtype`, `clt_dtype`: of products of
    weights and activations. `model_dtype`: default float32, of a model in hand its own. `start_batch`, `end_batch`: of
    each layer, the last included; runs by them may go at the same time once what fires is kept (`NeuronpediaRunner`).

    Ours: `model`, a folder, an id or a model in hand, default what the files name; `processing`, what the weights were
    trained on, default what SAEDashboard would run; `facts`, others for `load_dictionary`; `layout`, and `release` for
    "source" (`export_neuronpedia`); `store`, where what fires is kept, default a folder in
    `outputs_dir`/gathered; `skip_dead`.
    """

    sae_set: str
    sae_path: str
    outputs_dir: str
    np_sae_id_suffix: str | None = None
    np_set_name: str | None = None
    from_local_sae: bool = False
    sparsity_threshold: int = -6
    huggingface_dataset_path: str = ""
    n_prompts_total: int = 24576
    n_tokens_in_prompt: int = 128
    n_prompts_in_forward_pass: int = 32
    n_features_at_a_time: int = 128
    quantile_feature_batch_size: int = 64
    start_batch: int = 0
    end_batch: int | None = None
    n_quantiles: int = 5
    top_acts_group_size: int = 20
    quantile_group_size: int = 5
    use_dfa: bool = False
    model_dtype: str = ""
    sae_dtype: str = ""
    model_id: str | None = None
    layer: int | None = None
    sae_device: str | None = None
    activation_store_device: str | None = None
    model_device: str | None = None
    model_n_devices: int | None = None
    use_wandb: bool = False
    shuffle_tokens: bool = True
    prefix_str: str | None = None
    suffix_str: str | None = None
    ignore_positions: Sequence[int] | None = None
    prepend_bos: bool | None = None
    ignore_high_activation_norm_multiple: float | None = None
    hf_model_path: str | None = None
    use_transcoder: bool = False
    use_skip_transcoder: bool = False
    use_clt: bool = False
    clt_layer_idx: int | None = None
    clt_dtype: str = ""
    clt_weights_filename: str = ""
    sae_converter_name: str | None = None

    model: Any = None
    processing: str | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
    layout: str = "batches"
    release: Any = None
    store: str | Path | None = None
    skip_dead: bool = False

    def check(self) -> None:
        """ValueError for what cannot be, before anything is loaded."""
        flags = [name for name in ("use_transcoder", "use_skip_transcoder", "use_clt") if getattr(self, name)]
        if len(flags) > 1:
            raise ValueError(f"{' and '.join(flags)} contradict each other; none of them need be said")
        if self.use_dfa:
            raise ValueError("use_dfa=True: attributions to the heads that an attention SAE reads are not made here")
        for name in ("model_dtype", "sae_dtype", "clt_dtype"):
            if getattr(self, name):
                parse_dtype(getattr(self, name))
        for name, least in LEAST.items():
            if type(getattr(self, name)) is not int or getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)!r}; expected a whole number of at least {least}")

    def without_effect(self) -> list[str]:
        """Settings that were given and change nothing, in words."""
        return [
            f"{name}={getattr(self, name)!r} changes nothing: {why}"
            for name, (default, why) in WITHOUT_EFFECT.items()
            if getattr(self, name) not in (default, 1 if name == "model_n_devices" else default)
        ]
