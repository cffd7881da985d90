"""What a dictionary is made of: the places it reads and writes, how inputs are normalised, and groups of features."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from jaxtyping import Float
from torch import Tensor

from crossvis_tl.activation_fns import Activation
from crossvis_tl.processing import Processing

Kind = Literal["sae", "crosscoder", "clt", "plt"]  # plt: a transcoder for each layer, or one alone


@dataclass(frozen=True)
class Site:
    """A place in a model that a dictionary reads or writes.

    `model`: which of the models given at gathering. `hook`: TransformerLens name, None where the files do not say.
    `hf_path`: HuggingFace's module and side ("model.layers.3.mlp.input"), where the files say that; it is what the
    dictionary was trained on, so it counts before `hook`. `width`: size of the last axis. `processing`: the weights
    processing of the model the dictionary was trained on ("none": HuggingFace's own activations; "tl_default":
    TransformerLens' default folding and centring; "as given": whatever model is handed in), None where unknown.
    `scale`: the factor on the raw activations that gave the producer's training units; it is already folded into the
    weights, and kept because relative norms are comparable only in those units.
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
        match = re.search(r"(?:^|\.)(\d+)(?:\.|$)", self.place or "")
        return int(match[1]) if match else None


@dataclass(frozen=True)
class TokenNorm:
    """What an input is normalised with at each token: (x - mean) / (std + eps), over the last axis."""

    eps: float
    unbiased: bool

    def statistics(self, x: Float[Tensor, "*batch d"]) -> tuple[Float[Tensor, "*batch 1"], Float[Tensor, "*batch 1"]]:
        """-> mean and deviation of each token."""
        return x.mean(-1, keepdim=True), x.std(-1, keepdim=True, correction=int(self.unbiased))

    def __call__(self, x: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch d"]:
        mean, std = self.statistics(x)
        return (x - mean) / (std + self.eps)


@dataclass(frozen=True)
class Group:
    """Features that share an encoder: pre-activation = sum over sources of x_s @ W_enc[s], plus b_enc.

    `W_enc`: by source index, [d_source, features]. `W_dec`: by target index, [features, d_target]. `code_norm`: the
    factor by which an activation is multiplied to be comparable between features, where the producer has one.
    `in_units`: whether that is done already (`Dictionary.comparable`).
    """

    name: str
    W_enc: Mapping[int, Float[Tensor, "d_source features"]]
    b_enc: Float[Tensor, " features"]
    activation: Activation
    W_dec: Mapping[int, Float[Tensor, "features d_target"]]
    code_norm: Float[Tensor, " features"] | None = None
    in_units: bool = False

    @property
    def n_features(self) -> int:
        return self.b_enc.shape[0]

    def comparable(self) -> "Group":
        """The same features with activations multiplied by `code_norm`, and decoders divided by it.

        c * f(pre) = f(c * pre) where f is elementwise and its thresholds are multiplied too: nothing is approximated.
        """
        if self.code_norm is None or self.in_units:
            return self
        c = self.code_norm
        return replace(
            self,
            W_enc={s: W.float() * c for s, W in self.W_enc.items()},
            b_enc=self.b_enc.float() * c,
            activation=self.activation.scaled(c),
            W_dec={t: W.float() / c.clamp_min(1e-12)[:, None] for t, W in self.W_dec.items()},
            in_units=True,
        )
