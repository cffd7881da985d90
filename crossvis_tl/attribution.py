"""Which source drives a feature that reads several: its pre-activation is a sum over sources, plus a bias.

A source's share at a token is what it adds, x_s @ W_enc[s], over that whole sum; shares and the bias's add up to 1. A
share is negative where the source works against the feature, and above 1 where others do.
"""

from collections.abc import Sequence

import torch
from einops import einsum
from jaxtyping import Float, Int
from torch import Tensor

from crossvis_tl.dictionary import Dictionary

# Encoder columns held for it, in bytes; beyond this shares are not gathered, and the page says so.
ENCODER_BUDGET = 2**29
# Numbers held at a time while columns are multiplied with activations.
CHUNK = 2**24
# A share where sources and bias nearly cancel is a large number that says only that; half precision holds this one.
LARGEST = 1000.0


def driving_sources(dictionary: Dictionary, n_features: int) -> int:
    """How many sources drive each feature together: all of them, or 0 where a feature reads only one, where features
    read different ones, or where the encoder is too large to hold for so many features."""
    reads = {tuple(sorted(group.W_enc)) for group in dictionary.groups}
    several = len(reads) == 1 and len(dictionary.sources) > 1 and reads == {tuple(range(len(dictionary.sources)))}
    width = sum(site.width for site in dictionary.sources)
    return len(dictionary.sources) if several and 4 * n_features * width <= ENCODER_BUDGET else 0


class Attribution:
    """The encoders of some features, to say what drives them. Make one where `driving_sources` is not 0."""

    def __init__(self, dictionary: Dictionary, features: Int[Tensor, " n"]):
        self.dictionary = dictionary
        offsets, device = dictionary.offsets, dictionary.device
        widths = [site.width for site in dictionary.sources]
        self.W = [torch.empty(len(features), width, device=device) for width in widths]
        self.b = torch.empty(len(features), device=device)
        for g, group in enumerate(dictionary.groups):
            here = ((features >= offsets[g]) & (features < offsets[g + 1])).nonzero().squeeze(-1)
            at = (features[here] - offsets[g]).to(device)
            if len(here):
                self.b[here.to(device)] = group.b_enc[at].float()
                for s, W in enumerate(self.W):
                    W[here.to(device)] = group.encoder(s, at).T.to(device)

    def shares(
        self, sources: Sequence[Float[Tensor, "tokens d_source"]], which: Int[Tensor, " p"], tokens: Int[Tensor, " p"]
    ) -> Float[Tensor, "p sources"]:
        """Each source's share of the pre-activation of the `which[i]`-th feature at the `tokens[i]`-th token."""
        inputs = self.dictionary.normalised(sources)
        out = torch.empty(len(which), len(inputs), device=self.b.device)
        widest = max(x.shape[-1] for x in inputs)
        for at in torch.arange(len(which), device=which.device).split(max(1, CHUNK // widest)):
            for s, x in enumerate(inputs):
                out[at, s] = einsum(x[tokens[at]], self.W[s][which[at]], "p d_source, p d_source -> p")
        pre = out.sum(-1, keepdim=True) + self.b[which][:, None]
        return (out / torch.where(pre == 0, torch.ones_like(pre), pre)).clamp(-LARGEST, LARGEST)
