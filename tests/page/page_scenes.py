"""Pages with everything on them, one of each view, for tests that look at all that a page can show."""

from typing import Any

from page_samples import (
    BOS,
    CAT,
    MAT,
    SAT,
    dead_feature,
    make_feature,
    make_head,
    make_layout,
    make_map_features,
    make_map_head,
    make_prompt_page,
    make_sequence,
)  # fmt: skip

PageOf = tuple[dict[str, Any], list[tuple[int, Any]]]

FULL = [
    ["FeatureTables", "DecoderNorms", "SourceAttribution"],
    ["DecoderCosine", "SiteLogits"],
    ["ActsHistogram", "LogitsTable", "LogitsHistogram"],
    ["Sequences"],
]


def full_sequence(peak: float = 2.0) -> dict[str, Any]:
    """The first source drives it, and the second, by as much on one token, the other way."""
    sequence = make_sequence(peak) | {"doc": 3, "s": [[0.0, 1.4, 0.9, 1.1, 0.0], [0.0, -0.5, -0.1, 0.2, 0.0]]}
    effects = [effect | {"p": [None, 0.5, 0.0001, 0.031, None]} for effect in sequence["e"]]
    return sequence | {"e": effects}


def full_feature(peak: float = 2.0) -> dict[str, Any]:
    """Every panel of a crosscoder of two models at two sites each."""
    lens = [{"top": [[CAT, 0.5], [MAT, 0.2]], "bottom": [[SAT, -0.4], [BOS, -0.3]]}, None]
    sites = {
        "norms": [1.5, 0.5, 0.7, 0.1], "relative_norm": 0.25, "class": "shared",
        "cosine": [[1.0, 0.9, -0.95, 0.5], [0.9, 1.0, 0.0, -0.5], [-0.95, 0.0, 1.0, 0.3], [0.5, -0.5, 0.3, 1.0]],
        "lens": lens * 2, "note": "What a note says.",
    }  # fmt: skip
    none = {"title": "Interval", "low": 0.0, "high": 0.5, "share": 0.0, "sequences": []}
    groups = [
        {"title": "Top activations", "low": None, "high": None, "share": None,
         "sequences": [full_sequence(peak), full_sequence(peak / 2)]},
        {"title": "Random activations", "low": None, "high": None, "share": 0.25,
         "sequences": [full_sequence(peak / 4)]},
        none,
    ]  # fmt: skip
    scaling = {
        "beta_first": [0.1, 0.2], "beta_second": [0.9, 0.8], "nu": [0.11, None], "nu_low": [0.08, None],
        "nu_high": [0.15, None],
    }  # fmt: skip
    return make_feature(
        peak, sites=sites, groups=groups, scaling=scaling, attribution=[1.2, -0.3], density_interval=[0.012, 0.013],
        logits_note="What a note on logits says.",
    )  # fmt: skip


def full_page() -> PageOf:
    """A crosscoder of two models on which no panel is missing."""
    targets = [{"model": i // 2, "hook": None, "label": f"{'base' if i < 2 else 'chat'} {i % 2}"} for i in range(4)]
    index = make_head()["features"]
    fidelity = make_head()["fidelity"] | {"warnings": ["a warning"]}
    head = make_head(targets=targets, layout=make_layout(FULL), fidelity=fidelity, features=index)
    return head, [(7, full_feature()), (12, full_feature(4.0)), (40, dead_feature())]


def clt_page() -> PageOf:
    """One model, four layers written from the second on, each with its share of the effect, and what replacing it
    costs."""
    targets = [{"model": 0, "hook": f"blocks.{i}.hook_mlp_out", "label": f"mlp {i}", "short": f"{i}"} for i in range(4)]
    sites = {
        "target_index": [1, 2, 3], "norms": [0.5, 2.0, 1.0], "relative_norm": None, "class": None,
        "cosine": [[1.0, 0.5, -0.25], [0.5, 1.0, 0.1], [-0.25, 0.1, 1.0]], "note": None,
        "lens": [
            {"top": [[CAT, 0.5], [MAT, 0.2]], "bottom": [[SAT, -0.4], [BOS, -0.3]], "share": share}
            for share in (0.25, 0.875, -0.125)
        ],
    }  # fmt: skip
    logits = make_feature()["logits"][:1]
    group = {"title": "Top activations", "low": None, "high": None, "share": None, "sequences": [make_sequence()]}
    feature = make_feature(sites=sites, logits=logits, groups=[group])
    index = make_head()["features"] | {"class": [None] * 3}
    head = make_head(
        kind="clt", models=["gpt2"], sources=targets[:1], targets=targets, features=index, class_help=None,
        fidelity=clt_fidelity(targets),
        layout=make_layout([["FeatureTables", "DecoderNorms", "DecoderCosine", "SiteLogits"], *FULL[2:]]),
    )  # fmt: skip
    return head, [(7, feature), (12, feature), (40, dead_feature())]


def clt_fidelity(targets: list[dict[str, Any]]) -> dict[str, Any]:
    """Of four layers; the last is worth nothing."""
    sites = [{"label": target["label"], "fvu": 0.125 * (i + 1)} for i, target in enumerate(targets)]
    groups = [{"label": f"layer {i}", "l0": 3.0 + i, "dead": 0.01 * i} for i in range(4)]
    put = [
        {"label": site["label"], "loss": 3.25 + i / 8, "zeroed": 4.0, "kept": None if i == 3 else 0.9 - i / 10}
        for i, site in enumerate(sites)
    ]
    losses = {
        "model": "gpt2", "clean": 3.125, "n_tokens": 2048, "note": "", "sites": put,
        "together": {"label": "all together", "loss": 3.75, "zeroed": 9.0, "kept": 0.8936},
    }  # fmt: skip
    return make_head()["fidelity"] | {"sites": sites, "groups": groups, "losses": [losses]}


def map_page(n: int = 600) -> PageOf:
    head = make_map_head(n)
    return head, make_map_features(head)


def prompts_page() -> PageOf:
    """Two prompts, of all features and of a part of them."""
    head, features = make_prompt_page()
    each = head["prompts"]["each"][0]
    each = each | {"scores": {metric: scopes * 2 for metric, scopes in each["scores"].items()}}
    prompts = head["prompts"] | {"scopes": ["all features", "layer 1"], "each": [each, each]}
    twice = [
        (number, feature | {"prompts": feature["prompts"] and feature["prompts"] * 2}) for number, feature in features
    ]
    return head | {"prompts": prompts}, twice


SCENES = {"map": map_page, "feature": full_page, "clt": clt_page, "prompt": prompts_page}
