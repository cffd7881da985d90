"""A HuggingFace model without its weights: which modules it has, and which of their inputs and outputs are one tensor.

The model is built on torch's meta device, where tensors have shapes and no numbers, and run once. So what a name in
its tree stands for is read off the model's own code: that `mlp.down_proj`'s output is the MLP's output, that an
attention module returns a tuple, that the input of the second norm is the residual stream in between.
"""

import logging
from collections.abc import Hashable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from crossvis_tl.errors import first_line

if TYPE_CHECKING:
    from transformers import PretrainedConfig

log = logging.getLogger(__name__)

Side = Literal["input", "output"]
POSITIONS = 5  # unlike any width, so that a shape says which axis is which
TRACE_ERRORS = (RuntimeError, NotImplementedError, ValueError, TypeError, AttributeError, KeyError, IndexError)


@dataclass(frozen=True)
class Point:
    """The input or an output of a module. `index`: which element, where the output is a tuple. `width`: size of the
    last axis. `tensor`: equal for points that are one tensor (or the same numbers in another shape)."""

    path: str
    side: Side
    index: int | None
    width: int | None
    tensor: Hashable

    @property
    def spelled(self) -> str:
        return f"{self.path}.{self.side}" + ("" if self.index is None else f"[{self.index}]")


@dataclass(frozen=True)
class Skeleton:
    """`points`: by (path, side), the first element where an output is a tuple; `tuples`: the other elements, by (path,
    index). `paths`: every module's. `layers`: path of the list of blocks ("model.layers"). `complete`: whether the run
    came to its end; where it did not, widths and identities are known only up to there."""

    points: dict[tuple[str, Side], Point]
    tuples: dict[tuple[str, int], Point]
    layers: str
    n_layers: int
    complete: bool
    paths: tuple[str, ...]


def empty_model(config: "PretrainedConfig", where: AbstractContextManager) -> nn.Module:
    """The model without numbers in its weights; `where` makes tensors of that kind.

    ValueError when HuggingFace has no language model for this config.
    """
    from transformers import AutoModelForCausalLM

    try:
        with where:
            return AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    except (ValueError, TypeError, AttributeError, KeyError, ImportError, RuntimeError) as error:
        raise ValueError(f"HuggingFace has no language model for this config: {first_line(error)}") from error


def skeleton(config: "PretrainedConfig") -> Skeleton:
    """ValueError when HuggingFace has no language model for this config."""
    model = empty_model(config, torch.device("meta"))
    tracer = _Tracer()
    handles = [
        module.register_forward_hook(tracer.hook(path), with_kwargs=True) for path, module in model.named_modules()
    ]
    tokens = torch.zeros(1, POSITIONS, dtype=torch.long, device="meta")
    # a mask that is made already: making one looks at numbers, which there are none of
    mask = torch.zeros(1, 1, POSITIONS, POSITIONS, device="meta")
    try:
        with torch.no_grad():
            model(tokens, attention_mask=mask, position_ids=tokens, use_cache=False)
        complete = True
    except TRACE_ERRORS as error:
        log.info("%s cannot be traced without weights (%s)", type(model).__name__, first_line(error))
        complete = False
    finally:
        for handle in handles:
            handle.remove()
    layers, n_layers = _layers(model)
    paths = tuple(path for path, _ in model.named_modules())
    return Skeleton(tracer.points, tracer.tuples, layers, n_layers, complete, paths)


class _Tracer:
    """Notes what every module reads and gives, keeping the tensors so that no two share an identity."""

    def __init__(self) -> None:
        self.points: dict[tuple[str, Side], Point] = {}
        self.tuples: dict[tuple[str, int], Point] = {}
        self.kept: list[Tensor] = []

    def hook(self, path: str) -> Any:
        def note(_module: nn.Module, args: tuple, kwargs: dict[str, Any], output: Any) -> None:
            read = args[0] if args else kwargs.get("hidden_states")
            if isinstance(read, Tensor) and read.is_floating_point():
                self.points[path, "input"] = self._point(path, "input", None, read)
            if isinstance(output, Tensor):
                self.points[path, "output"] = self._point(path, "output", None, output)
            elif isinstance(output, tuple) and output and isinstance(output[0], Tensor):
                self.points[path, "output"] = self._point(path, "output", 0, output[0])
                for index, element in enumerate(output):
                    if index and isinstance(element, Tensor):
                        self.tuples[path, index] = self._point(path, "output", index, element)

        return note

    def _point(self, path: str, side: Side, index: int | None, tensor: Tensor) -> Point:
        self.kept.append(tensor)
        strides = tuple(step for size, step in zip(tensor.shape, tensor.stride(), strict=True) if size > 1)
        # views in another shape share their storage; a slice of it has another offset or another number of elements
        key = (tensor.untyped_storage()._cdata, tensor.storage_offset(), tensor.shape[-1], tensor.numel(), strides)
        return Point(path, side, index, tensor.shape[-1], key)


def _layers(model: nn.Module) -> tuple[str, int]:
    """Path and length of the longest list of modules: the blocks."""
    lists = {path: len(module) for path, module in model.named_modules() if isinstance(module, nn.ModuleList)}
    if not lists:
        raise ValueError(f"{type(model).__name__} has no list of layers")
    config: Any = model.config
    n_layers = getattr(config.get_text_config(), "num_hidden_layers", None)
    fitting = [path for path, length in lists.items() if length == n_layers]
    path = min(fitting, key=lambda p: p.count(".")) if fitting else max(lists, key=lambda p: lists[p])
    return path, lists[path]
