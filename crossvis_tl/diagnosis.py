"""Would another model order, hook, processing or scale fit better? Tried on a few sequences with every gathering: a
crosscoder whose two models are swapped can still explain two thirds of the variance, and looks plausible by itself."""

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from crossvis_tl.capture import Capture, Captured
from crossvis_tl.dictionary import Dictionary, Site
from crossvis_tl.fidelity import Fidelity
from crossvis_tl.masking import Mask
from crossvis_tl.models import name_of
from crossvis_tl.pairs import tokenizer_differences

CHECKED_ROWS, CHECKED_TOKENS, FEW_TOKENS = 8, 256, 32
MUCH_BETTER, WORTH_A_LOOK = 0.6, 0.8


def diagnose(capture: Capture, tokens: Tensor, mask: Mask, fidelity: Fidelity) -> tuple[list[str], list[str]]:
    """-> likely causes of a bad fit, and notes. A cause is what cuts the mean FVU to less than 60 % of what it is, best
    first."""
    causes = [f"likely cause: {what}" for what in _causes(capture, tokens, mask)]
    notes = [*_notes(capture, fidelity), *tokenizer_differences(capture.models, tokens, capture.replacements)]
    return causes, notes


def _causes(capture: Capture, tokens: Tensor, mask: Mask) -> list[str]:
    rows, kept = _checked(mask)
    if not kept.any():
        return []
    tried = _other_sites(capture)
    lead = mask.lead[rows]
    captured, *others = capture.run_with([capture, *(other for other, _ in tried)], tokens[rows], lead=lead)
    if captured is None:
        return []
    found = list(_model_orders(capture, tokens[rows], lead))
    scaled = _scaled(capture, captured, kept)
    found += [] if scaled is None else [scaled]
    fitting = [
        (result, what)
        for (other, what), result in zip(tried, others, strict=True)
        if result is not None and _fits(other, result)
    ]
    # most other sites are hopeless, which a few tokens show
    few, dictionary = _spread(kept, FEW_TOKENS), capture.dictionary
    now, *rough = _mean_fvus(dictionary, [captured, *(result for result, _ in fitting)], few)
    found += [change for change, fvu in zip(fitting, rough, strict=True) if fvu < WORTH_A_LOOK * now]
    now, *fvus = _mean_fvus(dictionary, [captured, *(result for result, _ in found)], kept)
    better = sorted((fvu, what) for fvu, (_, what) in zip(fvus, found, strict=True) if fvu < MUCH_BETTER * now)
    return [f"{what} (FVU would be {fvu:.2f} instead of {now:.2f})" for fvu, what in better[:3]]


def _checked(mask: Mask) -> tuple[slice, Tensor]:
    """-> the first rows that hold enough tokens, and which of their tokens are looked at."""
    per_row = mask.counted.sum(-1)
    enough = int((per_row.cumsum(0) < CHECKED_TOKENS).sum()) + 1
    rows = slice(min(max(enough, 2), CHECKED_ROWS))
    return rows, _spread(mask.counted[rows], CHECKED_TOKENS)


def _spread(counted: Tensor, n: int) -> Tensor:
    """About n of these positions, evenly spaced."""
    at = counted.flatten().nonzero().squeeze(-1)
    kept = torch.zeros(counted.numel(), dtype=torch.bool)
    kept[at[:: max(1, len(at) // n)]] = True
    return kept.reshape(counted.shape)


def _fits(other: Capture, captured: Captured) -> bool:
    sites = [*other.dictionary.sources, *other.dictionary.targets]
    widths = [x.shape[-1] for x in (*captured.sources, *captured.targets)]
    return all(site.width in (0, width) for site, width in zip(sites, widths, strict=True))


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


def _mean_fvus(dictionary: Dictionary, changes: list[Captured], kept: Tensor) -> list[float]:
    """Mean FVU over the targets, of each of these activations; all are encoded together."""

    def together(name: str) -> list[Tensor]:
        sites = zip(*(getattr(captured, name) for captured in changes), strict=True)
        return [torch.cat([x[kept.to(x.device)].to(dictionary.device) for x in site]) for site in sites]

    sources, targets = together("sources"), together("targets")
    recons = dictionary.decode(dictionary.encode_sparse(sources), sources)
    values = torch.zeros(len(changes), dtype=torch.float64)
    for t, (raw, recon) in enumerate(zip(targets, recons, strict=True)):
        x = dictionary.target_norm[t](raw) if t in dictionary.target_norm else raw.to(recon)
        x, left = x.unflatten(0, (len(changes), -1)), (x - recon).unflatten(0, (len(changes), -1))
        variance = (x - x.mean(1, keepdim=True)).square().sum((1, 2)).double()
        values += (left.square().sum((1, 2)).double() / variance).cpu()
    return (values / len(targets)).nan_to_num(nan=float("inf")).tolist()


def _model_orders(capture: Capture, rows: Tensor, lead: Tensor) -> Iterator[tuple[Captured, str]]:
    if len(capture.models) != 2:
        return
    first, second = (name_of(model) for model in capture.models)
    replacements = {1 - i: mapping for i, mapping in capture.replacements.items()}
    try:
        captured = Capture(capture.dictionary, capture.models[::-1], replacements).run(rows, lead=lead)
    except ValueError:  # the other model has no such hook, or another width there: then they are not swapped
        return
    yield captured, f"the two models are swapped; give {second} first, then {first}"


def _other_sites(capture: Capture) -> list[tuple[Capture, str]]:
    tried: list[tuple[Capture, str]] = []
    for dictionary, what in _site_changes(capture):
        try:
            tried.append((Capture(dictionary, capture.models, capture.replacements, checked=True), what))
        except ValueError:  # this model has no such hook
            continue
    return tried


def _site_changes(capture: Capture) -> Iterator[tuple[Dictionary, str]]:
    dictionary = capture.dictionary
    for processing in ("none", "tl_default"):
        if any(site.processing not in (processing, "as given") for site in dictionary.sources):
            text = f"trained on models with processing={processing!r}; pass that to load_dictionary"
            yield dictionary.with_sites(processing=processing), text
    hooks = {site.place for site in (*dictionary.sources, *dictionary.targets)}
    if len(hooks) == 1:
        hook = str(next(iter(hooks)))
        for layer in range(capture.models[0].cfg.n_layers):
            for name in (f"blocks.{layer}.hook_resid_mid", f"blocks.{layer}.hook_resid_post"):
                if name != hook:
                    yield dictionary.with_sites(hook=name, hf_path=None), f"trained at {name}, not {hook}"
    elif dictionary.kind in ("clt", "plt"):
        for name in ("hook_resid_pre", "hook_resid_mid", "ln2.hook_normalized", "mlp.hook_in"):
            change = replace(dictionary, sources=tuple(_renamed(site, name) for site in dictionary.sources))
            if change.sources != dictionary.sources:
                yield change, f"it reads {name}, not what its config names"


def _renamed(site: Site, name: str) -> Site:
    return site if site.layer is None else replace(site, hook=f"blocks.{site.layer}.{name}", hf_path=None)


def _scaled(capture: Capture, captured: Captured, kept: Tensor) -> tuple[Captured, str] | None:
    """Dictionaries are trained on inputs of mean norm about sqrt(d); were these that, undoing it should help."""
    if capture.dictionary.kind != "crosscoder" or capture.dictionary.targets != capture.dictionary.sources:
        return None  # of a target that is no source no factor is known
    norms = [float(x[kept.to(x.device)].norm(dim=-1).mean()) for x in captured.sources]
    if not all(norms):
        return None
    factors = [x.shape[-1] ** 0.5 / norm for x, norm in zip(captured.sources, norms, strict=True)]
    if all(abs(factor - 1) < 0.05 for factor in factors):
        return None
    scaled = Captured(
        [x * f for x, f in zip(captured.sources, factors, strict=True)],
        [x * f for x, f in zip(captured.targets, factors, strict=True)],
        [],
        [],
    )
    wanted = [round(f * site.scale, 4) for f, site in zip(factors, capture.dictionary.sources, strict=True)]
    return scaled, f"wrong input_scale; about {wanted} would bring the activations to mean norm sqrt(d)"
