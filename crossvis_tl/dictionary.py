"""One form in memory for every crosscoder, cross-layer transcoder (CLT) and sparse autoencoder (SAE).

A dictionary reads *sources* and writes *targets* (`Site`s: a hook point of a model). Its features stand in *groups*
that share an encoder: a crosscoder is one group over all sources; a CLT has a group for each layer, which reads that
layer and writes to it and all later ones. Features are numbered across groups, so a CLT's run layer by layer.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import torch
from einops import einsum
from jaxtyping import Float, Int
from torch import Tensor

from crossvis_tl.activation_fns import TopK
from crossvis_tl.groups import Group, Post
from crossvis_tl.normalizers import Affine, TokenNorm
from crossvis_tl.sites import Kind, Site
from crossvis_tl.sparse import SparseActs, encode_sparse, write_sparse
from crossvis_tl.writing import Writing

__all__ = ["Affine", "Dictionary", "Group", "Kind", "Post", "Site", "SparseActs", "TokenNorm"]

# Decoders of more bytes than this stay where they are (mapped from disk) when a dictionary moves to a device.
MOVED_DECODERS = 8 * 2**30


@dataclass
class Dictionary(Writing):
    """A trained dictionary. Make one with `crossvis_tl.load_dictionary`.

    Beside what `Writing` and `Numbered` hold: `b_dec`, one [d_target] for each target. `joint`: ranks the features of
    all groups against each other. `facts`: what the files or the caller said beyond the weights, for people.
    """

    b_dec: tuple[Float[Tensor, " d_target"], ...] = ()
    format: str = ""
    model_names: tuple[str | None, ...] = ()
    facts: dict[str, object] = field(default_factory=dict)
    joint: TopK | None = None

    @property
    def n_models(self) -> int:
        return 1 + max(site.model for site in (*self.sources, *self.targets))

    @property
    def activation(self) -> str:
        """The names of its activation functions."""
        if self.joint is not None:
            return self.joint.name
        return "/".join(sorted({group.activation.name for group in self.groups}))

    @property
    def batch_dependent(self) -> bool:
        """Whether a token's features depend on the tokens it is encoded with (`crossvis_tl.calibrate` ends that)."""
        activations = [self.joint] if self.joint is not None else [group.activation for group in self.groups]
        return any(isinstance(one, TopK) and one.batch_dependent for one in activations)

    @property
    def missing(self) -> tuple[str, ...]:
        """Facts that gathering needs and neither the files nor the caller said."""
        sites = (*self.sources, *self.targets)
        if self.kind in ("clt", "plt"):
            names = {"feature_input_hook": any(site.place is None for site in self.sources)}
            names["feature_output_hook"] = any(site.place is None for site in self.targets)
        else:
            names = {"hook_point": any(site.place is None for site in self.sources)}
            names["hook_point_out"] = self.targets != self.sources and any(s.place is None for s in self.targets)
        names["processing"] = any(site.processing is None for site in sites)
        return tuple(name for name, lacks in names.items() if lacks)

    def comparable(self) -> "Dictionary":
        """The dictionary as it is shown: activations are those that are comparable between features (see `Group`)."""
        return replace(self, groups=tuple(group.comparable() for group in self.groups))

    def computing_in(self, dtype: torch.dtype) -> "Dictionary":
        """The same dictionary, its products of weights and activations computed in another type than float32: faster
        where the weights are stored so and the device has units for it, and no longer the producer's exact numbers."""
        return replace(self, groups=tuple(replace(group, dtype=dtype) for group in self.groups))

    def unit(self, features: Int[Tensor, " selected"]) -> Float[Tensor, " selected"]:
        """By how much a shown activation of each feature is larger than the producer's own: 1 unless `comparable`."""
        parts = [torch.ones(group.n_features) if group.unit is None else group.unit for group in self.groups]
        return torch.cat([part.to(self.device) for part in parts])[features.to(self.device)]

    def with_hook(self, hook: str) -> "Dictionary":
        """The same dictionary with `hook` at every site whose hook was not known.

        ValueError for a transcoder of several layers: one hook cannot be that of all.
        """
        if self.kind in ("clt", "plt") and self.missing:
            raise ValueError(
                f"{self.name} reads {len(self.sources)} layers, and one hook point ({hook}) cannot be that of all; "
                "its config.yaml should name them, or "
                "load_dictionary(path, feature_input_hook='hook_resid_mid', feature_output_hook='hook_mlp_out')"
            )
        sources = tuple(site if site.place else replace(site, hook=hook) for site in self.sources)
        targets = tuple(site if site.place else replace(site, hook=hook) for site in self.targets)
        return replace(self, sources=sources, targets=targets)

    def with_sites(self, **change: Any) -> Self:
        """The same dictionary with some of each `Site`'s fields changed, of all that it reads and writes."""
        sources, targets = (tuple(replace(site, **change) for site in sites) for sites in (self.sources, self.targets))
        return replace(self, sources=sources, targets=targets)

    def normalised(self, inputs: Sequence[Tensor]) -> list[Float[Tensor, "*batch d_source"]]:
        """What of raw activations goes into the encoders. ValueError when their number or widths do not fit."""
        self._check_inputs(inputs)
        plain = [x.to(device=self.device, dtype=torch.float32) for x in inputs]
        return [self.normalize[s](x) if s in self.normalize else x for s, x in enumerate(plain)]

    def encode(
        self, inputs: Sequence[Float[Tensor, "*batch d_source"]], *, per_source: bool = False
    ) -> Float[Tensor, "*batch features"]:
        """Feature activations from raw activations.

        `inputs`: one tensor for each source, [..., d_source]. -> float32 [..., n_features], or with `per_source`, of
        a dictionary whose features fire in some sources and not in others, [..., n_sources, n_features]. ValueError
        when their number or widths do not fit, and for `per_source` where a feature fires for all sources at once.
        """
        inputs = self.normalised(inputs)
        pres = [group.pre(inputs) for group in self.groups]
        if self.joint is not None:
            dense = self.joint(torch.cat(pres, dim=-1))
        else:
            acts = [g.to_units(g.activation(pre)) for g, pre in zip(self.groups, pres, strict=True)]
            dense = torch.cat(acts, dim=-1) if len(acts) > 1 else acts[0]
        return self._by_source(dense) if per_source else dense

    def _by_source(self, acts: Tensor) -> Tensor:
        group = self.groups[0]
        if len(self.groups) > 1 or any(post.gate is None for post in group.post.values()) or not group.post:
            raise ValueError(
                f"a feature of {self.name} has one activation for all of its sources; only DECOUPLED crosscoders have "
                "one for each. Leave per_source out"
            )
        passes = [group.post[t].passes(group.from_units(acts)) for t in range(len(self.targets))]
        return torch.stack([acts * passed for passed in passes], dim=-2)

    def encode_sparse(self, inputs: Sequence[Float[Tensor, "*batch d_source"]]) -> SparseActs:
        """`encode(inputs)` without ever holding all activations: features are encoded a few at a time, and what fires
        is kept. The number of features is bounded by the disk, not by memory."""
        inputs = self.normalised(inputs)
        batch = tuple(inputs[0].shape[:-1])
        flat = [x.reshape(-1, x.shape[-1]) for x in inputs]
        return SparseActs(*encode_sparse(self.groups, self.joint, flat), (*batch, self.n_features))

    def encode_features(
        self, inputs: Sequence[Float[Tensor, "*batch d_source"]], features: Int[Tensor, " selected"]
    ) -> Float[Tensor, "*batch selected"]:
        """`encode(inputs)[..., features]` without encoding the other features where the activation allows it."""
        features = self.feature_indices(features)
        if self.joint is not None or any(group.activation.block == 0 for group in self.groups):
            return self.encode_sparse(inputs).of(features)
        inputs = self.normalised(inputs)
        out = torch.zeros(*inputs[0].shape[:-1], len(features), device=self.device)
        for g, here, index in self._by_group(features):
            out[..., here.to(self.device)] = _encode_some(self.groups[g], inputs, index)
        return out

    def decode(
        self, features: Float[Tensor, "*batch features"] | SparseActs, inputs: Sequence[Tensor] | None = None
    ) -> list[Float[Tensor, "*batch d_target"]]:
        """Reconstructions in the model's own units, float32, one [..., d_target] for each target; where `target_norm`
        says so, of the normalised activations.

        `features`: what `encode` or `encode_sparse` gave. `inputs` (as `encode` takes them) are needed, and asked for,
        by dictionaries with a skip connection; others ignore them.
        """
        self._check_decoded(tuple(features.shape), inputs)
        if (self.skip or self.undone) and inputs is None:
            what = "has a skip connection" if self.skip else "takes back the normalisation of every token"
            raise ValueError(
                f"{self.name} {what}: its output is not made from features alone; give decode(features, inputs) with "
                "the inputs that were encoded"
            )
        recons = self._written(features)
        if inputs is not None and self.skip:
            normalised = self.normalised(inputs)
            for (source, target), W_skip in self.skip.items():
                x = normalised[source].to(W_skip.device)
                passed = einsum(x, W_skip.float(), "... d_source, d_source d_target -> ... d_target")
                recons[target] = recons[target] + passed
        for target, affine in self.denormalize.items():
            recons[target] = affine.undo(recons[target])
        for target, source in self.undone.items():
            if inputs is not None:
                mean, std = self._token_statistics(inputs, source)
                recons[target] = recons[target] * std + mean
        return recons

    def _written(self, features: Tensor | SparseActs) -> list[Tensor]:
        """What features and biases add up to at each target, in training units."""
        batch, offsets = features.shape[:-1], self.offsets
        recons = [bias.float().expand(*batch, -1).clone() for bias in self.b_dec]
        for g, group in enumerate(self.groups):
            for target in group.W_dec:
                if isinstance(features, SparseActs):
                    flat = recons[target].view(-1, recons[target].shape[-1])
                    write_sparse(group, features, offsets[g], target, flat.add_)
                else:
                    acts = features[..., offsets[g] : offsets[g + 1]].to(device=self.device, dtype=torch.float32)
                    recons[target] += group.write(acts, target)
        return recons

    def to(self, device: str | torch.device) -> "Dictionary":
        """The same dictionary with its weights on `device`; decoders too large for that stay mapped from disk."""
        bytes_ = sum(W.nbytes for group in self.groups for W in group.W_dec.values())
        return replace(
            self,
            groups=tuple(group.to(device, decoders=bytes_ <= MOVED_DECODERS) for group in self.groups),
            b_dec=tuple(bias.to(device) for bias in self.b_dec),
            skip={pair: W.to(device) for pair, W in self.skip.items()},
            normalize={s: norm.to(device) for s, norm in self.normalize.items()},
            denormalize={t: norm.to(device) for t, norm in self.denormalize.items()},
        )

    def save(self, path: str | Path, *, format: str) -> Path:
        """Writes it as another tool's folder, "circuit-tracer", "sae_lens" or "crosscoder"; see
        `crossvis_tl.writers.save`."""
        from crossvis_tl.writers import save

        return save(self, path, format=format)

    def __repr__(self) -> str:
        sites = ", ".join(f"{site.place or '?'} of model {site.model}" for site in self.sources[:4])
        more = f" and {len(self.sources) - 4} more" if len(self.sources) > 4 else ""
        return f"<{self.kind} {self.name!r}: {self.n_features} {self.activation} features reading {sites}{more}>"


def _encode_some(group: Group, inputs: Sequence[Tensor], index: Int[Tensor, " selected"]) -> Tensor:
    """Activations of features of a group; those of an activation that takes blocks are encoded with their blocks."""
    size = group.activation.block
    if size == 1:
        return group.to_units(group.activation.select(index)(group.pre(inputs, index)), index)
    blocks, place = torch.unique(index // size, return_inverse=True)
    whole = (blocks[:, None] * size + torch.arange(size)).flatten()
    acts = group.to_units(group.activation(group.pre(inputs, whole)), whole)
    return acts[..., (place * size + index % size).to(acts.device)]
