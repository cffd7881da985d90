"""Runs the models and hands out the activations a dictionary reads and writes, as it was trained on them."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor

from crossvis_tl.dictionary import Dictionary, Site
from crossvis_tl.fused import fused
from crossvis_tl.hooks.find import Finder
from crossvis_tl.hooks.reading import Reader, reader, settings_for
from crossvis_tl.hooks.writing import residual_write
from crossvis_tl.models import name_of
from crossvis_tl.pairs import Replacements, check_replacements
from crossvis_tl.processing import check_fits, is_processed, processed_like
from crossvis_tl.tokens import replaced_tokens
from crossvis_tl.unembed import Unembedding, unembedding

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer

__all__ = ["Capture", "Captured", "last_hook", "layer_of", "without_lead"]


@dataclass(frozen=True)
class Captured:
    """One batch of activations: a [rows, positions, width] float32 for each source and target, and for each model the
    final residual stream [rows, positions, d_model] when it was asked for. `scales`: for each target in
    `Capture.scaled`, what one unit of a decoder row is multiplied by at each token on its way to the residual stream.
    """

    sources: list[Float[Tensor, "rows positions d_source"]]
    targets: list[Float[Tensor, "rows positions d_target"]]
    final: list[Float[Tensor, "rows positions d_model"]]
    scales: list[Float[Tensor, "rows positions"]]


class Capture:
    """A dictionary's sites on given models, checked once when it is made.

    `replacements`: for a model's number, token ids that it gets in place of others (a base model that never saw a
    chat template's tokens). `calibrating`: take a dictionary whose activations depend on the batch. `checked`: nothing
    is run to see that hooks fire and widths fit. `dictionary`: the one given, its activations comparable between
    features, and its sites' `hook` filled in from their HuggingFace paths. `writes`: for each target, how it reaches
    the residual stream. `scaled`: the targets whose way there multiplies by another number at each token: by a
    normalisation that is taken back, or by a post-norm.

    ValueError when a fact is missing, a hook does not exist (with near misses), never fires or is of another width, or
    models are lacking; `ModelMismatchError` when a processed model is given for a dictionary of unprocessed ones.
    """

    def __init__(
        self,
        dictionary: Dictionary,
        models: Sequence["HookedTransformer"],
        replacements: Replacements | None = None,
        *,
        calibrating: bool = False,
        checked: bool = False,
    ):
        self.calibrating = calibrating
        self.dictionary = dictionary = dictionary.comparable()
        self.models = list(models)
        self.replacements = dict(replacements or {})
        self._check_models()
        finders = [Finder(model) for model in self.models]
        self.readers: dict[tuple[int, str], Reader] = {}
        self.dictionary = replace(
            dictionary,
            sources=tuple(self._resolved(site, "reads", finders) for site in dictionary.sources),
            targets=tuple(self._resolved(site, "writes", finders) for site in dictionary.targets),
        )
        self.processed = [is_processed(model) for model in self.models]
        self.writes = [residual_write(self.models[s.model], str(s.place), finders[s.model]) for s in dictionary.targets]
        self.scaled = tuple(t for t, write in enumerate(self.writes) if t in dictionary.undone or write.scale_hook)
        self._unembeddings: dict[int, Unembedding] = {}
        if not checked:
            self._check_widths()

    def unembedding(self, model: int) -> Unembedding:
        """From the model's final residual stream to its logits; made once, since its matrix can be gigabytes."""
        if model not in self._unembeddings:
            self._unembeddings[model] = unembedding(self.models[model])
        return self._unembeddings[model]

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
        if self.dictionary.batch_dependent and not self.calibrating:
            raise ValueError(
                f"{self.dictionary.name} has a {self.dictionary.activation} that ranks over the batch it is given and "
                "stored no threshold: the same token would fire other features in other company. Fix it on tokens "
                "first: dictionary = crossvis_tl.calibrate(dictionary, models, tokens), or --calibrate"
            )
        check_replacements(self.models, self.replacements)
        first = self.models[0].cfg.d_vocab
        for model in self.models[1:]:
            if model.cfg.d_vocab != first:
                raise ValueError(
                    f"the models have different vocabularies ({first} and {model.cfg.d_vocab} tokens); a crosscoder's "
                    "models read the same token ids"
                )

    def _resolved(self, site: Site, role: str, finders: list[Finder]) -> Site:
        """The site with its hook's name; how it is read goes into `readers`."""
        model, place = self.models[site.model], str(site.place)
        name = name_of(model)
        try:
            found = reader(finders[site.model], place)
        except ValueError as error:
            layers = f" (it has {model.cfg.n_layers} layers)"
            raise ValueError(
                f"{self.dictionary.name} {role} {place!r}, which {name} does not have{layers}: {error}"
            ) from error
        who = f"{self.dictionary.name} was trained on unprocessed weights, and {name}"
        check_fits(site.processing, found.reads, model, who)
        self.readers[site.model, place] = found
        return site if site.hf_path is None else replace(site, hook=finders[site.model].canonical(place))

    def _check_widths(self) -> None:
        captured = self.run(torch.zeros(1, 2, dtype=torch.long))
        sites = [*self.dictionary.sources, *self.dictionary.targets]
        for site, tensor in zip(sites, [*captured.sources, *captured.targets], strict=True):
            if site.width not in (0, tensor.shape[-1]):  # 0: not known
                model = self.models[site.model]
                raise ValueError(
                    f"{self.dictionary.name} is {site.width} wide at {site.place}, but {name_of(model)} is "
                    f"{tensor.shape[-1]} wide there; is it the model the dictionary was trained on?"
                )

    def last_layer(self, model: int) -> int | None:
        """The last layer that must run for the sites; None for the whole model, where a hook is in none."""
        layers = [layer_of(name) for name in self._hooks(model)]
        return None if None in layers else max((layer for layer in layers if layer is not None), default=0)

    def layers_needed(self) -> tuple[int, int]:
        """-> how many layers must run for the sites, and how many there are, of all models together."""
        lasts = [self.last_layer(m) for m in range(len(self.models))]
        layers = [int(model.cfg.n_layers) for model in self.models]
        needed = (n if last is None else last + 1 for n, last in zip(layers, lasts, strict=True))
        return sum(needed), sum(layers)

    def _scale_hooks(self, model: int) -> set[str]:
        hooks = {self.writes[t].scale_hook for t in self.scaled if self.dictionary.targets[t].model == model}
        return {hook for hook in hooks if hook is not None}

    def _hooks(self, model: int) -> list[str]:
        return sorted({name for (m, _), found in self.readers.items() if m == model for name in found.reads})

    @torch.inference_mode()
    def run(
        self, tokens: Int[Tensor, "rows positions"], *, final: bool = False, lead: Int[Tensor, " rows"] | None = None
    ) -> Captured:
        """Activations of `tokens` at every site; the models run no further than needed unless `final`.

        `lead`: how many padding tokens each row begins with. The model then reads the row without them, so that every
        token has the activations it has without padding; what stands at padding means nothing.
        """
        tokens, back = without_lead(tokens, lead)
        found = [_with_lead(self._run_model(index, tokens, final), back) for index in range(len(self.models))]
        return self.read(found, final=final)

    @torch.inference_mode()
    def run_with(
        self, others: Sequence["Capture"], tokens: Int[Tensor, "rows positions"], lead: Int[Tensor, " rows"]
    ) -> list[Captured | None]:
        """What `run` gives of each of `others`, on the same models, which run once for all of them; None where one of
        its hooks never fires."""
        found = []
        tokens, back = without_lead(tokens, lead)
        for index in range(len(self.models)):
            wanted = {hook for other in others for hook in other.wanted(index)}
            lasts = [other.last_layer(index) for other in others]
            last = None if None in lasts else max(layer for layer in lasts if layer is not None)
            found.append(_with_lead(self._run_hooks(index, tokens, wanted, last), back))
        fired = [all(other.wanted(m) <= set(kept) for m, kept in enumerate(found)) for other in others]
        return [other.read(found) if fires else None for other, fires in zip(others, fired, strict=True)]

    def read(self, found: Sequence[dict[str, Tensor]], *, final: bool = False) -> Captured:
        """From what each model's hooks gave. `final`: the last of them is among those."""
        sources = [self._at(site, found) for site in self.dictionary.sources]
        targets = [self._at(site, found) for site in self.dictionary.targets]
        finals = [kept[last_hook(model)] for kept, model in zip(found, self.models, strict=True)] if final else []
        scales = [self._scale(target, sources, found) for target in self.scaled]
        return Captured(sources, targets, [x.float() for x in finals], scales)

    def _scale(self, target: int, sources: list[Tensor], found: Sequence[dict[str, Tensor]]) -> Tensor:
        scale, hook = torch.ones(sources[0].shape[:-1]), self.writes[target].scale_hook
        if target in self.dictionary.undone:
            scale = self.dictionary.token_scale(sources, target)
        if hook is not None:
            divisor = found[self.dictionary.targets[target].model][hook].float().flatten(2)[..., 0]
            scale = scale.to(divisor.device) / divisor
        return scale

    def wanted(self, model: int) -> set[str]:
        """The hooks of a model whose tensors `read` needs."""
        return set(self._hooks(model)) | self._scale_hooks(model)

    def _run_model(self, index: int, tokens: Tensor, final: bool) -> dict[str, Tensor]:
        model = self.models[index]
        wanted = self.wanted(index) | ({last_hook(model)} if final else set())
        kept = self._run_hooks(index, tokens, wanted, None if final else self.last_layer(index))
        silent = wanted - set(kept)
        if silent:
            raise ValueError(
                f"the hook {sorted(silent)[0]!r} of {name_of(model)} never fired: TransformerLens lists it, but "
                "nothing passes there in this architecture"
            )
        return kept

    def _run_hooks(self, index: int, tokens: Tensor, wanted: set[str], last: int | None) -> dict[str, Tensor]:
        """What each of the hooks that fires gives, the model run up to layer `last` (None: to the end)."""
        model = self.models[index]
        kept: dict[str, Tensor] = {}

        def keeper(name: str) -> Callable:
            def keep(activation: Tensor, hook: object) -> None:
                kept[name] = activation  # by the name asked for: a bridge's hooks answer to several

            return keep

        if index in self.replacements:
            tokens = replaced_tokens(tokens, self.replacements[index])
        logits_too = any(name.startswith("unembed.") for name in wanted)
        with settings_for(model, sorted(wanted)), fused(model):
            model.run_with_hooks(
                tokens.to(model.cfg.device), fwd_hooks=[(name, keeper(name)) for name in sorted(wanted)],
                stop_at_layer=None if last is None else last + 1, return_type="logits" if logits_too else None,
            )  # fmt: skip
        return kept

    def _at(self, site: Site, found: Sequence[dict[str, Tensor]]) -> Tensor:
        model, how = self.models[site.model], self.readers[site.model, str(site.place)]
        x = how.read(model, found[site.model]).float()
        if site.processing == "tl_default" and not self.processed[site.model]:
            x = processed_like(x, how.reads, model)
        return x


def without_lead(tokens: Tensor, lead: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """-> the rows with the padding they begin with put at their end, and for each position where it is now."""
    if lead is None or not bool(lead.any()):
        return tokens, None
    columns, lead = torch.arange(tokens.shape[1], device=tokens.device), lead.to(tokens.device)[:, None]
    return tokens.gather(1, (columns + lead) % tokens.shape[1]), (columns - lead) % tokens.shape[1]


def _with_lead(kept: dict[str, Tensor], back: Tensor | None) -> dict[str, Tensor]:
    """Undoes `without_lead` in what hooks gave."""
    if back is None:
        return kept
    return {name: x[torch.arange(len(x), device=x.device)[:, None], back.to(x.device)] for name, x in kept.items()}


def layer_of(hook: str) -> int | None:
    """The layer after which the hook has fired."""
    if hook in ("hook_embed", "hook_pos_embed"):
        return 0
    match = re.match(r"blocks\.(\d+)\.", hook)
    return int(match[1]) if match else None


def last_hook(model: "HookedTransformer") -> str:
    """The residual stream that the final norm reads."""
    return f"blocks.{model.cfg.n_layers - 1}.hook_resid_post"
