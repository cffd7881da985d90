"""Dashboards as JSON: sae_vis' own part as it writes it, ours beside it, versioned. Files appear whole or not at
all."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sae_vis.data_storing_fns import FeatureData, _SaeVisData
from sae_vis.utils_fns import FeatureStatistics

from crossvis_tl.files import check_output, read_json, write_whole
from crossvis_tl.panels import FeaturePanels, TokenEffects

if TYPE_CHECKING:
    from crossvis_tl.vis_data import SaeVisData

VERSION = 2


def save_json(data: "SaeVisData", path: Path) -> None:
    """ValueError unless the name ends in .json; OSError when it cannot be written."""
    check_output(path, ".json")
    stock = _SaeVisData(feature_data_dict=data.feature_data_dict, feature_stats=data.feature_stats)
    content = stock.to_dict()
    content["crossvis_tl"] = {
        "version": VERSION,
        "page": {**vars(data.page), "vocabulary": {str(i): text for i, text in data.page.vocabulary.items()}},
        "panels": {str(feature): panel.to_dict() for feature, panel in data.panels.items()},
    }
    write_whole(path, json.JSONEncoder().iterencode(content))


def load_json(
    path: Path,
) -> tuple[dict[int, FeatureData], FeatureStatistics, dict[int, FeaturePanels], dict[str, Any]]:
    """-> features, statistics, panels, page facts. ValueError for a file of another kind or a newer version."""
    if path.suffix != ".json":
        raise ValueError(f"{path} must end in .json")
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist")
    content = read_json(path, "is no JSON file")
    own = content.pop("crossvis_tl", None) if isinstance(content, dict) else None
    if not isinstance(own, dict):
        raise ValueError(f"{path} holds no crossvis_tl dashboards; stock sae_vis' own JSON opens with sae_vis")
    if own.get("version") != VERSION:
        raise ValueError(f"{path} is of version {own.get('version')}; this crossvis_tl reads version {VERSION}")
    try:
        return _parse(content, own)
    except (KeyError, TypeError, AttributeError, ValueError, AssertionError) as error:
        raise ValueError(f"{path} is damaged: it does not hold what version {VERSION} holds ({error!r})") from error


def _parse(
    content: dict[str, Any], own: dict[str, Any]
) -> tuple[dict[int, FeatureData], FeatureStatistics, dict[int, FeaturePanels], dict[str, Any]]:
    stock = _SaeVisData.from_dict(content)
    panels = {int(feature): FeaturePanels.from_dict(panel) for feature, panel in own["panels"].items()}
    page = dict(own["page"])
    page["vocabulary"] = {int(i): text for i, text in page["vocabulary"].items()}
    features = {int(feature): value for feature, value in stock.feature_data_dict.items()}
    return features, stock.feature_stats, panels, page


def shown_ids(data: "SaeVisData") -> set[int]:
    """Every token id the dashboards mention."""
    ids: set[int] = set()
    for feature in data.feature_data_dict.values():
        for group in feature.sequence_data.seq_group_data:
            for sequence in group.seq_data:
                ids.update(sequence.token_ids)
    for panel in data.panels.values():
        for logits in panel.logits.values():
            ids.update(logits.table.top_token_ids, logits.table.bottom_token_ids)
        for shown in (shown for group in panel.sequences for shown in group):
            for effects in shown.effects.values():
                ids.update(effect_ids(effects))
    return ids


def effect_ids(effects: TokenEffects) -> set[int]:
    return {token for ids in (*effects.up_ids, *effects.down_ids) for token in ids}
