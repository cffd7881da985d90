"""What features write: decoder rows in the model's own units, and what a feature that fires adds.

Where a feature has an offset or a scale of its own after the encoder (`Post`), or a token's normalisation is taken
back, what it adds is more than its activation times a row; `contribution` is the one place that says it.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor

from crossvis_tl.errors import whole_numbers
from crossvis_tl.groups import Post
from crossvis_tl.normalizers import Affine, TokenNorm
from crossvis_tl.numbering import Numbered
from crossvis_tl.sites import Site


@dataclass
class Writing(Numbered):
    """Sources, targets, and how activations are normalised at them.

    `normalize`: by source, what its activations go through before they are encoded and skipped. `denormalize`: by
    target, what reconstructions are taken back through. `undone`: by target, the source whose normalisation of each
    token is taken back there. `target_norm`: by target, how the model's activations are normalised before they are
    compared with reconstructions, which then stay in that space. `skip`: by (source, target), [d_source, d_target]:
    what of a normalised input goes straight to an output.
    """

    sources: tuple[Site, ...]
    targets: tuple[Site, ...]
    name: str = "dictionary"
    normalize: Mapping[int, TokenNorm | Affine] = field(default_factory=dict)
    denormalize: Mapping[int, Affine] = field(default_factory=dict)
    undone: Mapping[int, int] = field(default_factory=dict)
    target_norm: Mapping[int, TokenNorm] = field(default_factory=dict)
    skip: Mapping[tuple[int, int], Float[Tensor, "d_source d_target"]] = field(default_factory=dict)

    @property
    def device(self) -> torch.device:
        return self.groups[0].b_enc.device

    def _check_inputs(self, inputs: Sequence[Tensor]) -> None:
        if isinstance(inputs, Tensor) or len(inputs) != len(self.sources):
            got = "one tensor" if isinstance(inputs, Tensor) else f"{len(inputs)} tensors"
            raise ValueError(f"encode takes a list with one tensor per source, {len(self.sources)} here; got {got}")
        for s, (x, site) in enumerate(zip(inputs, self.sources, strict=True)):
            if not isinstance(x, Tensor) or x.ndim == 0:
                got = "a single number" if isinstance(x, Tensor) else f"a {type(x).__name__}"
                raise ValueError(f"source {s} ({site.place}): expected a tensor [..., {site.width}]; got {got}")
            if x.shape[-1] != site.width:
                raise ValueError(f"source {s} ({site.place}) is {site.width} wide; got a tensor {tuple(x.shape)}")
        shapes = {tuple(x.shape[:-1]) for x in inputs}
        if len(shapes) > 1:
            got = " and ".join(str(tuple(x.shape)) for x in inputs)
            raise ValueError(f"the sources must hold the same tokens; got tensors {got}")

    def _check_decoded(self, shape: tuple[int, ...], inputs: Sequence[Tensor] | None) -> None:
        """ValueError when activations of this shape are no activations of these inputs."""
        if not shape or shape[-1] != self.n_features:
            raise ValueError(f"decode takes [..., {self.n_features}] activations; got {shape}")
        if inputs is None or not (self.skip or self.undone):
            return
        self._check_inputs(inputs)
        if tuple(inputs[0].shape[:-1]) != shape[:-1]:
            raise ValueError(f"activations {shape} are of other tokens than the inputs, {tuple(inputs[0].shape)}")

    def _check_target(self, target: int) -> None:
        if not isinstance(target, int) or not 0 <= target < len(self.targets):
            raise ValueError(f"target {target!r} is out of range: there are targets 0 to {len(self.targets) - 1}")

    def feature_indices(self, features: Sequence[int] | Tensor) -> Int[Tensor, " selected"]:
        """Feature numbers as a tensor. ValueError when they are no whole numbers or out of range."""
        given = features.tolist() if isinstance(features, Tensor) else features
        numbers = whole_numbers(given, "features", "feature numbers")  # type: ignore[arg-type]
        self.check_features(numbers)
        return torch.tensor(numbers, dtype=torch.long)

    def _by_group(self, features: Tensor) -> Iterator[tuple[int, Tensor, Tensor]]:
        """-> group, which of `features` are its, and their index in it; groups without any are left out."""
        offsets = self.offsets
        for g in range(len(self.groups)):
            here = ((features >= offsets[g]) & (features < offsets[g + 1])).nonzero().squeeze(-1)
            if len(here):
                yield g, here, features[here] - offsets[g]

    def _token_statistics(self, inputs: Sequence[Tensor], source: int) -> tuple[Tensor, Tensor]:
        self._check_inputs(inputs)
        norm = self.normalize[source]
        if not isinstance(norm, TokenNorm):
            raise TypeError(f"source {source} of {self.name} is not normalised at each token")
        return norm.statistics(inputs[source].to(device=self.device, dtype=torch.float32))

    def token_scale(self, inputs: Sequence[Tensor], target: int) -> Float[Tensor, "*batch"]:
        """What a decoder row is multiplied by at each token where its normalisation is taken back (`undone`)."""
        _, std = self._token_statistics(inputs, self.undone[target])
        return std[..., 0]

    def decoder(
        self, features: Int[Tensor, " selected"], target: int, *, trained: bool = False
    ) -> Float[Tensor, "selected d_target"]:
        """What one more unit of each feature adds at a target, in the model's own units; zeros where it writes nothing.

        `trained`: in the producer's training units, the decoder rows as they were stored.
        """
        features = self.feature_indices(features)
        self._check_target(target)
        out = torch.zeros(len(features), self.targets[target].width, device=self.device)
        for g, here, index in self._by_group(features):
            group = self.groups[g]
            if target in group.W_dec:
                rows = group.from_units(group.decoder(target, index).T, index).T
                scale = self._post(g, target, index).scale
                out[here.to(self.device)] = rows if scale is None else rows * scale.to(rows)[:, None]
        return out if trained else self._in_model_units(out, target)

    def _post(self, g: int, target: int, index: Tensor) -> Post:
        post = self.groups[g].post
        return post[target].select(index) if target in post else Post()

    def _in_model_units(self, direction: Tensor, target: int) -> Tensor:
        return direction if target not in self.denormalize else self.denormalize[target].undo_direction(direction)

    def base(self, features: Int[Tensor, " selected"], target: int) -> Float[Tensor, "selected d_target"] | None:
        """What each feature adds at a target wherever it fires, however strongly, in the model's own units; None where
        no feature of the dictionary does."""
        if not any(post.offset is not None for group in self.groups for post in group.post.values()):
            return None
        out = torch.zeros(len(features), self.targets[target].width, device=self.device)
        for g, here, index in self._by_group(features):
            post = self._post(g, target, index)
            if target in self.groups[g].W_dec and post.offset is not None:
                amount = post.offset if post.scale is None else post.offset * post.scale
                out[here.to(self.device)] = amount.to(out)[:, None] * self.groups[g].decoder(target, index)
        return self._in_model_units(out, target)

    def gate(self, features: Int[Tensor, " selected"], target: int) -> Float[Tensor, " selected"] | None:
        """What an activation must be above for the feature to write to a target at all; None where no feature of the
        dictionary has such a bound."""
        if not any(post.gate is not None for group in self.groups for post in group.post.values()):
            return None
        out = torch.full((len(features),), -torch.inf, device=self.device)
        for g, here, index in self._by_group(features):
            gate = self._post(g, target, index).gate
            if gate is not None:
                out[here.to(self.device)] = self.groups[g].to_units(gate.to(out), index)
        return out

    def contribution(
        self, feature: int, acts: Float[Tensor, "*batch"], target: int, inputs: Sequence[Tensor] | None = None
    ) -> Float[Tensor, "*batch d_target"]:
        """What a feature that fires with `acts` adds at a target, in the model's own units.

        That is what `decode` makes of it: with the offset and the scale that come after the encoder, and the units of
        `comparable`. `inputs`: of the same tokens, needed where each token's normalisation is taken back. ValueError
        for a feature out of range, and where reconstructions live in a normalised space: there is no such number then.
        """
        self._check_target(target)
        acts = torch.as_tensor(acts)
        if target in self.target_norm:
            raise ValueError(
                f"{self.name} reconstructs {self.targets[target].place} after a normalisation of every token that is "
                "not taken back: what a feature adds in the model's own units is not defined"
            )
        g, index = self.locate(feature)
        group, at = self.groups[g], torch.tensor([index])
        if target not in group.W_dec:
            return torch.zeros(*acts.shape, self.targets[target].width, device=self.device)
        values = group.decoded(acts.to(device=self.device, dtype=torch.float32)[..., None], target, at)
        added = values * group.decoder(target, at)[0]
        added = self._in_model_units(added, target)
        if target in self.undone:
            if inputs is None:
                raise ValueError(
                    f"{self.name} takes back the normalisation of every token: give contribution(..., inputs=...)"
                )
            added = added * self._token_statistics(inputs, self.undone[target])[1]
        return added
