"""The names of activations in one place: HuggingFace module paths, TransformerLens hooks, and what others say."""

from crossvis_tl.hooks.find import discover_hook_point_for_layer, find_hook, hook_table
from crossvis_tl.hooks.record import Hook

__all__ = ["Hook", "discover_hook_point_for_layer", "find_hook", "hook_table"]
