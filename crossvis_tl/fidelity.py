"""How well a dictionary reconstructs these very tokens: the first thing to look at, since a wrong hook, scale,
processing or model order gives pages that look fine and mean nothing."""

import warnings as python_warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from crossvis_tl.capture import Capture, Captured
from crossvis_tl.dictionary import Dictionary, Site
from crossvis_tl.errors import CrossvisWarning
from crossvis_tl.models import name_of

IMPLAUSIBLE_FVU = 0.8
DOUBTFUL_FVU = 0.5
CHECKED_ROWS = 8


@dataclass
class SiteFidelity:
    """`fvu`: fraction of variance unexplained, sum |x - recon|^2 / sum |x - mean x|^2 over counted tokens."""

    label: str
    fvu: float


@dataclass
class Fidelity:
    """`l0`: mean number of features active on a token. `dead`: share of features that never fired."""

    verdict: str
    headline: str
    sites: list[SiteFidelity]
    l0: float
    dead: float
    n_tokens: int
    warnings: list[str] = field(default_factory=list)

    def as_dict(self) -> dict:
        return asdict(self)


class FidelitySums:
    """Sums for FVU at every target, L0 and dead features, over batches in float64."""

    def __init__(self, dictionary: Dictionary):
        self.n_tokens = 0
        self.n_active = 0.0
        self.fired: Bool[Tensor, " features"] = torch.zeros(dictionary.n_features, dtype=torch.bool)
        self.total = [torch.zeros(site.width, dtype=torch.float64) for site in dictionary.targets]
        self.squares = [0.0 for _ in dictionary.targets]
        self.errors = [0.0 for _ in dictionary.targets]

    def add(
        self,
        acts: Float[Tensor, "tokens features"],
        targets: Sequence[Float[Tensor, "tokens d_target"]],
        recons: Sequence[Float[Tensor, "tokens d_target"]],
    ) -> None:
        """Counted tokens only."""
        active = acts != 0
        self.n_tokens += acts.shape[0]
        self.n_active += float(active.sum())
        self.fired |= active.any(0).cpu()
        for t, (x, recon) in enumerate(zip(targets, recons, strict=True)):
            self.total[t] += x.sum(0).double().cpu()
            self.squares[t] += float(x.pow(2).sum(dtype=torch.float64))
            self.errors[t] += float((x.to(recon) - recon).pow(2).sum(dtype=torch.float64))

    def fvu(self) -> list[float]:
        """For each target; infinite where the activations do not vary."""
        values = []
        for total, squares, errors in zip(self.total, self.squares, self.errors, strict=True):
            variance = squares - float(total.pow(2).sum()) / max(self.n_tokens, 1)
            values.append(errors / variance if variance > 0 else float("inf"))
        return values

    def result(self, dictionary: Dictionary, names: Sequence[str]) -> Fidelity:
        labels = [site_label(site, names) for site in dictionary.targets]
        sites = [SiteFidelity(label, fvu) for label, fvu in zip(labels, self.fvu(), strict=True)]
        l0 = self.n_active / max(self.n_tokens, 1)
        dead = 1 - float(self.fired.float().mean())
        return _judge(Fidelity("", "", sites, l0, dead, self.n_tokens), dictionary)


def site_label(site: Site, names: Sequence[str]) -> str:
    """-> "base blocks.2.hook_resid_post", or the hook alone where there is one model."""
    return f"{names[site.model]} · {site.hook}" if len(names) > 1 else str(site.hook)


def _judge(fidelity: Fidelity, dictionary: Dictionary) -> Fidelity:
    worst = max(site.fvu for site in fidelity.sites)
    best = min(site.fvu for site in fidelity.sites)
    warnings = []
    for site in fidelity.sites:
        if site.fvu > DOUBTFUL_FVU:
            warnings.append(f"{site.label}: {site.fvu:.0%} of the variance is not explained")
    if fidelity.l0 > 0.25 * dictionary.n_features:
        warnings.append(f"{fidelity.l0:.0f} of {dictionary.n_features} features fire on a token: that is not sparse")
    if fidelity.dead > 0.9:
        warnings.append(f"{fidelity.dead:.0%} of the features never fire on these tokens")
    implausible = worst > IMPLAUSIBLE_FVU or fidelity.l0 > 0.25 * dictionary.n_features or fidelity.l0 == 0
    verdict = "implausible" if implausible else "doubtful" if warnings else "plausible"
    span = f"{best:.3f}" if len(fidelity.sites) == 1 else f"{best:.3f} to {worst:.3f}"
    headline = f"FVU {span}, L0 {fidelity.l0:.1f}, {fidelity.dead:.1%} of features dead on {fidelity.n_tokens:,} tokens"
    return replace(fidelity, verdict=verdict, headline=headline, warnings=warnings)


def likely_causes(capture: Capture, tokens: Tensor, counted: Tensor, fidelity: Fidelity) -> list[str]:
    """What would make a bad reconstruction good, tried on a few sequences: model order, processing, scale, hook.

    -> sentences naming each change that cuts the mean FVU to less than 60 % of what it is, best first.
    """
    rows, kept = tokens[:CHECKED_ROWS], counted[:CHECKED_ROWS]
    if not kept.any():
        return []
    now = _mean_fvu(capture.dictionary, capture.run(rows), kept)
    tried = {**_model_orders(capture, rows, kept), **_processings(capture, rows, kept)}
    tried |= {**_scales(capture, rows, kept), **_other_hooks(capture, rows, kept)}
    better = sorted((fvu, what) for what, fvu in tried.items() if fvu < 0.6 * now)
    return [f"likely cause: {what} (FVU would be {fvu:.2f} instead of {now:.2f})" for fvu, what in better[:3]]


def _mean_fvu(dictionary: Dictionary, captured: Captured, kept: Tensor) -> float:
    sums = FidelitySums(dictionary)
    acts = dictionary.encode([x[kept.to(x.device)] for x in captured.sources])
    recons = dictionary.decode(acts, captured.sources)
    sums.add(acts, [x[kept.to(x.device)] for x in captured.targets], recons)
    values = sums.fvu()
    return sum(values) / len(values)


def _model_orders(capture: Capture, rows: Tensor, kept: Tensor) -> dict[str, float]:
    if len(capture.models) != 2:
        return {}
    first, second = (name_of(model) for model in capture.models)
    try:
        swapped = Capture(capture.dictionary, capture.models[::-1])
    except ValueError:
        return {}
    fvu = _mean_fvu(capture.dictionary, swapped.run(rows), kept)
    return {f"the two models are swapped; give {second} first, then {first}": fvu}


def _processings(capture: Capture, rows: Tensor, kept: Tensor) -> dict[str, float]:
    tried = {}
    for processing in ("none", "tl_default"):
        change = _with_sites(capture.dictionary, processing=processing)
        if change.sources == capture.dictionary.sources:
            continue
        try:
            fvu = _mean_fvu(change, Capture(change, capture.models).run(rows), kept)
        except ValueError:
            continue
        tried[f"trained on models with processing={processing!r}; pass that to load_dictionary"] = fvu
    return tried


def _scales(capture: Capture, rows: Tensor, kept: Tensor) -> dict[str, float]:
    """Dictionaries are trained on inputs of mean norm about sqrt(d); were these that, undoing it should help."""
    captured = capture.run(rows)
    factors = [x.shape[-1] ** 0.5 / float(x[kept.to(x.device)].norm(dim=-1).mean()) for x in captured.sources]
    if capture.dictionary.kind != "crosscoder" or all(abs(f - 1) < 0.05 for f in factors):
        return {}
    scaled = Captured(
        [x * f for x, f in zip(captured.sources, factors, strict=True)],
        [x * f for x, f in zip(captured.targets, factors, strict=True)],
        [],
    )
    wanted = [round(f * site.scale, 4) for f, site in zip(factors, capture.dictionary.sources, strict=True)]
    fvu = _mean_fvu(capture.dictionary, scaled, kept)
    return {f"wrong input_scale; about {wanted} would bring the activations to mean norm sqrt(d)": fvu}


def _other_hooks(capture: Capture, rows: Tensor, kept: Tensor) -> dict[str, float]:
    """The neighbouring residual streams, for dictionaries that read and write one hook."""
    hooks = {site.hook for site in (*capture.dictionary.sources, *capture.dictionary.targets)}
    if len(hooks) != 1:
        return {}
    hook = str(next(iter(hooks)))
    tried = {}
    for layer in range(capture.models[0].cfg.n_layers):
        other = f"blocks.{layer}.hook_resid_post"
        if other == hook:
            continue
        change = _with_sites(capture.dictionary, hook=other)
        try:
            tried[f"trained at {other}, not {hook}"] = _mean_fvu(
                change, Capture(change, capture.models).run(rows), kept
            )
        except ValueError:
            continue
    return tried


def _with_sites(dictionary: Dictionary, **change) -> Dictionary:
    return replace(
        dictionary,
        sources=tuple(replace(site, **change) for site in dictionary.sources),
        targets=tuple(replace(site, **change) for site in dictionary.targets),
    )


def warn_if_bad(fidelity: Fidelity) -> None:
    """A Python warning for an implausible reconstruction; the page shows the same text."""
    if fidelity.verdict == "implausible":
        text = "; ".join([f"implausible: {fidelity.headline}", *fidelity.warnings])
        python_warnings.warn(text, CrossvisWarning, stacklevel=3)
