"""Whatever may stand for `encoder` in sae_vis' call, as a dictionary: ours, a sae_vis AutoEncoder, a sae_lens SAE."""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from einops import einsum
from jaxtyping import Float, Int
from torch import Tensor

from crossvis_tl.activation_fns import ReLU
from crossvis_tl.dictionary import Dictionary, Group, Site, SparseActs

if TYPE_CHECKING:
    from sae_lens.saes.sae import SAE

AUTOENCODER_KEYS = ("W_enc", "W_dec", "b_enc", "b_dec")


def as_dictionary(encoder: Any, hook_point: str | None = None) -> Dictionary:
    """A `Dictionary` as it is; a sae_vis `AutoEncoder` or any module with its four weights (ReLU, b_dec taken from the
    input); a sae_lens SAE, encoded by its own code.

    `hook_point`: used where the encoder does not say its own. ValueError when the two contradict each other, or neither
    says one; TypeError for anything else.
    """
    if isinstance(encoder, Dictionary):
        dictionary = encoder
    elif _is_sae_lens(encoder):
        dictionary = from_sae_lens(encoder)
    elif all(isinstance(getattr(encoder, key, None), Tensor) for key in AUTOENCODER_KEYS):
        dictionary = _from_autoencoder(encoder)
    else:
        raise TypeError(
            f"encoder is a {type(encoder).__name__}; expected a dictionary from crossvis_tl.load_dictionary, a sae_vis "
            "AutoEncoder (W_enc, W_dec, b_enc, b_dec) or a sae_lens SAE"
        )
    if hook_point is not None:
        dictionary = dictionary.with_hook(hook_point)
        hooks = {site.place for site in (*dictionary.sources, *dictionary.targets)}
        if hook_point not in hooks:
            known = ", ".join(sorted(map(str, hooks)))
            raise ValueError(f"cfg.hook_point is {hook_point!r}, but {dictionary.name} reads and writes {known}")
    elif any(site.place is None for site in dictionary.sources):
        raise ValueError("the encoder does not say where it reads; give SaeVisConfig(hook_point='blocks.L....')")
    return dictionary


def _is_sae_lens(encoder: Any) -> bool:
    return type(encoder).__module__.startswith("sae_lens.") or any(
        base.__module__.startswith("sae_lens.") for base in type(encoder).__mro__
    )


def _from_autoencoder(encoder: Any) -> Dictionary:
    W_enc, W_dec = encoder.W_enc.detach(), encoder.W_dec.detach()
    b_enc, b_dec = encoder.b_enc.detach(), encoder.b_dec.detach()
    # relu((x - b_dec) W + b) == relu(x W + (b - b_dec W))
    inward = einsum(b_dec.float(), W_enc.float(), "d_in, d_in features -> features")
    site = Site(model=0, hook=None, width=W_enc.shape[0], processing="as given")
    group = Group("", {0: W_enc}, b_enc.float() - inward, ReLU(), {0: W_dec})
    return Dictionary(
        kind="sae", sources=(site,), targets=(site,), groups=(group,), b_dec=(b_dec,), format="sae_vis AutoEncoder",
        name="autoencoder",
    )  # fmt: skip


@dataclass(repr=False)
class SaeLensDictionary(Dictionary):
    """A sae_lens SAE or transcoder: its own `encode` and `decode` give the numbers, whatever its architecture."""

    sae: "SAE | None" = field(default=None, repr=False)

    @property
    def activation(self) -> str:
        """What sae_lens calls its architecture, without the words for what it reads and writes."""
        name = self._own().cfg.architecture()
        word = next((word for word in ("jumprelu", "topk", "gated") if word in name), name)
        names = {"jumprelu": "JumpReLU", "topk": "TopK", "gated": "gated ReLU"}
        plain = ("standard", "transcoder", "skip_transcoder")
        return "ReLU" if name in plain else names.get(str(word), str(name))

    def _own(self) -> "SAE":
        if self.sae is None:
            raise TypeError("a SaeLensDictionary needs its SAE")
        return self.sae

    @torch.no_grad()
    def encode(
        self, inputs: Sequence[Float[Tensor, "*batch d_source"]], *, per_source: bool = False
    ) -> Float[Tensor, "*batch features"]:
        if per_source:
            raise ValueError(f"a feature of {self.name} has one activation, of its one source; leave per_source out")
        self._check_inputs(inputs)
        sae = self._own()
        with _flat_heads(sae):
            return sae.encode(inputs[0].to(device=sae.device, dtype=sae.dtype)).float()

    def encode_sparse(self, inputs: Sequence[Float[Tensor, "*batch d_source"]]) -> SparseActs:
        acts = self.encode(inputs)
        flat = acts.reshape(-1, acts.shape[-1])
        tokens, features = flat.nonzero(as_tuple=True)
        return SparseActs(tokens, features, flat[tokens, features], tuple(acts.shape))

    def encode_features(self, inputs: Sequence[Tensor], features: Int[Tensor, " selected"]) -> Tensor:
        features = self.feature_indices(features)
        return self.encode(inputs)[..., features.to(self.device)]

    @torch.no_grad()
    def decode(self, features: Tensor | SparseActs, inputs: Sequence[Tensor] | None = None) -> list[Tensor]:
        sae = self._own()
        features = features.to_dense() if isinstance(features, SparseActs) else features
        self._check_decoded(tuple(features.shape), inputs)
        if _scales_each_token(sae):
            if inputs is None:
                raise ValueError(
                    f"{self.name} normalises every token, and its output is taken back by the token's own scale; give "
                    "decode(features, inputs) with the inputs that were encoded"
                )
            self.encode(inputs)  # sae_lens keeps the scales of the inputs it encoded last
        with _flat_heads(sae):
            out = sae.decode(features.to(device=sae.device, dtype=sae.dtype)).float()
        skip = getattr(sae, "W_skip", None)
        if skip is not None:
            if inputs is None:
                raise ValueError("this transcoder has a skip connection; give decode(features, inputs)")
            x = inputs[0].to(device=sae.device, dtype=torch.float32)
            out = out + einsum(x, skip.float(), "... d_in, d_out d_in -> ... d_out")
        return [out]

    def contribution(
        self, feature: int, acts: Float[Tensor, "*batch"], target: int, inputs: Sequence[Tensor] | None = None
    ) -> Float[Tensor, "*batch d_target"]:
        """What the SAE's own `decode` makes of the feature alone, less what it makes of none."""
        self.check_features([feature])
        self._check_target(target)
        acts = torch.as_tensor(acts)
        alone = torch.zeros(*acts.shape, self.n_features, device=self.device)
        without = self.decode(alone, inputs)[target]
        alone[..., feature] = acts.to(alone)
        return self.decode(alone, inputs)[target] - without

    def token_scale(self, inputs: Sequence[Tensor], target: int) -> Float[Tensor, "*batch"]:
        """sae_lens takes back its normalisation of the inputs it saw last: what it makes of 1, less what of 0."""
        sae = self._own()
        with _flat_heads(sae):
            sae.run_time_activation_norm_fn_in(inputs[0].to(device=sae.device, dtype=sae.dtype))
            both = torch.tensor([1.0, 0.0], device=sae.device, dtype=sae.dtype).expand(*inputs[0].shape[:-1], 2)
            back = sae.run_time_activation_norm_fn_out(both)  # once: it forgets the inputs then
        return (back[..., 0] - back[..., 1]).float()

    def to(self, device: str | torch.device) -> "SaeLensDictionary":
        """Moves a copy of the SAE; the user's own stays where it is."""
        sae = self._own()
        if torch.device(device).type == sae.device.type:
            return self
        moved = from_sae_lens(copy.deepcopy(sae).to(device))
        return replace(self, sae=moved.sae, groups=moved.groups, b_dec=moved.b_dec)


def _scales_each_token(sae: "SAE") -> bool:
    """Transcoders do not take their normalisation back."""
    per_token = sae.cfg.normalize_activations in ("layer_norm", "constant_norm_rescale")
    return per_token and "transcoder" not in sae.cfg.architecture()


@contextmanager
def _flat_heads(sae: "SAE") -> Iterator[None]:
    """Inside, an SAE of attention heads takes and gives them side by side, as every dictionary here does."""
    reshapes = bool(getattr(sae, "hook_z_reshaping_mode", False))
    if reshapes:
        sae.turn_off_forward_pass_hook_z_reshaping()
    try:
        yield
    finally:
        if reshapes:
            sae.turn_on_forward_pass_hook_z_reshaping()


def from_sae_lens(sae: "SAE") -> SaeLensDictionary:
    """The SAE or transcoder as a dictionary of whatever model it is given (`processing` "as given")."""
    metadata = sae.cfg.metadata
    hook_in = getattr(metadata, "hook_name", None)
    hook_out = getattr(metadata, "hook_name_out", None) or hook_in
    d_out = sae.W_dec.shape[-1]
    source = Site(model=0, hook=hook_in, width=sae.cfg.d_in, processing="as given")
    target = Site(model=0, hook=hook_out, width=d_out, processing="as given")
    features = sae.W_dec.shape[0]
    b_enc = getattr(sae, "b_enc", None)
    b_enc = torch.zeros(features, device=sae.W_dec.device) if b_enc is None else b_enc.detach()
    group = Group("", {0: sae.W_enc.detach()}, b_enc, ReLU(), {0: sae.W_dec.detach()})
    return SaeLensDictionary(
        kind="sae", sources=(source,), targets=(target,), groups=(group,), b_dec=(sae.b_dec.detach(),),
        format=f"sae_lens {sae.cfg.architecture()}",
        name=str(getattr(metadata, "neuronpedia_id", None) or "sae"), sae=sae,
        undone={0: 0} if _scales_each_token(sae) else {},
    )  # fmt: skip
