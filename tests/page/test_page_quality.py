"""The table of what a replacement is worth, layer by layer, and each layer's share of a feature's effect."""

from page_samples import make_features, make_head
from page_scenes import clt_fidelity, clt_page
from playwright.sync_api import expect

from crossvis_tl.page import render_page


def cells(page, selector: str) -> list[list[str]]:
    return [row.split("\t") for row in page.locator(f"{selector} tbody").inner_text().split("\n")]


def test_each_layer_has_a_row_and_all_have_one(open_page):
    page = open_page(*clt_page())
    assert cells(page, ".quality") == [
        ["0", "0.125", "3.0", "0.0%", "3.250", "90.0%"], ["1", "0.250", "4.0", "1.0%", "3.375", "80.0%"],
        ["2", "0.375", "5.0", "2.0%", "3.500", "70.0%"], ["3", "0.500", "6.0", "3.0%", "3.625", "–"],
        ["all", "", "61.3", "3.1%", "3.750", "89.4%"],
    ]  # fmt: skip
    says = page.locator(".fidelity .says").inner_text()
    assert "Loss of gpt2: 3.125 nats a token as it is (2,048 tokens), 3.750 with all put in" in says
    assert "89.4%" in says


def test_many_layers_fold_away(open_page):
    head, features = clt_page()
    targets = [target | {"short": f"{i}", "label": f"mlp {i}"} for i, target in enumerate(head["targets"] * 4)]
    fidelity = head["fidelity"]
    many = fidelity | {name: fidelity[name] * 4 for name in ("sites", "groups")}
    page = open_page(head | {"targets": targets, "fidelity": many}, features)
    expect(page.locator(".quality table")).to_be_hidden()
    page.get_by_text("Quality by site").click()
    expect(page.locator(".quality tbody tr")).to_have_count(17)


def test_what_was_not_measured_is_said(open_page):
    head, features = clt_page()
    note = {
        "model": "gpt2",
        "clean": None,
        "n_tokens": 0,
        "note": "not measured: a reason",
        "sites": [],
        "together": None,
    }
    page = open_page(head | {"fidelity": head["fidelity"] | {"losses": [note]}}, features)
    assert "Loss of gpt2: not measured: a reason" in page.locator(".fidelity .says").inner_text()
    assert "Loss put in" not in page.locator(".quality").inner_text()


def test_shares_of_the_effect_and_the_sum(open_page):
    page = open_page(*clt_page())
    assert [row[:2] for row in cells(page, "[data-panel=SiteLogits]")] == [
        ["1", "25%"], ["2", "88%"], ["3", "−13%"], ["sum", ""],
    ]  # fmt: skip
    expect(page.locator("[data-lens-share].best")).to_have_text("88%")
    words = page.locator("[data-panel=SiteLogits] tbody tr").last.inner_text()
    assert "·cat" in words or "cat" in words


def test_a_page_carries_the_table_only_where_it_has_one():
    """Few sites of which no loss was measured stand in the verdict's own row."""
    assert "EXTRA.quality=" not in render_page(make_head(), make_features())
    targets = clt_page()[0]["targets"]
    few = clt_fidelity(targets[:2])
    assert "EXTRA.quality=" in render_page(make_head(targets=targets[:2], fidelity=few), make_features())
    assert "EXTRA.SourceAttribution=" not in render_page(make_head(), make_features())


def test_two_models_of_one_name_keep_their_own_losses(open_page):
    head, features = clt_page()
    targets = [{"model": m, "hook": None, "label": "model · mlp", "short": f"{m}"} for m in (0, 1)]
    fidelity = clt_fidelity(targets)
    loss = fidelity["losses"][0] | {"together": None}
    each = [loss | {"sites": [loss["sites"][0] | {"loss": value}]} for value in (3.25, 3.5)]
    page = open_page(head | {"targets": targets, "fidelity": fidelity | {"groups": [], "losses": each}}, features)
    assert [row[2] for row in cells(page, ".quality")] == ["3.250", "3.500"]
