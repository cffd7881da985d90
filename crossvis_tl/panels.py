"""What a dashboard shows beyond sae_vis' own components, feature by feature, as plain data."""

from dataclasses import asdict, dataclass, field
from typing import Any

from sae_vis.data_storing_fns import LogitsHistogramData, LogitsTableData

from crossvis_tl.geometry import SiteGeometry
from crossvis_tl.latent_scaling import LatentScaling


@dataclass
class TokenEffects:
    """One model's effects along one shown sequence, a value per token.

    `loss`: nats; effect of the token before on predicting this one, 0 where the feature is silent there. `logits`: the
    feature's direct logit effect on this very token. `up`, `down`: changes of log-probability, of the tokens `up_ids`,
    `down_ids`.
    """

    loss: list[float]
    logits: list[float]
    up_ids: list[list[int]]
    up: list[list[float]]
    down_ids: list[list[int]]
    down: list[list[float]]


@dataclass
class ShownSequence:
    """Where a shown sequence comes from, and its effects under each model. `bold`: index of the chosen token.
    `document`: the number of its document, None where that means nothing."""

    row: int
    position: int
    bold: int
    effects: dict[int, TokenEffects] = field(default_factory=dict)
    document: int | None = None


@dataclass
class ModelLogits:
    """The feature's direct effect on one model's logits."""

    table: LogitsTableData
    histogram: LogitsHistogramData


@dataclass
class FeaturePanels:
    """`density_interval`: 95 %. `logits`: by model; empty where the feature's sites do not write to a residual stream
    or the model was not there, and `logits_note` then says which. `bounds`: low, high and share of each sequence group,
    None for the top and the lowest one. `scaling`: where it was gathered."""

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
    prompt: ShownSequence | None = None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

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
        prompt = _sequence(data["prompt"]) if data.get("prompt") else None
        scaling = LatentScaling(**data["scaling"]) if data.get("scaling") else None
        low, high = data["density_interval"]
        return cls(
            data["label"], data["density"], data["maximum"], (low, high), data["logits_note"], scaling, geometry,
            logits, sequences, bounds, prompt,
        )  # fmt: skip


def _sequence(data: dict[str, Any]) -> ShownSequence:
    effects = {int(m): TokenEffects(**part) for m, part in data["effects"].items()}
    return ShownSequence(data["row"], data["position"], data["bold"], effects, data["document"])
