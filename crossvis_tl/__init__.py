"""Feature dashboards for crosscoders and cross-layer transcoders, on TransformerLens and sae_vis.

Heavy libraries are imported when a name is first used, so that `crossvis --help` answers at once.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from crossvis_tl.adapter import attach
    from crossvis_tl.calibration import calibrate, estimate_input_scale
    from crossvis_tl.dictionary import Dictionary
    from crossvis_tl.errors import CrossvisWarning, ModelMismatchError
    from crossvis_tl.export.circuit_tracer import export_circuit_tracer
    from crossvis_tl.export.delphi import export_delphi
    from crossvis_tl.export.neuronpedia import export_neuronpedia
    from crossvis_tl.export.neuronpedia_rows import NeuronpediaRelease
    from crossvis_tl.export.runner import NeuronpediaRunner
    from crossvis_tl.export.runner_config import NeuronpediaRunnerConfig
    from crossvis_tl.feature_acts import FeatureActs
    from crossvis_tl.feature_store import gather, merge
    from crossvis_tl.formats import load_dictionary
    from crossvis_tl.hooks import Hook, discover_hook_point_for_layer, find_hook, hook_table
    from crossvis_tl.inspection import inspect
    from crossvis_tl.labels import load_labels
    from crossvis_tl.layouts import (
        Column,
        DecoderCosineConfig,
        DecoderNormsConfig,
        FeatureMapConfig,
        SaeVisConfig,
        SaeVisLayoutConfig,
        SequencesConfig,
        SiteLogitsConfig,
        SourceAttributionConfig,
    )
    from crossvis_tl.models import load_model
    from crossvis_tl.store import open_store
    from crossvis_tl.tokens import TokenSet, load_token_set, load_tokens
    from crossvis_tl.vis_data import SaeVisData

__version__ = "0.1.0"
__all__ = [
    "Column",
    "CrossvisWarning",
    "DecoderCosineConfig",
    "DecoderNormsConfig",
    "Dictionary",
    "FeatureActs",
    "FeatureMapConfig",
    "Hook",
    "ModelMismatchError",
    "NeuronpediaRelease",
    "NeuronpediaRunner",
    "NeuronpediaRunnerConfig",
    "SaeVisConfig",
    "SaeVisData",
    "SaeVisLayoutConfig",
    "SequencesConfig",
    "SiteLogitsConfig",
    "SourceAttributionConfig",
    "TokenSet",
    "attach",
    "calibrate",
    "discover_hook_point_for_layer",
    "estimate_input_scale",
    "export_circuit_tracer",
    "export_delphi",
    "export_neuronpedia",
    "find_hook",
    "gather",
    "hook_table",
    "inspect",
    "load_dictionary",
    "load_labels",
    "load_model",
    "load_token_set",
    "load_tokens",
    "merge",
    "open_store",
]

_HOMES = {
    "Column": "layouts",
    "CrossvisWarning": "errors",
    "DecoderCosineConfig": "layouts",
    "DecoderNormsConfig": "layouts",
    "Dictionary": "dictionary",
    "FeatureActs": "feature_acts",
    "FeatureMapConfig": "layouts",
    "Hook": "hooks",
    "ModelMismatchError": "errors",
    "NeuronpediaRelease": "export.neuronpedia_rows",
    "NeuronpediaRunner": "export.runner",
    "NeuronpediaRunnerConfig": "export.runner_config",
    "SaeVisConfig": "layouts",
    "SaeVisData": "vis_data",
    "SaeVisLayoutConfig": "layouts",
    "SequencesConfig": "layouts",
    "SiteLogitsConfig": "layouts",
    "SourceAttributionConfig": "layouts",
    "TokenSet": "tokens",
    "attach": "adapter",
    "calibrate": "calibration",
    "discover_hook_point_for_layer": "hooks",
    "estimate_input_scale": "calibration",
    "export_circuit_tracer": "export.circuit_tracer",
    "export_delphi": "export.delphi",
    "export_neuronpedia": "export.neuronpedia",
    "find_hook": "hooks",
    "gather": "feature_store",
    "hook_table": "hooks",
    "inspect": "inspection",
    "load_dictionary": "formats",
    "load_labels": "labels",
    "load_model": "models",
    "load_token_set": "tokens",
    "load_tokens": "tokens",
    "merge": "feature_store",
    "open_store": "store",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
