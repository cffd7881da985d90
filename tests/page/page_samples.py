"""Small pages made by hand: a crosscoder of two models with an alive, a second and a dead feature."""

from collections.abc import Callable
from typing import Any

from playwright.sync_api import Page

OpenPage = Callable[..., Page]  # the fixture of conftest.py: open_page(head, features, address="", **context options)

WORDS = ["<|bos|>", "The", " cat", " sat", "\n", "\ton", "  a", " mat", ".", " dog"]
BOS, THE, CAT, SAT, NEWLINE, ON, A, MAT, STOP, DOG = range(10)

COLUMNS = [
    ["FeatureTables", "DecoderNorms", "DecoderCosine"],
    ["ActsHistogram", "LogitsTable", "LogitsHistogram"],
    ["Sequences"],
]


def make_layout(columns: list[list[str]] | None = None, stack_mode: str = "stack-none") -> dict[str, Any]:
    configs = {"Sequences": {"stack_mode": stack_mode, "hover_below": True}, "LogitsTable": {"n_rows": 2}}
    components = [[{"name": name, "config": configs.get(name, {})} for name in names] for names in columns or COLUMNS]
    return {"height": 750, "map": None, "columns": [{"width": None, "components": column} for column in components]}


def make_effect(n_tokens: int, loss: list[float] | None = None) -> dict[str, Any]:
    """The first token has no token before it, so no effect but 0."""
    return {
        "loss": loss or [0.0] * n_tokens,
        "logit": [0.1] * n_tokens,
        "up_ids": [[]] + [[MAT, DOG]] * (n_tokens - 1),
        "up": [[]] + [[0.31, 0.2]] * (n_tokens - 1),
        "down_ids": [[]] + [[THE]] * (n_tokens - 1),
        "down": [[]] + [[-0.25]] * (n_tokens - 1),
    }


def make_sequence(peak: float = 2.0, row: int | None = 17) -> dict[str, Any]:
    """ "The cat sat ↵ ⇥on", loudest on " sat"; the feature helps model A predict the newline and hurts model B."""
    return {
        "t": [THE, CAT, SAT, NEWLINE, ON],
        "a": [0.0, peak / 4, peak, peak / 2, 0.0],
        "bold": 2,
        "row": row,
        "pos": 40,
        "doc": None,
        "e": [
            make_effect(5, [0.0, 0.01, -0.02, -0.4, 0.0]),
            make_effect(5, [0.0, 0.0, 0.02, 0.2, 0.0]) | {"logit": [0.0, 0.0, 0.0, -0.15, 0.0]},
        ],
    }


def make_logits(model: int, name: str, top: int) -> dict[str, Any]:
    return {
        "model": model,
        "name": name,
        "top": [[top, 0.5], [MAT, 0.25], [STOP, 0.1]],
        "bottom": [[SAT, -0.4], [BOS, -0.3], [A, -0.2]],
        "histogram": {"heights": [1, 4, 6, 2], "low": -0.4, "high": 0.5},
    }


def make_sites(relative_norm: float = 0.25) -> dict[str, Any]:
    return {
        "norms": [1.5, 0.5],
        "relative_norm": relative_norm,
        "cosine": [[1.0, 0.875], [0.875, 1.0]],
        "lens": [None, None],
        "class": "shared",
        "note": None,
    }


def make_feature(peak: float = 2.0, **changes: Any) -> dict[str, Any]:
    """An alive feature: three sequences on top, one in each of four intervals."""
    top = {"title": "Top activations", "low": None, "high": None, "share": None}
    intervals = [
        {
            "title": "Interval",
            "low": peak * i / 4,
            "high": peak * (i + 1) / 4,
            "share": 0.0123,
            "sequences": [make_sequence(peak / 2)],
        }
        for i in reversed(range(4))
    ]
    feature = {
        "tables": {
            "neuron_alignment": [[52, 0.203, 0.028]],
            "correlated_neurons": [[7, 0.444, -0.025]],
            "correlated_features": [[12, "dogs", 0.378, 0.454], [999, "elsewhere", 0.3, 0.2]],
            "correlated_b_features": [[12, "of another dictionary", 0.2, 0.1]],
        },
        "acts_histogram": {"heights": [5, 3, 0, 1], "low": 0.0, "high": peak},
        "logits": [make_logits(0, "base", CAT), make_logits(1, "chat", DOG)],
        "logits_note": None,
        "sites": make_sites(),
        "groups": [
            {**top, "sequences": [make_sequence(peak), make_sequence(peak * 0.9), make_sequence(peak * 0.8)]},
            *intervals,
        ],
        "prompts": None,
    }
    return feature | changes


def dead_feature() -> dict[str, Any]:
    return make_feature(groups=[], acts_histogram=None)


def make_features() -> list[tuple[int, dict[str, Any]]]:
    return [(7, make_feature()), (12, make_feature(4.0)), (40, dead_feature())]


def make_fidelity(verdict: str = "plausible", warnings: tuple[str, ...] = ()) -> dict[str, Any]:
    sites = [{"label": "base", "fvu": 0.125}, {"label": "chat", "fvu": 1.9}]
    headline = {"plausible": "It explains the activations.", "implausible": "Read nothing below as a finding."}[verdict]
    return {
        "verdict": verdict,
        "headline": headline,
        "sites": sites,
        "l0": 61.25,
        "dead": 0.031,
        "warnings": list(warnings),
    }


def make_head(**changes: Any) -> dict[str, Any]:
    sites = [
        {"model": m, "hook": "blocks.13.hook_resid_pre", "label": f"{name} 13"}
        for m, name in enumerate(["base", "chat"])
    ]
    head = {
        "version": 2,
        "title": "A crosscoder",
        "kind": "crosscoder",
        "view": "feature",
        "models": ["base", "chat"],
        "sources": sites,
        "targets": sites,
        "facts": [["tokens", "131,072 in 1,024 sequences"], ["masked", "BOS: 1,024 tokens"]],
        "fidelity": make_fidelity(),
        "vocabulary": WORDS,
        "token_ids": [1000 + i for i in range(len(WORDS))],
        "layout": make_layout(),
        "class_help": "shared: relative norm from 0.3 to 0.7",
        "features": {
            "id": [7, 12, 40],
            "label": ["cats", "dogs", ""],
            "density": [0.0125, 0.00000204, 0.0],
            "max": [2.0, 4.0, 0.0],
            "class": ["shared", "chat only", None],
            "tokens": [[SAT], [SAT, ON], []],
            "measures": [],
        },
        "first": 7,
        "open_map": False,
        "prompts": None,
    }
    return head | changes


def make_prompt_page() -> tuple[dict[str, Any], list[tuple[int, dict[str, Any]]]]:
    """The sequence above as the prompt; features 7 and 12 score, nothing fires on "The"."""
    prompt = make_sequence() | {"bold": None, "row": None, "pos": None}
    scores = {
        "act_quantile": [[[], [[7, "50.0%"]], [[7, "99.9%"], [12, "98.0%"]], [[12, "75.0%"]], []]],
        "act_size": [[[], [[7, "0.500"]], [[12, "2.000"], [7, "2.000"]], [[7, "1.000"]], []]],
        "loss_effect": [[[], [], [[7, "-0.020"]], [[12, "-0.400"], [7, "-0.390"]], []]],
    }
    layout = make_layout([["Prompt", "ActsHistogram", "LogitsTable", "Sequences"]], "stack-all")
    layout["columns"][0]["width"] = 450
    each = [{"tokens": prompt["t"], "position": 2, "scores": scores}]
    head = make_head(
        view="prompt", layout=layout, prompts={"metric": "act_quantile", "scopes": ["all features"], "each": each}
    )
    return head, [(7, make_feature(prompts=[prompt])), (12, make_feature(4.0, prompts=[prompt])), (40, dead_feature())]


def make_map_head(n: int = 40, **changes: Any) -> dict[str, Any]:
    """A head of `n` features of two models that opens on the map. Ids are 100, 101 ...; feature 100 + i has relative
    norm i / (n - 1), fires on a token or two, is "only base", shared or "only chat", and every tenth is dead."""
    alive = [i % 10 != 9 for i in range(n)]
    relative = [i / (n - 1) for i in range(n)]
    measures = [
        {"name": "relative_norm", "label": "relative norm", "scale": "linear", "values": relative, "help": "Of two."},
        {
            "name": "cosine",
            "label": "decoder cosine",
            "scale": "linear",
            "values": [None if i % 20 == 19 else 1 - 2 * abs(r - 0.5) for i, r in enumerate(relative)],
            "help": "Between the decoders.",
        },
    ]
    features = {
        "id": [100 + i for i in range(n)],
        "label": [f"label {i}" if i % 2 else "" for i in range(n)],
        "density": [10 ** (-1 - i % 5) if on else 0.0 for i, on in enumerate(alive)],
        "max": [1.0 + i % 7 if on else 0.0 for i, on in enumerate(alive)],
        "class": ["only base" if r < 0.3 else "only chat" if r > 0.7 else "shared" for r in relative],
        "tokens": [[(CAT, MAT, DOG)[i % 3], THE][: 1 + i % 2] if on else [] for i, on in enumerate(alive)],
        "measures": measures,
    }
    layout = make_layout() | {"map": {"x": None, "y": None, "color": None}}
    return make_head(**{"features": features, "first": 100, "open_map": True, "layout": layout} | changes)


def make_map_features(head: dict[str, Any]) -> list[tuple[int, dict[str, Any]]]:
    """A small payload for each feature of a head."""
    return [(number, make_feature(groups=[], acts_histogram=None, logits=[])) for number in head["features"]["id"]]
