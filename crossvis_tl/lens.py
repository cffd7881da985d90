"""Logit lens, site by site: what each decoder row of a feature raises and lowers by itself.

Through the site's own way into the residual stream (`logit_effects.residual_written` says which), the final norm's gain
and the unembedding. Beside the effect of the whole feature this shows where in the model it says what it says, and how
much of it: with l the logits of the whole feature and l_t those of a target alone, both less their mean over the
vocabulary (which no prediction depends on), the target's share is l_t . l / l . l.
"""

from collections.abc import Mapping

import torch
from einops import einsum
from jaxtyping import Float, Int
from torch import Tensor

from crossvis_tl.ablation import extremes
from crossvis_tl.capture import Capture
from crossvis_tl.logit_effects import written_at
from crossvis_tl.panels import LARGEST_SHARE, SiteLens


def site_lenses(
    capture: Capture,
    features: Int[Tensor, " n"],
    n_rows: int,
    at_a_time: int,
    direct: Mapping[int, Float[Tensor, "n d_vocab"]],
) -> list[list[SiteLens | None]]:
    """-> for each feature, one of each target it writes (`Dictionary.writes`), None where nothing of that site reaches
    the residual stream as it is. `n_rows`: tokens on each side. `direct`: by model, the logits of the whole
    features."""
    dictionary = capture.dictionary
    written = [dictionary.writes(feature) for feature in features.tolist()]
    found: list[dict[int, SiteLens]] = [{} for _ in written]
    for t, site in enumerate(dictionary.targets):
        write = capture.writes[t]
        if write.kind == "none" or t in dictionary.target_norm:
            continue
        model = capture.models[site.model]
        W = capture.unembedding(site.model).W
        which = torch.tensor([i for i, targets in enumerate(written) if t in targets], dtype=torch.long)
        for some in which.split(at_a_time):
            direction = written_at(dictionary, features[some], t, write, model).direction.to(W.device)
            logits = einsum(direction, W, "features d_model, d_model d_vocab -> features d_vocab")
            k = min(n_rows, logits.shape[-1])
            sides = [extremes(logits, k, largest=largest) for largest in (True, False)]
            columns = [part.tolist() for side in sides for part in side]
            whole = direct[site.model][some] if summed(capture, site.model, direct) else None
            shares = len(some) * [None] if whole is None else _shares(logits, whole)
            for i, share, *lens in zip(some.tolist(), shares, *columns, strict=True):
                found[i][t] = SiteLens(*lens, share=share if len(written[i]) > 1 else None)
    return [[own.get(t) for t in targets] for own, targets in zip(found, written, strict=True)]


def summed(capture: Capture, model: int, direct: Mapping[int, Tensor]) -> bool:
    """Whether a whole feature's effect on a model's logits is the sum of its targets': not where it writes to the
    residual stream itself, of which a later place holds the earlier ones' part already, nor where it is scaled at each
    token."""
    own = [t for t, site in enumerate(capture.dictionary.targets) if site.model == model]
    added = all(capture.writes[t].kind == "added" and t not in capture.scaled for t in own)
    return model in direct and len(own) > 1 and added


def _shares(logits: Float[Tensor, "n d_vocab"], whole: Float[Tensor, "n d_vocab"]) -> list[float | None]:
    """None for a feature without any effect, or none to speak of beside what its layers have."""
    logits, whole = (x - x.mean(-1, keepdim=True) for x in (logits, whole.to(logits)))
    size = whole.square().sum(-1)
    shares = einsum(logits, whole, "n d_vocab, n d_vocab -> n") / size
    pairs = zip(shares.tolist(), size.tolist(), strict=True)
    return [round(share, 4) if power > 0 and abs(share) < LARGEST_SHARE else None for share, power in pairs]
