"""The places in a model that a dictionary reads and writes."""

import re
from dataclasses import dataclass
from typing import Literal

from crossvis_tl.processing import Processing

Kind = Literal["sae", "crosscoder", "clt", "plt"]  # plt: a transcoder for each layer, or one alone


@dataclass(frozen=True)
class Site:
    """A place in a model that a dictionary reads or writes.

    `model`: which of the models given at gathering. `hook`: TransformerLens name, None where the files do not say.
    `hf_path`: HuggingFace's module and side ("model.layers.3.mlp.input"), where the files say that; it is what the
    dictionary was trained on, so it counts before `hook`. `width`: size of the last axis, 0 where it is not known.
    `processing`: the weights processing of the model the dictionary was trained on ("none": HuggingFace's own
    activations; "tl_default": TransformerLens' default folding and centring; "as given": whatever model is handed in),
    None where unknown. `scale`: the factor on the raw activations that gave the producer's training units; it is
    already folded into the weights, and kept because relative norms are comparable only in those units.
    """

    model: int
    hook: str | None
    width: int
    processing: Processing | None = None
    scale: float = 1.0
    hf_path: str | None = None

    @property
    def place(self) -> str | None:
        """The name to read the site by, None where the files do not say."""
        return self.hf_path or self.hook

    @property
    def layer(self) -> int | None:
        """The layer in the site's name, None where it names none."""
        return layer_in(self.place or "")


def layer_in(name: str) -> int | None:
    """The layer that a module's or hook's name speaks of ("h.3.mlp" -> 3), None where it names none."""
    match = re.search(r"(?:^|\.)(\d+)(?:\.|$)", name)
    return int(match[1]) if match else None
