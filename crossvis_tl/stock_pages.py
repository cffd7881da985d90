"""sae_vis' own pages of our dashboards: its look, its libraries from the network, its components alone."""

from copy import copy, deepcopy
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from sae_vis.data_config_classes import Column, SaeVisConfig, SaeVisLayoutConfig
from sae_vis.data_storing_fns import METRIC_TITLES, FeatureData, SaeVisData
from sae_vis.html_fns import HTML
from sae_vis.utils_fns import get_decode_html_safe_fn

from crossvis_tl.errors import short_list
from crossvis_tl.files import check_output
from crossvis_tl.layouts import STOCK

if TYPE_CHECKING:
    from crossvis_tl.dashboards import Dashboards
    from crossvis_tl.prompts import ShownPrompts


def save_features(data: "Dashboards", path: Path, feature_idx: int | None) -> None:
    """ValueError for a feature that was not gathered, and without the model, whose tokenizer sae_vis reads."""
    if feature_idx is not None and feature_idx not in data.feature_data_dict:
        features = short_list(data.feature_data_dict)
        raise ValueError(f"feature_idx is {feature_idx}, which was not gathered; there are {features}")
    _check(data, path)
    stock_data(data).save_feature_centric_vis(path, feature_idx)


def save_prompt(data: "Dashboards", shown: "ShownPrompts", path: Path) -> None:
    """The page of one prompt, which `gather_prompts` ran last. Positions are labelled with the tokens that the models
    read, BOS among them."""
    _check(data, path)
    layout, prompt = stock_layout(data.cfg.prompt_centric_layout), shown.each[0]
    decode = get_decode_html_safe_fn(data.models[0].tokenizer)
    page, pages = HTML(), {}
    names = [f"{decode(token)!r} ({i})".replace("|", "\u2502") for i, token in enumerate(prompt.tokens)]
    for metric, (whole, *_) in prompt.scores.items():
        for position, row in enumerate(whole):
            html = HTML()
            for i, (feature, score) in enumerate(row):
                title = f"<h3>#{feature}<br>{METRIC_TITLES[metric]} = {score}</h3><hr>"
                html += as_stock(data.feature_data_dict[feature])._get_html_data_prompt_centric(
                    layout=layout, decode_fn=decode, column_idx=i, bold_idx=position, title=title
                )
            if row:
                pages[f"{metric}|{names[position]}"] = deepcopy(html.js_data)
                if len(page.html_data) < len(html.html_data):
                    page.html_data = deepcopy(html.html_data)
    if not pages:
        raise ValueError("no feature fires on this prompt, and sae_vis' page has no way to show that")
    first = f"{shown.metric}|{names[prompt.position]}"
    page.js_data = {"AGGDATA": data.feature_stats.aggdata, "DASHBOARD_DATA": pages}
    page.get_html(layout=layout, filename=path, first_key=first if first in pages else next(iter(pages)))


def as_stock(feature: FeatureData) -> FeatureData:
    """The feature with its prompt as sae_vis' page wants it: nothing is listed at the first token, which nothing
    predicts."""
    lists = ("top_token_ids", "top_logits", "bottom_token_ids", "bottom_logits")
    prompt = copy(feature.prompt_data)
    for name in lists:
        setattr(prompt, name, getattr(prompt, name)[1:])
    return replace(feature, prompt_data=prompt)


def stock_data(data: "Dashboards") -> SaeVisData:
    """The same features as sae_vis' own class, in a layout without our panels."""
    cfg = SaeVisConfig(
        feature_centric_layout=stock_layout(data.cfg.feature_centric_layout),
        prompt_centric_layout=stock_layout(data.cfg.prompt_centric_layout), verbose=data.cfg.verbose,
    )  # fmt: skip
    return SaeVisData(data.feature_data_dict, data.feature_stats, cfg, data.models[0], data.encoder)


def stock_layout(layout: SaeVisLayoutConfig) -> SaeVisLayoutConfig:
    """The layout with sae_vis' own components alone."""
    columns = []
    for column in layout.columns.values():
        kept = [STOCK[type(part)](part) for part in column if type(part) in STOCK]
        if kept:
            columns.append(Column(*kept, width=column.width))
    return SaeVisLayoutConfig(columns, layout.height)


def _check(data: "Dashboards", path: Path) -> None:
    check_output(path, ".html")
    if not data.models or data.models[0].tokenizer is None:
        raise ValueError("sae_vis' own page needs the model's tokenizer; give model= when loading these dashboards")
