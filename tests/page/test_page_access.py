"""Whoever reads the page, and however: axe's rules on every view, forced colours, less motion, paper."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import axe_playwright_python
import pytest
from page_contrast import FUNCTIONS
from page_samples import OpenPage
from page_scenes import SCENES, full_page, map_page
from playwright.sync_api import Frame, Page, expect
from test_page_live import Notebook, StandIn, open_cell  # noqa: F401 - a fixture

AXE = (Path(axe_playwright_python.__file__).parent / "axe.min.js").read_text(encoding="utf-8")
RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]
RUN = """async (options) => (await axe.run(document, options)).violations.flatMap(({ id, nodes }) =>
  nodes.map(({ html, any }) => [id, html.slice(0, 200), any.map(({ message }) => message).join("; ").slice(0, 200)]))"""
AXE_OPTIONS = {"bypass_csp": True, "reduced_motion": "reduce"}  # no colour on its way to another
LOOKS = [("light", 1500), ("dark", 1500), ("light", 380), ("dark", 380)]
# A prompt's tokens are its text, set as text is: the "inline" exception of WCAG 2.5.8, which axe cannot tell.
IS_TEXT = 'class="token"'


def violations(frame: Page | Frame, *, colours: bool = True) -> list[list[str]]:
    """What axe finds fault with. Its colour rule, the slowest, need not be run at every width."""
    if not frame.evaluate("'axe' in window"):
        frame.evaluate(AXE)
    options = {"runOnly": RULES, "resultTypes": ["violations"], "rules": {"color-contrast": {"enabled": colours}}}
    found = frame.evaluate(RUN, options)
    return [one for one in found if not (one[0] == "target-size" and IS_TEXT in one[1])]


def check_looks(page: Page, frame: Page | Frame, states: list[Callable[[], Any]]) -> None:
    """In both schemes, wide and narrow; and, wide or narrow, in each state that a call leads to."""
    for scheme, width in LOOKS:
        page.set_viewport_size({"width": width, "height": 950})
        page.emulate_media(color_scheme=scheme)
        is_whole = (scheme, width) in (LOOKS[0], LOOKS[-1])
        assert violations(frame, colours=is_whole) == [], (scheme, width)
        for lead_to in states if is_whole else []:
            frame.evaluate("document.activeElement.blur()")
            lead_to()
            assert violations(frame) == [], (scheme, width)
        page.keyboard.press("Escape")


@pytest.mark.parametrize("scene", SCENES)
def test_axe_finds_nothing(open_page: OpenPage, scene: str) -> None:
    page = open_page(*SCENES[scene](), **AXE_OPTIONS)

    def tooltip() -> None:
        page.locator(".plot" if scene == "map" else "[data-panel] [data-token][tabindex='0']").first.focus()
        if scene == "map":
            page.keyboard.press("ArrowRight")
        expect(page.locator("#tip")).to_be_visible()

    def help_dialog() -> None:
        page.keyboard.press("?")
        expect(page.get_by_role("dialog")).to_be_visible()

    check_looks(page, page, [tooltip, help_dialog])


def test_axe_finds_nothing_in_the_live_view(open_cell: Callable[..., Notebook]) -> None:  # noqa: F811
    head, features = full_page()
    python = StandIn(**{name: head[name] for name in ("layout", "targets", "fidelity")})
    python.features = dict(features)
    cell = open_cell(python, **AXE_OPTIONS)
    cell.type("The cat sat.", 4)
    cell.frame.locator("article").wait_for()
    frame = next(frame for frame in cell.page.frames if frame.parent_frame)

    def tooltip() -> None:
        cell.tokens.nth(2).focus()
        expect(cell.frame.locator("#tip")).to_be_visible()

    def help_dialog() -> None:
        cell.page.keyboard.press("?")
        expect(cell.frame.get_by_role("dialog")).to_be_visible()

    check_looks(cell.page, frame, [tooltip, help_dialog])


SHADES = (
    "([selector, shades, isGradient]) => {"
    + FUNCTIONS
    + """
  const node = document.querySelector(selector);
  if (!node) return null;
  const stripe = () => rgba(getComputedStyle(node).backgroundImage.match(/(?:color|rgba?)\\([^)]*\\)/)[0]);
  const sign = node.querySelector(".sign");
  const texts = [getComputedStyle(node).color];
  if (sign) texts.push(getComputedStyle(sign, "::before").color);
  return shades.map((shade) => {
    node.style.setProperty("--shade", shade);
    const bare = ground(node);
    const behind = isGradient ? [over(stripe(), bare), bare] : [bare];
    return Math.min(...behind.flatMap((rgb) => texts.map((text) => contrast(over(rgba(text), rgb), rgb))));
  });
}"""
)  # fmt: skip
SHADED = [
    "[data-panel=Sequences] .token:not(.against)", "[data-panel=Sequences] .token:has(.sign)", ".logits .negative",
    ".logits .positive", ".lens .negative", ".lens .positive", ".matrix .negative", ".matrix .positive",
]  # fmt: skip


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_at_every_shade(open_page: OpenPage, scheme: str) -> None:
    """Every twentieth of the way from silent to the largest activation, logit or cosine."""
    page = open_page(*full_page(), color_scheme=scheme)
    shades = [i / 20 for i in range(21)]
    least = {selector: page.evaluate(SHADES, [selector, shades, False]) for selector in SHADED}
    page.get_by_role("group", name="Shade tokens by").get_by_role("button").last.click()
    against = "[data-panel=Sequences] .token.against"
    least[against] = page.evaluate(SHADES, [against, shades, True])
    least["the class"] = page.evaluate(SHADES, [".chip", [0], False])
    assert {selector: min(found) for selector, found in least.items() if min(found) < 4.5} == {}
    assert all(found[0] > found[-1] for selector, found in least.items() if selector != "the class")  # they are shades


def test_a_token_that_is_driven_down_is_hatched_not_only_blue(open_page: OpenPage) -> None:
    page = open_page(*full_page())
    page.get_by_role("group", name="Shade tokens by").get_by_role("button").last.click()
    image = "node => getComputedStyle(node).backgroundImage"
    assert page.locator("[data-panel=Sequences] .against").first.evaluate(image).startswith("repeating-linear")
    assert page.locator("[data-panel=SourceAttribution] .against").evaluate(image).startswith("repeating-linear")
    lines = page.locator("[data-panel=Sequences]")
    styles = [lines.locator(f".{kind}").first.evaluate("n => getComputedStyle(n).borderBottomStyle") for kind in
              ("helps", "hurts")]  # fmt: skip
    assert styles == ["solid", "dashed"]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_forced_colours_keep_what_colour_says(open_page: OpenPage, scheme: str) -> None:
    page = open_page(*full_page(), color_scheme=scheme, forced_colors="active")
    plain = open_page(*full_page(), color_scheme=scheme)
    looks = """nodes => nodes.map((node) => {
      const { backgroundColor, backgroundImage, borderBottomColor } = getComputedStyle(node);
      return [backgroundColor, backgroundImage, borderBottomColor];
    })"""
    for selector in ("[data-panel=Sequences] .token", ".logits .token", ".matrix td", ".gauge", ".ramp", ".key"):
        shown, expected = (one.locator(selector).evaluate_all(looks) for one in (page, plain))
        assert shown == expected, selector
        assert len(shown) > 0
    outlines = page.locator("[aria-pressed]").evaluate_all(
        "nodes => nodes.map((node) => [node.ariaPressed, getComputedStyle(node).outlineStyle !== 'none'])"
    )
    assert {tuple(pair) for pair in outlines} == {("true", True), ("false", False)}


def test_less_motion_is_none(open_page: OpenPage) -> None:
    moving = """() => [...document.querySelectorAll("*")].map((node) => getComputedStyle(node))
      .filter((style) => parseFloat(style.transitionDuration) || style.animationName !== "none"
        || style.scrollBehavior === "smooth").length"""
    assert open_page(*full_page()).evaluate(moving) > 0
    assert open_page(*full_page(), reduced_motion="reduce").evaluate(moving) == 0
    assert open_page(*map_page(30), reduced_motion="reduce").evaluate(moving) == 0


CUT = """() => [...document.querySelectorAll("article, article *")].filter((node) => {
  const { overflowX, overflowY, display } = getComputedStyle(node);
  const isCut = (overflow, size, room) => overflow !== "visible" && size > room + 1;
  return display !== "inline" && !node.closest(".unseen") && (isCut(overflowX, node.scrollWidth, node.clientWidth)
    || isCut(overflowY, node.scrollHeight, node.clientHeight) || node.getBoundingClientRect().right > innerWidth + 1);
}).map((node) => node.outerHTML.slice(0, 150))"""


@pytest.mark.parametrize("scene", ["feature", "clt", "prompt"])
def test_on_paper_everything_is_there(open_page: OpenPage, scene: str) -> None:
    head, features = SCENES[scene]()
    for _, feature in features:  # rows wider than a sheet
        for sequence in [sequence for group in feature["groups"] for sequence in group["sequences"]]:
            sequence |= {"t": sequence["t"] * 8, "a": sequence["a"] * 8, "e": [], "s": []}
    page = open_page(head, features, viewport={"width": 794, "height": 1123}, color_scheme="dark")
    panels = page.locator("article").first.locator("[data-panel]")
    shaded = page.locator("[data-panel=Sequences] .token").nth(2)
    n_panels, shade = panels.count(), "node => getComputedStyle(node).getPropertyValue('--shade')"
    before = shaded.evaluate(shade)
    page.emulate_media(media="print")
    assert page.locator("nav:visible, .shading:visible, dialog:visible, #tip:visible").count() == 0
    assert panels.evaluate_all("nodes => nodes.filter((node) => node.offsetHeight > 20).length") == n_panels >= 4
    assert shaded.evaluate(shade) == before
    assert shaded.evaluate("node => getComputedStyle(node).printColorAdjust") == "exact"
    assert page.evaluate("getComputedStyle(document.body).color") == "rgb(27, 29, 34)"  # dark on white, in dark too
    assert page.evaluate(CUT) == []
    assert page.evaluate("document.documentElement.scrollWidth") == 794
    assert len(page.pdf()) > 10_000
