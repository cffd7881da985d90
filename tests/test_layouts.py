"""Layouts, whoever's config they are written with, and the ways out of dashboards: stock pages, JSON, notebooks, the
packing of pages."""

import copy
import html
import inspect
import json
import re
from dataclasses import asdict
from pathlib import Path

import pytest
import sae_vis
import sae_vis.data_config_classes as stock
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformer_lens import HookedTransformer

import crossvis_tl
from crossvis_tl import (
    Column,
    DecoderCosineConfig,
    DecoderNormsConfig,
    FeatureMapConfig,
    SaeVisConfig,
    SaeVisData,
    SaeVisLayoutConfig,
    SequencesConfig,
    SiteLogitsConfig,
    SourceAttributionConfig,
    gather,
    load_dictionary,
)
from crossvis_tl.page import render_page
from crossvis_tl.page.pack import pack
from crossvis_tl.page_data import feature_page
from tests.conftest import N_CTX, N_LAYERS, write_clt, write_crosscoder
from tests.page.page_reader import read_feature, read_page
from tests.test_vis_data import HOOK, autoencoder

pytestmark = pytest.mark.filterwarnings("ignore::crossvis_tl.CrossvisWarning")
FEATURES = [12, 5]
LAYERS = [f"blocks.{i}.hook_resid_post" for i in range(N_LAYERS)]


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    return load_dictionary(write_crosscoder(tmp_path_factory.mktemp("pair") / "crosscoder"))


@pytest.fixture(scope="module")
def multi(tmp_path_factory):
    folder = tmp_path_factory.mktemp("multi") / "crosscoder"
    return load_dictionary(write_crosscoder(folder, n_sources=3, hook_point=LAYERS))


@pytest.fixture(scope="module")
def clt(tmp_path_factory):
    return load_dictionary(write_clt(tmp_path_factory.mktemp("layers") / "clt"))


@pytest.fixture(scope="module")
def made(pair, tl_models, tokens) -> SaeVisData:
    """Of two models, in the kind's own layout, with all there is."""
    cfg = SaeVisConfig(features=FEATURES, latent_scaling=True)
    return SaeVisData.create(pair, tl_models, tokens, cfg)


@pytest.fixture(scope="module")
def of_an_sae(tl_models, tokens) -> SaeVisData:
    return SaeVisData.create(autoencoder(), tl_models[0], tokens, SaeVisConfig(hook_point=HOOK, features=[4, 9, 31]))


@pytest.fixture
def no_runs(monkeypatch) -> None:
    """No model may run, but for a look at two positions with which every call may begin."""
    forward = HookedTransformer.forward

    def never(self, tokens, *args, **kwargs):
        if tokens.shape[1] > 2:
            raise AssertionError("a model was run")
        return forward(self, tokens, *args, **kwargs)

    monkeypatch.setattr(HookedTransformer, "forward", never)


def columns_of(head) -> list[list[str]]:
    return [[part["name"] for part in column["components"]] for column in head["layout"]["columns"]]


def configs_of(head) -> dict[str, dict]:
    return {part["name"]: part["config"] for column in head["layout"]["columns"] for part in column["components"]}


# Layouts of sae_vis' own


def stock_layout() -> sae_vis.SaeVisLayoutConfig:
    sequences = stock.SequencesConfig(
        buffer=(2, 3), n_quantiles=3, top_acts_group_size=4, quantile_group_size=2, top_logits_hoverdata=2,
        stack_mode="stack-quantiles", hover_below=False,
    )  # fmt: skip
    tables = stock.FeatureTablesConfig(n_rows=2, correlated_neurons_table=False)
    return sae_vis.SaeVisLayoutConfig(
        [
            stock.Column(stock.ActsHistogramConfig(n_bins=7), width=300),
            stock.Column(sequences, tables),
            stock.Column(stock.LogitsTableConfig(n_rows=4), stock.LogitsHistogramConfig(n_bins=9), width=500),
        ],
        height=432,
    )


STOCK_COLUMNS = [["ActsHistogram"], ["Sequences", "FeatureTables"], ["LogitsTable", "LogitsHistogram"]]


@pytest.mark.parametrize("kind", ["sae", "pair"])
def test_a_stock_layout_is_honoured(kind, pair, tl_models, tokens):
    encoder, models, hook = (autoencoder(), tl_models[0], HOOK) if kind == "sae" else (pair, tl_models, None)
    features = [4, 20] if kind == "sae" else FEATURES
    layout = stock_layout()
    before = copy.deepcopy(layout)
    cfg = sae_vis.SaeVisConfig(hook_point=hook, features=features, feature_centric_layout=layout)
    data = SaeVisData.create(encoder, models, tokens, cfg)
    head, payloads = feature_page(data, None)
    want = copy.deepcopy(STOCK_COLUMNS)
    if kind == "pair":  # what a stock layout cannot name comes to it
        want[0][:0] = ["DecoderNorms", "DecoderCosine"]
    assert columns_of(head) == want
    assert [column["width"] for column in head["layout"]["columns"]] == [300, None, 500]
    assert head["layout"]["height"] == 432
    assert head["layout"]["map"] == {"x": None, "y": None, "color": None}
    configs = configs_of(head)
    for column in before.columns.values():
        for part in column:
            name = type(part).__name__.removesuffix("Config")
            assert {k: v for k, v in configs[name].items() if k in asdict(part)} == asdict(part)
    for _, payload in payloads:
        assert len(payload["acts_histogram"]["heights"]) == 7
        for logits in payload["logits"]:
            assert len(logits["top"]) == len(logits["bottom"]) == 4
            assert len(logits["histogram"]["heights"]) == 9
        assert set(payload["tables"]) == {"neuron_alignment", "correlated_features"}
        assert all(len(rows) <= 2 for rows in payload["tables"].values())
        assert [group["title"] for group in payload["groups"]] == ["Top activations"] + ["Interval"] * 3
        assert [len(group["sequences"]) <= n for group, n in zip(payload["groups"], (4, 2, 2, 2), strict=True)]
        assert len(payload["groups"][0]["sequences"]) == 4
        for group in payload["groups"]:
            for sequence in group["sequences"]:
                position = sequence["pos"]
                assert sequence["bold"] == min(2, position)
                assert len(sequence["t"]) == sequence["bold"] + 1 + min(3, N_CTX - 1 - position)
                assert all(len(up) <= 2 for effect in sequence["e"] for up in effect["up"])
    assert any(len(up) == 2 for g in payload["groups"] for s in g["sequences"] for up in s["e"][0]["up"])
    # the caller's own layout is left as it was
    assert [len(column) for column in layout.columns.values()] == [len(column) for column in before.columns.values()]
    assert type(layout) is sae_vis.SaeVisLayoutConfig
    render_page(*feature_page(data, None))


def test_only_the_chosen_token_where_the_buffer_is_not_computed(pair, tl_models, tokens):
    layout = SaeVisLayoutConfig([Column(stock.SequencesConfig(compute_buffer=False, n_quantiles=0))])
    cfg = SaeVisConfig(features=FEATURES, feature_centric_layout=layout)
    data = SaeVisData.create(pair, tl_models, tokens, cfg)
    _, payloads = feature_page(data, None)
    for _, payload in payloads:
        for sequence in payload["groups"][0]["sequences"]:
            assert [i for i, act in enumerate(sequence["a"]) if act] == [sequence["bold"]]
            told = [i for i, up in enumerate(sequence["e"][0]["up"]) if up]
            assert told in ([], [sequence["bold"] + 1])


def test_sizes_of_nothing(pair, tl_models, tokens, tmp_path):
    """Rows, examples and tokens under the pointer may be 0."""
    sequences = SequencesConfig(
        top_acts_group_size=0, n_quantiles=2, quantile_group_size=0, top_logits_hoverdata=0, random_group_size=2
    )
    layout = SaeVisLayoutConfig(
        [
            Column(stock.FeatureTablesConfig(n_rows=0), stock.LogitsTableConfig(n_rows=0), SiteLogitsConfig(n_rows=0)),
            Column(sequences, SourceAttributionConfig(), FeatureMapConfig(least=0)),
        ]
    )
    cfg = SaeVisConfig(features=FEATURES, feature_centric_layout=layout)
    data = SaeVisData.create(pair, tl_models, tokens, cfg)
    data.save_feature_centric_vis(tmp_path / "p.html")
    head, features = read_page((tmp_path / "p.html").read_text())
    assert head["open_map"]
    for payload in features.values():
        assert payload["tables"] == {}
        assert [len(group["sequences"]) for group in payload["groups"]] == [0, 0, 0, 2]
        for sequence in payload["groups"][-1]["sequences"]:
            assert all(up == [] for effect in sequence["e"] for up in effect["up"])


def test_more_rows_and_examples_than_there_are(tl_models, tokens, tmp_path):
    layout = SaeVisLayoutConfig(
        [
            Column(
                stock.FeatureTablesConfig(n_rows=500),
                stock.LogitsTableConfig(n_rows=500),
                SiteLogitsConfig(n_rows=500),
                SequencesConfig(n_quantiles=0, top_acts_group_size=5000, top_logits_hoverdata=500),
            )
        ]
    )
    cfg = SaeVisConfig(hook_point=HOOK, features=[4, 9], feature_centric_layout=layout, per_document=None)
    data = SaeVisData.create(autoencoder(), tl_models[0], tokens, cfg)
    data.save_feature_centric_vis(tmp_path / "p.html")
    _, features = read_page((tmp_path / "p.html").read_text())
    for feature, payload in features.items():
        assert len(payload["logits"][0]["top"]) == 60
        assert len(payload["sites"]["lens"][0]["top"]) == 60
        assert len(payload["tables"]["neuron_alignment"]) == 16
        (group,) = payload["groups"]
        assert len(group["sequences"]) == round(data.panels[feature].density * 12 * (N_CTX - 1))


# Panels of ours


OURS = [
    DecoderNormsConfig(),
    DecoderCosineConfig(),
    SiteLogitsConfig(n_rows=3),
    SourceAttributionConfig(),
    FeatureMapConfig(x="density", y="driven", color="class", least=2),
    SequencesConfig(n_quantiles=2, random_group_size=3),
]


@pytest.mark.parametrize("column", [Column, stock.Column])
def test_our_panels_stand_among_sae_viss(column, pair, tl_models, tokens):
    layout = SaeVisLayoutConfig(
        [
            column(OURS[5], OURS[0], stock.ActsHistogramConfig(n_bins=5), width=333),
            column(OURS[4], OURS[3], stock.LogitsTableConfig(n_rows=2), OURS[1]),
            column(OURS[2]),
        ],
        height=600,
    )
    assert layout.seq_cfg is OURS[5]
    assert layout.norms_cfg is OURS[0]
    assert layout.cosine_cfg is OURS[1]
    assert layout.site_logits_cfg is OURS[2]
    assert layout.attribution_cfg is OURS[3]
    assert layout.map_cfg is OURS[4]
    assert layout.act_hist_cfg.n_bins == 5
    assert layout.logits_hist_cfg is None
    cfg = SaeVisConfig(features=FEATURES, feature_centric_layout=layout)
    data = SaeVisData.create(pair, tl_models, tokens, cfg)
    head, payloads = feature_page(data, None)
    assert columns_of(head) == [
        ["Sequences", "DecoderNorms", "ActsHistogram"],
        ["SourceAttribution", "LogitsTable", "DecoderCosine"],
        ["SiteLogits"],
    ]
    assert [part["width"] for part in head["layout"]["columns"]] == [333, None, None]
    assert head["layout"]["height"] == 600
    assert head["layout"]["map"] == {"x": "density", "y": "driven", "color": "class"}
    assert head["open_map"]
    assert configs_of(head)["Sequences"]["random_group_size"] == 3
    assert configs_of(head)["SiteLogits"] == {"n_rows": 3}
    for _, payload in payloads:
        assert [group["title"] for group in payload["groups"]] == [
            "Top activations", "Interval", "Interval", "Random activations",
        ]  # fmt: skip
        assert payload["attribution"]
        assert [len(lens["top"]) for lens in payload["sites"]["lens"]] == [3, 3]
        assert payload["tables"] == {}
        assert all(logits["histogram"] is None for logits in payload["logits"])


def test_a_layout_of_ours_is_shown_as_it_is(pair, tl_models, tokens):
    """Nothing comes to it, not even the map."""
    layout = SaeVisLayoutConfig([Column(stock.ActsHistogramConfig())])
    cfg = SaeVisConfig(features=FEATURES, feature_centric_layout=layout)
    head, _ = feature_page(SaeVisData.create(pair, tl_models, tokens, cfg), None)
    assert columns_of(head) == [["ActsHistogram"]]
    assert head["layout"]["map"] is None
    assert not head["open_map"]


def test_the_map_opens_where_there_are_enough_features(pair, tl_models, tokens):
    for least, n, opens in ((3, 2, False), (2, 2, True), (0, 1, False), (20, 20, True), (20, 19, False)):
        layout = SaeVisLayoutConfig([Column(FeatureMapConfig(least=least))])
        cfg = SaeVisConfig(features=list(range(n)), feature_centric_layout=layout)
        data = SaeVisData.create(pair, tl_models, tokens, cfg)
        assert feature_page(data, None)[0]["open_map"] == opens
        assert not feature_page(data, 0)[0]["open_map"]


def test_a_map_by_a_measure_that_no_feature_shown_happens_to_have(pair, tl_models, tokens, tmp_path):
    """A layout is for a kind of dictionary: that none of these features fires is no reason for there to be no page."""
    cfg = SaeVisConfig(features=[27, 2, 13], feature_centric_layout=SaeVisLayoutConfig([Column(*OURS)]))
    data = SaeVisData.create(pair, tl_models, tokens, cfg)
    assert all(panel.attribution == [] for panel in data.panels.values())
    data.save_feature_centric_vis(tmp_path / "p.html")


class SiteLogitConfig(stock.BaseComponentConfig):
    """No component anybody knows."""


REFUSED_COMPONENTS = [
    (lambda: [Column(DecoderNormsConfig)], TypeError, r"not DecoderNormsConfig\. Write DecoderNormsConfig\(\) for one"),
    (lambda: [Column(stock.SequencesConfig)], TypeError, r"not SequencesConfig\. Write SequencesConfig\(\) for one"),
    (lambda: [Column(SiteLogitConfig())], TypeError, r"not SiteLogitConfig\. Did you mean 'SiteLogitsConfig'\?"),
    (lambda: [Column("Sequences")], TypeError, r"columns hold component configs \(.*SequencesConfig.*\), not str\."),
    (lambda: [Column(None)], TypeError, r"columns hold component configs .*, not NoneType\."),
    (
        lambda: [Column(SequencesConfig()), stock.Column(stock.SequencesConfig())],
        ValueError,
        r"SequencesConfig is in the layout twice",
    ),
    (
        lambda: [Column(FeatureMapConfig(), FeatureMapConfig(x="density"))],
        ValueError,
        r"FeatureMapConfig is in the layout twice; a page shows each component once",
    ),
    (lambda: [Column(stock.PromptConfig(), stock.PromptConfig())], ValueError, r"PromptConfig is in the layout twice"),
]


@pytest.mark.parametrize(("columns", "error", "text"), REFUSED_COMPONENTS)
def test_what_cannot_stand_in_a_layout(columns, error, text):
    with pytest.raises(error, match=text):
        SaeVisLayoutConfig(columns())


def test_a_component_without_its_column_is_refused_in_words():
    with pytest.raises(TypeError, match="Column"):
        SaeVisLayoutConfig([SequencesConfig()])


# Configs of ours


def short_layout(**fields) -> SaeVisLayoutConfig:
    return SaeVisLayoutConfig([Column(stock.SequencesConfig(n_quantiles=0, **fields))])


@pytest.mark.parametrize(
    ("name", "value", "other"),
    [
        ("masking", "none", "special"),
        ("masked_tokens", [17, 20], ()),
        ("masked_positions", [-1, 3], ()),
        ("effect", "none", "direct"),
        ("effect", "full", "none"),
        ("latent_scaling", True, False),
        ("per_document", 1, 2),
        ("per_document", None, 1),
        ("per_document", 1, None),
        ("distinct", False, True),
    ],
)
def test_a_config_says_what_an_argument_says_and_an_argument_goes_before_it(
    name, value, other, pair, tl_models, tokens
):
    rows = tokens[:6].clone()
    rows[1] = rows[0]  # the same tokens twice
    fields = {"features": [12], "feature_centric_layout": short_layout(top_acts_group_size=100)}
    given = (pair, tl_models, rows)
    want = SaeVisData.create(*given, SaeVisConfig(**fields), **{name: value})
    by_config = SaeVisData.create(*given, SaeVisConfig(**fields, **{name: value}))
    overruled = SaeVisData.create(*given, SaeVisConfig(**fields, **{name: other}), **{name: value})
    stock_fields = fields | {"feature_centric_layout": sae_vis.SaeVisLayoutConfig.default_feature_centric_layout()}
    SaeVisData.create(*given, sae_vis.SaeVisConfig(**stock_fields), **{name: value})
    for data in (by_config, overruled):
        assert data.panels == want.panels
        assert data.page == want.page
    assert SaeVisData.create(*given, SaeVisConfig(**fields), **{name: other}).panels != want.panels


def test_any_number_of_examples_of_a_document(pair, tl_models, tokens):
    """Against counting: the default is 3, None is no bound, wherever it is said."""
    one = torch.zeros(12, dtype=torch.long)
    fields = {"features": [12], "feature_centric_layout": short_layout(top_acts_group_size=15)}

    def n(cfg_fields, **given) -> int:
        data = SaeVisData.create(pair, tl_models, tokens, SaeVisConfig(**fields, **cfg_fields), documents=one, **given)
        return len(data.panels[12].sequences[0])

    assert n({}) == 3
    assert n({"per_document": 2}) == 2
    assert n({"per_document": None}) == 15
    assert n({"per_document": 2}, per_document=None) == 15
    assert n({"per_document": None}, per_document=4) == 4
    assert n({}, per_document=...) == 3


def test_a_store_is_shown_as_a_config_says(pair, tl_models, tokens, tmp_path):
    gather(pair, tl_models, tokens, out=tmp_path / "store")
    fields = {"features": [12], "feature_centric_layout": short_layout()}
    for said in ({"per_document": 1}, {"per_document": None}, {"distinct": False}, {"effect": "none"}):
        cfg = SaeVisConfig(**fields, **said)
        want = SaeVisData.from_store(tmp_path / "store", pair, SaeVisConfig(**fields), model=tl_models, **said)
        got = SaeVisData.from_store(tmp_path / "store", pair, cfg, model=tl_models)
        assert got.panels == want.panels
        assert got.page == want.page


REFUSED_FIELDS = [
    (stock.LogitsTableConfig(n_rows=-1), r"LogitsTableConfig\.n_rows is -1; expected a whole number of at least 0"),
    (stock.LogitsTableConfig(n_rows=True), r"LogitsTableConfig\.n_rows is True; expected a whole number"),
    (stock.LogitsTableConfig(n_rows=2.5), r"LogitsTableConfig\.n_rows is 2\.5; expected a whole number"),
    (stock.LogitsTableConfig(n_rows="3"), r"LogitsTableConfig\.n_rows is '3'; expected a whole number"),
    (stock.LogitsTableConfig(n_rows=None), r"LogitsTableConfig\.n_rows is None; expected a whole number"),
    (stock.FeatureTablesConfig(n_rows=-2), r"FeatureTablesConfig\.n_rows is -2"),
    (stock.ActsHistogramConfig(n_bins=0), r"ActsHistogramConfig\.n_bins is 0; expected a whole number of at least 1"),
    (stock.LogitsHistogramConfig(n_bins=-3), r"LogitsHistogramConfig\.n_bins is -3"),
    (stock.LogitsHistogramConfig(n_bins=10.0), r"LogitsHistogramConfig\.n_bins is 10\.0"),
    (SiteLogitsConfig(n_rows=-1), r"SiteLogitsConfig\.n_rows is -1; expected a whole number of at least 0"),
    (SiteLogitsConfig(n_rows=True), r"SiteLogitsConfig\.n_rows is True"),
    (SiteLogitsConfig(n_rows=1.0), r"SiteLogitsConfig\.n_rows is 1\.0"),
    (SequencesConfig(random_group_size=-1), r"SequencesConfig\.random_group_size is -1"),
    (SequencesConfig(random_group_size=True), r"SequencesConfig\.random_group_size is True"),
    (SequencesConfig(random_group_size=0.5), r"SequencesConfig\.random_group_size is 0\.5"),
    (stock.SequencesConfig(top_acts_group_size=-1), r"SequencesConfig\.top_acts_group_size is -1"),
    (stock.SequencesConfig(quantile_group_size=-1), r"SequencesConfig\.quantile_group_size is -1"),
    (stock.SequencesConfig(top_logits_hoverdata=-1), r"SequencesConfig\.top_logits_hoverdata is -1"),
    (SequencesConfig(n_quantiles=-1), r"SequencesConfig\.n_quantiles is -1"),
    (stock.SequencesConfig(buffer=(-1, 2)), r"SequencesConfig\.buffer is \(-1, 2\); expected how many tokens"),
    (stock.SequencesConfig(buffer=(1,)), r"SequencesConfig\.buffer is \(1,\)"),
    (SequencesConfig(buffer=5), r"SequencesConfig\.buffer is 5"),
    (SequencesConfig(buffer=(1.0, 2)), r"SequencesConfig\.buffer is \(1\.0, 2\)"),
    (SequencesConfig(buffer=(True, 2)), r"SequencesConfig\.buffer is \(True, 2\)"),
    (FeatureMapConfig(least=-1), r"FeatureMapConfig\.least is -1"),
    (FeatureMapConfig(least=False), r"FeatureMapConfig\.least is False"),
]  # fmt: skip


@pytest.fixture(scope="module")
def store(pair, tl_models, tokens, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("store") / "store"
    gather(pair, tl_models, tokens, out=folder)
    return folder


@pytest.mark.parametrize(("component", "text"), REFUSED_FIELDS, ids=lambda one: str(one)[:60])
def test_sizes_that_cannot_be_meant_are_refused_before_any_work(
    component, text, no_runs, pair, tl_models, tokens, store
):
    for where in ("feature_centric_layout", "prompt_centric_layout"):
        cfg = SaeVisConfig(features=FEATURES, **{where: SaeVisLayoutConfig([Column(component)])})
        with pytest.raises(ValueError, match=text):
            SaeVisData.create(pair, tl_models, tokens, cfg)
        with pytest.raises(ValueError, match=text):
            SaeVisData.from_store(store, pair, cfg, model=tl_models)


@pytest.mark.parametrize(
    ("layout", "text"),
    [
        (lambda: SaeVisLayoutConfig([Column(stock.ActsHistogramConfig())], height=-1), "height is -1"),
        (lambda: SaeVisLayoutConfig([Column(stock.ActsHistogramConfig())], height=True), "height is True"),
        (lambda: SaeVisLayoutConfig([Column(stock.ActsHistogramConfig())], height="tall"), "height is 'tall'"),
        (lambda: SaeVisLayoutConfig([Column(stock.ActsHistogramConfig(), width=-1)]), "width is -1"),
        (lambda: SaeVisLayoutConfig([Column(stock.ActsHistogramConfig(), width=True)]), "width is True"),
        (lambda: SaeVisLayoutConfig([Column(stock.ActsHistogramConfig(), width="wide")]), "width is 'wide'"),
    ],
)
def test_widths_and_heights_that_cannot_be_meant_are_refused(layout, text, no_runs, pair, tl_models, tokens):
    with pytest.raises(ValueError, match=text):
        SaeVisData.create(pair, tl_models, tokens, SaeVisConfig(features=[5], feature_centric_layout=layout()))


def test_a_way_of_stacking_that_nobody_knows_is_refused(no_runs, pair, tl_models, tokens):
    layout = SaeVisLayoutConfig([Column(SequencesConfig(stack_mode="stack-quantile"))])
    with pytest.raises(ValueError, match=r"stack-quantile.*stack-quantiles"):
        SaeVisData.create(pair, tl_models, tokens, SaeVisConfig(features=[5], feature_centric_layout=layout))


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"per_document": 0}, r"per_document is 0; expected a whole number of at least 1, or None"),
        ({"per_document": True}, r"per_document is True"),
        ({"per_document": 1.5}, r"per_document is 1\.5"),
        ({"per_document": -2}, r"per_document is -2"),
        ({"effect": "ful"}, r"effect='ful'; expected .*Did you mean 'full'"),
        ({"masking": "al special"}, r"masking='al special'; expected .*Did you mean 'all special'"),
        ({"masked_positions": [1.5]}, r"masked_positions holds 1\.5"),
        ({"features": [5, 5]}, r"feature 5 twice"),
        ({"features": [40]}, r"40"),
        ({"minibatch_size_tokens": 0}, r"minibatch_size_tokens is 0"),
    ],
)
def test_fields_of_our_config_that_cannot_be_meant(fields, text, no_runs, pair, tl_models, tokens):
    cfg = SaeVisConfig(**{"features": FEATURES} | fields)
    with pytest.raises(ValueError, match=text):
        SaeVisData.create(pair, tl_models, tokens, cfg)


def test_the_default_layout_of_each_kind(pair, multi, clt, of_an_sae, tl_models, tokens):
    """What an SAE has; beside it norms and cosines for several targets, a lens for several sites of a model, and what
    drives a feature that reads several."""
    cfg = SaeVisConfig(features=[5])
    common = {"FeatureTables", "ActsHistogram", "LogitsTable", "LogitsHistogram", "Sequences"}
    several = {"DecoderNorms", "DecoderCosine"}
    kinds = {
        "sae": (of_an_sae, set()),
        "pair": (SaeVisData.create(pair, tl_models, tokens, cfg), several | {"SourceAttribution"}),
        "multi": (
            SaeVisData.create(multi, tl_models[1], tokens, cfg), several | {"SourceAttribution", "SiteLogits"}
        ),
        "clt": (SaeVisData.create(clt, tl_models[1], tokens, cfg), several | {"SiteLogits"}),
    }  # fmt: skip
    for kind, (data, more) in kinds.items():
        head, payloads = feature_page(data, None)
        names = [name for column in columns_of(head) for name in column]
        assert len(names) == len(set(names)), kind
        assert set(names) == common | more, kind
        assert head["layout"]["map"] is not None, kind
        _, payload = next(payloads)
        titles = [group["title"] for group in payload["groups"]]
        assert titles[0] == "Top activations", kind
        assert "Random activations" in titles, kind
        assert (payload["attribution"] is not None) == ("SourceAttribution" in more), kind
        render_page(*feature_page(data, None))
    assert columns_of(feature_page(of_an_sae, None)[0])[0] == ["FeatureTables"]


def test_no_config_at_all(multi, tl_models, tokens):
    data = SaeVisData.create(multi, tl_models[1], tokens[:4])
    assert list(data.panels) == list(range(40))
    assert "SiteLogits" in configs_of(feature_page(data, None)[0])


def test_help_names_every_component_and_field(capsys):
    layout = SaeVisLayoutConfig([Column(*OURS), Column(stock.ActsHistogramConfig(n_bins=123))])
    layout.help()
    printed = capsys.readouterr().out
    for part in (*OURS, stock.ActsHistogramConfig()):
        name = type(part).__name__.removesuffix("Config")
        assert re.search(rf"\b{name}\b", printed), name
        for field in asdict(part):
            assert field in printed
    assert "123" in printed
    SaeVisConfig(masking="none").help()
    printed = capsys.readouterr().out
    for name in (
        "masking",
        "masked_tokens",
        "masked_positions",
        "effect",
        "latent_scaling",
        "per_document",
        "distinct",
    ):
        assert name in printed
    for name in ("hook_point", "minibatch_size_tokens", "random_group_size"):
        assert name in printed
    SaeVisConfig(feature_centric_layout=stock_layout(), prompt_centric_layout=layout).help()
    assert "432" not in capsys.readouterr().err


@pytest.mark.parametrize("token", ["[/INST]", "[b]", "[/b]", "<start_of_turn>", "\\["])
def test_help_says_what_is_masked_as_it_is(token, capsys):
    SaeVisConfig(masked_tokens=[token]).help()
    assert token in capsys.readouterr().out.replace("\\\\", "\\")


# Random examples


RANDOM = {"n_quantiles": 2, "top_acts_group_size": 5, "quantile_group_size": 3, "buffer": (1, 1)}


def random_layout(n: int) -> SaeVisLayoutConfig:
    return SaeVisLayoutConfig([Column(SequencesConfig(**RANDOM, random_group_size=n))])


def acts_of(model, tokens) -> torch.Tensor:
    encoder = autoencoder()
    with torch.no_grad():
        x = model.run_with_cache(tokens)[1][HOOK]
        acts = torch.relu((x - encoder.b_dec) @ encoder.W_enc + encoder.b_enc)
    acts[:, 0] = 0
    return acts


@pytest.fixture(scope="module")
def acts_store(tl_models, tokens, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("random") / "store"
    gather(autoencoder(), tl_models[0], tokens, out=folder, hook_point=HOOK)
    return folder


def drawn(store: Path, n: int, features=(4, 9, 20), **fields) -> SaeVisData:
    cfg = SaeVisConfig(hook_point=HOOK, features=list(features), feature_centric_layout=random_layout(n), **fields)
    return SaeVisData.from_store(store, autoencoder(), cfg)


def places(group) -> list[tuple[int, int]]:
    return [(record.row, record.position) for record in group]


@pytest.mark.parametrize(("per_document", "distinct"), [(3, True), (1, True), (None, True), (None, False), (2, False)])
def test_random_examples_are_where_the_feature_fires(per_document, distinct, acts_store, tl_models, tokens):
    acts = acts_of(tl_models[0], tokens)
    data = drawn(acts_store, 400, per_document=per_document, distinct=distinct)
    for feature, panel in data.panels.items():
        groups = data.feature_data_dict[feature].sequence_data.seq_group_data
        assert len(groups) == len(panel.sequences) == len(panel.bounds) == 4
        assert panel.bounds[-1] is None
        found = places(panel.sequences[-1])
        assert len(set(found)) == len(found)
        assert all(acts[row, position, feature] > 0 for row, position in found)
        shown = [acts[row, position, feature].item() for row, position in found]
        assert shown == sorted(shown, reverse=True)
        rows = [row for row, _ in found]
        if per_document is not None:
            assert max(map(rows.count, rows)) <= per_document
        windows = [tuple(sequence.token_ids) for sequence in groups[-1].seq_data]
        firing = (acts[..., feature] > 0).nonzero().tolist()
        if distinct:
            assert len(set(windows)) == len(windows)
        if per_document is None:  # so many are asked for that all there are must be shown
            every = {tuple(window(tokens, row, position)) for row, position in firing}
            assert len(found) == (len(every) if distinct else len(firing))
        elif not distinct:
            assert len(found) == sum(min(2, sum(r == row for r, _ in firing)) for row in range(12))


def window(tokens, row: int, position: int) -> list[int | None]:
    return [int(tokens[row, p]) if 0 <= p < N_CTX else None for p in (position - 1, position, position + 1)]


def test_random_examples_are_the_seeds_and_change_no_others(acts_store):
    plain, more = drawn(acts_store, 0, seed=3), drawn(acts_store, 6, seed=3)
    again, other = drawn(acts_store, 6, [20, 4], seed=3), drawn(acts_store, 6, seed=4)
    for feature in (4, 20):
        assert len(plain.panels[feature].sequences) == 3
        assert more.panels[feature].sequences[:3] == plain.panels[feature].sequences
        assert len(more.panels[feature].sequences[3]) == 6
        assert again.panels[feature].sequences == more.panels[feature].sequences
    assert any(other.panels[f].sequences[3] != more.panels[f].sequences[3] for f in (4, 20))
    assert all(other.panels[f].sequences[0] == more.panels[f].sequences[0] for f in (4, 20))


def test_random_examples_are_of_all_that_fires(acts_store, tl_models, tokens):
    """Weak and strong alike: over many seeds the mean is that of all tokens it fires on."""
    acts = acts_of(tl_models[0], tokens)
    chosen = (acts > 0).sum((0, 1)).topk(2).indices.tolist()
    found = {feature: [] for feature in chosen}
    for seed in range(40):
        data = drawn(acts_store, 5, chosen, seed=seed, per_document=None, distinct=False)
        for feature, panel in data.panels.items():
            found[feature] += places(panel.sequences[-1])
    for feature, drawn_at in found.items():
        every = acts[..., feature][acts[..., feature] > 0]
        assert len(every) > 30
        sample = torch.stack([acts[row, position, feature] for row, position in drawn_at])
        assert len(sample) == 200
        assert abs(sample.mean() - every.mean()) < 4 * every.std() / 200**0.5
        assert len(set(drawn_at)) > 0.7 * len(every) * (1 - (1 - 5 / len(every)) ** 40)


# sae_vis' own pages


def stock_data_of(text: str) -> dict:
    found = re.search(r"^    return (\{.*\});$", text, re.MULTILINE)
    assert found
    return json.loads(found[1])


def test_a_page_of_sae_viss_own_is_what_it_writes_itself(tl_models, tokens, tmp_path):
    cfg = sae_vis.SaeVisConfig(hook_point=HOOK, features=[4, 9, 31], feature_centric_layout=stock_layout())
    data = SaeVisData.create(autoencoder(), tl_models[0], tokens, cfg)
    itself = sae_vis.SaeVisData(
        copy.deepcopy(data.feature_data_dict), data.feature_stats,
        sae_vis.SaeVisConfig(feature_centric_layout=stock_layout()), tl_models[0], autoencoder(),
    )  # fmt: skip
    for feature in (None, 9):
        itself.save_feature_centric_vis(tmp_path / "want.html", feature)
        data.save_feature_centric_vis(tmp_path / "got.html", feature, renderer="sae_vis")
        assert (tmp_path / "got.html").read_text() == (tmp_path / "want.html").read_text()
    content = stock_data_of((tmp_path / "got.html").read_text())
    assert list(content["DASHBOARD_DATA"]) == ["4", "9", "31"]


@pytest.mark.parametrize("kind", ["made", "of_an_sae"])
def test_a_page_of_sae_viss_own_of_our_layout(kind, request, tmp_path):
    data = request.getfixturevalue(kind)
    before = render_page(*feature_page(data, None))
    data.save_feature_centric_vis(tmp_path / "p.html", renderer="sae_vis")
    text = (tmp_path / "p.html").read_text()
    content = stock_data_of(text)
    assert set(content) == {"AGGDATA", "DASHBOARD_DATA"}
    assert list(content["DASHBOARD_DATA"]) == [str(feature) for feature in data.panels]
    assert "function createVis" in text
    assert 'START_KEY = "' + str(next(iter(data.panels))) in text
    for parts in content["DASHBOARD_DATA"].values():
        assert {"tokenData", "featureTablesData", "actsHistogramData", "logitsTableData", "logitsHistogramData"} <= set(
            parts
        )
    assert render_page(*feature_page(data, None)) == before


def test_a_dead_feature_on_a_page_of_sae_viss_own(tmp_path, tl_models, tokens):
    encoder = autoencoder()
    encoder.b_enc[9] = -1e4
    for features in ([4, 9], [9, 4]):
        cfg = SaeVisConfig(hook_point=HOOK, features=features)
        data = SaeVisData.create(encoder, tl_models[0], tokens, cfg)
        data.save_feature_centric_vis(tmp_path / "p.html", renderer="sae_vis")
        content = stock_data_of((tmp_path / "p.html").read_text())
        assert list(content["DASHBOARD_DATA"]) == [str(feature) for feature in features]


def test_a_layout_that_sae_vis_knows_nothing_of_is_written_with_nothing_in_it(pair, tl_models, tokens, tmp_path):
    """No component of its own: there is nothing for its page to show."""
    layout = SaeVisLayoutConfig([Column(DecoderNormsConfig(), FeatureMapConfig())])
    cfg = SaeVisConfig(features=FEATURES, feature_centric_layout=layout)
    data = SaeVisData.create(pair, tl_models, tokens, cfg)
    data.save_feature_centric_vis(tmp_path / "p.html", renderer="sae_vis")
    content = stock_data_of((tmp_path / "p.html").read_text())
    assert list(content["DASHBOARD_DATA"]) == ["12", "5"]


def titles_of(page: str) -> dict[tuple[str, int], list[tuple[int, float]]]:
    """By metric and position, feature and score of each column's title."""
    found = {}
    for key, parts in stock_data_of(page)["DASHBOARD_DATA"].items():
        metric, place = key.split("|")
        titles = re.findall(r"#(\d+)<br>[^=]*= ([+-]?[\d.]+)", json.dumps(parts))
        found[metric, int(re.search(r"\((\d+)\)$", place)[1])] = [(int(f), float(score)) for f, score in titles]
    return found


def test_a_prompt_on_a_page_of_sae_viss_own(tl_models, tokens, tmp_path):
    """Against stock on the same prompt: it reads BOS too and forgets it in its labels, so positions are compared."""
    model, encoder = tl_models[0], autoencoder()
    cfg = sae_vis.SaeVisConfig(hook_point=HOOK, features=list(range(32)))
    data = SaeVisData.create(encoder, model, tokens, cfg, masking="none")
    itself = sae_vis.SaeVisData(copy.deepcopy(data.feature_data_dict), data.feature_stats, cfg, model, encoder)
    prompt = model.tokenizer.decode([7, 9, 12, 7, 5, 33])
    itself.save_prompt_centric_vis(prompt, tmp_path / "want.html", num_top_features=4)
    want = titles_of((tmp_path / "want.html").read_text())
    data.save_prompt_centric_vis(prompt, tmp_path / "got.html", num_top_features=4, renderer="sae_vis")
    got = titles_of((tmp_path / "got.html").read_text())
    compared = [key for key in want if key[0] != "loss_effect"]
    assert len(compared) == 12
    for key in compared:
        assert [feature for feature, _ in got[key]] == [feature for feature, _ in want[key]]
        assert [v for _, v in got[key]] == pytest.approx([v for _, v in want[key]], abs=2e-3)
    assert [p for metric, p in got if metric == "act_size"] == list(range(7))
    assert [p for metric, p in got if metric == "loss_effect"] == list(range(1, 7))


def test_a_prompt_of_two_models_on_a_page_of_sae_viss_own(made, tl_models, tmp_path):
    prompt = tl_models[0].tokenizer.decode([7, 9, 12, 7, 5, 33])
    made.save_prompt_centric_vis(prompt, tmp_path / "p.html", metric="act_size", renderer="sae_vis")
    text = (tmp_path / "p.html").read_text()
    content = stock_data_of(text)
    assert content["DASHBOARD_DATA"]
    assert re.search(r'START_KEY = "act_size\|', text)
    start = json.loads(re.search(r"START_KEY = (.*);", text)[1])
    assert start in content["DASHBOARD_DATA"]


def test_what_a_page_of_sae_viss_own_needs(made, tmp_path):
    made.save_json(tmp_path / "d.json")
    again = SaeVisData.load_json(tmp_path / "d.json")
    with pytest.raises(ValueError, match=r"sae_vis' own page needs the model's tokenizer; give model="):
        again.save_feature_centric_vis(tmp_path / "p.html", renderer="sae_vis")
    with pytest.raises(ValueError, match=r"needs the model"):
        again.save_prompt_centric_vis("!!", tmp_path / "p.html", renderer="sae_vis")
    with pytest.raises(ValueError, match=r"renderer='stock'; expected 'crossvis_tl', 'sae_vis'"):
        made.save_feature_centric_vis(tmp_path / "p.html", renderer="stock")
    with pytest.raises(ValueError, match=r"renderer='saevis'; .*Did you mean 'sae_vis'\?"):
        made.save_feature_centric_vis(tmp_path / "p.html", renderer="saevis")
    with pytest.raises(ValueError, match=r"feature_idx is 7, which was not gathered; there are 12, 5"):
        made.save_feature_centric_vis(tmp_path / "p.html", 7, renderer="sae_vis")
    with pytest.raises(FileNotFoundError, match="does not exist"):
        made.save_feature_centric_vis(tmp_path / "nowhere" / "p.html", renderer="sae_vis")
    assert not (tmp_path / "p.html").exists()


def test_a_page_of_sae_viss_own_by_another_name_is_refused_in_words(made, tmp_path):
    """Stock wants .html, and has an assertion for it."""
    with pytest.raises(ValueError, match=r"\.html"):
        made.save_feature_centric_vis(tmp_path / "p.htm", renderer="sae_vis")


def test_a_page_of_sae_viss_own_from_json_with_the_model(made, pair, tl_models, tmp_path):
    made.save_json(tmp_path / "d.json")
    again = SaeVisData.load_json(tmp_path / "d.json", model=tl_models, encoder=pair)
    for data, name in ((made, "a.html"), (again, "b.html")):
        data.save_feature_centric_vis(tmp_path / name, renderer="sae_vis")
    one, other = (stock_data_of((tmp_path / name).read_text()) for name in ("a.html", "b.html"))
    assert one == other


# JSON


def page_of(data: SaeVisData) -> str:
    return render_page(*feature_page(data, None))


def assert_comes_back(data: SaeVisData, path: Path) -> SaeVisData:
    data.save_json(path)
    again = SaeVisData.load_json(path)
    assert again.cfg.feature_centric_layout == data.cfg.feature_centric_layout
    assert again.cfg.prompt_centric_layout == data.cfg.prompt_centric_layout
    assert {f: p.to_dict() for f, p in again.panels.items()} == {f: p.to_dict() for f, p in data.panels.items()}
    assert again.models == []
    assert page_of(again) == page_of(data), "another page"
    return again


def test_a_page_from_json_is_the_page(made, of_an_sae, multi, clt, pair, tl_models, tokens, tmp_path):
    cfg = SaeVisConfig(features=[27, 5, 12])
    layout = SaeVisLayoutConfig([Column(*OURS, width=321), Column(stock.FeatureTablesConfig())], height=511)
    everything = [
        made,
        of_an_sae,
        SaeVisData.create(multi, tl_models[1], tokens, cfg),
        SaeVisData.create(clt, tl_models[1], tokens, cfg, effect="none"),
        SaeVisData.create(pair, tl_models, tokens, SaeVisConfig(features=[27, 5, 12], feature_centric_layout=layout)),
    ]
    for i, data in enumerate(everything):
        again = assert_comes_back(data, tmp_path / f"{i}.json")
        again.save_feature_centric_vis(tmp_path / "p.html")
        assert (tmp_path / "p.html").read_text() == page_of(data)
        assert json.loads((tmp_path / f"{i}.json").read_text())["crossvis_tl"]["version"] == 3
        assert list(again.panels) == list(data.panels)
        assert_comes_back(again, tmp_path / "again.json")
        one, other = (json.loads((tmp_path / name).read_text()) for name in ("again.json", f"{i}.json"))
        assert one == other


def test_a_stock_layout_comes_back_from_json(pair, tl_models, tokens, tmp_path):
    cfg = sae_vis.SaeVisConfig(features=FEATURES, feature_centric_layout=stock_layout())
    data = SaeVisData.create(pair, tl_models, tokens, cfg)
    assert_comes_back(data, tmp_path / "d.json")


def test_json_is_shown_in_another_layout(made, tmp_path):
    made.save_json(tmp_path / "d.json")
    as_stock = sae_vis.SaeVisLayoutConfig([stock.Column(stock.LogitsTableConfig(n_rows=4), width=222)], height=444)
    data = SaeVisData.load_json(tmp_path / "d.json", sae_vis.SaeVisConfig(feature_centric_layout=as_stock))
    head, _ = feature_page(data, None)
    assert columns_of(head) == [["DecoderNorms", "DecoderCosine", "LogitsTable"]]
    assert [column["width"] for column in head["layout"]["columns"]] == [222]
    assert head["layout"]["height"] == 444
    ours = SaeVisLayoutConfig([Column(SiteLogitsConfig(), stock.FeatureTablesConfig())])
    data = SaeVisData.load_json(tmp_path / "d.json", SaeVisConfig(feature_centric_layout=ours))
    assert columns_of(feature_page(data, None)[0]) == [["SiteLogits", "FeatureTables"]]
    assert data.cfg.prompt_centric_layout == made.cfg.prompt_centric_layout
    page_of(data)
    kept = SaeVisData.load_json(tmp_path / "d.json", SaeVisConfig(seed=5))
    assert kept.cfg.feature_centric_layout == made.cfg.feature_centric_layout
    assert kept.cfg.prompt_centric_layout == made.cfg.prompt_centric_layout
    assert page_of(kept) == page_of(made)


def test_prompts_of_dashboards_from_json(made, pair, tl_models, tmp_path):
    made.save_json(tmp_path / "d.json")
    prompts = [tl_models[0].tokenizer.decode(ids) for ids in ([7, 9, 12], [5, 5, 33, 20])]
    again = SaeVisData.load_json(tmp_path / "d.json", model=tl_models, encoder=pair)
    for data, name in ((made, "a.html"), (again, "b.html")):
        data.save_prompt_centric_vis(prompts, tmp_path / name)
    assert (tmp_path / "a.html").read_text() == (tmp_path / "b.html").read_text()
    with pytest.raises(ValueError, match=r"a prompt needs the model, .*pass model="):
        SaeVisData.load_json(tmp_path / "d.json").save_prompt_centric_vis("!!", tmp_path / "p.html")
    with pytest.raises(ValueError, match=r"a prompt needs the dictionary, .*pass encoder="):
        SaeVisData.load_json(tmp_path / "d.json", model=tl_models).save_prompt_centric_vis("!!", tmp_path / "p.html")


def own(content):
    return content["crossvis_tl"]


def first_panel(content):
    return own(content)["panels"]["12"]


def first_shown(content):
    return first_panel(content)["sequences"][0][0]


DAMAGE = {
    "no panels": lambda c: own(c).pop("panels"),
    "panels are a list": lambda c: own(c).update(panels=[]),
    "no panels of a feature": lambda c: own(c)["panels"].pop("5"),
    "panels of no feature": lambda c: own(c)["panels"].update({"7": first_panel(c)}),
    "a panel is a number": lambda c: own(c)["panels"].update({"5": 3}),
    "a feature is a word": lambda c: own(c)["panels"].update({"five": first_panel(c)}),
    "no features": lambda c: c.pop("feature_data_dict"),
    "a feature less": lambda c: c["feature_data_dict"].pop("5"),
    "no statistics": lambda c: c.pop("feature_stats"),
    "no layouts": lambda c: own(c).pop("layouts"),
    "one layout": lambda c: own(c)["layouts"].pop("prompt_centric_layout"),
    "a component nobody knows": lambda c: layout_of(c)["columns"][0]["components"].append(["Nothing", {}]),
    "a field nobody knows": lambda c: layout_of(c)["columns"][0]["components"][0][1].update(nothing=1),
    "a component twice": lambda c: layout_of(c)["columns"].append(layout_of(c)["columns"][0]),
    "no width": lambda c: layout_of(c)["columns"][0].pop("width"),
    "no page": lambda c: own(c).pop("page"),
    "no vocabulary": lambda c: own(c)["page"].pop("vocabulary"),
    "a vocabulary that is a list": lambda c: own(c)["page"].update(vocabulary=["a"]),
    "a fact of the page nobody knows": lambda c: own(c)["page"].update(nothing=1),
    "no masking": lambda c: own(c).pop("masking"),
    "no density": lambda c: first_panel(c).pop("density"),
    "no lens": lambda c: first_panel(c).pop("lens"),
    "a lens without tokens": lambda c: first_panel(c).update(lens=[{"top": [1.0]}]),
    "no table": lambda c: first_panel(c)["logits"]["0"].pop("table"),
    "no loss": lambda c: first_shown(c)["effects"]["0"].pop("loss"),
    "no sources": lambda c: first_shown(c).pop("sources"),
    "an interval of one end": lambda c: first_panel(c).update(density_interval=[0.1]),
    "sequences are words": lambda c: first_panel(c).update(sequences=["abc"]),
}
# What only a look inside finds: refused where it is read or where it is shown, in words and not as a bare KeyError.
INNER_DAMAGE = {
    "a token without its text": lambda c: own(c)["page"]["vocabulary"].pop(next(iter(own(c)["page"]["vocabulary"]))),
    "a group less": lambda c: first_panel(c)["sequences"].pop(),
    "a sequence less": lambda c: first_panel(c)["sequences"][0].pop(),
    "a probability less": lambda c: first_shown(c)["effects"]["0"]["p"].pop(),
    "a share less": lambda c: first_shown(c)["sources"][0].pop(),
    "a source less": lambda c: first_shown(c)["sources"].pop(),
    "a density that is a word": lambda c: first_panel(c).update(density="much"),
    "a loss that is a word": lambda c: first_shown(c)["effects"]["0"]["loss"].__setitem__(0, "much"),
    "a density that is not finite": lambda c: first_panel(c).update(density=float("nan")),
    "another kind": lambda c: own(c)["page"].update(kind="saes"),
    "a layout of negative rows": lambda c: [
        part[1].update(n_rows=-3) for column in layout_of(c)["columns"] for part in column["components"]
        if "n_rows" in part[1]
    ],
}  # fmt: skip


def layout_of(content):
    return own(content)["layouts"]["feature_centric_layout"]


@pytest.fixture(scope="module")
def saved(made, tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("json") / "d.json"
    made.save_json(path)
    return path.read_text()


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_is_refused_by_its_name(damage, saved, tmp_path):
    content = json.loads(saved)
    DAMAGE[damage](content)
    (tmp_path / "d.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"d\.json is damaged"):
        SaeVisData.load_json(tmp_path / "d.json")


@pytest.mark.parametrize("damage", INNER_DAMAGE)
def test_what_is_damaged_inside_is_refused_in_words(damage, saved, tmp_path):
    content = json.loads(saved)
    INNER_DAMAGE[damage](content)
    (tmp_path / "d.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"\w+ \w+ \w+") as caught:
        page_of(SaeVisData.load_json(tmp_path / "d.json"))
    assert not str(caught.value).startswith("zip()")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", r"d\.json is no JSON file"),
        ("{", r"d\.json is no JSON file"),
        ("[]", r"d\.json holds no crossvis_tl dashboards"),
        ("3", r"d\.json holds no crossvis_tl dashboards"),
        ('{"feature_data_dict": {}, "feature_stats": {}}', r"holds no crossvis_tl dashboards; .*opens with sae_vis"),
        ('{"crossvis_tl": {"version": 2}}', r"is of version 2; this crossvis_tl reads version 3"),
        ('{"crossvis_tl": {}}', r"is of version None; this crossvis_tl reads version 3"),
        ('{"crossvis_tl": {"version": 3}}', r"is damaged: it does not hold what version 3 holds"),
    ],
)
def test_other_files_are_refused_by_their_name(text, said, tmp_path):
    (tmp_path / "d.json").write_text(text)
    with pytest.raises(ValueError, match=said):
        SaeVisData.load_json(tmp_path / "d.json")


def test_other_names_of_files(made, tmp_path):
    with pytest.raises(ValueError, match=r"must end in \.json"):
        made.save_json(tmp_path / "d.txt")
    with pytest.raises(ValueError, match=r"must end in \.json"):
        SaeVisData.load_json(tmp_path / "d.txt")
    with pytest.raises(FileNotFoundError, match=r"d\.json does not exist"):
        SaeVisData.load_json(tmp_path / "d.json")
    with pytest.raises(FileNotFoundError, match=r"nowhere does not exist"):
        made.save_json(tmp_path / "nowhere" / "d.json")


def test_a_store_without_the_model_has_all_but_effects_on_logits(store, made, pair, tmp_path):
    data = SaeVisData.from_store(store, pair, SaeVisConfig(features=FEATURES))
    (head, payloads), (want_head, wanted) = feature_page(data, None), feature_page(made, None)
    payloads, wanted = dict(payloads), dict(wanted)
    assert columns_of(head) == columns_of(want_head)
    assert head["features"]["density"] == want_head["features"]["density"]
    for feature in FEATURES:
        got, want = payloads[feature], wanted[feature]
        assert got["logits"] == []
        assert "without the model" in got["logits_note"]
        assert want["logits_note"] is None
        assert got["acts_histogram"] == want["acts_histogram"]
        assert got["attribution"] == pytest.approx(want["attribution"], abs=2e-3)
        assert got["sites"]["norms"] == want["sites"]["norms"]
        assert got["sites"]["lens"] == []
        assert set(got["tables"]) == set(want["tables"])
        assert [group["title"] for group in got["groups"]] == [group["title"] for group in want["groups"]]
        for group, want_group in zip(got["groups"], want["groups"], strict=True):
            for one, other in zip(group["sequences"], want_group["sequences"], strict=True):
                assert one["e"] == []
                assert [head["vocabulary"][t] for t in one["t"]] == [want_head["vocabulary"][t] for t in other["t"]]
                assert one["a"] == pytest.approx(other["a"], abs=1e-3)
                assert (one["row"], one["pos"], one["doc"]) == (other["row"], other["pos"], other["doc"])
    assert dict(data.page.facts)["logit effects"] == "not gathered: made without the model"
    again = assert_comes_back(data, tmp_path / "d.json")
    again.save_feature_centric_vis(tmp_path / "p.html")


# In a notebook


@pytest.fixture
def displayed(monkeypatch) -> list[str]:
    import IPython.display

    seen: list[str] = []
    monkeypatch.setattr(IPython.display, "display", lambda one: seen.append(one.data))
    return seen


def test_a_notebook_shows_the_page_in_a_frame(made, displayed, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert made.show() is None
    made.show(5, height=321)
    first, second = displayed
    for shown, feature in ((first, None), (second, 5)):
        found = re.fullmatch(r'<iframe srcdoc="([^"]*)" style="([^"]*)" title="[^"]*"></iframe>', shown, re.DOTALL)
        assert found
        assert "<" not in found[1]
        assert html.unescape(found[1]) == render_page(*feature_page(made, feature))
    assert "height:321px" in second
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match="feature_idx is 3"):
        made.show(3)


def test_a_page_too_large_for_a_notebook_is_saved(made, displayed, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    page = page_of(made)
    monkeypatch.setattr("crossvis_tl.notebook.LARGEST_INLINE", len(page))
    made.show()
    assert displayed.pop().startswith("<iframe")
    monkeypatch.setattr("crossvis_tl.notebook.LARGEST_INLINE", len(page) - 1)
    made.show()
    (text,) = displayed
    assert "<iframe" not in text
    assert "MiB" in text
    (path,) = tmp_path.glob("**/*.html")
    assert html.escape(str(path)) in text
    assert path.read_text() == page


def test_the_bound_is_ten_mebibytes():
    import crossvis_tl.notebook

    assert crossvis_tl.notebook.LARGEST_INLINE == 10 * 2**20


EVIL = "<script>alert('1')</script>&\""


def test_a_summary_is_short_and_escaped(pair, tl_models, tokens, monkeypatch):
    for model in tl_models:
        monkeypatch.setattr(model, "crossvis_name", EVIL, raising=False)
    data = SaeVisData.create(pair, tl_models, tokens, SaeVisConfig(features=list(range(40))))
    assert EVIL in data.page.title
    text = data._repr_html_()
    assert "<script" not in text
    assert html.escape("<script>") in text
    assert "40" in text
    assert len(text) < 1000
    assert len(repr(data)) < 400
    page = page_of(data)
    assert "<script>alert" not in page
    assert read_page(page)[0]["models"] == [EVIL, EVIL]


def test_public_names_are_there():
    for name in ("Column", "SaeVisConfig", "SaeVisLayoutConfig", "SequencesConfig", "FeatureMapConfig"):
        assert name in crossvis_tl.__all__
        assert inspect.isclass(getattr(crossvis_tl, name))


# Packing


def rounded(value: float, largest: float, digits: int) -> float:
    """Half of the last place that is kept, of a column whose largest number has so many digits, and a little."""
    return (
        0.0 if largest == 0 else 0.5001 * 10.0 ** (torch.tensor(largest).double().log10().floor().item() - digits + 1)
    )


FINITE = st.floats(-50, 50, allow_nan=False, width=32)


@st.composite
def moved(draw, n_tokens: int, vocabulary: int, *, largest: bool):
    """What is raised (or lowered) at each token: the most first, as they are listed."""
    ids, values = [], []
    for _ in range(n_tokens):
        n = draw(st.integers(0, 3))
        ids.append(draw(st.lists(st.integers(0, vocabulary - 1), min_size=n, max_size=n, unique=True)))
        sizes = sorted(draw(st.lists(st.floats(0, 50, width=32), min_size=n, max_size=n)), reverse=True)
        values.append(sizes if largest else [-size for size in sizes])
    return ids, values


@st.composite
def features(draw):
    vocabulary, n_models, n_sources = draw(st.integers(3, 6)), draw(st.integers(0, 2)), draw(st.sampled_from([0, 2, 3]))
    own_logits = [[draw(FINITE) for _ in range(vocabulary)] for _ in range(n_models)]

    def sequence():
        n = draw(st.integers(1, 4))
        t = [draw(st.integers(0, vocabulary - 1)) for _ in range(n)]
        a = [draw(st.one_of(st.just(0.0), st.floats(0.125, 100, width=32), st.floats(-9, -0.125, width=32)))
             for _ in range(n)]  # fmt: skip
        e = []
        for m in range(n_models):
            (up_ids, up), (down_ids, down) = (draw(moved(n, vocabulary, largest=one)) for one in (True, False))
            chances = st.one_of(st.none(), st.floats(0, 1))
            e.append({
                "loss": [draw(FINITE) for _ in range(n)], "logit": [own_logits[m][one] for one in t],
                "p": [draw(chances) for _ in range(n)],
                "up_ids": up_ids, "up": up, "down_ids": down_ids, "down": down,
            })  # fmt: skip
        row = draw(st.integers(0, 9))
        shares = [[draw(st.floats(-1000, 1000, width=16)) if act else 0.0 for act in a] for _ in range(n_sources)]
        return {
            "t": t, "a": a, "bold": draw(st.integers(0, n - 1)), "row": row, "pos": draw(st.integers(0, 99)),
            "doc": draw(st.sampled_from([None, row, row + 1])), "e": e, "s": shares,
        }  # fmt: skip

    groups = [
        {"title": "Interval", "low": 0.5, "high": None, "share": 0.1,
         "sequences": [sequence() for _ in range(draw(st.integers(0, 3)))]}
        for _ in range(draw(st.integers(0, 2)))
    ]  # fmt: skip
    prompts = draw(st.booleans())
    return {
        "tables": {}, "acts_histogram": None, "logits": [], "logits_note": draw(st.sampled_from([None, "why"])),
        "sites": None, "groups": groups, "prompts": [sequence()] if prompts else None, "attribution": None,
    }  # fmt: skip


def compare(got: list[dict], want: list[dict]) -> None:
    """What the module says is kept: so many digits of a column's largest number."""
    largest_act = max((abs(a) for s in want for a in s["a"]), default=0)
    n_models = max((len(s["e"]) for s in want), default=0)
    assert len(got) == len(want)

    def most(m: int, name: str) -> float:
        return max((abs(x) for s in want for x in s["e"][m][name]), default=0)

    losses, logits = ([most(m, name) for m in range(n_models)] for name in ("loss", "logit"))
    for one, other in zip(got, want, strict=True):
        for name in ("t", "bold", "row", "pos"):
            assert one[name] == other[name]
        assert one["doc"] == (None if other["doc"] == other["row"] else other["doc"])
        assert one["a"] == pytest.approx(other["a"], rel=0, abs=rounded(0, largest_act, 4) + 1e-12)
        assert len(one["e"]) == len(other["e"])
        for line, wanted in zip(one.get("s", []), other["s"], strict=True):
            assert line == pytest.approx(wanted, rel=0, abs=0.00501)
        for m, (effect, wanted) in enumerate(zip(one["e"], other["e"], strict=True)):
            assert effect["loss"] == pytest.approx(wanted["loss"], rel=0, abs=rounded(0, losses[m], 3) + 1e-12)
            assert effect["logit"] == pytest.approx(wanted["logit"], rel=0, abs=rounded(0, logits[m], 3) + 1e-12)
            for p, q in zip(effect.get("p", [None] * len(one["t"])), wanted["p"], strict=True):
                assert (p is None) == (q is None)
                assert p is None or abs(p - q) < 0.00501
            for side in ("up", "down"):
                tops = [max(map(abs, v)) for s in want for v in s["e"][m][side] if v]
                tiny = rounded(0, max(tops, default=0), 3) + 1e-12
                lists = (effect[f"{side}_ids"], wanted[f"{side}_ids"], effect[side], wanted[side])
                for ids, wanted_ids, values, wanted_values in zip(*lists, strict=True):
                    top = max(map(abs, wanted_values), default=0)
                    assert (ids, values) == ([], []) or ids == wanted_ids
                    assert values or top <= tiny  # nothing beside the largest of all
                    # fiftieths of the list's largest
                    margin = tiny + 0.01001 * (top + tiny)
                    assert values == pytest.approx(wanted_values if values else [], rel=0, abs=margin)


@settings(deadline=None, max_examples=120)
@given(features())
def test_what_is_packed_comes_back(feature):
    before = copy.deepcopy(feature)
    packed = json.loads(json.dumps(pack(feature), allow_nan=False))
    assert feature == before
    back = read_feature(packed)
    assert [group["title"] for group in back["groups"]] == [group["title"] for group in feature["groups"]]
    for group, want in zip(back["groups"], feature["groups"], strict=True):
        assert {k: v for k, v in group.items() if k != "sequences"} == {
            k: v for k, v in want.items() if k != "sequences"
        }
    got = [sequence for group in back["groups"] for sequence in group["sequences"]]
    assert [len(g["sequences"]) for g in back["groups"]] == [len(g["sequences"]) for g in feature["groups"]]
    compare(got, [sequence for group in feature["groups"] for sequence in group["sequences"]])
    assert (back["prompts"] is None) == (feature["prompts"] is None)
    if feature["prompts"] is not None:
        compare(back["prompts"], feature["prompts"])
    assert back.get("logits_note") == feature["logits_note"]


def one_sequence(**effect) -> dict:
    whole = {"loss": [0.0], "logit": [0.0], "p": [None], "up_ids": [[]], "up": [[]], "down_ids": [[]], "down": [[]]}
    return {
        "t": [0], "a": [1.0], "bold": 0, "row": 0, "pos": 1, "doc": None, "e": [whole | effect], "s": [],
    }  # fmt: skip


def a_feature(*sequences) -> dict:
    group = {"title": "Top activations", "low": None, "high": None, "share": None, "sequences": list(sequences)}
    return {
        "tables": {}, "acts_histogram": None, "logits": [], "logits_note": None, "sites": None, "groups": [group],
        "prompts": None, "attribution": None,
    }  # fmt: skip


def test_a_token_that_is_hardly_raised_beside_others_that_fall(tmp_path):
    """A sharp prediction: taking the feature away moves the likely token by 0.004 and all others by 2, and elsewhere
    a token by 4."""
    sharp = one_sequence(up_ids=[[0, 1]], up=[[0.004, -2.0]], down_ids=[[2, 1]], down=[[-2.5, -2.0]])
    plain = one_sequence(up_ids=[[2]], up=[[4.0]], down_ids=[[1]], down=[[-1.0]])
    back = read_feature(pack(a_feature(sharp, plain)))
    assert back["groups"][0]["sequences"][0]["e"][0]["up"][0][1] == pytest.approx(-2.0, abs=0.02)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("where", ["a", "loss", "logit", "up"])
def test_numbers_that_are_not_finite_are_refused(bad, where, made):
    head, payloads = feature_page(made, None)
    payloads = [(feature, copy.deepcopy(payload)) for feature, payload in payloads]
    sequence = payloads[0][1]["groups"][0]["sequences"][0]
    if where == "a":
        sequence["a"][0] = bad
    elif where == "up":
        at = next(i for i, up in enumerate(sequence["e"][0]["up"]) if up)
        sequence["e"][0]["up"][at][0] = bad
    else:
        sequence["e"][0][where] = [bad] * len(sequence["t"])
    with pytest.raises(ValueError, match=r"feature 12 cannot be written to a page: .*not a finite number"):
        render_page(head, payloads)
