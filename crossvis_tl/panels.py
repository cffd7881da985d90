"""What a dashboard shows beyond sae_vis' own components, feature by feature, as plain data."""

import re
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from sae_vis.data_storing_fns import LogitsHistogramData, LogitsTableData

from crossvis_tl.geometry import SiteGeometry
from crossvis_tl.latent_scaling import LatentScaling

LONGEST = 300  # characters of a description on a page
# Of a layer in a feature's effect: where layers cancel, a share is a large number that says only that.
LARGEST_SHARE = 1e6


@dataclass
class TokenEffects:
    """One model's effects along one shown sequence, a value per token.

    `loss`: nats; effect of the token before on predicting this one, 0 where the feature is silent there. `logits`: the
    feature's direct logit effect on this very token. `up`, `down`: changes of log-probability, of the tokens `up_ids`,
    `down_ids`. `p`: the probability that the model gives this token, None where no effect on it is shown.
    """

    loss: list[float]
    logits: list[float]
    up_ids: list[list[int]]
    up: list[list[float]]
    down_ids: list[list[int]]
    down: list[list[float]]
    p: list[float | None]


@dataclass
class ShownSequence:
    """Where a shown sequence comes from, and its effects under each model. `bold`: index of the chosen token.
    `document`: the number of its document, None where that means nothing. `sources`: [source][token], each source's
    share of the pre-activation, 0 where the feature is silent; [] where a feature reads one source."""

    row: int
    position: int
    bold: int
    effects: dict[int, TokenEffects] = field(default_factory=dict)
    document: int | None = None
    sources: list[list[float]] = field(default_factory=list)


@dataclass
class PromptSequence:
    """A whole prompt under a feature. `acts`: its activation at every token."""

    acts: list[float]
    sequence: ShownSequence


@dataclass
class SiteLens:
    """Logit lens of the decoder row to one target: what it alone raises and lowers, in logits, before the final norm
    divides. `share`: its part in the effect of the whole feature, where that is the sum of several targets' (they
    add up to 1, and one that works against the others is negative), else None."""

    top_ids: list[int]
    top: list[float]
    bottom_ids: list[int]
    bottom: list[float]
    share: float | None = None


@dataclass
class ModelLogits:
    """The feature's direct effect on one model's logits."""

    table: LogitsTableData
    histogram: LogitsHistogramData


@dataclass
class FeaturePanels:
    """`density_interval`: 95 %. `logits`: by model; empty where the feature's sites do not write to a residual stream
    or the model was not there, and `logits_note` then says which. `bounds`: low, high and share of each sequence group,
    None for the others. `scaling`: where it was gathered. `lens`: of each target in `geometry.targets`, None for one
    whose site does not write to the residual stream; [] where the layout shows none. `attribution`: each source's share
    over the top examples. `tokens`: ids of the tokens that its strongest examples fire on, the most frequent first.
    `layer`: what a transcoder's feature reads. `description`: what someone says it stands for, whole; `label` is the
    dictionary's own name of it ("L3F7")."""

    label: str
    density: float
    maximum: float
    density_interval: tuple[float, float] = (0.0, 1.0)
    logits_note: str | None = None
    scaling: LatentScaling | None = None
    geometry: SiteGeometry | None = None
    logits: dict[int, ModelLogits] = field(default_factory=dict)
    sequences: list[list[ShownSequence]] = field(default_factory=list)
    bounds: list[tuple[float, float, float] | None] = field(default_factory=list)
    lens: list[SiteLens | None] = field(default_factory=list)
    attribution: list[float] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    layer: int | None = None
    prompts: list[PromptSequence] = field(default_factory=list)
    description: str = ""

    def called(self, feature: int) -> str:
        """What a page calls the feature beside its number: "L3F7 · fires on dates". A label that only repeats the
        number says nothing; a description stands on one line, cut at `LONGEST`."""
        said = re.sub(r"\s+", " ", self.description).strip()
        if len(said) > LONGEST:
            said = said[: LONGEST - 1].rstrip() + "…"
        return " · ".join(filter(None, ("" if self.label == str(feature) else self.label, said)))

    def to_dict(self) -> dict[str, Any]:
        """All but the prompts, which belong to the page they were asked for."""
        return asdict(replace(self, prompts=[]))

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "FeaturePanels":
        """Undoes `to_dict` after a round trip through JSON, whose keys are texts."""
        geometry = SiteGeometry(**data["geometry"]) if data.get("geometry") else None
        logits = {
            int(m): ModelLogits(LogitsTableData(**part["table"]), LogitsHistogramData(**part["histogram"]))
            for m, part in data.get("logits", {}).items()
        }
        sequences = [[_sequence(shown) for shown in group] for group in data.get("sequences", [])]
        bounds = [tuple(b) if b is not None else None for b in data.get("bounds", [])]
        lens = [None if one is None else SiteLens(**one) for one in data["lens"]]
        scaling = LatentScaling(**data["scaling"]) if data.get("scaling") else None
        low, high = data["density_interval"]
        return cls(
            data["label"], data["density"], data["maximum"], (low, high), data["logits_note"], scaling, geometry,
            logits, sequences, bounds, lens, data["attribution"], data["tokens"], data["layer"],
            description=str(data.get("description", "")),
        )  # fmt: skip


def _sequence(data: dict[str, Any]) -> ShownSequence:
    effects = {int(m): TokenEffects(**part) for m, part in data["effects"].items()}
    return ShownSequence(data["row"], data["position"], data["bold"], effects, data["document"], data["sources"])
