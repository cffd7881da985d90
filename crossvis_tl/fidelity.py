"""How well a dictionary reconstructs these very tokens: the first thing to look at, since a wrong hook, scale,
processing or model order gives pages that look fine and mean nothing."""

import warnings as python_warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace

import torch
from jaxtyping import Float
from torch import Tensor

from crossvis_tl.dictionary import Dictionary, Site, SparseActs
from crossvis_tl.errors import CrossvisWarning

IMPLAUSIBLE_FVU = 0.8
DOUBTFUL_FVU = 0.5


@dataclass
class SiteFidelity:
    """`fvu`: fraction of variance unexplained, sum |x - recon|^2 / sum |x - mean x|^2 over counted tokens."""

    label: str
    fvu: float


@dataclass
class GroupFidelity:
    """One group of features, such as a CLT's layer. `l0`: mean number of them active on a token; `dead`: share of them
    that never fired."""

    label: str
    l0: float
    dead: float


@dataclass
class Fidelity:
    """`l0`, `dead`: as in `GroupFidelity`, over all features. `groups`: the same for each, where there are several."""

    verdict: str
    headline: str
    sites: list[SiteFidelity]
    l0: float
    dead: float
    n_tokens: int
    warnings: list[str] = field(default_factory=list)
    groups: list[GroupFidelity] = field(default_factory=list)

    def as_dict(self) -> dict:
        return asdict(self)

    def lines(self) -> list[str]:
        """The verdict in words: headline, each site, each group, each warning."""
        sites = [f"  FVU {site.fvu:.3f}  {site.label}" for site in self.sites]
        groups = [f"  L0  {group.l0:<6.1f}{group.label}, {group.dead:.1%} dead" for group in self.groups]
        warnings = [f"  warning: {text}" for text in self.warnings]
        return [f"fidelity {self.verdict}: {self.headline}", *sites, *groups, *warnings]


class FidelitySums:
    """Sums for FVU at every target, L0 and dead features, over batches in float64."""

    def __init__(self, dictionary: Dictionary):
        self.n_tokens = 0
        self.target_norm = dictionary.target_norm
        self.active: Float[Tensor, " features"] = torch.zeros(dictionary.n_features, dtype=torch.float64)
        self.total = [torch.zeros(site.width, dtype=torch.float64) for site in dictionary.targets]
        self.squares = [0.0 for _ in dictionary.targets]
        self.errors = [0.0 for _ in dictionary.targets]

    def add(
        self,
        acts: SparseActs,
        targets: Sequence[Float[Tensor, "tokens d_target"]],
        recons: Sequence[Float[Tensor, "tokens d_target"]],
    ) -> None:
        """Counted tokens only."""
        self.n_tokens += acts.n_tokens
        self.active += torch.bincount(acts.features, minlength=len(self.active)).double().cpu()
        for t, (raw, recon) in enumerate(zip(targets, recons, strict=True)):
            x = self.target_norm[t](raw) if t in self.target_norm else raw
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
        offsets = dictionary.offsets
        groups = [
            self._group(group.name.replace("L", "layer "), self.active[offsets[g] : offsets[g + 1]])
            for g, group in enumerate(dictionary.groups)
        ]
        whole = self._group("", self.active)
        several = groups if len(groups) > 1 else []
        return _judge(Fidelity("", "", sites, whole.l0, whole.dead, self.n_tokens, [], several), dictionary)

    def _group(self, label: str, active: Tensor) -> GroupFidelity:
        return GroupFidelity(label, float(active.sum()) / max(self.n_tokens, 1), float((active == 0).double().mean()))


def site_label(site: Site, names: Sequence[str]) -> str:
    """-> "base · blocks.2.hook_resid_post", or the hook alone where there is one model."""
    place = site.hf_path or str(site.hook)
    return f"{names[site.model]} · {place}" if len(names) > 1 else place


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


def warn_if_bad(fidelity: Fidelity) -> None:
    """A Python warning unless the reconstruction is plausible; the page shows the same text."""
    if fidelity.verdict != "plausible":
        text = "; ".join([f"{fidelity.verdict}: {fidelity.headline}", *fidelity.warnings])
        python_warnings.warn(text, CrossvisWarning, stacklevel=4)
