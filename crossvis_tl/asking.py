"""What is asked for, checked: the fields of a config, the two spellings of a name, a store opened with what made it."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sae_vis.data_config_classes import SaeVisConfig
from torch import Tensor

from crossvis_tl.build import Showing
from crossvis_tl.capture import Capture
from crossvis_tl.dictionary import Dictionary
from crossvis_tl.effects import Effect, check_effect
from crossvis_tl.encoders import as_dictionary
from crossvis_tl.errors import check_word, feature_numbers, short_list
from crossvis_tl.feature_acts import FeatureActs
from crossvis_tl.fingerprints import dictionary_fingerprint, model_fingerprint, tokens_fingerprint
from crossvis_tl.high_norm import check_multiple
from crossvis_tl.layouts import SaeVisConfig as OurConfig
from crossvis_tl.layouts import check_sizes, component_name, resolved
from crossvis_tl.manifest import replacements_from_json
from crossvis_tl.masking import Masking
from crossvis_tl.measures import MEASURES
from crossvis_tl.models import load_models
from crossvis_tl.store import open_store
from crossvis_tl.tokens import TokenSet, check_tokens

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer


def reopened(
    store: str | Path | FeatureActs,
    encoder: Any,
    cfg: SaeVisConfig,
    model: "HookedTransformer | Sequence[HookedTransformer] | None",
    tokens: Tensor | TokenSet | None,
) -> tuple[FeatureActs, Dictionary, Capture | None]:
    """A store, or what `open_store` gave of it, with its dictionary, and that on its models where they are given.
    ValueError where any of them is another than was gathered with."""
    acts = store if isinstance(store, FeatureActs) else open_store(store)
    _check_gathered(acts, cfg)
    store = acts.folder or "what was gathered"
    if tokens is not None:
        tokens = TokenSet.of(tokens).tokens
        same = isinstance(tokens, Tensor) and tokens_fingerprint(tokens[: cfg.batch_size]) == acts.manifest.tokens
        if not same:
            raise ValueError(f"{store} was gathered on other tokens than those given")
    hook = cfg.hook_point or acts.manifest.only_hook
    dictionary = acts.manifest.placed(as_dictionary(encoder, hook)).comparable()
    places = [[site.hook or site.hf_path for site in sites] for sites in (dictionary.sources, dictionary.targets)]
    known = acts.manifest.hooks
    if all(site.hf_path is None for site in (*dictionary.sources, *dictionary.targets)) and places != known:
        raise ValueError(f"{store} was gathered at {joined(known)}, not at {joined(places)}")
    if dictionary_fingerprint(dictionary) != acts.manifest.dictionary:
        raise ValueError(
            f"{store} was gathered with another dictionary ({acts.manifest.dictionary_name}), not {dictionary.name}"
        )
    capture = None
    if model is not None:
        models = load_models(model)
        if [model_fingerprint(one) for one in models] != acts.manifest.models:
            names = " and ".join(acts.manifest.model_names)
            raise ValueError(f"{store} was gathered with other models, or in another order or precision: {names}")
        for one in models:
            check_tokens(acts.tokens, one, f"the tokens of {store}")
        replacements = replacements_from_json(acts.manifest.replacements)
        capture = Capture(dictionary.to(str(models[0].cfg.device)), models, replacements)
    return acts, dictionary, capture


def _check_gathered(acts: FeatureActs, cfg: SaeVisConfig) -> None:
    """ValueError where a config of ours asks for what is settled when gathering, and was settled otherwise."""
    held = json.loads(acts.mask.how) | {"latent_scaling": "latent.moments" in acts.sums}
    settled = {
        "masking": "masking", "masked_tokens": "tokens", "masked_positions": "positions",
        "high_norm_multiple": "high_norm",
    }  # fmt: skip
    for name, key in ({} if not isinstance(cfg, OurConfig) else settled | {"latent_scaling": "latent_scaling"}).items():
        asked_for, default = getattr(cfg, name), getattr(OurConfig, name)
        wanted = sorted(asked_for, key=str) if isinstance(asked_for, tuple | list) else asked_for
        has = held.get(key)
        if asked_for != default and wanted != has:
            raise ValueError(
                f"cfg.{name} is {asked_for!r}, but {acts.folder or 'what was gathered'} has {has!r}, which is "
                "settled when gathering; gather again, or leave it out"
            )


def joined(hooks: Sequence[Sequence[str | None]]) -> str:
    """Every hook once, in words."""
    return short_list(dict.fromkeys(str(hook) for side in hooks for hook in side))


# The least that fields of sae_vis' component configs can be.
LEAST = {
    "n_rows": 0, "n_bins": 1, "n_quantiles": 0, "top_acts_group_size": 0, "quantile_group_size": 0,
    "top_logits_hoverdata": 0, "random_group_size": 0, "least": 0,
}  # fmt: skip


def one_of(name: str, value: Any, other_name: str, other: Any) -> Any:
    if value is not None and other is not None:
        raise ValueError(f"{name}= and {other_name}= are two names of one thing; give one of them")
    return other if value is None else value


def chosen_features(cfg: SaeVisConfig, dictionary: Dictionary) -> list[int] | None:
    """Those `cfg` names, None for all. ValueError when one is out of range."""
    if cfg.features is None:
        return None
    features = feature_numbers(cfg.features, "cfg.features")
    dictionary.check_features(features)
    return features


def checked(cfg: SaeVisConfig) -> SaeVisConfig:
    """ValueError for sizes that cannot be meant."""
    for name in ("batch_size", "minibatch_size_tokens", "minibatch_size_features"):
        value = getattr(cfg, name)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise ValueError(f"cfg.{name} is {value!r}; expected a whole number of at least 1, or None for no bound")
    for layout in (cfg.feature_centric_layout, cfg.prompt_centric_layout):
        if layout is not None:  # None: the kind's own
            check_sizes(layout)
            for component in (part for column in layout.columns.values() for part in column):
                _check_component(component)
    return cfg


def for_dictionary(cfg: SaeVisConfig, dictionary: Dictionary) -> SaeVisConfig:
    """The config with the layouts that this dictionary is shown in."""
    return resolved(cfg, dictionary.kind, dictionary.n_models, len(dictionary.sources), len(dictionary.targets))


def check_prompt_layout(cfg: SaeVisConfig) -> None:
    """ValueError where the prompts' pages would need more than was made for the features'."""
    made, wanted = cfg.feature_centric_layout.components, cfg.prompt_centric_layout.components
    for name, component in wanted.items():
        if name not in (*made, "Prompt", "DecoderNorms", "DecoderCosine"):
            raise ValueError(
                f"the prompt-centric layout asks for {name}, which the feature-centric layout does not make; add "
                f"{name}Config to that one"
            )
        if name in made and not component.data_is_contained_in(made[name]):
            raise ValueError(
                f"the prompt-centric layout's {component} needs more than the feature-centric layout's {made[name]}, "
                "which says what is gathered: give both the same number of bins, and it no more rows or examples"
            )


def _check_component(component: Any) -> None:
    component_name(component)  # TypeError for what is none
    name = type(component).__name__
    if hasattr(component, "stack_mode"):
        check_word(f"{name}.stack_mode", component.stack_mode, ("stack-all", "stack-quantiles", "stack-none"))
    for field, least in LEAST.items():
        value = getattr(component, field, least)
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ValueError(f"{name}.{field} is {value!r}; expected a whole number of at least {least}")
    for axis, words in {"x": MEASURES, "y": MEASURES, "color": (*MEASURES, "class")}.items():
        if getattr(component, axis, None) is not None:
            check_word(f"{name}.{axis}", getattr(component, axis), words)
    buffer = getattr(component, "buffer", (0, 0))
    sizes = list(buffer) if isinstance(buffer, tuple | list) else []
    if len(sizes) != 2 or any(isinstance(n, bool) or not isinstance(n, int) or n < 0 for n in sizes):
        raise ValueError(f"{name}.buffer is {buffer!r}; expected how many tokens before and after, such as (5, 5)")


@dataclass(frozen=True)
class Asked:
    """How dashboards are made, beside what sae_vis' config says: see `SaeVisData.create`."""

    masking: Masking
    masked_tokens: Sequence[int | str]
    masked_positions: Sequence[int]
    high_norm_multiple: float | None
    effect: Effect
    latent_scaling: bool
    per_document: int | None
    distinct: bool

    @property
    def showing(self) -> Showing:
        return Showing(self.effect, self.per_document, self.distinct)


def asked(cfg: SaeVisConfig, **given: Any) -> Asked:
    """What was given, else what a config of ours says, else the default. None and ... are not given. ValueError for
    what cannot be meant."""
    values = {}
    for name in (f.name for f in fields(Asked)):
        value = given.get(name, ...)
        absent = value is ... or (value is None and name != "per_document")  # where None means any number
        values[name] = getattr(cfg, name, getattr(OurConfig, name)) if absent else value
    how = Asked(**values)
    for name in ("latent_scaling", "distinct"):
        if not isinstance(values[name], bool):
            raise ValueError(f"{name} is {values[name]!r}; expected True or False")
    check_effect(how.effect)
    check_multiple(how.high_norm_multiple)
    check_per_document(how.per_document)
    return how


def check_per_document(per_document: int | None) -> None:
    good = per_document is None or (type(per_document) is int and per_document > 0)
    if not good:
        raise ValueError(f"per_document is {per_document!r}; expected a whole number of at least 1, or None for any")


def worth_keeping(capture: Capture, cfg: SaeVisConfig, n_rows: int, n_features: int) -> bool:
    """Whether running the models to their end while gathering costs less than running the shown sequences later."""
    seq_cfg = cfg.feature_centric_layout.seq_cfg
    if seq_cfg is None:
        return False
    examples = seq_cfg.top_acts_group_size + seq_cfg.n_quantiles * seq_cfg.quantile_group_size
    examples = n_features * (examples + getattr(seq_cfg, "random_group_size", 0))
    shown = 1 - math.exp(-examples / n_rows)  # the share of rows that examples fall into
    needed, layers = capture.layers_needed()
    return shown * layers >= layers - needed
