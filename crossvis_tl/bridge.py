"""Models that TransformerLens can run only through its bridge, as HookedTransformers that everything else accepts.

TransformerBridge runs HuggingFace's own modules under TransformerLens' hook names, for far more architectures than
HookedTransformer has; but sae_vis asks for a HookedTransformer by class. This is one by class and a bridge by conduct.
"""

from typing import TYPE_CHECKING, Any

from torch import nn
from transformer_lens import HookedTransformer

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

# What makes this object a module of its own; everything else is the bridge's.
OWN = {"bridge", "training", "forward", "eval", "train", "requires_grad_", "crossvis_name", "crossvis_config"}
OWN |= {name for name in vars(nn.Module) if not name.startswith("_")} - {"forward"}


class BridgedTransformer(HookedTransformer):
    """Stands for `bridge`: calling it, hooks, caches, generation, weights and tokenizer are the bridge's."""

    def __init__(self, bridge: "TransformerBridge"):
        nn.Module.__init__(self)
        self.bridge = bridge

    def __getattribute__(self, name: str) -> Any:
        if name.startswith("_") or name in OWN:
            return super().__getattribute__(name)
        bridge = self.__dict__["_modules"].get("bridge")
        if bridge is not None and hasattr(bridge, name):
            return getattr(bridge, name)
        return super().__getattribute__(name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.bridge(*args, **kwargs)

    def __repr__(self) -> str:
        return f"BridgedTransformer({self.bridge.cfg.model_name})"
