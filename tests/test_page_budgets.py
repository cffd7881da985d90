"""Bytes of a page of real dashboards: the demo's, some features of each."""

import re

import pytest
import sae_vis

from crossvis_tl import SaeVisConfig, SaeVisData, demo, load_dictionary, load_model, load_tokens
from crossvis_tl.page import render_page
from crossvis_tl.page_data import feature_page

# Dictionary, models, bytes a feature. Where two models are compared there are two models' effects at every token.
DEMOS = {
    "one model": (demo.CLT, [demo.TUNED], 6_000),
    "two models": (demo.CROSSCODER, [demo.BASE, demo.TUNED], 9_000),
}
N_FEATURES = 40


@pytest.mark.parametrize("name", DEMOS)
def test_a_feature_is_within_its_budget(name: str) -> None:
    """In the default layout, on a quarter of the tokens; without what a page has only once."""
    where, models, budget = DEMOS[name]
    dictionary = load_dictionary(where)
    chosen = list(range(0, dictionary.n_features, dictionary.n_features // N_FEATURES))
    cfg = SaeVisConfig(features=chosen, minibatch_size_tokens=16)
    data = SaeVisData.create(dictionary, [load_model(one) for one in models], load_tokens(demo.TOKENS)[:256], cfg)
    head, payloads = feature_page(data, None)
    payloads = list(payloads)
    tags = re.findall(r"(<script type=t id=f(\d+)>.*?</script>\n)", render_page(head, payloads), re.DOTALL)
    sizes = {int(number): len(tag.encode()) for tag, number in tags}
    n_sequences = {number: sum(len(group["sequences"]) for group in feature["groups"]) for number, feature in payloads}
    full = [size for number, size in sizes.items() if n_sequences[number] >= 0.9 * max(n_sequences.values())]
    assert len(full) >= 10  # a feature that seldom fires has little to show
    assert sum(full) / len(full) <= budget
    assert sum(sizes.values()) / len(sizes) <= budget


def test_sae_vis_page_of_the_same_is_fourteen_times_as_large(tmp_path) -> None:
    """The same features, layout and tokens; what each page has only once is taken out by two pages' difference."""
    dictionary, model = load_dictionary(demo.CLT), load_model(demo.TUNED)
    chosen = list(range(600, 1000, 8))
    sizes = []
    for features in (chosen, chosen[:10]):
        cfg = sae_vis.SaeVisConfig(features=features, minibatch_size_tokens=16)
        data = SaeVisData.create(dictionary, model, load_tokens(demo.TOKENS)[:512], cfg)
        data.save_feature_centric_vis(tmp_path / "ours.html")
        data.save_feature_centric_vis(tmp_path / "stock.html", renderer="sae_vis")
        sizes.append([(tmp_path / name).stat().st_size for name in ("ours.html", "stock.html")])
    (ours, stock), (few_ours, few_stock) = sizes
    assert (stock - few_stock) / (ours - few_ours) >= 14
