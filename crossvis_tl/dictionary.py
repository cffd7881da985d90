"""One form in memory for every crosscoder, cross-layer transcoder (CLT) and sparse autoencoder (SAE).

A dictionary reads *sources* and writes *targets* (`Site`s: a hook point of a model). Its features stand in *groups*
that share an encoder: a crosscoder is one group over all sources; a CLT has a group for each layer, which reads that
layer and writes to it and all later ones. Features are numbered across groups, so a CLT's run layer by layer.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from einops import einsum
from jaxtyping import Float, Int
from torch import Tensor

from crossvis_tl.sites import Group, Kind, Site, TokenNorm

__all__ = ["Dictionary", "Group", "Kind", "Site", "TokenNorm"]


@dataclass
class Dictionary:
    """A trained dictionary. Make one with `crossvis_tl.load_dictionary`.

    `b_dec`: one [d_target] for each target. `skip`: by (source, target), [d_source, d_target]: what of an input goes
    straight to an output. `token_norm`: by source, how its tokens are normalised before encoding; `undone`: by target,
    the source whose normalisation is taken back there. `facts`:
    what the files or the caller said beyond the weights, for people.
    """

    kind: Kind
    sources: tuple[Site, ...]
    targets: tuple[Site, ...]
    groups: tuple[Group, ...]
    b_dec: tuple[Float[Tensor, " d_target"], ...]
    format: str
    name: str = "dictionary"
    model_names: tuple[str | None, ...] = ()
    facts: dict[str, object] = field(default_factory=dict)
    skip: Mapping[tuple[int, int], Float[Tensor, "d_source d_target"]] = field(default_factory=dict)
    token_norm: Mapping[int, TokenNorm] = field(default_factory=dict)
    undone: Mapping[int, int] = field(default_factory=dict)

    @property
    def n_features(self) -> int:
        return sum(group.n_features for group in self.groups)

    @property
    def n_models(self) -> int:
        return 1 + max(site.model for site in (*self.sources, *self.targets))

    @property
    def device(self) -> torch.device:
        return self.groups[0].b_enc.device

    @property
    def activation(self) -> str:
        return "/".join(sorted({group.activation.name for group in self.groups}))

    @property
    def offsets(self) -> list[int]:
        """First feature of each group, and the number of all features last."""
        sizes = [0]
        for group in self.groups:
            sizes.append(sizes[-1] + group.n_features)
        return sizes

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

    def unit(self, features: Int[Tensor, " selected"]) -> Float[Tensor, " selected"]:
        """By how much a shown activation of each feature is larger than the producer's own: 1 unless `comparable`."""
        parts = [
            group.code_norm if group.in_units and group.code_norm is not None else torch.ones(group.n_features)
            for group in self.groups
        ]
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

    def label(self, feature: int) -> str:
        """-> "L3F120" for a CLT, else the number."""
        if len(self.groups) == 1:
            return str(feature)
        group, index = self.locate(feature)
        return f"{self.groups[group].name}F{index}"

    def locate(self, feature: int) -> tuple[int, int]:
        """Feature number -> (group, index in it). A CLT's groups are its layers. ValueError when out of range."""
        self.check_features([feature])
        offsets = self.offsets
        group = next(g for g in range(len(self.groups)) if feature < offsets[g + 1])
        return group, feature - offsets[group]

    def flat(self, group: int, index: int) -> int:
        """(group or layer, index in it) -> feature number."""
        if not 0 <= group < len(self.groups) or not 0 <= index < self.groups[group].n_features:
            if not 0 <= group < len(self.groups):
                raise ValueError(f"there is no group or layer {group}; there are 0 to {len(self.groups) - 1}")
            name, last = self.groups[group].name or "this group", self.groups[group].n_features - 1
            raise ValueError(f"there is no feature {index} in {name}; it has features 0 to {last}")
        return self.offsets[group] + index

    def find(self, label: str) -> int:
        """Feature number from "120" or "L3F120". ValueError with near misses otherwise."""
        if label.isdecimal():
            feature = int(label)
            self.check_features([feature])
            return feature
        name, _, index = label.upper().rpartition("F")
        names = [group.name for group in self.groups]
        if len(self.groups) == 1 or not re.fullmatch(r"L\d+", name) or not index.isdecimal():
            example = self.label(0)
            raise ValueError(f"{label!r} names no feature; write a number or a label such as {example!r}")
        if name not in names:
            raise ValueError(f"{label!r}: there is no layer {name[1:]}; this {self.kind} has {names[0]} to {names[-1]}")
        return self.flat(names.index(name), int(index))

    def check_features(self, features: Sequence[int]) -> None:
        """ValueError when a feature is outside 0 .. n_features - 1."""
        last = self.n_features - 1
        bad = [feature for feature in features if not 0 <= feature <= last]
        if bad:
            raise ValueError(f"feature {bad[0]} is out of range: this {self.kind} has features 0 to {last}")

    def _check_inputs(self, inputs: Sequence[Tensor]) -> None:
        if isinstance(inputs, Tensor) or len(inputs) != len(self.sources):
            got = "one tensor" if isinstance(inputs, Tensor) else f"{len(inputs)} tensors"
            raise ValueError(f"encode takes a list with one tensor per source, {len(self.sources)} here; got {got}")
        for s, (x, site) in enumerate(zip(inputs, self.sources, strict=True)):
            if x.shape[-1] != site.width:
                raise ValueError(f"source {s} ({site.place}) is {site.width} wide; got a tensor {tuple(x.shape)}")
        shapes = {tuple(x.shape[:-1]) for x in inputs}
        if len(shapes) > 1:
            got = " and ".join(str(tuple(x.shape)) for x in inputs)
            raise ValueError(f"the sources must hold the same tokens; got tensors {got}")

    def _encode_group(
        self, inputs: Sequence[Float[Tensor, "*batch d_source"]], group: Group, features: Tensor | None
    ) -> Float[Tensor, "*batch features"]:
        """All features of a group, or those at index `features`, of inputs that were checked."""
        at = slice(None) if features is None else features.to(group.b_enc.device)
        pre: Tensor = group.b_enc[at].float()
        for source, W_enc in group.W_enc.items():
            x = inputs[source].to(device=W_enc.device, dtype=torch.float32)
            x = self.token_norm[source](x) if source in self.token_norm else x
            pre = pre + einsum(x, W_enc[:, at].float(), "... d_source, d_source features -> ... features")
        activation = group.activation if features is None else group.activation.select(features)
        return activation(pre)

    def encode(self, inputs: Sequence[Float[Tensor, "*batch d_source"]]) -> Float[Tensor, "*batch features"]:
        """Feature activations from raw activations.

        `inputs`: one tensor for each source, [..., d_source]. -> float32 [..., n_features].
        ValueError when their number or widths do not fit.
        """
        self._check_inputs(inputs)
        return torch.cat([self._encode_group(inputs, group, None) for group in self.groups], dim=-1)

    def encode_features(
        self, inputs: Sequence[Float[Tensor, "*batch d_source"]], features: Int[Tensor, " selected"]
    ) -> Float[Tensor, "*batch selected"]:
        """`encode(inputs)[..., features]` without encoding the other features where the activation allows it."""
        self._check_inputs(inputs)
        self.check_features(features.tolist())
        batch = inputs[0].shape[:-1]
        out = torch.zeros(*batch, len(features), device=self.device)
        offsets = self.offsets
        for g, group in enumerate(self.groups):
            here = ((features >= offsets[g]) & (features < offsets[g + 1])).nonzero().squeeze(-1)
            if not len(here):
                continue
            index = features[here] - offsets[g]
            if group.activation.elementwise:
                values = self._encode_group(inputs, group, index)
            else:
                values = self._encode_group(inputs, group, None)[..., index.to(self.device)]
            out[..., here.to(self.device)] = values
        return out

    def decode(
        self, features: Float[Tensor, "*batch features"], inputs: Sequence[Tensor] | None = None
    ) -> list[Float[Tensor, "*batch d_target"]]:
        """Reconstructions in the model's own units, float32, one [..., d_target] for each target.

        `inputs` (as `encode` takes them) are needed, and asked for, by dictionaries with a skip connection; others
        ignore them.
        """
        if features.shape[-1] != self.n_features:
            raise ValueError(f"decode takes [..., {self.n_features}] activations; got {tuple(features.shape)}")
        offsets = self.offsets
        batch = features.shape[:-1]
        recons = [bias.float().expand(*batch, -1) for bias in self.b_dec]
        if (self.skip or self.undone) and inputs is None:
            what = "has a skip connection" if self.skip else "takes back the normalisation of every token"
            raise ValueError(
                f"{self.name} {what}: its output is not made from features alone; give decode(features, inputs) with "
                "the inputs that were encoded"
            )
        if inputs is not None and (self.skip or self.undone):
            self._check_inputs(inputs)
            for (source, target), W_skip in self.skip.items():
                x = inputs[source].to(device=W_skip.device, dtype=torch.float32)
                passed = einsum(x, W_skip.float(), "... d_source, d_source d_target -> ... d_target")
                recons[target] = recons[target] + passed
        for g, group in enumerate(self.groups):
            acts = features[..., offsets[g] : offsets[g + 1]].to(device=self.device, dtype=torch.float32)
            for target, W_dec in group.W_dec.items():
                written = einsum(acts, W_dec.float(), "... features, features d_target -> ... d_target")
                recons[target] = recons[target] + written
        for target, source in self.undone.items():
            if inputs is not None:
                x = inputs[source].to(device=self.device, dtype=torch.float32)
                mean, std = self.token_norm[source].statistics(x)
                recons[target] = recons[target] * std + mean
        return recons

    def decoder(self, features: Int[Tensor, " selected"], target: int) -> Float[Tensor, "selected d_target"]:
        """What one unit of each feature adds at a target, in the model's own units; zeros where it writes nothing."""
        self.check_features(features.tolist())
        out = torch.zeros(len(features), self.targets[target].width, device=self.device)
        offsets = self.offsets
        for g, group in enumerate(self.groups):
            here = ((features >= offsets[g]) & (features < offsets[g + 1])).nonzero().squeeze(-1)
            if len(here) and target in group.W_dec:
                index = (features[here] - offsets[g]).to(self.device)
                out[here.to(self.device)] = group.W_dec[target][index].float()
        return out

    def writes(self, feature: int) -> list[int]:
        """The targets a feature writes to: all of a crosscoder's; a CLT feature's own layer and the later ones."""
        return sorted(self.groups[self.locate(feature)[0]].W_dec)

    def to(self, device: str | torch.device) -> "Dictionary":
        """The same dictionary with its weights on `device`."""
        groups = tuple(
            replace(
                group,
                W_enc={s: W.to(device) for s, W in group.W_enc.items()},
                b_enc=group.b_enc.to(device),
                activation=group.activation.to(device),
                W_dec={t: W.to(device) for t, W in group.W_dec.items()},
                code_norm=None if group.code_norm is None else group.code_norm.to(device),
            )
            for group in self.groups
        )
        skip = {pair: W.to(device) for pair, W in self.skip.items()}
        return replace(self, groups=groups, b_dec=tuple(bias.to(device) for bias in self.b_dec), skip=skip)

    def __repr__(self) -> str:
        sites = ", ".join(f"{site.place or '?'} of model {site.model}" for site in self.sources[:4])
        more = f" and {len(self.sources) - 4} more" if len(self.sources) > 4 else ""
        return f"<{self.kind} {self.name!r}: {self.n_features} {self.activation} features reading {sites}{more}>"
