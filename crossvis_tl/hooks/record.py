"""One row of the hook table."""

from dataclasses import dataclass, field, replace
from typing import Any, Literal

from crossvis_tl.hooks.skeleton import Side

Status = Literal["exact", "transformed", "absent"]
Transform = Literal["none", "flatten heads", "affine", "rescale", "concatenate", "interleave heads"]

TRANSFORM_WORDS: dict[Transform, str] = {
    "none": "",
    "flatten heads": "the last two axes (heads, d_head) side by side",
    "affine": "times the norm's gain, plus its bias",
    "rescale": "hook_normalized * hook_scale, what went into the norm",
    "concatenate": "side by side on the last axis",
    "interleave heads": "side by side within each head, the heads side by side",
}


@dataclass(frozen=True)
class Hook:
    """A tensor under its TransformerLens and its HuggingFace name.

    `name`: TransformerLens hook. `hf_path`, `side`, `index`: the HuggingFace module, its "input" or "output", and which
    element where the output is a tuple. `transform`: what makes the hook's tensor HuggingFace's. `width`: size of
    HuggingFace's last axis. `status`: "exact", "transformed" (see `transform`), or "absent" (one of the two sides does
    not exist; `note` says why). `layer`: None outside the blocks. `reads`: the hooks that the transform starts from.
    `flag`: the setting without which the hook never fires.
    """

    name: str | None
    hf_path: str | None
    side: Side | None
    index: int | None
    transform: Transform
    width: int | None
    status: Status
    note: str = ""
    layer: int | None = None
    reads: tuple[str, ...] = field(default=(), repr=False)
    flag: str | None = field(default=None, repr=False)

    @property
    def hf_name(self) -> str | None:
        """-> "transformer.h.8.attn.output[0]"."""
        if self.hf_path is None:
            return None
        return f"{self.hf_path}.{self.side}" + ("" if self.index is None else f"[{self.index}]")

    def with_note(self, *notes: str) -> "Hook":
        texts = [text for text in (self.note, *notes) if text]
        return replace(self, note="; ".join(dict.fromkeys(texts)))

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        names = ("name", "hf_path", "side", "index", "transform", "width", "status", "note", "layer")
        return {name: getattr(self, name) for name in names}
