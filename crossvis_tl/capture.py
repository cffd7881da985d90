"""Runs the models and hands out the activations a dictionary reads and writes, as it was trained on them."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor

from crossvis_tl.dictionary import Dictionary, Site
from crossvis_tl.errors import ModelMismatchError, near_misses
from crossvis_tl.models import centres, is_processed, name_of

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer

# Hooks whose tensors lose their mean when TransformerLens centres the weights that write to the residual stream.
CENTRED = re.compile(r"(hook_resid_(pre|mid|post)|hook_(mlp|attn)_out|hook_mlp_in|hook_attn_in|hook_embed)$")


@dataclass(frozen=True)
class Captured:
    """One batch of activations: a [rows, positions, width] float32 for each source and target, and for each model the
    final residual stream [rows, positions, d_model] when it was asked for."""

    sources: list[Float[Tensor, "rows positions d_source"]]
    targets: list[Float[Tensor, "rows positions d_target"]]
    final: list[Float[Tensor, "rows positions d_model"]]


class Capture:
    """A dictionary's sites on given models, checked once when it is made.

    ValueError when a fact is missing, a hook does not exist (with near misses), never fires or is of another width, or
    models are lacking; `ModelMismatchError` when a processed model is given for a dictionary of unprocessed ones.
    """

    def __init__(self, dictionary: Dictionary, models: Sequence["HookedTransformer"]):
        self.dictionary = dictionary
        self.models = list(models)
        self._check_models()
        for role, sites in (("reads", dictionary.sources), ("writes", dictionary.targets)):
            for site in sites:
                self._check_site(site, role)
        self._check_widths()

    def _check_models(self) -> None:
        needed = self.dictionary.n_models
        if len(self.models) != needed:
            raise ValueError(
                f"{self.dictionary.name} reads {needed} model{'s' if needed > 1 else ''}, in training order "
                f"({', '.join(n for n in self.dictionary.model_names if n) or 'names unknown'}); got {len(self.models)}"
            )
        if self.dictionary.missing:
            facts = ", ".join(f"{name}=..." for name in self.dictionary.missing)
            raise ValueError(f"the files of {self.dictionary.name} do not say it: load_dictionary(path, {facts})")
        first = self.models[0].cfg.d_vocab
        for model in self.models[1:]:
            if model.cfg.d_vocab != first:
                raise ValueError(
                    f"the models have different vocabularies ({first} and {model.cfg.d_vocab} tokens); a crosscoder's "
                    "models read the same token ids"
                )

    def _check_site(self, site: Site, role: str) -> None:
        model = self.models[site.model]
        name = name_of(model)
        if site.hook not in model.hook_dict:
            hint = near_misses(str(site.hook), model.hook_dict)
            layers = f" (it has {model.cfg.n_layers} layers)"
            raise ValueError(f"{self.dictionary.name} {role} {site.hook!r}, which {name} does not have{layers}.{hint}")
        if site.processing == "none" and CENTRED.search(site.hook) and centres(model) and is_processed(model):
            raise ModelMismatchError(
                f"{self.dictionary.name} was trained on unprocessed weights, and {name} has been processed by "
                f"TransformerLens (the mean of {site.hook} is gone). Load it with crossvis_tl.load_model(...)"
            )

    def _check_widths(self) -> None:
        captured = self.run(torch.zeros(1, 2, dtype=torch.long))
        sites = [*self.dictionary.sources, *self.dictionary.targets]
        for site, tensor in zip(sites, [*captured.sources, *captured.targets], strict=True):
            if tensor.shape[-1] != site.width:
                model = self.models[site.model]
                raise ValueError(
                    f"{self.dictionary.name} is {site.width} wide at {site.hook}, but {name_of(model)} is "
                    f"{tensor.shape[-1]} wide there; is it the model the dictionary was trained on?"
                )

    def _last_layer(self, model: int) -> int:
        """The last layer that must run; all of them when a site does not say its layer."""
        last = 0
        for site in (*self.dictionary.sources, *self.dictionary.targets):
            if site.model == model:
                last = max(last, self.models[model].cfg.n_layers - 1 if site.layer is None else site.layer)
        return last

    @torch.inference_mode()
    def run(self, tokens: Int[Tensor, "rows positions"], *, final: bool = False) -> Captured:
        """Activations of `tokens` at every site; the models run no further than needed unless `final`."""
        found = [self._run_model(index, tokens, final) for index in range(len(self.models))]
        sources = [self._at(site, found) for site in self.dictionary.sources]
        targets = [self._at(site, found) for site in self.dictionary.targets]
        finals = [kept[last_hook(model)] for kept, model in zip(found, self.models, strict=True)] if final else []
        return Captured(sources, targets, [x.float() for x in finals])

    def _run_model(self, index: int, tokens: Tensor, final: bool) -> dict[str, Tensor]:
        model = self.models[index]
        sites = (*self.dictionary.sources, *self.dictionary.targets)
        wanted = {str(site.hook) for site in sites if site.model == index}
        if final:
            wanted.add(last_hook(model))
        kept: dict[str, Tensor] = {}

        def keeper(name: str) -> Callable:
            def keep(activation: Tensor, hook: object) -> None:
                kept[name] = activation  # by the name asked for: a bridge's hooks answer to several

            return keep

        stop = None if final else self._last_layer(index) + 1
        model.run_with_hooks(
            tokens.to(model.cfg.device), fwd_hooks=[(name, keeper(name)) for name in sorted(wanted)],
            stop_at_layer=stop, return_type=None,
        )  # fmt: skip
        silent = wanted - set(kept)
        if silent:
            raise ValueError(
                f"the hook {sorted(silent)[0]!r} of {name_of(model)} never fired; it may be behind a setting such as "
                "model.set_use_hook_mlp_in(True)"
            )
        return kept

    def _at(self, site: Site, found: list[dict[str, Tensor]]) -> Tensor:
        x = found[site.model][str(site.hook)].float()
        if x.ndim == 4:  # one vector per head: dictionaries read them side by side
            x = x.flatten(-2)
        model = self.models[site.model]
        if site.processing == "tl_default" and CENTRED.search(str(site.hook)) and centres(model):
            x = x - x.mean(-1, keepdim=True)
        return x


def last_hook(model: "HookedTransformer") -> str:
    """The residual stream that the final norm reads."""
    return f"blocks.{model.cfg.n_layers - 1}.hook_resid_post"
