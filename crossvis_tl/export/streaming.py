"""What `crossvis export` opens, from names of files: a store with its dictionary and models, of which dashboards are
made as they are written, or dashboards that were saved."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crossvis_tl.dashboards import Dashboards
from crossvis_tl.dictionary import Dictionary
from crossvis_tl.feature_acts import FeatureActs
from crossvis_tl.formats import load_dictionary
from crossvis_tl.models import load_models
from crossvis_tl.render import StoredJob, Verdict, parse_dtype, plain_facts
from crossvis_tl.selection import parse_features, strongest, top_count
from crossvis_tl.store import open_store
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
        acts = open_store(self.store)
        origin = acts.manifest.origin
        where = self.dictionary or self._here(origin.get("dictionary"), "--dictionary")
        names = list(self.models)
        if not names and not self.without_model:
            names = [self._here(name, "--model (or --no-model)") for name in origin.get("models") or [None]]
        facts = {**({} if self.dictionary else plain_facts(origin.get("facts", {}))), **self.facts}
        dictionary = load_dictionary(where, **facts)
        chosen, top = parse_features(self.features, dictionary, self.layer), top_count(self.features)
        if top is not None:
            found = acts if chosen is None else acts.select_features(chosen)
            chosen = found.features[strongest(found, top)].tolist()
            if not chosen:
                raise ValueError(f"no feature fires in {self.store}; there is nothing to rank by maximum activation")
        if chosen is not None:
            acts.select_features(chosen)  # those that were not gathered are named before the models are loaded
        dtype = parse_dtype(self.dtype or origin.get("dtype", "float32"))
        models = load_models(names, self.device, dtype) if names else None
        verdict(acts.fidelity)
        return Given(acts, dictionary, models, chosen)


def saved(data: Path, dictionary: str, facts: Mapping[str, Any], features: str) -> Given:
    """Dashboards that `crossvis render --json` saved. ValueError for "top:N", which is for stores."""
    if top_count(features) is not None:
        raise ValueError(f'--features {features!r}: with --data give "all" or numbers')
    loaded = load_dictionary(dictionary, **facts)
    return Given(SaeVisData.load_json(data), loaded, None, parse_features(features, loaded))
