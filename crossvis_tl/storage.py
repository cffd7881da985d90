"""Dashboards as JSON: sae_vis' own part as it writes it, ours beside it, versioned. Files appear whole or not at
all."""

import json
from collections import Counter
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sae_vis.data_config_classes import SaeVisConfig as StockConfig
from sae_vis.data_storing_fns import FeatureData, _SaeVisData
from sae_vis.utils_fns import FeatureStatistics

from crossvis_tl.asking import checked
from crossvis_tl.files import check_output, read_json, write_whole
from crossvis_tl.layouts import SaeVisConfig, SaeVisLayoutConfig, as_plain, from_plain, resolved
from crossvis_tl.page_facts import PageFacts
from crossvis_tl.panels import FeaturePanels, TokenEffects
from crossvis_tl.saved_checks import saved_problem

if TYPE_CHECKING:
    from crossvis_tl.dashboards import Dashboards

VERSION = 3
LAYOUTS = ("feature_centric_layout", "prompt_centric_layout")


def save_json(data: "Dashboards", path: Path) -> None:
    """ValueError unless the name ends in .json; OSError when it cannot be written."""
    check_output(path, ".json")
    stock = _SaeVisData(feature_data_dict=data.feature_data_dict, feature_stats=data.feature_stats)
    content = stock.to_dict()
    content["crossvis_tl"] = {
        "version": VERSION,
        "page": {**vars(data.page), "vocabulary": {str(i): text for i, text in data.page.vocabulary.items()}},
        "layouts": {name: as_plain(getattr(data.cfg, name)) for name in LAYOUTS},
        "masking": data.masking,
        "panels": {str(feature): panel.to_dict() for feature, panel in data.panels.items()},
    }
    write_whole(path, json.JSONEncoder().iterencode(content))


@dataclass(frozen=True)
class Saved:
    """What `load_json` gives back."""

    features: dict[int, FeatureData]
    statistics: FeatureStatistics
    panels: dict[int, FeaturePanels]
    page: PageFacts
    layouts: dict[str, SaeVisLayoutConfig]
    masking: str

    def config(self, cfg: StockConfig | None) -> StockConfig:
        """The layouts that were saved, or those of another config."""
        if cfg is None:
            return SaeVisConfig(features=list(self.features), **self.layouts)  # type: ignore[arg-type]
        kept = cfg if isinstance(cfg, SaeVisConfig) else None
        given = {name: getattr(cfg, name) for name in LAYOUTS}
        if kept is not None:
            given = {name: layout or self.layouts[name] for name, layout in given.items()}
        models, sites = len(self.page.models), (len(self.page.sources), len(self.page.targets))
        return resolved(replace(cfg, **given), self.page.kind, models, *sites)  # type: ignore[arg-type]


def load_json(path: Path) -> Saved:
    """ValueError for a file of another kind or version."""
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


def _parse(content: dict[str, Any], own: dict[str, Any]) -> Saved:
    stock = _SaeVisData.from_dict(content)
    panels = {int(feature): FeaturePanels.from_dict(panel) for feature, panel in own["panels"].items()}
    page = dict(own["page"])
    page["vocabulary"] = {int(i): text for i, text in page["vocabulary"].items()}
    features = {int(feature): value for feature, value in stock.feature_data_dict.items()}
    layouts = {name: from_plain(own["layouts"][name]) for name in LAYOUTS}
    saved = Saved(features, stock.feature_stats, panels, PageFacts(**page), layouts, str(own["masking"]))
    checked(saved.config(None))
    problem = saved_problem(saved, shown_ids(saved))
    if problem:
        raise ValueError(problem)
    return saved


def shown_ids(data: "Dashboards | Saved") -> list[int]:
    """Every token id the dashboards mention, those that are shown most first: pages refer to them by their place."""
    counts: Counter[int] = Counter()
    features = data.features if isinstance(data, Saved) else data.feature_data_dict
    for feature in features.values():
        for group in feature.sequence_data.seq_group_data:
            counts.update(chain.from_iterable(sequence.token_ids for sequence in group.seq_data))
    for panel in data.panels.values():
        for logits in panel.logits.values():
            counts.update(chain(logits.table.top_token_ids, logits.table.bottom_token_ids))
        for lens in panel.lens:
            counts.update(chain(lens.top_ids, lens.bottom_ids) if lens else ())
        for shown in chain.from_iterable(panel.sequences):
            for effects in shown.effects.values():
                counts.update(chain.from_iterable(chain(effects.up_ids, effects.down_ids)))
    return [token for token, _ in counts.most_common()]


def effect_ids(effects: TokenEffects) -> set[int]:
    return set(chain.from_iterable(chain(effects.up_ids, effects.down_ids)))
