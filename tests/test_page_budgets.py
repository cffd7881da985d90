"""Bytes of a page of real dashboards: the demo's, a few features of each."""

from pathlib import Path

import pytest

from crossvis_tl import SaeVisConfig, SaeVisData, demo, load_dictionary, load_model, load_tokens
from crossvis_tl.page import write_page
from crossvis_tl.page_data import feature_page

N_FEATURES = 40
# Dictionary, models, bytes a feature. Where two models are compared there are two models' effects at every token.
DEMOS = {
    "one model": (demo.CLT, [demo.TUNED], 7_000),
    "two models": (demo.CROSSCODER, [demo.BASE, demo.TUNED], 12_000),
}


@pytest.mark.parametrize("name", DEMOS)
def test_a_feature_is_within_its_budget(tmp_path: Path, name: str) -> None:
    """In the default layout, which has every group of examples filled: features are chosen that fire on many tokens."""
    where, models, budget = DEMOS[name]
    dictionary = load_dictionary(where)
    step = dictionary.n_features // N_FEATURES // 2
    cfg = SaeVisConfig(features=list(range(0, dictionary.n_features, step)), minibatch_size_tokens=16)
    data = SaeVisData.create(dictionary, [load_model(one) for one in models], load_tokens(demo.TOKENS)[:256], cfg)
    head, payloads = feature_page(data, None)
    busy = sorted(payloads, key=lambda pair: -sum(len(group["sequences"]) for group in pair[1]["groups"]))[:N_FEATURES]
    chosen = {number for number, _ in busy}
    keep = [place for place, number in enumerate(head["features"]["id"]) if number in chosen]

    def kept(column: list) -> list:
        return [column[place] for place in keep]

    index = {key: kept(column) for key, column in head["features"].items() if key != "measures"}
    index["measures"] = [one | {"values": kept(one["values"])} for one in head["features"]["measures"]]
    head |= {"features": index, "first": index["id"][0]}
    size, shell = write_page(tmp_path / "page.html", head, busy), 80_000
    n_sequences = [sum(len(group["sequences"]) for group in feature["groups"]) for _, feature in busy]
    assert min(n_sequences) >= 20  # realistic ones
    assert (size - shell) / N_FEATURES <= budget
