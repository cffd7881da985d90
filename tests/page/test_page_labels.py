"""Descriptions of features in Chromium: shown wherever a feature is named, and found."""

import pytest
import sae_vis
from playwright.sync_api import expect

from crossvis_tl import SaeVisData, load_dictionary
from crossvis_tl.page_data import feature_page

pytestmark = pytest.mark.filterwarnings("ignore::crossvis_tl.CrossvisWarning")
LABELS = {
    "L1F5": "Fires on dates,\u2028such as <b>May</b>",
    "L1F6": "</script><script>document.title = 'run'</script>",
    "L2F1": "words " * 100,
    "L2F2": "lone \ud800, nul \x00, turned \u202e",
}


@pytest.fixture
def page(clt_dir, tl_models, tokens, open_page):
    cfg = sae_vis.SaeVisConfig(features=[25, 26, 30, 41, 42, *range(8)])
    data = SaeVisData.create(load_dictionary(clt_dir), tl_models[1], tokens, cfg).with_labels(LABELS)
    head, payloads = feature_page(data, 25)
    return open_page(head, list(payloads))


def test_descriptions_are_shown_and_found(page):
    label = page.locator("main h2 [data-field=label]")
    expect(label).to_have_text("L1F5 · Fires on dates, such as <b>May</b>")
    page.keyboard.press("/")
    for query, found in (("on DATES", 25), ("script", 26), ("l2f1", 41), ("nul", 42)):
        page.locator("[data-field=jump]").fill(query)
        expect(page.locator("#matches [aria-selected]")).to_have_attribute("data-option-id", str(found))
    page.locator("[data-field=jump]").fill("on dates")
    expect(page.locator("#matches .label").first).to_have_text("L1F5 · Fires on dates, such as <b>May</b>")
    page.keyboard.press("Enter")
    page.keyboard.press("m")
    row = page.locator("[data-map-row='25']")
    expect(row).to_contain_text("L1F5 · Fires on dates")
    assert page.locator("th[data-column=label]").evaluate("head => head.offsetWidth") >= 300  # room for sentences
    page.keyboard.press("/")
    page.keyboard.type("dates")
    expect(page.locator("[data-map-row]")).to_have_count(1)
    row.locator("a").click()
    expect(label).to_have_text("L1F5 · Fires on dates, such as <b>May</b>")


def test_long_and_strange_descriptions_stay_text_and_in_their_place(page):
    label = page.locator("main h2 [data-field=label]")
    for feature, start in ((26, "L1F6 · </script><script>"), (41, "L2F1 · words words"), (42, "L2F2 · lone ")):
        page.evaluate(f"location.hash = 'f={feature}'")
        expect(label).to_contain_text(start)
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        assert page.title().startswith(f"#{feature}")


def test_a_correlated_features_description_is_whole_when_pointed_at(page):
    named = page.locator("[data-table=correlated_features] .label", has_text=" · ")
    for feature in (30, 0, 1, 2, 3, 4, 5, 6, 7, 26, 41):
        if named.count():
            break
        page.evaluate(f"location.hash = 'f={feature}'")
        page.wait_for_selector(f"[data-feature-id='{feature}']")
    title = named.first.get_attribute("title")
    assert title == named.first.text_content().strip()
