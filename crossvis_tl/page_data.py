"""From dashboards to what the page draws (`page.contract`): plain numbers, tokens by place in a shared vocabulary."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from sae_vis.data_storing_fns import FeatureData, FeatureTablesData
from sae_vis.utils_fns import HistogramData

from crossvis_tl.errors import short_list
from crossvis_tl.geometry import class_help
from crossvis_tl.layouts import FeatureMapConfig, SaeVisLayoutConfig, component_name
from crossvis_tl.losses import ReplacementLoss, SiteLoss
from crossvis_tl.measures import Measures, feature_measures
from crossvis_tl.page.contract import VERSION
from crossvis_tl.panels import FeaturePanels, ModelLogits, PromptSequence, ShownSequence, SiteLens, TokenEffects
from crossvis_tl.storage import effect_ids
from crossvis_tl.vocabulary import Vocabulary

if TYPE_CHECKING:
    from crossvis_tl.dashboards import Dashboards
    from crossvis_tl.prompts import ShownPrompts

Payloads = Iterator[tuple[int, dict[str, Any]]]


def feature_page(data: "Dashboards", first: int | None) -> tuple[dict[str, Any], Payloads]:
    """-> head and payloads of the page that goes through the features. ValueError when `first` is none of them."""
    features = list(data.feature_data_dict)
    if not features:
        raise ValueError("there are no features to show")
    if first is not None and first not in data.feature_data_dict:
        raise ValueError(f"feature_idx is {first}, which was not gathered; there are {short_list(features)}")
    page = _Page(data, data.page.vocabulary)
    layout = SaeVisLayoutConfig.of(data.cfg.feature_centric_layout)
    head = page.head("feature", layout, features, features[0] if first is None else first)
    many = layout.map_cfg is not None and len(features) >= max(layout.map_cfg.least, 2)
    head["open_map"] = many and first is None
    return head, page.payloads(features)


def prompt_page(data: "Dashboards", shown: "ShownPrompts") -> tuple[dict[str, Any], Payloads]:
    """-> head and payloads of the prompts' page: only the features that score somewhere."""
    ranked = {feature for prompt in shown.each for feature in prompt.ranked()}
    features = [f for f in data.feature_data_dict if f in ranked] or list(data.feature_data_dict)[:1]
    ids = {token for prompt in shown.each for token in prompt.tokens}
    for panel in data.panels.values():
        for shown_prompt in panel.prompts:
            ids |= set().union(*(effect_ids(effects) for effects in shown_prompt.sequence.effects.values()))
    tokenizer = data.model.tokenizer if data.model is not None else None
    page = _Page(data, data.page.vocabulary | Vocabulary(tokenizer).texts(ids))
    head = page.head("prompt", SaeVisLayoutConfig.of(data.cfg.prompt_centric_layout), features, features[0])
    head["prompts"] = {
        "metric": shown.metric,
        "scopes": shown.scopes,
        "each": [
            {"tokens": page.places(prompt.tokens), "position": prompt.position, "scores": prompt.scores}
            for prompt in shown.each
        ],
    }
    return head, page.payloads(features, [prompt.tokens for prompt in shown.each])


class _Page:
    """Turns one `SaeVisData` into page data, with one vocabulary for all of it."""

    def __init__(self, data: "Dashboards", vocabulary: dict[int, str]):
        self.data, self.facts = data, data.page
        self.ids = list(vocabulary)
        self.texts = list(vocabulary.values())
        self.place = {token: i for i, token in enumerate(self.ids)}

    def head(self, view: str, layout: SaeVisLayoutConfig, features: list[int], first: int) -> dict[str, Any]:
        panels = [self.data.panels[feature] for feature in features]
        two = any(panel.geometry and panel.geometry.relative_norm is not None for panel in panels)
        sites = [target["label"] for target in self.facts.targets]
        measures = feature_measures(panels, self.facts.models, sites)
        return {
            "version": VERSION, "title": self.facts.title, "kind": self.facts.kind, "view": view,
            "models": self.facts.models, "sources": self.facts.sources, "targets": self.facts.targets,
            "facts": self.facts.facts, "fidelity": _finite_fidelity(self.facts.fidelity),
            "vocabulary": self.texts, "token_ids": self.ids,
            "layout": _layout(layout, measures), "class_help": class_help(self.facts.models) if two else None,
            "features": {
                "id": features,
                "label": [panel.called(feature) for feature, panel in zip(features, panels, strict=True)],
                "density": [compact(panel.density) for panel in panels],
                "max": [compact(panel.maximum) for panel in panels],
                "class": [panel.geometry.kind if panel.geometry else None for panel in panels],
                "tokens": [self.places(panel.tokens) for panel in panels],
                "measures": measures,
            },
            "first": first, "open_map": False, "prompts": None,
        }  # fmt: skip

    def places(self, tokens: Iterable[int]) -> list[int]:
        """Places in the vocabulary."""
        return [*map(self.place.__getitem__, tokens)]

    def payloads(self, features: list[int], prompts: list[list[int]] | None = None) -> Payloads:
        """`prompts`: the tokens of each prompt that the features were run on."""
        for feature in features:
            yield feature, self.payload(self.data.feature_data_dict[feature], self.data.panels[feature], prompts)

    def payload(
        self, feature: FeatureData, panel: FeaturePanels, prompts: list[list[int]] | None = None
    ) -> dict[str, Any]:
        return {
            "tables": self._tables(feature.feature_tables_data),
            "acts_histogram": _histogram(feature.acts_histogram_data),
            "logits": [self._logits(model, part) for model, part in panel.logits.items()],
            "logits_note": panel.logits_note,
            "density_interval": [compact(end) for end in panel.density_interval],
            "scaling": None if panel.scaling is None else asdict(panel.scaling),
            "sites": self._sites(panel),
            "groups": self._groups(feature, panel),
            "attribution": panel.attribution or None,
            "prompts": None if prompts is None else self._prompts(prompts, panel.prompts),
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
        return panel.called(feature) if panel else ""

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
        return {
            "target_index": geometry.targets, "norms": geometry.norms,
            "relative_norm": geometry.relative_norm, "class": geometry.kind, "cosine": geometry.cosine,
            "lens": [self._lens(lens) for lens in panel.lens],
            "note": None,
        }  # fmt: skip

    def _lens(self, lens: SiteLens | None) -> dict[str, Any] | None:
        if lens is None:
            return None
        sides = {"top": (lens.top_ids, lens.top), "bottom": (lens.bottom_ids, lens.bottom)}
        shown = {name: self._pairs(zip(*side, strict=True)) for name, side in sides.items()}
        return shown | ({} if lens.share is None else {"share": lens.share})

    def _groups(self, feature: FeatureData, panel: FeaturePanels) -> list[dict[str, Any]]:
        groups = []
        parts = zip(feature.sequence_data.seq_group_data, panel.sequences, panel.bounds, strict=True)
        for group, records, bounds in parts:
            low, high, share = bounds or (None, None, None)
            groups.append({
                "title": _group_title(group.title, interval=bounds is not None),
                "low": compact(low), "high": compact(high), "share": compact(share, 3),
                "sequences": [
                    self._sequence(s.token_ids, s.feat_acts, r) for s, r in zip(group.seq_data, records, strict=True)
                ],
            })  # fmt: skip
        return groups

    def _sequence(self, tokens: list[int], acts: list[float], record: ShownSequence) -> dict[str, Any]:
        """Numbers are rounded when they are written (`page.pack`)."""
        return {
            "t": self.places(tokens), "a": acts,
            "bold": record.bold, "row": record.row, "pos": record.position, "doc": record.document,
            "e": [self._effect(effects) for effects in record.effects.values()], "s": record.sources,
        }  # fmt: skip

    def _prompts(self, prompts: list[list[int]], records: list[PromptSequence]) -> list[dict[str, Any]]:
        """No token of a prompt was chosen for the feature."""
        nowhere = {"bold": None, "row": None, "pos": None, "doc": None}
        return [
            self._sequence(tokens, shown.acts, shown.sequence) | nowhere
            for tokens, shown in zip(prompts, records, strict=True)
        ]

    def _effect(self, effects: TokenEffects) -> dict[str, Any]:
        return {
            "loss": effects.loss, "logit": effects.logits, "p": effects.p,
            "up_ids": [self.places(ids) if ids else ids for ids in effects.up_ids], "up": effects.up,
            "down_ids": [self.places(ids) if ids else ids for ids in effects.down_ids], "down": effects.down,
        }  # fmt: skip


def _layout(layout: SaeVisLayoutConfig, measures: Measures) -> dict[str, Any]:
    """sae_vis' columns with our panels in them; the map stands apart. A measure that these features do not have is
    left to the page's choice."""
    columns = [
        {
            "width": column.width,
            "components": [
                {"name": component_name(part), "config": asdict(part)}
                for part in column
                if not isinstance(part, FeatureMapConfig)
            ],
        }
        for column in layout.columns.values()
    ]
    where, known = layout.map_cfg, {"density", "max", "class", *(measure["name"] for measure in measures)}
    axes = {} if where is None else {"x": where.x, "y": where.y, "color": where.color}
    found = {axis: name if name in known else None for axis, name in axes.items()} or None
    return {"height": layout.height, "columns": columns, "map": found}


def compact(value: float | None, digits: int = 4) -> float | None:
    """Few significant digits: what a page can show, in a third of the room."""
    if value is None or value == 0:
        return value if value is None else 0
    return float(f"{value:.{digits}g}")


def _group_title(title: str, *, interval: bool) -> str:
    """sae_vis' titles hold numbers and markup; the page prints its own."""
    if interval:
        return "Interval"
    titles = {"LOWEST": "Lowest activations", "RANDOM": "Random activations"}
    return titles.get(title.split(" ", 1)[0], "Top activations")


def _rows(*columns: list) -> list[list]:
    return [[row[0], *(compact(v) for v in row[1:])] for row in zip(*columns, strict=True)]


def _histogram(data: HistogramData) -> dict[str, Any] | None:
    """The bins' outer edges from their middles."""
    if not data.bar_heights:
        return None
    first, last = data.bar_values[0], data.bar_values[-1]
    half = (last - first) / max(len(data.bar_values) - 1, 1) / 2
    return {"heights": [*map(int, data.bar_heights)], "low": compact(first - half), "high": compact(last + half)}


def _finite_fidelity(fidelity: dict[str, Any] | None) -> dict[str, Any] | None:
    """JSON has no infinity: a site whose activations do not vary is shown as explaining nothing."""
    if fidelity is None:
        return None
    sites = [{"label": site["label"], "fvu": compact(min(site["fvu"], 1e6))} for site in fidelity["sites"]]
    kept = ("verdict", "headline", "l0", "dead", "warnings")
    groups = [{"label": one["label"], "l0": one["l0"], "dead": one["dead"]} for one in fidelity["groups"]]
    losses = [_loss(ReplacementLoss.from_dict(one)) for one in fidelity.get("losses", ())]
    return {**{name: fidelity[name] for name in kept}, "sites": sites, "groups": groups, "losses": losses}


def _loss(one: ReplacementLoss) -> dict[str, Any]:
    def put_in(site: SiteLoss) -> dict[str, Any]:
        kept = None if one.clean is None else compact(site.recovered(one.clean), 6)
        return {"label": site.label, "loss": compact(site.loss, 6), "zeroed": compact(site.zeroed, 6), "kept": kept}

    return {
        "model": one.model, "clean": compact(one.clean, 6), "n_tokens": one.n_tokens, "note": one.note,
        "sites": [put_in(site) for site in one.sites], "together": one.together and put_in(one.together),
    }  # fmt: skip
