"""What predictions lose with reconstructions put in, as numbers that are kept, told and merged."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

# Nats a token, beyond which a number is not a loss; infinity and what is no number are beyond it too.
LARGEST = 1e6


@dataclass
class SiteLoss:
    """Cross-entropy, nats a predicted token, with a reconstruction in place of what it reconstructs. `zeroed`: with
    nothing in its place; `error`: standard error of what that costs."""

    label: str
    loss: float
    zeroed: float
    error: float = 0.0

    def recovered(self, clean: float) -> float | None:
        """What the reconstruction keeps of what the site is worth: 1 is all of it, 0 no better than nothing. None
        where the site is worth nothing, or too little to be told from that on these tokens. (As SAEBench's and
        sae_lens' "CE loss score".)"""
        worth = self.zeroed - clean
        return (self.zeroed - self.loss) / worth if worth > 2 * self.error else None


@dataclass
class ReplacementLoss:
    """Of one model: `clean`, its own cross-entropy on `n_tokens` predicted tokens; each site's reconstruction put in,
    and all of them. `note`: what is to be known of the numbers, or why there are none (`clean` is then None)."""

    model: str
    clean: float | None = None
    n_tokens: int = 0
    sites: list[SiteLoss] = field(default_factory=list)
    together: SiteLoss | None = None
    note: str = ""

    @property
    def is_plain(self) -> bool:
        """Whether its numbers are finite numbers and its words words: what a file says may be anything."""
        every = [*self.sites, *([self.together] if self.together else [])]
        numbers = [x for one in every for x in (one.loss, one.zeroed, one.error)]
        numbers += [] if self.clean is None else [self.clean]
        words = [self.model, self.note, *(one.label for one in every)]
        plain = all(type(x) in (int, float) and abs(x) < LARGEST for x in numbers)
        counted = type(self.n_tokens) is int and self.n_tokens >= int(self.clean is not None)
        return plain and counted and all(isinstance(word, str) for word in words)

    @classmethod
    def from_dict(cls, data: Mapping) -> "ReplacementLoss":
        """Undoes `dataclasses.asdict`."""
        together = data["together"] and SiteLoss(**data["together"])
        sites = data["sites"]
        if not isinstance(sites, list):
            raise TypeError(f"sites is {sites!r}; expected a list")
        return cls(**{**data, "sites": [SiteLoss(**site) for site in sites], "together": together})

    def lines(self) -> list[str]:
        """In words."""
        if self.clean is None:
            return [f"  loss with the reconstruction put into {self.model}: {self.note}"]
        lines = [
            f"  loss {self.clean:.3f} of {self.model} on {self.n_tokens:,} tokens; with the reconstruction put in:"
        ]
        for one in [*self.sites, *([self.together] if self.together else [])]:
            kept = one.recovered(self.clean)
            said = "what the site is worth cannot be told" if kept is None else f"{kept:.1%} recovered"
            lines.append(f"    {one.loss:<8.3f}{one.label} ({said}; zeroed {one.zeroed:.3f})")
        return lines + ([f"    {self.note}"] if self.note else [])


def merged_losses(shards: Sequence[Sequence[ReplacementLoss]]) -> list[ReplacementLoss]:
    """Of all tokens together; [] where one of the shards was not measured, or at other sites."""
    if not all(shards) or len({tuple(_names(one) for one in shard) for shard in shards}) > 1:
        return []
    return [_merged(of_model) for of_model in zip(*shards, strict=True)]


def _names(loss: ReplacementLoss) -> tuple[str, ...]:
    return loss.model, *(site.label for site in loss.sites)


def _merged(shards: Sequence[ReplacementLoss]) -> ReplacementLoss:
    first, n = shards[0], sum(one.n_tokens for one in shards)
    if any(one.clean is None for one in shards):
        return next(one for one in shards if one.clean is None)

    def mean(values: Sequence[float | None]) -> float:
        return sum((value or 0.0) * one.n_tokens for value, one in zip(values, shards, strict=True)) / n

    def site(same: Sequence[SiteLoss]) -> SiteLoss:
        weights = [one.n_tokens / n for one in shards]
        error = sum((weight * one.error) ** 2 for weight, one in zip(weights, same, strict=True)) ** 0.5
        return SiteLoss(same[0].label, mean([one.loss for one in same]), mean([one.zeroed for one in same]), error)

    together = [one.together for one in shards if one.together is not None]
    return ReplacementLoss(
        first.model, mean([one.clean for one in shards]), n,
        [site(same) for same in zip(*(one.sites for one in shards), strict=True)],
        site(together) if len(together) == len(shards) else None, first.note,
    )  # fmt: skip
