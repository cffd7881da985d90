"""Groups of features that share an encoder, and what their activations go through before they are decoded."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from einops import einsum
from jaxtyping import Bool, Float
from torch import Tensor

from crossvis_tl.activation_fns import Activation
from crossvis_tl.weights import At, Weight, blocks, pick, take


@dataclass(frozen=True)
class Post:
    """What is decoded in place of an activation a: (a + offset) * scale where a is not 0.

    `gate`: written only where a > gate. All are [features], None where they do nothing.
    """

    offset: Float[Tensor, " features"] | None = None
    scale: Float[Tensor, " features"] | None = None
    gate: Float[Tensor, " features"] | None = None

    def select(self, at: At) -> "Post":
        parts = (self.offset, self.scale, self.gate)
        return Post(*(None if part is None else pick(part, at) for part in parts))

    def passes(self, acts: Float[Tensor, "*batch features"]) -> Bool[Tensor, "*batch features"]:
        """Where anything is written."""
        return acts != 0 if self.gate is None else (acts != 0) & (acts > self.gate.to(acts))

    def __call__(self, acts: Float[Tensor, "*batch features"]) -> Float[Tensor, "*batch features"]:
        passes = self.passes(acts)
        out = acts if self.offset is None else acts + self.offset.to(acts)
        return (out if self.scale is None else out * self.scale.to(acts)) * passes

    def to(self, device: str | torch.device) -> "Post":
        parts = (self.offset, self.scale, self.gate)
        return Post(*(None if part is None else part.to(device) for part in parts))


@dataclass(frozen=True)
class Group:
    """Features that share an encoder: pre-activation = sum over sources of x_s @ W_enc[s], plus b_enc.

    `W_enc`: by source index, [d_source, features]. `W_dec`: by target index, [features, d_target]; both in the
    producer's training units where the dictionary has normalisers. `post`: by target index, see `Post`. `code_norm`:
    the factor by which an activation is multiplied to be comparable between features, where the producer has one.
    `in_units`: whether the activations given and taken are multiplied by it (`Dictionary.comparable`). `dtype`: what
    the products of weights and activations are computed in; sums, biases and thresholds are float32.
    """

    name: str
    W_enc: Mapping[int, Weight]
    b_enc: Float[Tensor, " features"]
    activation: Activation
    W_dec: Mapping[int, Weight]
    code_norm: Float[Tensor, " features"] | None = None
    in_units: bool = False
    post: Mapping[int, Post] = field(default_factory=dict)
    dtype: torch.dtype = torch.float32

    @property
    def n_features(self) -> int:
        return self.b_enc.shape[0]

    @property
    def unit(self) -> Float[Tensor, " features"] | None:
        """By how much activations are larger than the producer's own, None for 1."""
        return self.code_norm if self.in_units else None

    def comparable(self) -> "Group":
        """The same features with activations multiplied by `code_norm`."""
        return self if self.code_norm is None else replace(self, in_units=True)

    def encoder(self, source: int, at: At = None) -> Float[Tensor, "d_source selected"]:
        """Encoder columns, float32. ValueError when they turn out to be damaged."""
        return take(self.W_enc[source], at, 1, self._what("W_enc of source", source))

    def decoder(self, target: int, at: At = None) -> Float[Tensor, "selected d_target"]:
        """Decoder rows, float32. ValueError when they turn out to be damaged."""
        return take(self.W_dec[target], at, 0, self._what("W_dec to target", target)).to(self.b_enc.device)

    def _what(self, tensor: str, site: int) -> str:
        return f"{tensor} {site}{' of ' if self.name else ''}{self.name}"

    def pre(
        self, inputs: Sequence[Float[Tensor, "*batch d_source"]], at: At = None
    ) -> Float[Tensor, "*batch selected"]:
        """Pre-activations of inputs that are normalised already."""
        device = self.b_enc.device
        pre: Tensor = pick(self.b_enc, at).float()
        for source in self.W_enc:
            x = inputs[source].to(device=device, dtype=self.dtype)
            W_enc = take(self.W_enc[source], at, 1, self._what("W_enc of source", source), self.dtype).to(device)
            pre = pre + einsum(x, W_enc, "... d_source, d_source features -> ... features").float()
        return pre

    def to_units(self, acts: Float[Tensor, "*batch selected"], at: At = None) -> Float[Tensor, "*batch selected"]:
        """The producer's own activations in the units of this group."""
        return acts if self.unit is None else acts * pick(self.unit, at).to(acts)

    def from_units(self, acts: Float[Tensor, "*batch selected"], at: At = None) -> Float[Tensor, "*batch selected"]:
        """Undoes `to_units`."""
        return acts if self.unit is None else acts / pick(self.unit, at).to(acts).clamp_min(1e-12)

    def decoded(self, acts: Float[Tensor, "*batch selected"], target: int, at: At = None) -> Tensor:
        """-> [*batch, selected]: what multiplies the decoder rows, of activations in this group's units."""
        values = self.from_units(acts, at)
        return self.post[target].select(at)(values) if target in self.post else values

    def write(self, acts: Float[Tensor, "*batch features"], target: int) -> Float[Tensor, "*batch d_target"]:
        """What all features together add at a target, in training units."""
        features, width = self.W_dec[target].shape
        written: Tensor | None = None
        for at in blocks(features, width):
            W_dec = take(self.W_dec[target], at, 0, self._what("W_dec to target", target), self.dtype)
            values = self.decoded(acts[..., at], target, at).to(self.dtype)
            part = einsum(values, W_dec.to(values.device), "... f, f d_target -> ... d_target").float()
            written = part if written is None else written + part
        if written is None:
            raise ValueError(f"{self.name or 'this group'} has no features")
        return written

    def to(self, device: str | torch.device, *, decoders: bool = True) -> "Group":
        """`decoders` False: they stay where they are, and what is taken of them is moved."""
        moved = self.W_dec if not decoders else {t: W.to(device) for t, W in self.W_dec.items()}
        return replace(
            self,
            W_enc={s: W.to(device) for s, W in self.W_enc.items()},
            b_enc=self.b_enc.to(device),
            activation=self.activation.to(device),
            W_dec=moved,
            code_norm=None if self.code_norm is None else self.code_norm.to(device),
            post={t: post.to(device) for t, post in self.post.items()},
        )
