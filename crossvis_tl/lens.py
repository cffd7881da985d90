"""Logit lens, site by site: what each decoder row of a feature raises and lowers by itself.

Through the site's own way into the residual stream (`logit_effects.residual_written` says which), the final norm's gain
and the unembedding. Beside the effect of the whole feature this shows where in the model it says what it says.
"""

import torch
from einops import einsum
from jaxtyping import Int
from torch import Tensor

from crossvis_tl.ablation import extremes
from crossvis_tl.capture import Capture
from crossvis_tl.logit_effects import written_at
from crossvis_tl.panels import SiteLens
from crossvis_tl.unembed import unembedding


def site_lenses(
    capture: Capture, features: Int[Tensor, " n"], n_rows: int, at_a_time: int
) -> list[list[SiteLens | None]]:
    """-> for each feature, one of each target it writes (`Dictionary.writes`), None where nothing of that site reaches
    the residual stream as it is. `n_rows`: tokens on each side."""
    dictionary = capture.dictionary
    written = [dictionary.writes(feature) for feature in features.tolist()]
    found: list[dict[int, SiteLens]] = [{} for _ in written]
    for t, site in enumerate(dictionary.targets):
        write = capture.writes[t]
        if write.kind == "none" or t in dictionary.target_norm:
            continue
        model = capture.models[site.model]
        W = unembedding(model).W
        which = torch.tensor([i for i, targets in enumerate(written) if t in targets], dtype=torch.long)
        for some in which.split(at_a_time):
            direction = written_at(dictionary, features[some], t, write, model).direction.to(W.device)
            logits = einsum(direction, W, "features d_model, d_model d_vocab -> features d_vocab")
            k = min(n_rows, logits.shape[-1])
            sides = [extremes(logits, k, largest=largest) for largest in (True, False)]
            columns = [part.tolist() for side in sides for part in side]
            for i, *lens in zip(some.tolist(), *columns, strict=True):
                found[i][t] = SiteLens(*lens)
    return [[own.get(t) for t in targets] for own, targets in zip(found, written, strict=True)]
