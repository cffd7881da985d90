"""In Chromium: text that means harm, narrow screens, contrast, and the page as an `<iframe srcdoc>`."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from page_contrast import CONTRASTS
from page_samples import OpenPage, make_effect, make_feature, make_features, make_fidelity, make_head, make_prompt_page
from playwright.sync_api import Browser, Page, expect

from crossvis_tl.page import render_page

HOSTILE = [
    "</script>", "<img src=x onerror=alert(1)>", "\"'`", "&lt;b&gt;", "\u2028\u2029", "\ud800", "👩‍👩‍👧", "\u202eevil",
    "مرحبا", "", " ", "  \t\r\n\x00", "\u200b", "<!--", "]]>", "${1}", "%%HEAD%%", "constructor",
]  # fmt: skip

# A lone surrogate cannot cross to Python, so texts are compared as numbers.
UNITS = (
    "nodes => nodes.map(node => [...Array(node.textContent.length).keys()].map(i => node.textContent.charCodeAt(i)))"
)


def units(text: str) -> list[int]:
    """UTF-16 code units, as JavaScript counts."""
    raw = text.encode("utf-16-le", "surrogatepass")
    return [int.from_bytes(raw[i : i + 2], "little") for i in range(0, len(raw), 2)]


def page_of_words(words: list[str]) -> tuple[dict[str, Any], list[tuple[int, Any]]]:
    """A page whose words stand in every place that shows text from the data."""
    n = len(words)
    effect = make_effect(n) | {
        "up_ids": [[i] for i in range(n)],
        "up": [[0.1]] * n,
        "down_ids": [[i] for i in range(n)],
        "down": [[-0.1]] * n,
    }
    tokens = list(range(n))
    sequence = {"t": tokens, "a": [1.0] * n, "bold": 0, "row": 1, "pos": 2, "e": [effect, effect]}
    group = {"title": words[0], "low": None, "high": None, "share": None, "sequences": [sequence]}
    logits = {
        "model": 0,
        "name": words[0],
        "top": [[i, 1.0] for i in tokens],
        "bottom": [[i, -1.0] for i in tokens],
        "histogram": None,
    }
    tables = {"correlated_features": [[12, word, 0.0, 0.0] for word in words]}
    feature = make_feature(groups=[group], logits=[logits], tables=tables, logits_note=words[1])
    index = make_head()["features"] | {"label": [words[0], words[1], words[-1]], "class": [words[1], None, None]}
    layout = {"height": 750, "columns": [{"width": None, "components": [{"name": name, "config": {}} for name in
              ("FeatureTables", "LogitsTable", "Sequences")]}]}  # fmt: skip
    head = make_head(
        vocabulary=words, token_ids=tokens, features=index, title=words[1], facts=[[words[0], words[1]]], layout=layout,
        models=[words[0], words[1]], class_help=words[1], fidelity=make_fidelity("implausible", tuple(words)),
    )  # fmt: skip
    return head, [(7, feature), (12, feature), (40, feature)]


def check_words(page: Page, words: list[str]) -> None:
    expected = [units(word) for word in words]
    assert page.locator("[data-panel=Sequences] [data-token]").evaluate_all(UNITS) == expected
    for side in ("negative", "positive"):
        assert page.locator(f"table[data-side={side}] .token").evaluate_all(UNITS) == expected
    assert page.locator(".fidelity li").evaluate_all(UNITS) == expected
    assert page.locator("h1").evaluate_all(UNITS) == [units(words[1])]
    assert page.locator("#app img, #app script, #app b b").count() == 0


def test_hostile_text_is_shown_as_it_is(open_page: OpenPage) -> None:
    page = open_page(*page_of_words(HOSTILE))
    dialogs: list[str] = []
    page.on("dialog", lambda dialog: (dialogs.append(dialog.message), dialog.dismiss()))
    check_words(page, HOSTILE)
    for i in range(len(HOSTILE)):
        page.locator("[data-panel=Sequences] [data-token]").nth(i).focus()
        assert page.locator("#tip [data-field=text]").evaluate_all(UNITS) == [units(HOSTILE[i])]
    page.keyboard.press("/")
    assert page.locator("[data-option-id] .label").first.text_content() == HOSTILE[0]
    assert dialogs == []


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(words=st.lists(st.text(st.characters(exclude_categories=()), max_size=12), min_size=2, max_size=40))
def test_any_text_is_shown_as_it_is(open_page: OpenPage, words: list[str]) -> None:
    check_words(open_page(*page_of_words(words)), words)


def test_what_cannot_be_seen_gets_a_sign(open_page: OpenPage) -> None:
    page = open_page(*page_of_words(["\n", "\t", "\r", "\u200b", "\ud800", "\u00a0", "👩‍👩‍👧", " a b "]))
    cells = page.locator("[data-panel=Sequences] [data-token]")
    signs = cells.evaluate_all(
        "nodes => nodes.map(n => [...n.querySelectorAll('.sign')].map(s => s.dataset.sign).join())"
    )
    assert signs == ["↵", "⇥", "␍", "U+200B", "U+D800", "⍽", "", ""]
    assert cells.nth(7).locator(".space").count() == 2  # the leading and the trailing one
    content = cells.first.locator(".sign").evaluate("node => getComputedStyle(node, '::before').content")
    assert content in ('"↵"', "attr(data-sign)")
    heights = cells.evaluate_all("nodes => [...new Set(nodes.slice(0, 4).map(n => n.offsetHeight))]")
    assert len(heights) == 1


def test_characters_split_over_tokens_are_put_together(open_page: OpenPage) -> None:
    """A loose byte stands in the vocabulary as Python's surrogateescape writes it."""
    smile, euro = "\U0001f600".encode(), "\u20ac".encode()

    def part(some: bytes) -> str:
        return some.decode("utf-8", errors="surrogateescape")

    words = [" " + part(smile[:2]), part(smile[2:3]), part(smile[3:] + euro[:1]), part(euro[1:]), "a", part(smile[:2])]
    page = open_page(*page_of_words(words))
    cells = page.locator("[data-panel=Sequences] [data-token]")
    texts = cells.evaluate_all("nodes => nodes.map(n => [n.textContent, n.querySelector('.sign')?.dataset.sign])")
    assert texts[:4] == [[" \U0001f600\u20ac", None], ["", "⋯"], ["", "⋯"], ["", "⋯"]]  # no part ends with a character
    assert texts[4] == ["a", None]
    assert texts[5][1] == "\\xF0" or texts[5][1] == "\\x9F"  # cut off: its bytes
    cells.nth(1).focus()  # each part is still a token of its own
    assert page.locator("#tip [data-field=text] .sign").get_attribute("data-sign") == "\\x98"


@pytest.mark.parametrize("view", ["feature", "prompt"])
def test_narrow_screens_scroll_inside_columns_only(open_page: OpenPage, view: str) -> None:
    head, features = (make_head(), make_features()) if view == "feature" else make_prompt_page()
    for _, feature in features:  # rows much wider than the screen
        for group in feature["groups"]:
            for sequence in group["sequences"]:
                sequence |= {"t": sequence["t"] * 8, "a": sequence["a"] * 8, "e": []}
    page = open_page(head, features, viewport={"width": 380, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") == 380
    lefts = (
        page.locator("article")
        .first.locator("[data-panel]")
        .evaluate_all("nodes => nodes.map(n => Math.round(n.getBoundingClientRect().left))")
    )
    assert len(set(lefts)) == 1  # one under the other
    assert page.locator(".column").last.evaluate("node => node.scrollWidth > node.clientWidth")
    page.locator("[data-panel=Sequences] [data-token]").first.focus()
    box = page.locator("#tip").bounding_box()
    assert box is not None
    assert box["x"] >= 0
    assert box["x"] + box["width"] <= 380


def test_wide_screens_do_not_scroll_sideways_either(open_page: OpenPage) -> None:
    page = open_page(*make_prompt_page(), viewport={"width": 800, "height": 700})
    assert page.evaluate("document.documentElement.scrollWidth") == 800


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("verdict", ["plausible", "doubtful", "implausible"])
def test_all_text_stands_out_from_its_ground(open_page: OpenPage, scheme: str, verdict: str) -> None:
    fidelity = make_fidelity() | {"verdict": verdict, "warnings": ["a warning"]}
    sites = {"norms": [1.0, 1.0, 1.0], "cosine": [[1.0, -1.0, 0.5]] * 3, "relative_norm": None}
    targets = [{"model": i % 2, "hook": None, "label": str(i)} for i in range(3)]
    words = [*make_head()["vocabulary"][:-1], "\u200b"]
    features = [(7, make_feature(sites=sites)), *make_features()[1:]]
    head = make_head(fidelity=fidelity, targets=targets, vocabulary=words)
    page = open_page(head, features, color_scheme=scheme)
    page.locator("[data-token]").nth(3).focus()
    expect(page.locator("#tip")).to_be_visible()
    found = page.evaluate(CONTRASTS)
    assert len(found) > 100
    assert [entry for entry in found if entry[1] < (4.5 if entry[0] == "text" else 3)] == []


def test_charts_are_images_with_names_and_headings_are_in_order(open_page: OpenPage) -> None:
    page = open_page(make_head(), make_features())
    labels = page.locator("svg[role=img]").evaluate_all("nodes => nodes.map(n => n.getAttribute('aria-label'))")
    assert labels[0] == "Histogram of activations: 9 values from 0.000 to 2.000, most between 0.000 and 0.500"
    assert "in chat" in labels[2]
    assert page.locator("h1").count() == page.locator("main").count() == 1
    assert page.locator("button:not([aria-label])").evaluate_all("nodes => nodes.every(n => n.textContent.trim())")


def test_viewer_adds_nothing_to_the_window(open_page: OpenPage, tmp_path: Path) -> None:
    page = open_page(make_head(), make_features())
    (tmp_path / "blank.html").write_text("<!doctype html>")
    blank = page.context.new_page()
    blank.goto((tmp_path / "blank.html").as_uri())
    names = "Object.getOwnPropertyNames(window)"
    assert set(page.evaluate(names)) - set(blank.evaluate(names)) == set()


def test_page_works_as_srcdoc_of_an_iframe(browser: Browser) -> None:
    """How a notebook shows it: about:srcdoc has no address of its own to keep in step."""
    context = browser.new_context()
    context.set_offline(True)
    page, faults = context.new_page(), []
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("console", lambda message: faults.append(message.text))
    html = json.dumps(render_page(make_head(), make_features()))
    page.set_content("<iframe width=1200 height=800></iframe>")
    page.evaluate(f"document.querySelector('iframe').srcdoc = {html}")
    frame = page.frame_locator("iframe")
    expect(frame.locator("article")).to_have_attribute("data-feature-id", "7")
    frame.locator("[data-panel=FeatureTables] a").first.click()
    expect(frame.locator("article")).to_have_attribute("data-feature-id", "12")
    frame.locator("[data-action=next]").click()
    expect(frame.locator("article")).to_have_attribute("data-feature-id", "40")
    assert faults == []
    context.close()
