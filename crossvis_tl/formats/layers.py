"""What the readers of layered dictionaries (cross-layer transcoders and sets of transcoders) share."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from crossvis_tl.dictionary import Site
from crossvis_tl.formats.files import check_hook, check_processing
from crossvis_tl.processing import Processing

HOOK_FACTS = {"feature_input_hook", "feature_output_hook"}


def check_shapes(path: Path, state: Mapping[str, Tensor | None], expected: Mapping[str, tuple[int, ...]]) -> None:
    """ValueError naming the first tensor that is of another shape than expected."""
    for name, shape in expected.items():
        tensor = state.get(name)
        if tensor is not None and tuple(tensor.shape) != shape:
            raise ValueError(f"{path}: {name} is {tuple(tensor.shape)}; expected {shape}")


def all_or_none(path: Path, states: Sequence[Mapping[str, Tensor]], name: str) -> None:
    """ValueError when some of the layers hold a tensor that others lack."""
    lacking = [i for i, state in enumerate(states) if name not in state]
    if lacking and len(lacking) < len(states):
        raise ValueError(
            f"{path}: {name} is missing in part {lacking[0]} of {len(states)} and there in others; the files are "
            "damaged or of different dictionaries"
        )


def need(path: Path, state: Mapping[str, Tensor], names: Sequence[str]) -> None:
    """ValueError naming the first tensor that is not there."""
    for name in names:
        if name not in state:
            raise ValueError(f"{path} lacks the tensor {name}")


def stored_sites(cfg: Mapping[str, Any], name: str, facts: Mapping[str, Any], width: int) -> tuple[Site, ...]:
    """Sites as `crossvis_tl.writers` puts them beside what other tools' configs say; none where there are none."""
    stored = cfg.get(name)
    if not isinstance(stored, list) or not all(isinstance(one, dict) and "hf_path" in one for one in stored):
        return ()
    sites = []
    for one in stored:
        hook, hf_path = (check_hook(one.get(key), f"{name}: {key}") for key in ("hook", "hf_path"))
        processing, model = facts.get("processing", one.get("processing")), one.get("model", 0)
        if processing is not None:
            check_processing(processing, f"{name}: processing")
        if not isinstance(model, int) or isinstance(model, bool) or not 0 <= model < len(stored):
            raise ValueError(f"{name}: model is {model!r}; expected the number of a model, from 0")
        sites.append(Site(model, hook, width, processing, hf_path=hf_path))
    return tuple(sites)


def layer_sites(
    cfg: Mapping[str, Any], facts: Mapping[str, Any], role: str, layers: Sequence[int], width: int,
    processing: Processing | None,
) -> tuple[Site, ...]:  # fmt: skip
    """A site in each layer. `role`: "input" or "output"; the hook, the part after "blocks.L.", is the fact
    `feature_{role}_hook` or what the config says under that name."""
    name = f"feature_{role}_hook"
    stored = stored_sites(cfg, {"input": "sources", "output": "targets"}[role], facts, width)
    if len(stored) == len(layers) and name not in facts:
        return stored
    hook = check_hook(facts.get(name, cfg.get(name)), name)
    hooks = [f"blocks.{layer}.{hook}" if hook else None for layer in layers]
    return tuple(Site(model=0, hook=one, width=width, processing=processing) for one in hooks)
