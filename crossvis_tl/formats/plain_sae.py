"""F14: plain sparse autoencoders of the first days: `W_enc [d, F]`, `W_dec [F, d]`, `b_enc [F]`, `b_dec [d]`, ReLU.

A bare state dict (NeelNanda/sparse_autoencoder's `25.pt`, sae_vis' demo), or `{"state_dict": ..., "cfg": an object of
the training code}` (jbloom/GPT2-Small-SAEs), whose pickle is opened only when it is trusted. These producers take b_dec
from the input; other layouts with these names do not, and nothing in the file tells, so that `apply_b_dec_to_input` is
a fact. Trained on TransformerLens' default-processed models.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from einops import einsum
from torch import Tensor

from crossvis_tl.activation_fns import Activation
from crossvis_tl.dictionary import Dictionary, Group, Site
from crossvis_tl.formats.activations import RELU_OR_TOP_K, check_activation, relu_or_top_k
from crossvis_tl.formats.files import check_floating, check_hook, check_sizes, near_content, read_state_dict
from crossvis_tl.formats.layers import check_shapes, need

FACTS = {"processing", "hook_point", "apply_b_dec_to_input", "activation", "k"}
NAME = "a plain SAE"
KEYS = ("W_enc", "W_dec", "b_enc", "b_dec")
RULE = "True, as the producers of this layout do; apply_b_dec_to_input=False says otherwise"


def find(path: Path) -> tuple[Path, Mapping[str, Any]] | None:
    """-> the weight file and what it holds when the path looks like this layout, else None."""
    file, content = near_content(path)
    inner = content.get("state_dict")
    state = inner if isinstance(inner, dict) else content
    weights = [state.get(name) for name in ("W_enc", "W_dec")]
    return (file, content) if all(isinstance(W, Tensor) and W.ndim == 2 for W in weights) else None


def load(_path: Path, found: tuple[Path, Mapping[str, Any]], facts: dict[str, Any]) -> Dictionary:
    """ValueError when tensors are missing, do not fit each other or contradict the config."""
    file, content = found
    state = read_state_dict(file)
    need(file, state, KEYS)
    check_floating(file, state, KEYS)
    width, features = state["W_enc"].shape
    check_shapes(file, state, {"W_dec": (features, width), "b_enc": (features,), "b_dec": (width,)})
    cfg = {name: _field(content.get("cfg"), name) for name in ("d_in", "hook_point", "model_name", "activation_fn")}
    check_sizes(f"{file}: its cfg", cfg, {"d_in": width}, unset=(None,))
    inward = facts.get("apply_b_dec_to_input", True)
    if not isinstance(inward, bool):
        raise ValueError(f"apply_b_dec_to_input={inward!r}: expected True or False, whether b_dec is taken from inputs")
    b_enc = state["b_enc"]
    if inward:  # relu((x - b_dec) W + b) == relu(x W + (b - b_dec W))
        folded = einsum(state["b_dec"].float(), state["W_enc"].float(), "d, d features -> features")
        b_enc = b_enc.float() - folded
    hook = check_hook(facts.get("hook_point", cfg["hook_point"]), "hook_point")
    site = Site(0, hook, width, facts.get("processing", "tl_default"))
    group = Group("", {0: state["W_enc"]}, b_enc, _activation(file, cfg, facts, features), {0: state["W_dec"]})
    said = "as told" if "apply_b_dec_to_input" in facts else RULE
    return Dictionary(
        kind="sae", sources=(site,), targets=(site,), groups=(group,), b_dec=(state["b_dec"],),
        format="plain SAE (F14)", model_names=(cfg["model_name"],),
        facts={"apply_b_dec_to_input": said if said == RULE else f"{inward}, {said}"},
    )  # fmt: skip


def _activation(file: Path, cfg: dict[str, Any], facts: dict[str, Any], features: int) -> Activation:
    said = facts.get("activation", cfg["activation_fn"] or "relu")
    return relu_or_top_k(file, check_activation(file, said, RELU_OR_TOP_K), facts.get("k"), features)


def _field(cfg: Any, name: str) -> Any:
    """Of a dict or of an object of the training code; None where it is not there or no plain value."""
    value = cfg.get(name) if isinstance(cfg, dict) else getattr(cfg, name, None)
    return value if isinstance(value, str | int) and not isinstance(value, bool) else None
