"""The least that dashboards need, as plain as can be: forward passes, all features encoded, each position unembedded.

Nothing is kept: every batch's results are overwritten by the next one's. What dashboards are made of (choosing
examples, histograms, tables, correlations) is not in it.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer

# The quickest on a CPU core, of those tried: larger logits fall out of its cache.
ROWS_AT_A_TIME, POSITIONS_AT_A_TIME = 16, 256


class Unembedder:
    """Logits of positions by the model's own final norm, unembedding and bias, into one buffer."""

    def __init__(self, model: "HookedTransformer"):
        self.model = model
        self.W_U, self.b_U = model.W_U.detach(), model.b_U.detach()
        self.logits = torch.empty(POSITIONS_AT_A_TIME, self.W_U.shape[1])

    def __call__(self, resid: Tensor) -> None:
        for part in self.model.ln_final(resid).flatten(0, 1).split(POSITIONS_AT_A_TIME):
            torch.addmm(self.b_U, part, self.W_U, out=self.logits[: len(part)])


@torch.inference_mode()
def floor(
    models: Sequence["HookedTransformer"],
    hooks: Sequence[str],
    tokens: Tensor,
    W_enc: Sequence[Tensor],
    b_enc: Tensor,
    *,
    last_layer: int | None = None,
) -> None:
    """`hooks`: read in every model; `W_enc`: [d_model, features] for each model's hooks in turn.

    `last_layer`: run no further, and unembed nothing; None: to the final residual stream, all positions unembedded.
    """
    unembedders = [Unembedder(model) for model in models] if last_layer is None else []
    pre = torch.empty(ROWS_AT_A_TIME * tokens.shape[1], len(b_enc))
    for rows in tokens.split(ROWS_AT_A_TIME):
        sites: list[Tensor] = []

        def keep(activation: Tensor, hook: object, sites: list[Tensor] = sites) -> None:
            sites.append(activation.flatten(0, 1))

        for index, model in enumerate(models):
            stop = model.cfg.n_layers if last_layer is None else last_layer + 1
            resid = model.run_with_hooks(rows, stop_at_layer=stop, fwd_hooks=[(hook, keep) for hook in hooks])
            if unembedders:
                unembedders[index](resid)
        acts = pre[: rows.numel()]
        torch.addmm(b_enc, sites[0], W_enc[0], out=acts)
        for x, W in zip(sites[1:], W_enc[1:], strict=True):
            acts.addmm_(x, W)
        acts.relu_()
