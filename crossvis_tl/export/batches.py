"""Dashboards for an export: made before, or of a store, some features at a time, so that few are ever in memory."""

import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from crossvis_tl.asking import check_per_document, checked, for_dictionary, reopened
from crossvis_tl.build import Showing
from crossvis_tl.capture import Capture
from crossvis_tl.dashboards import Dashboards
from crossvis_tl.dictionary import Dictionary
from crossvis_tl.encoders import as_dictionary
from crossvis_tl.errors import CrossvisWarning, feature_numbers
from crossvis_tl.export.folders import digest
from crossvis_tl.feature_acts import FeatureActs
from crossvis_tl.fidelity import warn_if_bad
from crossvis_tl.fingerprints import dictionary_fingerprint, tokens_fingerprint
from crossvis_tl.layouts import SaeVisConfig, as_plain
from crossvis_tl.vis_data import SaeVisData

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer

# A feature of dashboards -> all that an export writes of it.
Record = Callable[[Dashboards, int], bytes]


@dataclass(frozen=True)
class Source:
    """Features that an export numbers from 0: a layer's, or a whole dictionary's. `layer`: its number, None where the
    dictionary's groups have none. `first`: number of its first feature in the dictionary."""

    layer: int | None
    first: int
    width: int

    def own(self, features: Sequence[int]) -> list[int]:
        """Those of dictionary features that are of this source, ascending."""
        return sorted(feature for feature in features if self.first <= feature < self.first + self.width)


def sources(dictionary: Dictionary) -> list[Source]:
    """One for each group of features that share an encoder."""
    numbers = [re.fullmatch(r"L(\d+)", group.name) for group in dictionary.groups]
    return [
        Source(int(number[1]) if number else None, first, group.n_features)
        for number, first, group in zip(numbers, dictionary.offsets, dictionary.groups, strict=False)
    ]


@dataclass(frozen=True)
class Made:
    """Dashboards that are in memory."""

    data: Dashboards
    dictionary: Dictionary
    features: list[int]

    @property
    def shape(self) -> tuple[int, int]:
        """Sequences and their length. ValueError where the dashboards do not say."""
        said = next((text for name, text in self.data.page.facts if name == "tokens"), "")
        match = re.search(r"in ([\d,]+) sequences of ([\d,]+)$", said)
        if match is None:
            raise ValueError("these dashboards do not say how many sequences of tokens they are of; make them again")
        rows, positions = (int(number.replace(",", "")) for number in match.groups())
        return rows, positions

    def batch(self, features: Sequence[int]) -> Dashboards:
        return self.data

    def identity(self, features: Sequence[int], record: Record) -> str:
        """Of all that is written of these features, and of the dictionary."""

        def pieces() -> Iterator[bytes]:
            yield dictionary_fingerprint(self.dictionary).encode()
            yield from (record(self.data, feature) for feature in features)

        return digest(pieces())


@dataclass(frozen=True)
class Stored:
    """What was gathered, and how dashboards are made of it. `capture`: the dictionary on its models, None without
    them; no model is run."""

    acts: FeatureActs
    dictionary: Dictionary
    capture: Capture | None
    cfg: SaeVisConfig
    showing: Showing
    features: list[int]
    place: dict[int, int] = field(repr=False)

    @property
    def shape(self) -> tuple[int, int]:
        rows, positions = self.acts.tokens.shape
        return rows, positions

    def select(self, features: Sequence[int]) -> FeatureActs:
        """Of these features, in this order."""
        return self.acts.select([self.place[feature] for feature in features])

    def batch(self, features: Sequence[int]) -> Dashboards:
        """Their dashboards, made now. The verdict on the dictionary was given once, for all of them."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", CrossvisWarning)
            return SaeVisData.from_acts(
                self.select(features), self.dictionary, self.cfg, self.showing, capture=self.capture,
                vocabulary=self.acts.vocabulary,
            )  # fmt: skip

    @cached_property
    def leads(self) -> list[int]:
        """How many padding tokens each row begins with."""
        return self.acts.mask.lead.tolist()

    @cached_property
    def counts(self) -> dict[int, int]:
        """On how many tokens each gathered feature fires."""
        return dict(zip(self.acts.features.tolist(), self.acts.starts.diff().tolist(), strict=True))

    def identity(self, features: Sequence[int], record: Record) -> str:
        """Of what dashboards of these features are made from: no dashboard is made for it."""
        manifest = self.acts.manifest
        parts = [
            manifest.dictionary, manifest.models, manifest.tokens, manifest.mask, manifest.replacements,
            list(features), self.gathered, self.capture is not None, self.showing, self.cfg.seed,
            as_plain(self.cfg.feature_centric_layout),  # type: ignore[arg-type]
        ]  # fmt: skip
        return digest(repr(part).encode() for part in parts)

    @cached_property
    def gathered(self) -> str:
        """A fingerprint of the features that neighbours are looked for among."""
        return tokens_fingerprint(self.acts.features.sort().values[None])


Shown = Made | Stored


def opened(
    given: "str | Path | FeatureActs | Dashboards",
    dictionary: Any,
    model: "HookedTransformer | Sequence[HookedTransformer] | None",
    cfg: SaeVisConfig,
    showing: Showing,
    features: Sequence[int] | None = None,
) -> Shown:
    """What is to be exported, of a store or of dashboards. `features`: default all that are there.

    ValueError where the dictionary is not given, or any of them is of another; and for features that are not there.
    """
    checked(cfg)
    check_per_document(showing.per_document)
    if isinstance(given, Dashboards):
        return _made(given, dictionary, features)
    if dictionary is None:
        raise ValueError("a store does not hold the dictionary it was gathered with; pass dictionary=")
    acts, known, capture = reopened(given, dictionary, cfg, model, None)
    place = {feature: i for i, feature in enumerate(acts.features.tolist())}
    if len(place) < len(acts.features):
        raise ValueError("a feature was gathered twice; each can be exported once")
    chosen = _chosen(features, list(place), f"{acts.folder or 'what was gathered'} holds")
    acts.select_features(chosen)
    warn_if_bad(acts.fidelity)
    cfg = for_dictionary(cfg, known)  # type: ignore[assignment]
    return Stored(acts, known, capture, cfg, showing, chosen, place)


def _made(data: Dashboards, dictionary: Any, features: Sequence[int] | None) -> Made:
    source = dictionary if dictionary is not None else data.encoder
    if source is None:
        raise ValueError("these dashboards were loaded without their dictionary; pass dictionary=")
    source = source if isinstance(source, Dictionary) else as_dictionary(source, data.cfg.hook_point)
    if not data.feature_data_dict:
        raise ValueError("there are no dashboards to export")
    for feature in data.feature_data_dict:
        label = data.panels[feature].label
        if not 0 <= feature < source.n_features or source.label(feature) != label:
            raise ValueError(
                f"these dashboards are of another dictionary: feature {feature} is {label} there, and {source.name} "
                f"{'has no such feature' if not 0 <= feature < source.n_features else 'calls it otherwise'}"
            )
    return Made(data, source, _chosen(features, list(data.feature_data_dict), "there are dashboards of"))


def _chosen(features: Sequence[int] | None, there: list[int], what: str) -> list[int]:
    """Ascending."""
    if features is None:
        if not there:
            raise ValueError("there are no features to export")
        return sorted(there)
    chosen = feature_numbers(features, "features")
    missing = sorted(set(chosen) - set(there))
    if missing:
        raise ValueError(f"features names {missing[0]}, but {what} {len(there):,} others; leave it out")
    return sorted(chosen)


def split(features: Sequence[int], most: int) -> list[list[int]]:
    """In as few parts of at most `most` as can be, all nearly alike: those at the beginning are longer by one."""
    n = -(-len(features) // most)
    short, longer = divmod(len(features), n) if n else (0, 0)
    bounds = torch.tensor([0, *(short + (i < longer) for i in range(n))]).cumsum(0).tolist()
    return [list(features[begin:end]) for begin, end in pairwise(bounds)]
