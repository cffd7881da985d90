"""The prompt view in Chromium."""

import pytest
from page_samples import OpenPage, make_prompt_page
from playwright.sync_api import Page, expect


@pytest.fixture
def page(open_page: OpenPage) -> Page:
    return open_page(*make_prompt_page())


def shows(page: Page, metric: str, position: int, features: list[str]) -> None:
    expect(page.locator(".features")).to_have_attribute("data-shown", f"{metric} {position}")
    articles = page.locator("main article")
    assert articles.evaluate_all("nodes => nodes.map(node => node.dataset.featureId)") == features


def test_opens_at_the_position_and_metric_given(page: Page) -> None:
    shows(page, "act_quantile", 2, ["7", "12"])
    first = page.locator("article").first
    assert "#7 cats" in first.locator("h2").inner_text()
    assert "Activation quantile = 99.9%" in first.inner_text()
    assert first.locator("[data-field=score]").inner_text() == "99.9%"
    assert page.locator("[data-position='2']").get_attribute("aria-pressed") == "true"
    assert page.locator(".column").first.evaluate("node => node.offsetWidth") == 450
    panels = first.locator("[data-panel]").evaluate_all("nodes => nodes.map(node => node.dataset.panel)")
    assert panels == ["Prompt", "ActsHistogram", "LogitsTable", "Sequences"]


def test_every_position_can_be_chosen(page: Page) -> None:
    page.locator("[data-position='3']").click()
    shows(page, "act_quantile", 3, ["12"])
    assert page.url.endswith("#m=act_quantile&p=3")
    page.keyboard.press("k")
    shows(page, "act_quantile", 2, ["7", "12"])
    page.keyboard.press("ArrowLeft")
    shows(page, "act_quantile", 1, ["7"])
    tokens = page.locator("[data-position]")
    for position in range(tokens.count()):
        tokens.nth(position).click()
        expect(page.locator(".features")).to_have_attribute("data-shown", f"act_quantile {position}")


def test_metric_changes_order_and_scores(page: Page) -> None:
    page.locator("button[data-metric=act_size]").click()
    shows(page, "act_size", 2, ["12", "7"])
    assert page.locator("[data-field=score]").all_inner_texts() == ["2.000", "2.000"]
    page.locator("[data-position='3']").click()
    page.locator("button[data-metric=loss_effect]").click()
    shows(page, "loss_effect", 3, ["12", "7"])
    assert "Loss effect = -0.400" in page.locator("article").first.inner_text()


def test_histogram_marks_the_activation_the_metric_is_about(page: Page) -> None:
    mark = page.locator("article").first.locator("[data-panel=ActsHistogram] g[data-value]")
    assert mark.text_content() == "“ sat” 2.000"
    page.locator("button[data-metric=loss_effect]").click()
    expect(page.locator(".features")).to_have_attribute("data-shown", "loss_effect 2")
    assert mark.text_content() == "“ cat” 0.500"  # predicting " sat" is the work of " cat"
    prompt = page.locator("article").first.locator("[data-panel=Prompt] [data-token]")
    prompt.nth(3).hover()
    assert mark.text_content() == "“↵” 1.000"
    assert "position 3" in page.locator("#tip").inner_text()
    page.locator("h1").hover()
    assert mark.text_content() == "“ cat” 0.500"


def test_where_nothing_fires_it_says_so(page: Page) -> None:
    page.locator("[data-position='0']").click()
    nothing = page.locator("[data-field=nothing]")
    expect(nothing).to_have_text("No feature on this page fires on “The” at position 0.")
    page.locator("button[data-metric=loss_effect]").click()
    expect(nothing).to_have_text("Nothing predicts the first token, so no feature has a loss effect on it.")
    page.locator("[data-position='1']").click()
    expect(nothing).to_have_text("No feature on this page fires on “The” at position 0.")


def test_the_address_opens_a_choice(open_page: OpenPage) -> None:
    head, features = make_prompt_page()
    shows(open_page(head, features, "#m=act_size&p=3"), "act_size", 3, ["7"])
    shows(open_page(head, features, "#m=toString&p=99"), "act_quantile", 2, ["7", "12"])


def test_prompt_is_coloured_by_each_feature(page: Page) -> None:
    tokens = page.locator("article").first.locator("[data-panel=Prompt] [data-token]")
    assert tokens.evaluate_all("nodes => nodes.map(node => node.dataset.act)") == ["0", "0.5", "2", "1", "0"]
    assert tokens.evaluate_all("nodes => nodes.map(node => node.textContent)") == ["The", " cat", " sat", "\n", "\ton"]
