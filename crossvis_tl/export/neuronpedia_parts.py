"""One source of an export for Neuronpedia: its name, its features by batch, and their entries."""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from crossvis_tl.dashboards import Dashboards
from crossvis_tl.errors import check_word
from crossvis_tl.export.batches import Made, Shown, Source, Stored, split
from crossvis_tl.export.folders import digest_of, name_problem
from crossvis_tl.export.neuronpedia_features import Beside, Words, feature_entry
from crossvis_tl.export.neuronpedia_rows import NeuronpediaRelease
from crossvis_tl.export.neuronpedia_tables import (
    Correlated,
    Neighbours,
    Partners,
    aligned,
    how_correlated,
    neuron_shift,
    written,
)

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
# Characters of the names together; in a folder's name a hook and a number stand beside them.
LONGEST = 120


def check_names(model_id: str, source_set: str, sae_id_suffix: str | None) -> None:
    """ValueError for what cannot be a name of Neuronpedia's, or of a folder."""
    named = {"model_id": model_id, "source_set": source_set, "sae_id_suffix": sae_id_suffix}
    if sae_id_suffix is None:
        del named["sae_id_suffix"]
    for name, value in named.items():
        if not isinstance(value, str) or not NAME.fullmatch(value):
            raise ValueError(
                f"{name}={value!r}; expected Neuronpedia's own name, of letters, digits, '-', '_' and '.', such as "
                "'gemma-2-2b'"
            )
        problem = name_problem(value)
        if problem:
            raise ValueError(f"{name}: {problem}")
    length = sum(len(value) for value in named.values())
    if length > LONGEST:
        raise ValueError(
            f"{', '.join(named)} are {length} characters together, too many for a folder's name; expected at most "
            f"{LONGEST}"
        )


def check_settings(settings: Mapping[str, Any]) -> None:
    """ValueError for what JSON cannot hold."""
    for name, value in settings.items():
        try:
            json.dumps({name: value}, allow_nan=False)
        except (TypeError, ValueError, RecursionError) as error:
            raise ValueError(
                f"settings: {name!r} is {repr(value)[:60]}, which JSON cannot hold; expected texts, finite numbers, "
                "true, false, None, and lists and mappings of them"
            ) from error


@dataclass(frozen=True)
class Asked:
    """As `export_neuronpedia`. `digits`: after the point. `settings`: said in the run's settings.
    ValueError for what cannot be meant."""

    model_id: str
    source_set: str
    suffix: str | None
    release: NeuronpediaRelease | None
    dataset: str
    features_per_batch: int
    start_batch: int
    end_batch: int | None
    n_quantiles: int
    top_acts_group_size: int
    quantile_group_size: int
    correlated: Correlated | None
    of_model: int
    skip_dead: bool
    unit_decoders: bool
    digits: int
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_names(self.model_id, self.source_set, self.suffix)
        check_settings(self.settings)
        if not isinstance(self.dataset, str):
            raise ValueError(f"dataset={self.dataset!r}; expected a text")
        for name, least in {"features_per_batch": 1, "start_batch": 0, "end_batch": 0}.items():
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < least):
                raise ValueError(f"{name}={value!r}; expected a whole number of at least {least}")
        if self.correlated is not None:
            check_word("correlated", self.correlated, ("source", "batch"))


@dataclass(frozen=True)
class Part:
    """`layer`: the number Neuronpedia has. `hook`: what its features read. `batches`: their numbers in the dictionary.
    `skipped`: indices in the source of those that are not exported. `identity`: of all that is written."""

    shown: Shown
    source: Source
    layer: int
    hook: str
    batches: list[list[int]]
    skipped: list[int]
    among: Correlated
    partners: Partners
    asked: Asked
    identity: str

    @property
    def wanted(self) -> list[int]:
        """Numbers of the batches that are asked for."""
        last = len(self.batches) - 1 if self.asked.end_batch is None else self.asked.end_batch
        return [number for number in range(len(self.batches)) if self.asked.start_batch <= number <= last]

    @property
    def first_keys(self) -> dict[str, Any]:
        """What stands before the features in a batch file."""
        return {
            "model_id": self.asked.model_id, "layer": self.layer, "sae_set": self.asked.source_set,
            "sae_id_suffix": self.asked.suffix,
        }  # fmt: skip

    def entries(self, number: int) -> Iterator[dict[str, Any]]:
        """Of a batch's features, one by one; their dashboards are made for it, and gone after it."""
        batch, partners = self.batches[number], self.partners.of(number)
        about = besides(self.shown, self.source, self.asked, batch, partners)
        data = self.shown.batch(batch)
        words = Words(data.page.vocabulary)
        for feature, beside in zip(batch, about, strict=True):
            yield feature_entry(data, feature, words, beside)


def besides(
    shown: Shown, source: Source, asked: Asked, features: list[int], partners: dict[int, Neighbours]
) -> list[Beside]:
    """One for each feature."""
    prompts, length = shown.shape
    leads = shown.leads if isinstance(shown, Stored) else None
    vectors, shift = written(shown.dictionary, features, asked.of_model), neuron_shift(shown, source)
    norms = vectors.norm(dim=-1).tolist()
    units = [norm if asked.unit_decoders and norm > 0 else 1.0 for norm in norms]
    return [
        Beside(
            feature - source.first, alignment, partners[feature], shift, asked.of_model, prompts, length,
            asked.dataset, asked.digits, leads, unit,
        )
        for feature, alignment, unit in zip(features, aligned(vectors), units, strict=True)
    ]  # fmt: skip


def part_of(shown: Shown, source: Source, layer: int, asked: Asked) -> Part | None:
    """None where nothing is left to export."""
    features = source.own(shown.features)
    if asked.skip_dead:
        features = [feature for feature in features if _fires(shown, feature)]
    if not features:
        return None
    batches = split(features, asked.features_per_batch)
    kept = set(features)
    skipped = [i for i in range(source.width) if source.first + i not in kept]
    among = how_correlated(shown, source, asked.correlated)
    partners = Partners(shown, source, batches, among)
    place = {feature: number for number, batch in enumerate(batches) for feature in batch}

    texts: dict[int, Words] = {}  # of dashboards that were made, all at once

    def record(data: Dashboards, feature: int) -> bytes:
        words = texts[id(data)] if id(data) in texts else texts.setdefault(id(data), Words(data.page.vocabulary))
        (beside,) = besides(shown, source, asked, [feature], partners.of(place[feature]))
        return json.dumps(feature_entry(data, feature, words, beside)).encode()

    identity = digest_of({
        "of": shown.identity(features, record), "set": [asked.model_id, asked.source_set, asked.suffix, layer],
        "size": asked.features_per_batch, "dataset": asked.dataset, "of_model": asked.of_model, "among": among,
        "unit": asked.unit_decoders,
        "digits": asked.digits, "release": None if asked.release is None else vars(asked.release),
    })  # fmt: skip
    return Part(shown, source, layer, hook_read(shown, source), batches, skipped, among, partners, asked, identity)


def _fires(shown: Shown, feature: int) -> bool:
    return shown.data.panels[feature].density > 0 if isinstance(shown, Made) else shown.counts[feature] > 0


def hook_read(shown: Shown, source: Source) -> str:
    """The hook that a source's features read; of several, the dictionary's kind."""
    dictionary = shown.dictionary
    group = dictionary.groups[dictionary.locate(source.first)[0]]
    hooks = {dictionary.sources[s].place for s in group.W_enc}
    hook = hooks.pop() if len(hooks) == 1 else None
    return hook or dictionary.kind
