"""One measurement: loads its inputs, runs the one call, writes one line of JSON.

    python -m benchmarks.run_one ours --scale small --inputs DIR --rows 16 --features 8 --effect direct

Only the call is measured, not imports, loading or preparing.
"""

import inspect
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from sae_vis import SaeVisConfig
from sae_vis.data_config_classes import (
    ActsHistogramConfig,
    Column,
    FeatureTablesConfig,
    LogitsHistogramConfig,
    LogitsTableConfig,
    SaeVisLayoutConfig,
)

from benchmarks.floors import floor
from benchmarks.inputs import load_autoencoder, load_model, load_tokens
from benchmarks.measure import measured
from benchmarks.record import parse_args, write_record
from benchmarks.shapes import SCALES, Scale

Call = Callable[[], Any]


def ours(scale: Scale, inputs: Path, rows: int, features: int, effect: str) -> tuple[Call, list[str]]:
    """Our dashboards of an autoencoder. Nothing is masked, as stock masks nothing."""
    model, encoder = load_model(inputs / "model"), load_autoencoder(inputs)
    cfg = SaeVisConfig(hook_point=scale.hook, features=range(features))
    return _ours(encoder, model, load_tokens(inputs, rows), cfg, effect)


def ours_pair(scale: Scale, inputs: Path, rows: int, features: int, effect: str) -> tuple[Call, list[str]]:
    """Our dashboards of a crosscoder."""
    import crossvis_tl

    models = [load_model(inputs / f"model_{index}") for index in (0, 1)]
    crosscoder = crossvis_tl.load_dictionary(inputs / "crosscoder")
    return _ours(crosscoder, models, load_tokens(inputs, rows), SaeVisConfig(features=range(features)), effect)


def _ours(encoder: Any, model: Any, tokens: torch.Tensor, cfg: SaeVisConfig, effect: str) -> tuple[Call, list[str]]:
    from crossvis_tl import SaeVisData

    options, notes = {"masking": "none"}, []
    if "effect" in inspect.signature(SaeVisData.create).parameters:
        options["effect"] = effect
    elif effect == "none":
        cfg.feature_centric_layout = _layout_without_sequences()
        notes.append("ours has no effect=: a layout without sequences stood in for effect='none'")
    return lambda: SaeVisData.create(encoder=encoder, model=model, tokens=tokens, cfg=cfg, **options), notes  # type: ignore[arg-type]


def _layout_without_sequences() -> SaeVisLayoutConfig:
    middle = Column(ActsHistogramConfig(), LogitsTableConfig(), LogitsHistogramConfig())
    return SaeVisLayoutConfig([Column(FeatureTablesConfig()), middle], height=750)


def ours_np(scale: Scale, inputs: Path, rows: int, features: int, _effect: str) -> tuple[Call, list[str]]:
    """Gathered, and written as batch files for Neuronpedia with SAEDashboard's choice of examples."""
    import crossvis_tl

    model, encoder, tokens = load_model(inputs / "model"), load_autoencoder(inputs), load_tokens(inputs, rows)
    folder = Path(tempfile.mkdtemp())

    def call() -> None:
        acts = crossvis_tl.gather(encoder, model, tokens, range(features), hook_point=scale.hook, masking="none")
        crossvis_tl.export_neuronpedia(
            acts, folder, dictionary=encoder, model=model, model_id="gpt2", source_set="set", per_document=None,
            distinct=False,
        )  # fmt: skip

    return call, []


def stock(scale: Scale, inputs: Path, rows: int, features: int, _effect: str) -> tuple[Call, list[str]]:
    """sae_vis' own call, with its defaults."""
    import sae_vis
    import sae_vis.data_fetching_fns  # which `create` imports when it is called

    model, encoder = load_model(inputs / "model"), load_autoencoder(inputs)
    tokens = load_tokens(inputs, rows)
    cfg = SaeVisConfig(hook_point=scale.hook, features=range(features))
    return lambda: sae_vis.SaeVisData.create(encoder=encoder, model=model, tokens=tokens, cfg=cfg), []


def floor_single(scale: Scale, inputs: Path, rows: int, *, to_hook: bool) -> tuple[Call, list[str]]:
    model, encoder, tokens = load_model(inputs / "model"), load_autoencoder(inputs), load_tokens(inputs, rows)
    bias = encoder.b_enc - encoder.b_dec @ encoder.W_enc
    last = scale.layer if to_hook else None
    return lambda: floor([model], [scale.hook], tokens, [encoder.W_enc], bias, last_layer=last), []


def floor_pair(scale: Scale, inputs: Path, rows: int) -> tuple[Call, list[str]]:
    models = [load_model(inputs / f"model_{index}") for index in (0, 1)]
    weights = torch.load(inputs / "crosscoder" / "cc_weights.pt", weights_only=True)
    tokens = load_tokens(inputs, rows)
    return lambda: floor(models, scale.pair_hooks, tokens, list(weights["W_enc"]), weights["b_enc"]), []


def prepared(what: str, scale: Scale, inputs: Path, rows: int, features: int, effect: str) -> tuple[Call, list[str]]:
    """-> the call to measure, and what must be said of it."""
    if what.startswith("floor"):
        if what == "floor_pair":
            return floor_pair(scale, inputs, rows)
        return floor_single(scale, inputs, rows, to_hook=what == "floor_hook")
    call = {"ours": ours, "ours_pair": ours_pair, "ours_np": ours_np, "stock": stock}[what]
    return call(scale, inputs, rows, features, effect)


def main() -> None:
    args = parse_args(__doc__, ("ours", "ours_np", "ours_pair", "stock", "floor", "floor_hook", "floor_pair"))
    torch.set_num_threads(1)
    call, notes = prepared(args.what, SCALES[args.scale], args.inputs, args.rows, args.features, args.effect)
    result, cost = measured(call)
    write_record(args, cost, result, notes, ("torch", "transformer-lens", "sae-vis", "crossvis-tl"))


if __name__ == "__main__":
    main()
