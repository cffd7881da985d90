"""How well a dictionary reconstructs these very tokens: the first thing to look at, since a wrong hook, scale,
processing or model order gives pages that look fine and mean nothing."""

import warnings as python_warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from crossvis_tl.dictionary import Dictionary, Site, SparseActs
from crossvis_tl.errors import CrossvisWarning
from crossvis_tl.losses import ReplacementLoss

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
    """`l0`, `dead`: as in `GroupFidelity`, over all features. `groups`: the same for each, where there are several.
    `losses`: of each model, where that was measured."""

    verdict: str
    headline: str
    sites: list[SiteFidelity]
    l0: float
    dead: float
    n_tokens: int
    warnings: list[str] = field(default_factory=list)
    groups: list[GroupFidelity] = field(default_factory=list)
    losses: list[ReplacementLoss] = field(default_factory=list)

    def as_dict(self) -> dict:
        return asdict(self)

    def with_diagnosis(self, causes: Sequence[str], notes: Sequence[str]) -> "Fidelity":
        """The verdict with likely causes and notes named: with a cause it is "implausible", whatever the FVU, and with
        a note alone no better than "doubtful"."""
        if not causes and not notes:
            return self
        verdict = "implausible" if causes else "doubtful" if self.verdict == "plausible" else self.verdict
        return replace(self, verdict=verdict, warnings=[*self.warnings, *causes, *notes])

    @classmethod
    def from_dict(cls, data: Mapping) -> "Fidelity":
        """Undoes `as_dict`."""
        sites = [SiteFidelity(**site) for site in data["sites"]]
        groups = [GroupFidelity(**group) for group in data["groups"]]
        losses = [ReplacementLoss.from_dict(one) for one in data.get("losses", ())]
        return cls(**{**data, "sites": sites, "groups": groups, "losses": losses})

    def lines(self) -> list[str]:
        """The verdict in words: headline, each site, each group, what replacement costs, each warning."""
        sites = [f"  FVU {site.fvu:.3f}  {site.label}" for site in self.sites]
        groups = [f"  L0  {group.l0:<6.1f}{group.label}, {group.dead:.1%} dead" for group in self.groups]
        warnings = [f"  warning: {text}" for text in self.warnings]
        losses = [line for one in self.losses for line in one.lines()]
        return [f"fidelity {self.verdict}: {self.headline}", *sites, *groups, *losses, *warnings]


@dataclass(frozen=True)
class FidelityLabels:
    """What the numbers belong to. `sites`: of each target. `groups`: name and number of features of each group."""

    sites: list[str]
    groups: list[tuple[str, int]]

    @classmethod
    def of(cls, dictionary: Dictionary, names: Sequence[str]) -> "FidelityLabels":
        return cls(
            [site_label(site, names) for site in dictionary.targets],
            [(group.name.replace("L", "layer "), group.n_features) for group in dictionary.groups],
        )


class FidelitySums:
    """Sums for FVU at every target, L0 and dead features, over batches in float64; those of token sets add up.

    `active`: on how many tokens each feature fires. By target: `total`, the sum of activations [width], `squares` and
    `errors`, of what is reconstructed and of what is left.
    """

    def __init__(self, widths: Sequence[int], n_features: int):
        self.n_tokens = 0
        self.active: Int[Tensor, " features"] = torch.zeros(n_features, dtype=torch.long)
        self.total = [torch.zeros(width, dtype=torch.float64) for width in widths]
        self.squares = torch.zeros(len(widths), dtype=torch.float64)
        self.errors = torch.zeros(len(widths), dtype=torch.float64)

    @classmethod
    def of(cls, dictionary: Dictionary) -> "FidelitySums":
        return cls([site.width for site in dictionary.targets], dictionary.n_features)

    def add(
        self,
        dictionary: Dictionary,
        acts: SparseActs,
        targets: Sequence[Float[Tensor, "tokens d_target"]],
        recons: Sequence[Float[Tensor, "tokens d_target"]],
    ) -> None:
        """Counted tokens only."""
        self.n_tokens += acts.n_tokens
        self.active += torch.bincount(acts.features, minlength=len(self.active)).cpu()
        for t, (raw, recon) in enumerate(zip(targets, recons, strict=True)):
            x = dictionary.target_norm[t](raw) if t in dictionary.target_norm else raw
            self.total[t] += x.sum(0).double().cpu()
            self.squares[t] += float(x.square().sum(-1).sum(dtype=torch.float64))
            self.errors[t] += float((x.to(recon) - recon).square().sum(-1).sum(dtype=torch.float64))

    def tensors(self) -> dict[str, Tensor]:
        """Everything, to be written down."""
        totals = {f"total.{t}": total for t, total in enumerate(self.total)}
        count = torch.tensor(self.n_tokens)
        return {"n_tokens": count, "active": self.active, "squares": self.squares, "errors": self.errors, **totals}

    def add_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Adds what `tensors` gave, of other tokens."""
        self.n_tokens += int(tensors["n_tokens"])
        self.active += tensors["active"]
        self.squares += tensors["squares"]
        self.errors += tensors["errors"]
        for t in range(len(self.total)):
            self.total[t] += tensors[f"total.{t}"]

    def fvu(self) -> list[float]:
        """For each target; infinite where the activations do not vary."""
        values = []
        for total, squares, errors in zip(self.total, self.squares.tolist(), self.errors.tolist(), strict=True):
            variance = squares - float(total.pow(2).sum()) / max(self.n_tokens, 1)
            values.append(errors / variance if variance > 0 else float("inf"))
        return values

    def result(self, labels: FidelityLabels) -> Fidelity:
        sites = [SiteFidelity(label, fvu) for label, fvu in zip(labels.sites, self.fvu(), strict=True)]
        groups, first = [], 0
        for name, size in labels.groups:
            groups.append(self._group(name, self.active[first : first + size]))
            first += size
        whole = self._group("", self.active)
        several = groups if len(groups) > 1 else []
        return _judge(Fidelity("", "", sites, whole.l0, whole.dead, self.n_tokens, [], several), len(self.active))

    def _group(self, label: str, active: Tensor) -> GroupFidelity:
        return GroupFidelity(label, float(active.sum()) / max(self.n_tokens, 1), float((active == 0).double().mean()))


def site_label(site: Site, names: Sequence[str]) -> str:
    """-> "base · blocks.2.hook_resid_post", or the hook alone where there is one model."""
    place = site.hf_path or str(site.hook)
    return f"{names[site.model]} · {place}" if len(names) > 1 else place


def _judge(fidelity: Fidelity, n_features: int) -> Fidelity:
    worst = max(site.fvu for site in fidelity.sites)
    best = min(site.fvu for site in fidelity.sites)
    warnings = []
    for site in fidelity.sites:
        if site.fvu > DOUBTFUL_FVU:
            warnings.append(f"{site.label}: {site.fvu:.0%} of the variance is not explained")
    if fidelity.l0 > 0.25 * n_features:
        warnings.append(f"{fidelity.l0:.0f} of {n_features} features fire on a token: that is not sparse")
    if fidelity.dead > 0.9:
        warnings.append(f"{fidelity.dead:.0%} of the features never fire on these tokens")
    implausible = worst > IMPLAUSIBLE_FVU or fidelity.l0 > 0.25 * n_features or fidelity.l0 == 0
    verdict = "implausible" if implausible else "doubtful" if warnings else "plausible"
    span = f"{best:.3f}" if len(fidelity.sites) == 1 else f"{best:.3f} to {worst:.3f}"
    headline = f"FVU {span}, L0 {fidelity.l0:.1f}, {fidelity.dead:.1%} of features dead on {fidelity.n_tokens:,} tokens"
    return replace(fidelity, verdict=verdict, headline=headline, warnings=warnings)


def warn_if_bad(fidelity: Fidelity) -> None:
    """A Python warning unless the reconstruction is plausible; the page shows the same text."""
    if fidelity.verdict != "plausible":
        text = "; ".join([f"{fidelity.verdict}: {fidelity.headline}", *fidelity.warnings])
        python_warnings.warn(text, CrossvisWarning, stacklevel=4)
