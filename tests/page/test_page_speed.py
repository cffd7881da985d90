"""What makes the page quick, counted rather than timed: nothing is inflated, drawn or kept that is not looked at.

Times themselves are in `benchmarks/page.py`.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from page_samples import make_map_features, make_map_head
from page_scenes import full_feature, full_page
from playwright.sync_api import Browser, Page

from crossvis_tl.page import write_page

KEPT = 60  # of data.js
COUNT = """
window.inflated = 0;
window.DecompressionStream = class extends DecompressionStream {
  constructor(...kind) { super(...kind); window.inflated++; }
};"""
ELEMENTS = "document.querySelectorAll('#app *').length"


@pytest.fixture
def open_counted(browser: Browser, tmp_path: Path) -> Iterator[Callable[..., Page]]:
    """-> open_counted(head, features), a page that counts what it inflates."""
    contexts = []

    def open_one(head: dict[str, Any], features: list[tuple[int, Any]]) -> Page:
        path = tmp_path / "page.html"
        write_page(path, head, features)
        contexts.append(browser.new_context(viewport={"width": 1500, "height": 950}))
        page = contexts[-1].new_page()
        page.set_default_timeout(20_000)
        page.add_init_script(COUNT)
        page.goto(path.as_uri())
        page.locator("main article, main [data-map]").wait_for()
        return page

    yield open_one
    for context in contexts:
        context.close()


def full_map(n: int) -> tuple[dict[str, Any], list[tuple[int, Any]]]:
    """A map of features with every panel."""
    head = make_map_head(n, targets=full_page()[0]["targets"], layout=full_page()[0]["layout"] | {"map": {}})
    head["layout"]["map"] = {"x": None, "y": None, "color": None}
    feature = full_feature()
    return head, [(number, feature) for number in head["features"]["id"]]


PRESS = """async ([key, times]) => {
  const shown = () => document.querySelector("main article").dataset.featureId;
  for (let i = 0; i < times; i++) {
    const before = shown();
    document.body.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true }));
    while (shown() === before) await new Promise((resolve) => setTimeout(resolve));
    document.body.offsetHeight; // laid out, as it is when somebody looks
  }
}"""


def press(page: Page, key: str, times: int = 1) -> None:
    """A key that leads to another feature, each time it is there."""
    page.evaluate(PRESS, [key, times])


def inflated(page: Page) -> int:
    return page.evaluate("window.inflated")


def metrics(page: Page) -> Callable[[], dict[str, float]]:
    session = page.context.new_cdp_session(page)
    session.send("Performance.enable")

    def read() -> dict[str, float]:
        session.send("HeapProfiler.collectGarbage")
        return {one["name"]: one["value"] for one in session.send("Performance.getMetrics")["metrics"]}

    return read


def test_a_feature_is_inflated_when_it_is_opened_and_kept_for_a_while(open_counted: Callable[..., Page]) -> None:
    page = open_counted(*full_map(KEPT + 12))
    page.keyboard.press("/")
    page.keyboard.type("cat")
    page.keyboard.press("Escape")
    page.locator("th[data-column=max] button").click()
    page.locator("th[data-column=max] button").click()
    page.locator("th[data-column=max] button").click()
    assert inflated(page) == 0  # neither map nor search nor sorting looks inside
    page.keyboard.press("m")
    page.locator("article").wait_for()
    assert inflated(page) == 1
    press(page, "j", KEPT + 9)
    assert inflated(page) == KEPT + 10
    press(page, "k", KEPT - 1)
    assert inflated(page) == KEPT + 10  # the last ones are still there
    press(page, "k")
    assert inflated(page) == KEPT + 11  # and no more of them


def test_ten_thousand_features_are_no_more_elements_than_six_hundred(open_counted: Callable[..., Page]) -> None:
    """Payloads are text in the document; what is built is what is in view."""
    counts = []
    for n in (600, 10_000):
        head = make_map_head(n)
        page = open_counted(head, make_map_features(head))
        counts.append(page.evaluate(ELEMENTS))
        assert inflated(page) == 0
        assert page.evaluate("document.querySelectorAll('script[type=t]').length") == n
    assert counts[1] <= counts[0] + 20 < 2000


def test_switching_lays_out_a_few_times_and_leaves_nothing_behind(open_counted: Callable[..., Page]) -> None:
    page = open_counted(*full_map(80))
    page.keyboard.press("m")
    page.locator("article").wait_for()
    read = metrics(page)
    press(page, "j", 10)
    before, elements = read(), page.evaluate(ELEMENTS)
    press(page, "j", 20)
    after = read()
    assert (after["LayoutCount"] - before["LayoutCount"]) / 20 <= 6  # one of the page's, the others of waiting for it
    assert (after["RecalcStyleCount"] - before["RecalcStyleCount"]) / 20 <= 10
    assert page.evaluate(ELEMENTS) == elements
    assert after["Nodes"] <= before["Nodes"] * 1.1
    assert after["JSEventListeners"] <= before["JSEventListeners"] + 10


def test_opening_asks_the_layout_for_nothing_token_by_token(open_counted: Callable[..., Page]) -> None:
    """Calls that force a layout do not grow with the tokens shown."""
    page = open_counted(*full_map(30))
    page.evaluate("""() => {
      window.measured = 0;
      const counted = (owner, name) => {
        const { get, value, ...rest } = Object.getOwnPropertyDescriptor(owner, name);
        const call = get ?? value;
        const count = function (...parts) { window.measured++; return call.apply(this, parts); };
        const how = get ? { get: count, set: rest.set, configurable: true } : { value: count, configurable: true };
        Object.defineProperty(owner, name, how);
      };
      for (const name of ["offsetWidth", "offsetHeight", "offsetTop"]) counted(HTMLElement.prototype, name);
      for (const name of ["getBoundingClientRect", "clientWidth", "clientHeight", "scrollTop", "getClientRects"]) {
        counted(Element.prototype, name);
      }
      counted(window, "getComputedStyle");
    }""")
    page.keyboard.press("m")
    page.locator("article").wait_for()
    at_first = page.evaluate("window.measured")
    press(page, "j", 5)
    assert page.locator("[data-token]").count() > 10
    assert page.evaluate("window.measured") - at_first <= 2 * 5  # of which one each is this test's
