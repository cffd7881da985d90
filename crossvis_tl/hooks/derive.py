"""Which TransformerLens hook holds which HuggingFace tensor, read off TransformerLens' own adapters.

TransformerBridge wraps HuggingFace's modules one by one; the hooks of a wrapper are the module's input and output. So
the table follows from wrapping a model without weights. By hand are only: `hook_mlp_in`, the attention pattern, the
activation's input where gate and up projection are one matrix, and how fused projections stand side by side.
"""

import logging
import re
import tempfile
import warnings
from collections import defaultdict
from collections.abc import Hashable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch._subclasses.fake_tensor import FakeTensorMode

from crossvis_tl.errors import first_line
from crossvis_tl.hf_configs import placeholder_tokenizer, write_config
from crossvis_tl.hooks.record import Transform
from crossvis_tl.hooks.skeleton import Point, Skeleton, empty_model, skeleton

if TYPE_CHECKING:
    from transformers import PretrainedConfig

log = logging.getLogger(__name__)

BLOCK = re.compile(r"blocks\.(\d+)\.(.+)")
NORM_OUT = re.compile(r"((?:blocks\.\d+\.)?(?:ln\w+))\.hook_out")
# Wrappers whose hooks hold no HuggingFace tensor: the bridge runs q, k and v instead of the fused projection, and
# orders heads and positions its own way in the norms of queries and keys.
NOT_RUN = re.compile(r"\.attn\.(qkv|q_norm|k_norm)\.")
BRIDGE_ERRORS = (ValueError, KeyError, AttributeError, RuntimeError, TypeError, NotImplementedError)
# Projections that HuggingFace computes in one go, by model class: what stands in them, and how.
FUSED: dict[str, dict[str, tuple[Transform, tuple[str, ...]]]] = {
    "GPT2LMHeadModel": {"attn.c_attn": ("concatenate", ("attn.hook_q", "attn.hook_k", "attn.hook_v"))},
    "GPTNeoXForCausalLM": {
        "attention.query_key_value": ("interleave heads", ("attn.hook_q", "attn.hook_k", "attn.hook_v"))
    },
    "Phi3ForCausalLM": {
        "self_attn.qkv_proj": ("concatenate", ("attn.hook_q", "attn.hook_k", "attn.hook_v")),
        "mlp.gate_up_proj": ("concatenate", ("mlp.hook_pre", "mlp.hook_pre_linear")),
    },
}
JOINT_ACTIVATIONS = {"Phi3ForCausalLM": "mlp.activation_fn"}


@dataclass
class Names:
    """TransformerLens' names for one HuggingFace model's tensors.

    `points`: by hook name, the HuggingFace tensor that the hook holds. `by_tensor`: the names of one tensor. `heads`:
    names whose last two axes are (heads, d_head). `norms`: by path ("blocks.3.ln2"), the norm's output point. `fused`:
    by HuggingFace path, the transform and the hooks. `gated`, `parallel`: as the architecture is.
    """

    skeleton: Skeleton
    class_name: str
    points: dict[str, Point] = field(default_factory=dict)
    by_tensor: dict[Hashable, list[str]] = field(default_factory=lambda: defaultdict(list))
    heads: set[str] = field(default_factory=set)
    norms: dict[str, Point] = field(default_factory=dict)
    fused: dict[str, tuple[Transform, tuple[str, ...]]] = field(default_factory=dict)
    unmapped: set[str] = field(default_factory=set)
    gated: bool = False
    parallel: bool = False

    def add(self, name: str, point: Point) -> None:
        if name not in self.points:
            self.points[name] = point
            self.by_tensor[point.tensor].append(name)

    def has_norm(self, layer: int, norm: str) -> bool:
        return f"blocks.{layer}.{norm}" in self.norms


def derive(config: "PretrainedConfig") -> Names:
    """ValueError when HuggingFace or TransformerLens has no language model for this config."""
    bones = skeleton(config)
    # not the meta device: the bridge splits fused projections, and refuses to when it can see that there is nothing in
    # them; fake tensors pass for ones on the CPU
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    model = empty_model(config, fake)
    paths = {id(module): path for path, module in model.named_modules()}
    class_name = type(model).__name__
    with fake:
        bridge = _bridge(model, class_name)
    names = Names(bones, class_name)
    cfg = bridge.cfg
    names.gated = bool(getattr(cfg, "gated_mlp", False))
    names.parallel = bool(getattr(cfg, "parallel_attn_mlp", False))
    owners = dict(_owners(bridge, paths, bones))
    for name, hook in bridge.hook_dict.items():
        point = owners.get(id(hook))
        if point is None or NOT_RUN.search(name):
            names.unmapped.add(name)
            continue
        names.add(name, point)
        if type(getattr(hook, "hook_conversion", None)).__name__ == "ReshapeForAttentionHeads":
            names.heads.add(name)
    for name, point in list(names.points.items()):
        if match := NORM_OUT.fullmatch(name):
            names.norms[match[1]] = point
    for layer in range(bones.n_layers):
        _by_hand(names, layer)
    return names


def _bridge(model: Any, class_name: str) -> Any:
    from transformer_lens.model_bridge import TransformerBridge

    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(action="ignore"):
        model.config.architectures = write_config(model.config, class_name, Path(folder))["architectures"]
        try:
            return TransformerBridge.boot_transformers(
                folder, hf_model=model, tokenizer=placeholder_tokenizer(), device="cpu"
            )
        except BRIDGE_ERRORS as error:
            raise ValueError(
                f"TransformerLens knows no hooks for {class_name}: {first_line(error)}. Please report the architecture"
            ) from error


def _owners(bridge: Any, paths: dict[int, str], bones: Skeleton) -> Iterator[tuple[int, Point]]:
    """(identity of a HookPoint, the HuggingFace tensor it holds) for every wrapper of a module in the tree."""
    for _, wrapper in bridge.named_modules():
        original = getattr(wrapper, "original_component", None)
        path = paths.get(id(original))
        # a wrapper without a name of its own stands for a module that HuggingFace does not have (OPT's MLP)
        if original is None or path is None or wrapper.name is None or "rotary" in path:
            continue
        for side, hook in (("input", wrapper.hook_in), ("output", wrapper.hook_out)):
            known = bones.points.get((path, side))  # type: ignore[arg-type]
            if known is None and bones.complete:
                continue  # the module never runs, or reads no floating-point numbers
            yield id(hook), known or Point(path, side, None, None, (path, side))  # type: ignore[arg-type]


def _by_hand(names: Names, layer: int) -> None:
    block = f"blocks.{layer}"
    entry = names.points.get(f"{block}.ln2.hook_in") or names.points.get(f"{block}.hook_in")
    if entry is not None:
        names.add(f"{block}.hook_mlp_in", entry)
    attention = names.points.get(f"{block}.attn.hook_out")
    if attention is not None and (pattern := names.skeleton.tuples.get((attention.path, 1))):
        names.add(f"{block}.attn.hook_pattern", replace(pattern, width=None))  # as wide as the sequence is long
    hf_block = f"{names.skeleton.layers}.{layer}"
    activation = JOINT_ACTIVATIONS.get(names.class_name)
    if activation and (point := names.skeleton.points.get((f"{hf_block}.{activation}", "input"))):
        names.add(f"{block}.mlp.hook_pre", point)
    for path, (transform, parts) in FUSED.get(names.class_name, {}).items():
        names.fused[f"{hf_block}.{path}"] = (transform, tuple(f"{block}.{part}" for part in parts))
