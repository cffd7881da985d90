"""Would another model order, hook, processing or scale fit better? Tried on a few sequences with every gathering: a
crosscoder whose two models are swapped can still explain two thirds of the variance, and looks plausible by itself."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from crossvis_tl.capture import Capture, Captured
from crossvis_tl.dictionary import Dictionary, Site
from crossvis_tl.fidelity import Fidelity, FidelitySums
from crossvis_tl.models import name_of
from crossvis_tl.pairs import tokenizer_differences

CHECKED_ROWS = 8
MUCH_BETTER = 0.6


def diagnose(capture: Capture, tokens: Tensor, counted: Tensor, fidelity: Fidelity) -> Fidelity:
    """The verdict with likely causes named: what cuts the mean FVU to less than 60 % of what it is, best first. Where
    there is such a change the verdict is "implausible", whatever the FVU."""
    causes = [f"likely cause: {what}" for what in _causes(capture, tokens[:CHECKED_ROWS], counted[:CHECKED_ROWS])]
    notes = [*_notes(capture, fidelity), *tokenizer_differences(capture.models, tokens, capture.replacements)]
    if not causes and not notes:
        return fidelity
    verdict = "implausible" if causes else "doubtful" if fidelity.verdict == "plausible" else fidelity.verdict
    return replace(fidelity, verdict=verdict, warnings=[*fidelity.warnings, *causes, *notes])


def _causes(capture: Capture, rows: Tensor, kept: Tensor) -> list[str]:
    if not kept.any():
        return []
    now = _mean_fvu(capture.dictionary, capture.run(rows), kept)
    tried = [*_model_orders(capture, rows, kept), *_other_sites(capture, rows, kept), *_scales(capture, rows, kept)]
    better = sorted((fvu, what) for fvu, what in tried if fvu < MUCH_BETTER * now)
    return [f"{what} (FVU would be {fvu:.2f} instead of {now:.2f})" for fvu, what in better[:3]]


def _notes(capture: Capture, fidelity: Fidelity) -> list[str]:
    """What the names and weights of the models say."""
    models, notes = capture.models, []
    for i, one in enumerate(models):
        for j in range(i + 1, len(models)):
            other = models[j]
            if one is other or (one.W_E.shape == other.W_E.shape and torch.equal(one.W_E.cpu(), other.W_E.cpu())):
                notes.append(f"models {i + 1} and {j + 1} ({name_of(one)}, {name_of(other)}) are the same")
    trained = [str(name).rstrip("/").split("/")[-1] if name else None for name in capture.dictionary.model_names]
    given = [name_of(model) for model in models]
    others = [f"{t!r}, not {g!r}" for t, g in zip(trained, given, strict=False) if t and t != g]
    if others and (fidelity.verdict != "plausible" or notes):
        notes.append(f"its files say it was trained on {' and '.join(others)}")
    return notes


def _mean_fvu(dictionary: Dictionary, captured: Captured, kept: Tensor) -> float:
    sums = FidelitySums(dictionary)
    sources = [x[kept.to(x.device)] for x in captured.sources]
    acts = dictionary.encode_sparse(sources)
    sums.add(acts, [x[kept.to(x.device)] for x in captured.targets], dictionary.decode(acts, sources))
    values = sums.fvu()
    return sum(values) / len(values)


def _try(
    dictionary: Dictionary, capture: Capture, rows: Tensor, kept: Tensor, *, swapped: bool = False
) -> float | None:
    """Mean FVU, or None where the change cannot be."""
    models, replacements = capture.models, capture.replacements
    if swapped:
        last = len(models) - 1
        models, replacements = models[::-1], {last - i: mapping for i, mapping in replacements.items()}
    try:
        return _mean_fvu(dictionary, Capture(dictionary, models, replacements).run(rows), kept)
    except ValueError:
        return None


def _model_orders(capture: Capture, rows: Tensor, kept: Tensor) -> Iterator[tuple[float, str]]:
    if len(capture.models) != 2:
        return
    first, second = (name_of(model) for model in capture.models)
    fvu = _try(capture.dictionary, capture, rows, kept, swapped=True)
    if fvu is not None:
        yield fvu, f"the two models are swapped; give {second} first, then {first}"


def _other_sites(capture: Capture, rows: Tensor, kept: Tensor) -> Iterator[tuple[float, str]]:
    for change, what in _site_changes(capture):
        fvu = _try(change, capture, rows, kept)
        if fvu is not None:
            yield fvu, what


def _site_changes(capture: Capture) -> Iterator[tuple[Dictionary, str]]:
    dictionary = capture.dictionary
    for processing in ("none", "tl_default"):
        if any(site.processing not in (processing, "as given") for site in dictionary.sources):
            text = f"trained on models with processing={processing!r}; pass that to load_dictionary"
            yield _with_sites(dictionary, processing=processing), text
    hooks = {site.place for site in (*dictionary.sources, *dictionary.targets)}
    if len(hooks) == 1:
        hook = str(next(iter(hooks)))
        for layer in range(capture.models[0].cfg.n_layers):
            for name in (f"blocks.{layer}.hook_resid_mid", f"blocks.{layer}.hook_resid_post"):
                if name != hook:
                    yield _with_sites(dictionary, hook=name, hf_path=None), f"trained at {name}, not {hook}"
    elif dictionary.kind in ("clt", "plt"):
        for name in ("hook_resid_pre", "hook_resid_mid", "ln2.hook_normalized"):
            change = replace(dictionary, sources=tuple(_renamed(site, name) for site in dictionary.sources))
            if change.sources != dictionary.sources:
                yield change, f"it reads {name}, not what its config names"


def _renamed(site: Site, name: str) -> Site:
    return site if site.layer is None else replace(site, hook=f"blocks.{site.layer}.{name}", hf_path=None)


def _scales(capture: Capture, rows: Tensor, kept: Tensor) -> Iterator[tuple[float, str]]:
    """Dictionaries are trained on inputs of mean norm about sqrt(d); were these that, undoing it should help."""
    captured = capture.run(rows)
    factors = [x.shape[-1] ** 0.5 / float(x[kept.to(x.device)].norm(dim=-1).mean()) for x in captured.sources]
    if capture.dictionary.kind != "crosscoder" or all(abs(factor - 1) < 0.05 for factor in factors):
        return
    scaled = Captured(
        [x * f for x, f in zip(captured.sources, factors, strict=True)],
        [x * f for x, f in zip(captured.targets, factors, strict=True)],
        [],
    )
    wanted = [round(f * site.scale, 4) for f, site in zip(factors, capture.dictionary.sources, strict=True)]
    text = f"wrong input_scale; about {wanted} would bring the activations to mean norm sqrt(d)"
    yield _mean_fvu(capture.dictionary, scaled, kept), text


def _with_sites(dictionary: Dictionary, **change: Any) -> Dictionary:
    sources = tuple(replace(site, **change) for site in dictionary.sources)
    return replace(dictionary, sources=sources, targets=tuple(replace(site, **change) for site in dictionary.targets))
