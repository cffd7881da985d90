"""What `crossvis export` opens, from names of files: a store with its dictionary and models, of which dashboards are
made as they are written, or dashboards that were saved."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crossvis_tl.dashboards import Dashboards
from crossvis_tl.dictionary import Dictionary
from crossvis_tl.feature_acts import FeatureActs
from crossvis_tl.formats import load_dictionary
from crossvis_tl.render import StoredJob, Verdict
from crossvis_tl.selection import parse_features, top_count
from crossvis_tl.vis_data import SaeVisData

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer


@dataclass(frozen=True)
class Given:
    """For an export. `features`: numbers, None for all that are there."""

    what: FeatureActs | Dashboards
    dictionary: Dictionary
    models: "list[HookedTransformer] | None"
    features: list[int] | None


@dataclass
class StreamedJob(StoredJob):
    """As `StoredJob`, whose dashboards are made later."""

    def opened(self, verdict: Verdict) -> Given:
        """`verdict` hears what the gathering found. Errors as `StoredJob.run`."""
        found = self._opened()
        verdict(found.acts.fidelity)
        return Given(found.acts, found.dictionary, found.models, found.chosen)

    def _chosen(self, acts: FeatureActs, dictionary: Dictionary) -> list[int] | None:
        """Of a dictionary without layers of its own, the layer is the number that is to be given."""
        job = self if len(dictionary.groups) > 1 else replace(self, layer=None)
        return StoredJob._chosen(job, acts, dictionary)


def saved(data: Path, dictionary: str, facts: Mapping[str, Any], features: str, layer: int | None = None) -> Given:
    """Dashboards that `crossvis render --json` saved. ValueError for "top:N", which is for stores."""
    if top_count(features) is not None:
        raise ValueError(f'--features {features!r}: with --data give "all" or numbers')
    loaded = load_dictionary(dictionary, **facts)
    dashboards = SaeVisData.load_json(data)
    layer = layer if len(loaded.groups) > 1 else None
    there = list(dashboards.feature_data_dict)
    return Given(dashboards, loaded, None, parse_features(features, loaded, layer, there))
