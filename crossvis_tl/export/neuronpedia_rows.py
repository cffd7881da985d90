"""Rows of Neuronpedia's bulk import, made of entries of batch files.

Read from jbloomAus/SAEDashboard, sae_dashboard/neuronpedia/neuronpedia_export.py (of 2026), whose rows are those of
Neuronpedia's own tables (hijohnnylin/neuronpedia, utils/neuronpedia-utils): every column is there, in order.
"""

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from typing import Any

# Who makes an export, where Neuronpedia's importers are told of nobody.
CREATOR = "clkht01d40000jv08hvalcvly"
TABLES = (
    "neuron_alignment_indices", "neuron_alignment_values", "neuron_alignment_l1", "correlated_neurons_indices",
    "correlated_neurons_pearson", "correlated_neurons_l1", "correlated_features_indices",
    "correlated_features_pearson", "correlated_features_l1", "neg_str", "neg_values", "pos_str", "pos_values",
    "frac_nonzero", "freq_hist_data_bar_heights", "freq_hist_data_bar_values", "logits_hist_data_bar_heights",
    "logits_hist_data_bar_values", "decoder_weights_dist",
)  # fmt: skip


@dataclass(frozen=True)
class NeuronpediaRelease:
    """What Neuronpedia says of a release beside its features. `name`: in its address, such as "gemma-scope". `title`:
    for people. `description`: of the source set, such as "Transcoder - 16k". `hf_repo`, `hf_folder`: where the weights
    are on the hub. `creator_id`: of the user who imports it."""

    name: str
    title: str
    creator: str
    url: str = ""
    description: str = ""
    hf_repo: str = ""
    hf_folder: str = ""
    creator_id: str = CREATOR

    def __post_init__(self) -> None:
        """ValueError for what Neuronpedia cannot take."""
        if not isinstance(self.name, str) or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", self.name):
            raise ValueError(
                f"the release's name is {self.name!r}; expected letters, digits, '-', '_' and '.', such as "
                "'gemma-scope'"
            )
        for field_ in fields(self):
            text = getattr(self, field_.name)
            if not isinstance(text, str) or "\0" in text:
                raise ValueError(f"the release's {field_.name} is {text!r}; expected a text without NUL")


@dataclass(frozen=True)
class Place:
    """Where a source stands in Neuronpedia. `layer`: its number. `hook`: what its features read. `created`: ISO time
    of the export. `identity`: of the export, for ids of examples that are the same each time."""

    model: str
    source_set: str
    suffix: str | None
    layer: int
    hook: str
    created: str
    identity: str

    @property
    def source(self) -> str:
        return f"{self.layer}-{self.source_set}" + (f"__{self.suffix}" if self.suffix else "")


def now() -> str:
    """Of UTC, without a zone, as the importer's columns are."""
    return datetime.now(UTC).replace(tzinfo=None).isoformat()


def about_rows(place: Place, release: NeuronpediaRelease, prompts: int, length: int, dataset: str) -> dict[str, dict]:
    """-> by file: one row each of the release, the model, the source set and the source."""
    who, at = release.creator_id, place.created
    return {
        "release.jsonl": {
            "name": release.name, "description": release.title, "creatorName": release.creator, "creatorId": who,
            "visibility": "PUBLIC", "isNewUi": False, "featured": False, "descriptionShort": release.title,
            "urls": [release.url] if release.url else [], "creatorEmail": None, "creatorNameShort": release.creator,
            "defaultSourceSetName": None, "defaultSourceId": None, "defaultUmapSourceIds": [], "createdAt": at,
        },
        "model.jsonl": {
            "id": place.model, "instruct": place.model.endswith("-it"), "creatorId": who,
            "displayNameShort": place.model, "displayName": place.model, "tlensId": None, "dimension": None,
            "visibility": "PUBLIC", "defaultSourceSetName": None, "defaultSourceId": None, "inferenceEnabled": False,
            "layers": 0, "neuronsPerLayer": 0, "createdAt": at, "owner": "", "updatedAt": at, "website": None,
        },
        "sourceset.jsonl": {
            "modelId": place.model, "name": place.source_set, "creatorId": who, "hasDashboards": True,
            "visibility": "PUBLIC", "description": release.description, "type": "", "creatorName": release.creator,
            "urls": [], "creatorEmail": None, "releaseName": release.name, "defaultOfModelId": None, "defaultRange": 1,
            "defaultShowBreaks": True, "showDfa": False, "showCorrelated": False, "showHeadAttribution": False,
            "showUmap": False, "createdAt": at,
        },
        "source.jsonl": {
            "id": place.source, "modelId": place.model, "setName": place.source_set, "creatorId": who,
            "hasDashboards": True, "inferenceEnabled": False, "inferenceHosts": [], "saelensConfig": None,
            "saelensRelease": None, "saelensSaeId": None, "hfRepoId": release.hf_repo, "hfFolderId": release.hf_folder,
            "visibility": "PUBLIC", "defaultOfModelId": None, "hasUmap": False, "hasUmapLogSparsity": False,
            "hasUmapClusters": False, "num_prompts": prompts, "num_tokens_in_prompt": length, "dataset": dataset,
            "notes": None, "createdAt": at,
        },
    }  # fmt: skip


def feature_row(entry: dict[str, Any], place: Place, creator: str) -> dict[str, Any]:
    """Of an entry of a batch file. `vector` is empty, as there, and the strength to steer with is the default."""
    largest = max((value for example in entry["activations"] for value in example["values"]), default=0.0)
    return {
        "modelId": place.model, "layer": place.source, "index": entry["feature_index"], "creatorId": creator,
        "createdAt": place.created, "maxActApprox": max(largest, 0.0), "hasVector": bool(entry["vector"]),
        "vector": entry["vector"], "vectorLabel": None, "vectorDefaultSteerStrength": 10, "hookName": place.hook,
        "topkCosSimIndices": [], "topkCosSimValues": [],
        **{name: entry[name] for name in TABLES},
        "sourceSetName": None,
    }  # fmt: skip


def activation_rows(entry: dict[str, Any], place: Place, creator: str) -> Iterator[dict[str, Any]]:
    for number, example in enumerate(entry["activations"]):
        values = example["values"]
        yield {
            "id": activation_id(place, entry["feature_index"], number), "tokens": example["tokens"],
            "index": entry["feature_index"], "layer": place.source, "modelId": place.model, "maxValue": max(values),
            "maxValueTokenIndex": values.index(max(values)), "minValue": min(values), "values": values,
            "creatorId": creator, "dataSource": None, "dataIndex": None, "dfaValues": example["dfa_values"],
            "dfaTargetIndex": example["dfa_targetIndex"], "dfaMaxValue": example["dfa_maxValue"],
            "createdAt": place.created, "lossValues": [], "logitContributions": None, "binMin": example["bin_min"],
            "binMax": example["bin_max"], "binContains": example["bin_contains"],
            "qualifyingTokenIndex": example["qualifying_token_index"], "zIndices": None, "zValues": None,
        }  # fmt: skip


def activation_id(place: Place, index: int, number: int) -> str:
    """25 characters that begin with "c", as Neuronpedia's own are; another in another export or source."""
    return f"c{place.identity[:8]}{place.layer % 2**12:03x}{index % 2**32:08x}{number % 2**20:05x}"


def lines(rows: Iterable[dict[str, Any]]) -> Iterator[bytes]:
    for row in rows:
        text = json.dumps(row, ensure_ascii=False, separators=(",", ":"))
        yield text.encode("utf-8", errors="backslashreplace") + b"\n"
