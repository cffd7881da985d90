"""The many ways people write where an activation lives, made one: a TransformerLens hook, or a HuggingFace module and
its side.

Sources of the spellings: nnterp's accessors, nnsight's `.output[0]`, OpenAI's transformer-debugger, SAEDashboard's
templates, sparsify's hookpoints, and the sae_vis crosscoder adapter's hook types.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from crossvis_tl.hooks.skeleton import Side

# After "blocks.L.", by the name that stands for it in every architecture.
FRIENDLY = {
    "residual": "hook_resid_post",
    "residual_stream": "hook_resid_post",
    "resid_pre": "hook_resid_pre",
    "resid_mid": "hook_resid_mid",
    "resid_post": "hook_resid_post",
    "layer_input": "hook_resid_pre",
    "layer_output": "hook_resid_post",
    "attention_input": "attn.hook_in",
    "attention_output": "attn.hook_out",
    "attn_input": "attn.hook_in",
    "attn_output": "attn.hook_out",
    "mlp_input": "mlp.hook_in",
    "mlp_output": "mlp.hook_out",
    "attn_out": "hook_attn_out",
    "mlp_out": "hook_mlp_out",
    "mlp_hidden": "mlp.hook_post",
    "mlp_post": "mlp.hook_post",
    "attention_pattern": "attn.hook_pattern",
    # nnterp
    "layers_input": "hook_resid_pre",
    "layers_output": "hook_resid_post",
    "attentions_input": "attn.hook_in",
    "attentions_output": "attn.hook_out",
    "mlps_input": "mlp.hook_in",
    "mlps_output": "mlp.hook_out",
    # OpenAI's transformer-debugger
    "mlp_post_act": "mlp.hook_post",
    "mlp_pre_act": "mlp.hook_pre",
    "resid_delta_mlp": "hook_mlp_out",
    "resid_delta_attn": "hook_attn_out",
    "resid_post_attn": "hook_resid_mid",
    "resid_post_mlp": "hook_resid_post",
}
# The same where the architecture has no module for the whole: what its parts read and give.
PARTS = {
    "attn.hook_in": ("ln1.hook_out",),
    "mlp.hook_in": ("mlp.in.hook_in", "ln2.hook_out", "ln1.hook_out"),
    "attn.hook_out": ("hook_attn_out",),
    "mlp.hook_out": ("mlp.out.hook_out", "hook_mlp_out"),
}
SIDES: dict[str, Side] = {
    "input": "input", "inputs": "input", "in": "input", "output": "output", "outputs": "output", "out": "output",
}  # fmt: skip
INDEXED = re.compile(r"\[\s*['\"]?(\w+)['\"]?\s*\]")
SIDED = re.compile(r"(?P<path>.*?)[.\s:/]+(?P<side>inputs?|outputs?)(?P<index>(?:\.\d+)*)$")
PLACEHOLDER = re.compile(r"\{[^{}]*\}")


@dataclass(frozen=True)
class Spelled:
    """What was written, tidied: `text` with dots only; `path`, `side`, `index` where it names a module's side."""

    text: str
    path: str | None = None
    side: Side | None = None
    index: int | None = None


def tidy(name: str, layer: int | None) -> Spelled:
    """ValueError for an empty name, or a template without a layer to put in."""
    text = name.strip().removesuffix("()").strip()
    if not text:
        raise ValueError("the hook's name is empty; give a TransformerLens name or a HuggingFace path and its side")
    if PLACEHOLDER.search(text):
        if layer is None:
            raise ValueError(f"{name!r} is a template; which layer? Pass layer=...")
        text = PLACEHOLDER.sub(str(layer), text)
    text = INDEXED.sub(r".\1", text).strip(".")
    match = SIDED.fullmatch(text)
    if match is None:
        return Spelled(text)
    # nnsight's `.inputs[0][0]` and `.output[0]`: the last number says which element
    numbers = [int(part) for part in match["index"].split(".") if part]
    side = SIDES[match["side"]]
    index = numbers[-1] if numbers and side == "output" else None
    return Spelled(text, match["path"].strip("."), side, index)


def friendly(text: str) -> tuple[str, int | None] | None:
    """ "mlps_output.13" or "mlp_output" -> what follows "blocks.L.", and the layer where it is written; None for
    anything else."""
    match = re.fullmatch(r"(?:(\d+)[./])?([A-Za-z_]+)(?:\.(\d+))?(?:\.0)?", text)
    if match is None or match[2] not in FRIENDLY:
        return None
    written = match[1] or match[3]
    return FRIENDLY[match[2]], int(written) if written else None


def module_paths(path: str, known: Sequence[str], layers: str, layer: int | None) -> list[str]:
    """The modules that a path may mean: itself, without a wrapper's first name ("llm.transformer.h.8"), with the front
    left out ("h.8.mlp"), or inside a layer ("mlp.down_proj"). Best ways first; several only where it is ambiguous."""
    there = set(known)
    path = path.replace("language_model.model.", "model.").replace("language_model.", "")  # of a model with images
    shorter = path.split(".", 1)[1] if "." in path else path
    inside = f"{layers}.{layer}.{path}" if layer is not None else ""
    for candidate in (path, shorter, inside):
        if candidate and candidate in there:
            return [candidate]
    ends = [one for one in known if one.endswith(f".{path}")]
    if layer is not None:
        ends = [one for one in ends if one.startswith(f"{layers}.{layer}.") or one == f"{layers}.{layer}"] or ends
    return ends
