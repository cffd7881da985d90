"""Whether dashboards read from a file fit together: a file from elsewhere is data, and a page is made of it."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from sae_vis.data_storing_fns import FeatureData

from crossvis_tl.losses import ReplacementLoss
from crossvis_tl.panels import LARGEST_SHARE, FeaturePanels, ShownSequence

if TYPE_CHECKING:
    from crossvis_tl.storage import Saved


def saved_problem(saved: "Saved", shown_ids: list[int]) -> str | None:
    """What of saved dashboards does not fit, in words; None where all does. `shown_ids`: all token ids they mention."""
    features = list(saved.features)
    if features != list(saved.panels):
        return "its features and panels are of different features"
    stats = saved.statistics
    if any(len(column) != len(features) for column in (stats.max, stats.frac_nonzero, stats.quantile_data)):
        return f"it holds {len(features)} features and statistics of {len(stats.max)}"
    unknown = [token for token in shown_ids if token not in saved.page.vocabulary]
    if unknown:
        return f"it has no text of token {unknown[0]}"
    if not losses_are_plain(saved.page.fidelity):
        return "its losses are not numbers of sites"
    for feature in features:
        problem = _feature_problem(saved.features[feature], saved.panels[feature], saved)
        if problem:
            return f"feature {feature}: {problem}"
    return None


def losses_are_plain(fidelity: Mapping[str, Any] | None) -> bool:
    """Whether what a file says of replacement losses can be drawn."""
    given = [] if fidelity is None else fidelity.get("losses", [])
    try:
        return isinstance(given, list) and all(ReplacementLoss.from_dict(one).is_plain for one in given)
    except (TypeError, KeyError, AttributeError, ValueError):
        return False


def _feature_problem(feature: FeatureData, panel: FeaturePanels, saved: "Saved") -> str | None:
    page = saved.page
    n_models, n_targets = len(page.models), len(page.targets)
    groups = feature.sequence_data.seq_group_data
    if not len(groups) == len(panel.sequences) == len(panel.bounds):
        return "its groups of examples do not match"
    geometry = panel.geometry
    if geometry is not None:
        n = len(geometry.targets)
        square = len(geometry.cosine) in (0, n) and all(len(row) == n for row in geometry.cosine)
        if len(geometry.norms) != n or not square or not set(geometry.targets) <= set(range(n_targets)):
            return "its norms and cosines are not those of its targets"
        if panel.lens and (len(panel.lens) != n or not _shares_are_plain(panel)):
            return "its logit lenses are not those of its targets"
    if not set(panel.logits) <= set(range(n_models)) or len(panel.attribution) not in (0, len(page.sources)):
        return "it has logits or shares of models and sources that are not there"
    for group, records in zip(groups, panel.sequences, strict=True):
        if len(group.seq_data) != len(records):
            return "its examples do not match"
        for sequence, record in zip(group.seq_data, records, strict=True):
            if not _fits(record, len(sequence.token_ids), len(sequence.feat_acts), n_models, len(page.sources)):
                return "an example's columns are not as long as its tokens"
    return None


def _shares_are_plain(panel: FeaturePanels) -> bool:
    shares = [lens.share for lens in panel.lens if lens is not None and lens.share is not None]
    return all(type(share) in (int, float) and abs(share) < LARGEST_SHARE for share in shares)


def _fits(record: ShownSequence, n: int, n_acts: int, n_models: int, n_sources: int) -> bool:
    columns = [column for effects in record.effects.values() for column in vars(effects).values()]
    pairs = [
        (ids, values)
        for effects in record.effects.values()
        for side in ((effects.up_ids, effects.up), (effects.down_ids, effects.down))
        for ids, values in zip(*side, strict=False)
    ]
    return (
        n_acts == n
        and 0 <= record.bold < n
        and set(record.effects) <= set(range(n_models))
        and len(record.sources) in (0, n_sources)
        and all(len(column) == n for column in (*columns, *record.sources))
        and all(len(ids) == len(values) for ids, values in pairs)
    )
