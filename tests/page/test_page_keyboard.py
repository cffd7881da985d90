"""The page without a pointer: everything is reached by keys, seen when it has the focus, and said when it changes."""

import pytest
from page_samples import OpenPage, make_map_head
from page_scenes import SCENES, full_feature, full_page, map_page
from playwright.sync_api import Page, expect

CONTROLS = """() => [...document.querySelectorAll(
  "a[href], button, input, select, summary, textarea, [tabindex='0']")].filter((node) => node.checkVisibility()
    && !node.disabled && node.tabIndex >= 0 && !node.closest("dialog"))"""
FOCUSED = """() => {
  const node = document.activeElement;
  const { outlineStyle, outlineWidth } = getComputedStyle(node);
  const isSeen = outlineStyle !== "none" && parseFloat(outlineWidth) >= 2;
  return [node === document.body ? -1 : window.controls.indexOf(node), isSeen];
}"""  # fmt: skip


@pytest.mark.parametrize("scene", SCENES)
@pytest.mark.parametrize("width", [1500, 380])
def test_tab_goes_to_every_control_and_out_again(open_page: OpenPage, scene: str, width: int) -> None:
    page = open_page(*SCENES[scene](), viewport={"width": width, "height": 950})
    n_controls = page.evaluate(f"(window.controls = ({CONTROLS})()).length")
    assert n_controls > 5
    reached = []
    for _ in range(3 * n_controls):
        page.keyboard.press("Tab")
        at, is_seen = page.evaluate(FOCUSED)
        if at >= 0:
            assert is_seen, page.evaluate("document.activeElement.outerHTML.slice(0, 200)")
        if at in reached and len(set(reached)) >= n_controls:
            break
        reached.append(at)
    assert set(range(n_controls)) <= set(reached)
    assert reached[0] in reached[1:] or -1 in reached  # it came round: nothing keeps the focus
    assert reached.count(-1) <= 1  # and nowhere is it lost


def journey_page(open_page: OpenPage, **options) -> Page:
    head = make_map_head(30, targets=full_page()[0]["targets"])
    return open_page(head, [(number, full_feature()) for number in head["features"]["id"]], **options)


def tab_to(page: Page, selector: str) -> None:
    for _ in range(40):
        page.keyboard.press("Tab")
        if page.evaluate("selector => document.activeElement.matches(selector)", selector):
            return
    pytest.fail(f"Tab does not reach {selector}, only {page.evaluate('document.activeElement.outerHTML')}")


def said(page: Page) -> str:
    return page.locator("p[aria-live=polite]").inner_text()


def test_from_the_map_to_a_token_and_back_without_a_pointer(open_page: OpenPage) -> None:
    page = journey_page(open_page, permissions=["clipboard-read", "clipboard-write"])
    assert said(page) == "Map of 30 features"
    page.keyboard.press("/")
    page.keyboard.type("label 1")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    expect(page.locator("article")).to_have_attribute("data-feature-id", "101")
    assert said(page) == "Feature 101 label 1"
    page.keyboard.press("Escape")
    tab_to(page, "[data-panel=Sequences] [data-token]")
    expect(page.locator("#tip")).to_contain_text("Activation")
    assert page.evaluate("document.activeElement.getAttribute('aria-describedby')") == "tip"
    page.keyboard.press("ArrowLeft")
    expect(page.locator("#tip [data-field=text]")).to_have_text(" cat")
    page.keyboard.press("Escape")
    expect(page.locator("#tip")).to_be_hidden()
    page.keyboard.press("m")
    page.keyboard.press("Escape")
    expect(page.locator("[data-map]")).to_be_visible()
    page.keyboard.press("Escape")  # the filter is cleared first
    page.keyboard.press("j")
    expect(page.locator("article")).to_have_attribute("data-feature-id", "111")  # next of those that matched
    page.keyboard.press("c")
    expect(page.locator("[data-action=copy]:visible")).to_have_text("Copied")
    assert page.evaluate("navigator.clipboard.readText()") == page.url
    assert page.url.endswith("#f=111")
    page.keyboard.press("?")
    dialog = page.get_by_role("dialog")
    for _ in range(3):
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement === document.body || !!document.activeElement.closest('dialog')")
    page.keyboard.press("Escape")
    expect(dialog).to_be_hidden()
    page.keyboard.press("m")
    expect(page.locator("[data-map]")).to_be_visible()
    page.keyboard.press("c")
    expect(page.locator("[data-action=copy]:visible")).to_have_text("Copied")
    assert page.evaluate("navigator.clipboard.readText()").endswith("#map")


def test_a_link_is_copied_the_old_way_where_the_new_one_is_refused(open_page: OpenPage) -> None:
    page = open_page(*full_page())
    page.evaluate("() => { navigator.clipboard.writeText = () => Promise.reject(new Error('denied')); }")
    tab_to(page, "[data-panel=Sequences] [data-token]")
    page.keyboard.press("c")
    expect(page.locator("[data-action=copy]")).to_have_text("Copied")
    assert page.evaluate("document.activeElement.matches('[data-token]')")  # where it was
    assert page.locator("textarea").count() == 0
    page.keyboard.press("/")
    page.keyboard.press("Control+v")
    expect(page.locator("[data-field=jump]")).to_have_value(page.url)
    page.keyboard.press("Escape")
    page.evaluate("() => { document.execCommand = () => false; }")
    page.keyboard.press("c")
    expect(page.locator("[data-action=copy]")).to_have_text("Not copied")
    expect(page.locator("[data-action=copy]")).to_have_text("Copy link")


BARS = """nodes => nodes.map((node) => ({
  bars: [...node.querySelectorAll("rect")].map((bar) => Number(bar.getAttribute("height"))),
  counts: [...node.querySelectorAll("tbody tr")].map((row) => Number(row.cells[1].textContent.replaceAll(",", ""))),
  heads: [...node.querySelectorAll("th")].map((head) => head.textContent),
  caption: node.querySelector("caption").textContent, label: node.querySelector("svg").getAttribute("aria-label"),
}))"""


def test_behind_every_chart_is_a_table_of_its_counts(open_page: OpenPage) -> None:
    page = open_page(*full_page())
    charts = page.locator(".drawn").evaluate_all(BARS)
    assert [chart["counts"] for chart in charts] == [[5, 3, 1], [1, 4, 6, 2], [1, 4, 6, 2]]
    assert [chart["heads"] for chart in charts] == [["activation", "count"], ["logit", "count"], ["logit", "count"]]
    for chart in charts:
        most = max(chart["counts"])
        assert [bar / max(chart["bars"]) for bar in chart["bars"]] == pytest.approx(
            [n / most for n in chart["counts"]], abs=0.01
        )
        assert chart["label"].startswith(chart["caption"])
    table = page.get_by_role("table", name="Histogram of activations")
    assert table.get_by_role("row").nth(1).inner_text().split("\t") == ["0.000 to 0.500", "5"]


def test_what_is_shown_is_said(open_page: OpenPage) -> None:
    page = open_page(*full_page())
    assert said(page) == "Feature 7 cats"
    page.keyboard.press("j")
    expect(page.locator("p[aria-live=polite]")).to_have_text("Feature 12 dogs")
    assert page.title() == "#12 · A crosscoder"
    page = open_page(*SCENES["prompt"]())
    page.keyboard.press("j")
    expect(page.locator("p[aria-live=polite]")).to_contain_text("“↵”, position 3")


def test_the_focus_is_not_lost_with_the_feature_that_had_it(open_page: OpenPage) -> None:
    page = open_page(*full_page())
    tab_to(page, "[data-panel=Sequences] [data-token]")
    page.keyboard.press("j")
    expect(page.locator("article")).to_have_attribute("data-feature-id", "12")
    page.keyboard.press("Tab")
    assert page.evaluate("!!document.activeElement.closest('main, nav')")


def test_the_map_says_its_dots_and_rows(open_page: OpenPage) -> None:
    page = open_page(*map_page(30))
    page.locator(".plot").focus()
    page.keyboard.press("ArrowRight")
    expect(page.locator("#tip")).to_be_visible()
    assert page.get_by_role("table", name="Features").get_by_role("row").count() > 10
