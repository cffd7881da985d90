"""From dashboards to what the page draws (`page.contract`): plain numbers, tokens by place in a shared vocabulary."""

import re
from collections.abc import Iterator
from dataclasses import asdict, is_dataclass
from typing import TYPE_CHECKING, Any

from sae_vis.data_config_classes import SaeVisLayoutConfig
from sae_vis.data_storing_fns import FeatureData, FeatureTablesData, SequenceData
from sae_vis.utils_fns import HistogramData

from crossvis_tl.errors import short_list
from crossvis_tl.geometry import class_help
from crossvis_tl.panels import FeaturePanels, ModelLogits, ShownSequence, TokenEffects
from crossvis_tl.storage import effect_ids
from crossvis_tl.vocabulary import Vocabulary

if TYPE_CHECKING:
    from crossvis_tl.prompts import ShownPrompt
    from crossvis_tl.vis_data import SaeVisData

OURS = ("DecoderNorms", "DecoderCosine")
Payloads = Iterator[tuple[int, dict[str, Any]]]


def feature_page(data: "SaeVisData", first: int | None) -> tuple[dict[str, Any], Payloads]:
    """-> head and payloads of the page that goes through the features. ValueError when `first` is none of them."""
    features = list(data.feature_data_dict)
    if not features:
        raise ValueError("there are no features to show")
    if first is not None and first not in data.feature_data_dict:
        raise ValueError(f"feature_idx is {first}, which was not gathered; there are {short_list(features)}")
    page = _Page(data, data.page.vocabulary)
    head = page.head("feature", data.cfg.feature_centric_layout, features, features[0] if first is None else first)
    return head, page.payloads(features)


def prompt_page(data: "SaeVisData", shown: "ShownPrompt") -> tuple[dict[str, Any], Payloads]:
    """-> head and payloads of one prompt's page: only the features that score somewhere."""
    ranked = {f for rows in shown.scores.values() for row in rows for f, _ in row}
    features = [f for f in data.feature_data_dict if f in ranked] or list(data.feature_data_dict)[:1]
    ids = set(shown.tokens)
    for panel in data.panels.values():
        for effects in panel.prompt.effects.values() if panel.prompt else ():
            ids |= effect_ids(effects)
    tokenizer = data.model.tokenizer if data.model is not None else None
    page = _Page(data, data.page.vocabulary | Vocabulary(tokenizer).texts(ids))
    head = page.head("prompt", data.cfg.prompt_centric_layout, features, features[0])
    head["prompt"] = {
        "tokens": [page.place[i] for i in shown.tokens],
        "position": shown.position,
        "metric": shown.metric,
        "scores": shown.scores,
    }
    return head, page.payloads(features, prompt=True)


class _Page:
    """Turns one `SaeVisData` into page data, with one vocabulary for all of it."""

    def __init__(self, data: "SaeVisData", vocabulary: dict[int, str]):
        self.data, self.facts = data, data.page
        self.ids = list(vocabulary)
        self.texts = list(vocabulary.values())
        self.place = {token: i for i, token in enumerate(self.ids)}

    def head(self, view: str, layout: SaeVisLayoutConfig, features: list[int], first: int) -> dict[str, Any]:
        panels = [self.data.panels[feature] for feature in features]
        two = any(panel.geometry and panel.geometry.relative_norm is not None for panel in panels)
        return {
            "version": 1, "title": self.facts.title, "kind": self.facts.kind, "view": view,
            "models": self.facts.models, "sources": self.facts.sources, "targets": self.facts.targets,
            "facts": self.facts.facts, "fidelity": _finite_fidelity(self.facts.fidelity),
            "vocabulary": self.texts, "token_ids": self.ids,
            "layout": self._layout(layout, view), "class_help": class_help(self.facts.models) if two else None,
            "features": {
                "id": features,
                "label": [_name(panel.label, feature) for feature, panel in zip(features, panels, strict=True)],
                "density": [compact(panel.density) for panel in panels],
                "max": [compact(panel.maximum) for panel in panels],
                "class": [panel.geometry.kind if panel.geometry else None for panel in panels],
            },
            "first": first, "prompt": None,
        }  # fmt: skip

    def _layout(self, layout: SaeVisLayoutConfig, view: str) -> dict[str, Any]:
        """sae_vis' columns as they are; our panels join the first one where there are several targets."""
        columns = []
        for column in layout.columns.values():
            components = [_component(part) for part in column]
            columns.append({"width": column.width, "components": components})
        if view == "feature" and len(self.facts.targets) > 1 and columns:
            columns[0]["components"][:0] = [{"name": name, "config": {}} for name in OURS]
        return {"height": layout.height, "columns": columns}

    def payloads(self, features: list[int], *, prompt: bool = False) -> Payloads:
        for feature in features:
            yield feature, self.payload(self.data.feature_data_dict[feature], self.data.panels[feature], prompt)

    def payload(self, feature: FeatureData, panel: FeaturePanels, prompt: bool) -> dict[str, Any]:
        return {
            "tables": self._tables(feature.feature_tables_data),
            "acts_histogram": _histogram(feature.acts_histogram_data),
            "logits": [self._logits(model, part) for model, part in panel.logits.items()],
            "logits_note": panel.logits_note,
            "density_interval": [compact(end) for end in panel.density_interval],
            "scaling": None if panel.scaling is None else asdict(panel.scaling),
            "sites": self._sites(panel),
            "groups": self._groups(feature, panel),
            "prompt": self._prompt(feature.prompt_data, panel.prompt) if prompt and panel.prompt else None,
        }

    def _tables(self, tables: FeatureTablesData) -> dict[str, list]:
        rows: dict[str, list] = {}
        alignment = (tables.neuron_alignment_indices, tables.neuron_alignment_values, tables.neuron_alignment_l1)
        neurons = (
            tables.correlated_neurons_indices,
            tables.correlated_neurons_pearson,
            tables.correlated_neurons_cossim,
        )
        rows["neuron_alignment"] = self._neurons(_rows(*alignment), self.facts.targets)
        rows["correlated_neurons"] = self._neurons(_rows(*neurons), self.facts.sources)
        for name in ("correlated_features", "correlated_b_features"):
            indices, pearson, cosine = (getattr(tables, f"{name}_{part}") for part in ("indices", "pearson", "cossim"))
            labels = [self._label(i) if name == "correlated_features" else str(i) for i in indices]
            rows[name] = [
                [row[0], label, *row[1:]] for row, label in zip(_rows(indices, pearson, cosine), labels, strict=True)
            ]
        return {name: found for name, found in rows.items() if found}

    def _neurons(self, rows: list[list], sites: list[dict[str, Any]]) -> list[list]:
        """Where several sites stand side by side, a dimension's number alone says nothing: "tuned 91", "L2 17"."""
        if len(sites) < 2:
            return rows
        named = []
        for index, *values in rows:
            site, at = 0, int(index)
            while at >= sites[site]["width"]:
                at -= sites[site]["width"]
                site += 1
            layer = re.match(r"blocks\.(\d+)\.", str(sites[site]["hook"]))
            several = len({s["model"] for s in sites}) > 1
            place = self.facts.models[sites[site]["model"]] if several else f"L{layer[1]}" if layer else f"site {site}"
            named.append([f"{place} {at}", *values])
        return named

    def _label(self, feature: int) -> str:
        panel = self.data.panels.get(feature)
        return _name(panel.label, feature) if panel else ""

    def _logits(self, model: int, part: ModelLogits) -> dict[str, Any]:
        table = part.table
        return {
            "model": model,
            "name": self.facts.models[model],
            "top": self._pairs(zip(table.top_token_ids, table.top_logits, strict=True)),
            "bottom": self._pairs(zip(table.bottom_token_ids, table.bottom_logits, strict=True)),
            "histogram": _histogram(part.histogram),
        }

    def _pairs(self, pairs) -> list[list]:
        return [[self.place[token], compact(value)] for token, value in pairs]

    def _sites(self, panel: FeaturePanels) -> dict[str, Any] | None:
        geometry = panel.geometry
        if geometry is None:
            return None
        total = sum(norm**2 for norm in geometry.norms)
        shares = [round(norm**2 / total, 4) for norm in geometry.norms] if total > 0 else None
        return {
            "target_index": geometry.targets, "norms": geometry.norms, "shares": shares,
            "relative_norm": geometry.relative_norm, "class": geometry.kind, "cosine": geometry.cosine,
            "note": "norms in the producer's training units",
        }  # fmt: skip

    def _groups(self, feature: FeatureData, panel: FeaturePanels) -> list[dict[str, Any]]:
        groups = []
        parts = zip(feature.sequence_data.seq_group_data, panel.sequences, panel.bounds, strict=True)
        for group, records, bounds in parts:
            low, high, share = bounds or (None, None, None)
            groups.append({
                "title": _group_title(group.title, interval=bounds is not None),
                "low": compact(low), "high": compact(high), "share": compact(share),
                "sequences": [self._sequence(s, r) for s, r in zip(group.seq_data, records, strict=True)],
            })  # fmt: skip
        return groups

    def _sequence(self, sequence: SequenceData, record: ShownSequence) -> dict[str, Any]:
        return {
            "t": [self.place[token] for token in sequence.token_ids],
            "a": [compact(act) for act in sequence.feat_acts],
            "bold": record.bold, "row": record.row, "pos": record.position, "doc": record.document,
            "e": [self._effect(effects) for effects in record.effects.values()],
        }  # fmt: skip

    def _prompt(self, sequence: SequenceData, record: ShownSequence) -> dict[str, Any]:
        """No token of a prompt was chosen for the feature."""
        return self._sequence(sequence, record) | {"bold": None, "row": None, "pos": None, "doc": None}

    def _effect(self, effects: TokenEffects) -> dict[str, Any]:
        return {
            "loss": [compact(v) for v in effects.loss],
            "logit": [compact(v) for v in effects.logits],
            "up": [self._pairs(zip(*row, strict=True)) or None for row in zip(effects.up_ids, effects.up, strict=True)],
            "down": [
                self._pairs(zip(*row, strict=True)) or None for row in zip(effects.down_ids, effects.down, strict=True)
            ],
        }


def compact(value: float | None) -> float | None:
    """Four significant digits: what a page can show, in a third of the room."""
    if value is None or value == 0:
        return value if value is None else 0
    return float(f"{value:.4g}")


def _group_title(title: str, *, interval: bool) -> str:
    """sae_vis' titles hold numbers and markup; the page prints its own."""
    return "Interval" if interval else "Lowest activations" if title.startswith("LOWEST") else "Top activations"


def _name(label: str, feature: int) -> str:
    """A label that only repeats the number says nothing."""
    return "" if label == str(feature) else label


def _rows(*columns: list) -> list[list]:
    return [[row[0], *(compact(v) for v in row[1:])] for row in zip(*columns, strict=True)]


def _histogram(data: HistogramData) -> dict[str, Any] | None:
    """The bins' outer edges from their middles."""
    if not data.bar_heights:
        return None
    first, last = data.bar_values[0], data.bar_values[-1]
    half = (last - first) / max(len(data.bar_values) - 1, 1) / 2
    return {"heights": data.bar_heights, "low": compact(first - half), "high": compact(last + half)}


def _component(part: Any) -> dict[str, Any]:
    config = asdict(part) if is_dataclass(part) and not isinstance(part, type) else {}
    return {"name": type(part).__name__.removesuffix("Config"), "config": config}


def _finite_fidelity(fidelity: dict[str, Any] | None) -> dict[str, Any] | None:
    """JSON has no infinity: a site whose activations do not vary is shown as explaining nothing."""
    if fidelity is None:
        return None
    sites = [{"label": site["label"], "fvu": compact(min(site["fvu"], 1e6))} for site in fidelity["sites"]]
    kept = ("verdict", "headline", "l0", "dead", "warnings")
    return {**{name: fidelity[name] for name in kept}, "sites": sites}
