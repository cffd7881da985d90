"""What a page says of its dictionary, models and tokens, in words."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from crossvis_tl.dictionary import Dictionary, Site
from crossvis_tl.errors import short_list
from crossvis_tl.feature_acts import FeatureActs
from crossvis_tl.fidelity import site_label
from crossvis_tl.manifest import replacements_from_json
from crossvis_tl.page.build import FEW_SITES

# Facts of a dictionary that change its numbers and that its files alone do not settle.
REPORTED = ("calibrated", "input_scale", "input_layer_norm", "apply_b_dec_to_input", "activation")


@dataclass
class PageFacts:
    """What a page says of its dictionary, models and tokens; enough to draw it again without them.

    `facts`: [name, text] pairs. `fidelity`: `Fidelity.as_dict()`. `vocabulary`: text of every token id shown.
    """

    kind: str = "sae"
    title: str = "Features"
    models: list[str] = field(default_factory=list)
    sources: list[dict[str, Any]] = field(default_factory=list)
    targets: list[dict[str, Any]] = field(default_factory=list)
    facts: list[list[str]] = field(default_factory=list)
    fidelity: dict[str, Any] | None = None
    vocabulary: dict[int, str] = field(default_factory=dict)


EFFECTS = {
    "direct": "direct: the final residual stream minus what the feature writes, later layers left as they are",
    "full": "full: the feature taken away at the chosen token where it is written, and the model run on from there",
    "none": "not computed (effect='none')",
    "no model": "not gathered: made without the model",
    "nowhere": "none: the sites that are written do not add to the residual stream",
}
SEQUENCES = "a token shows its own activation, and the effect that the feature at the token before has on predicting it"


def page_facts(dictionary: Dictionary, acts: FeatureActs, effect: str) -> PageFacts:
    """`effect`: one of `EFFECTS`."""
    names = acts.manifest.model_names
    rows, positions = acts.tokens.shape
    facts = [
        [
            "dictionary",
            f"{dictionary.name}: {dictionary.n_features:,} {dictionary.activation} features, {dictionary.format}",
        ],
        ["models", ", ".join(names)],
        ["processing", _processing(dictionary)],
        ["tokens", f"{acts.n_counted:,} counted in {rows:,} sequences of {positions}"],
        ["masked", acts.mask.text.removeprefix("masked: ")],
        ["logit effects", EFFECTS[effect]],
        ["sequences", SEQUENCES],
    ]
    facts += [[name.replace("_", " "), _said(dictionary.facts[name])] for name in REPORTED if name in dictionary.facts]
    if "sites.products" not in acts.sums:
        facts.append(["correlated neurons", "not gathered: too many features at once; gather fewer to have them"])
    for index, mapping in replacements_from_json(acts.manifest.replacements).items():
        facts.append(["replaced tokens", f"{names[index]} reads {_pairs(mapping)}"])
    fidelity = acts.fidelity
    in_table = len(fidelity.groups) == len(fidelity.sites) and bool(fidelity.losses or len(fidelity.sites) > FEW_SITES)
    if fidelity.groups and not in_table:
        parts = (f"{group.label} {group.l0:.1f} ({group.dead:.1%} dead)" for group in fidelity.groups)
        facts.append(["L0 by layer", ", ".join(parts)])
    return PageFacts(
        kind=dictionary.kind,
        title=f"{dictionary.name} · {' × '.join(names)}",
        models=names,
        sources=_sites(dictionary.sources, names),
        targets=_sites(dictionary.targets, names),
        facts=facts,
        fidelity=acts.fidelity.as_dict(),
    )


def _pairs(mapping: Mapping[int, int]) -> str:
    return short_list((f"{new} for {old}" for old, new in mapping.items()), 6)


def _processing(dictionary: Dictionary) -> str:
    """On what weights the models ran in training, in words."""
    words = {"none": "none (HuggingFace's own activations)", "tl_default": "TransformerLens' default", None: "unknown"}
    kinds = {site.processing for site in (*dictionary.sources, *dictionary.targets)}
    return ", ".join(sorted(words.get(kind, str(kind)) for kind in kinds))


def _sites(sites: Sequence[Site], names: list[str]) -> list[dict[str, Any]]:
    """Labels, and short ones where the model, or the layer, is all that tells the sites apart."""
    models = [names[site.model] for site in sites]
    layers = [re.fullmatch(r"blocks\.(\d+)\.(.+)", str(site.hook)) for site in sites]
    found = [_site(site, names) for site in sites]
    short: list[str] | None = None
    if len(sites) > 1 and len(set(models)) == len(sites):
        short = models
    elif all(layers) and len({layer[2] for layer in layers if layer}) == 1:
        numbers = [f"L{layer[1]}" for layer in layers if layer]
        several = len(set(models)) > 1
        short = [f"{model} {number}" if several else number for model, number in zip(models, numbers, strict=True)]
    if short is None or len(set(short)) < len(sites):
        return found
    return [site | {"short": text} for site, text in zip(found, short, strict=True)]


def _site(site: Site, names: list[str]) -> dict[str, Any]:
    return {
        "model": site.model,
        "hook": site.hook or site.hf_path,
        "label": site_label(site, names),
        "width": site.width,
    }


def _said(value: object) -> str:
    """Numbers to the digits that mean something to a reader."""
    if isinstance(value, list | tuple):
        return ", ".join(_said(one) for one in value)
    return f"{value:.4g}" if isinstance(value, float) else str(value)
