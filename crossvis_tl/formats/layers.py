"""What the readers of layered dictionaries (cross-layer transcoders and sets of transcoders) share."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from crossvis_tl.dictionary import Site
from crossvis_tl.formats.files import check_hook
from crossvis_tl.processing import Processing

HOOK_FACTS = {"feature_input_hook", "feature_output_hook"}


def check_shapes(path: Path, state: Mapping[str, Tensor | None], expected: Mapping[str, tuple[int, ...]]) -> None:
    """ValueError naming the first tensor that is of another shape than expected."""
    for name, shape in expected.items():
        tensor = state.get(name)
        if tensor is not None and tuple(tensor.shape) != shape:
            raise ValueError(f"{path}: {name} is {tuple(tensor.shape)}; expected {shape}")


def need(path: Path, state: Mapping[str, Tensor], names: Sequence[str]) -> None:
    """ValueError naming the first tensor that is not there."""
    for name in names:
        if name not in state:
            raise ValueError(f"{path} lacks the tensor {name}")


def layer_sites(
    cfg: Mapping[str, Any], facts: Mapping[str, Any], role: str, layers: Sequence[int], width: int,
    processing: Processing | None,
) -> tuple[Site, ...]:  # fmt: skip
    """A site in each layer. `role`: "input" or "output"; the hook, the part after "blocks.L.", is the fact
    `feature_{role}_hook` or what the config says under that name."""
    name = f"feature_{role}_hook"
    hook = check_hook(facts.get(name, cfg.get(name)), name)
    hooks = [f"blocks.{layer}.{hook}" if hook else None for layer in layers]
    return tuple(Site(model=0, hook=one, width=width, processing=processing) for one in hooks)
