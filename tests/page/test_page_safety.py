"""Whatever the strings say: every one is text, on every screen, and the page keeps its shape."""

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from page_samples import OpenPage, make_features, make_head, make_map_head, make_prompt_page
from page_scenes import full_feature
from playwright.sync_api import Page, expect
from test_page_text_and_looks import UNITS, units

HOSTILE = [
    "</script><script>alert(1)</script>", "<img src=x onerror=alert(1)>", "\"'`", "&lt;b&gt;&amp;", "\u2028\u2029",
    "a\x00b", "\ud800", "\udfff\ud83d", "\u202eevil\u202c", "\u2066\u200f", "👩\u200d👩\u200d👧\u200d👦🏴\u200d☠️",
    "--><!--<script>", "]]>", "javascript:alert(1)", "__proto__", "constructor", "${alert(1)}", "%%JS%%", "x" * 10_000,
    " " * 300, "あ" * 500,
]  # fmt: skip
SPECIAL = st.sampled_from("<>&\"'`\u2028\u2029\x00\u202e")
# Loose bytes of split characters, \udc80 to \udcff, are put together in runs of tokens: test_page_text_and_looks.py.
TEXTS = st.text(st.characters(exclude_categories=()) | SPECIAL, max_size=20).filter(
    lambda text: not any("\udc80" <= character <= "\udcff" for character in text)
)
FOREIGN = "#app img, #app script, #app iframe, #app [onerror], #app [onclick], #tip img, dialog img"


def place_everywhere(head: dict[str, Any], word: Callable[[int], str]) -> dict[str, Any]:
    """Each string of a head that people or files write, by one of the words."""
    n = len(head["features"]["id"])
    names = [word(0), word(1)]
    site = {"hook": word(2), "width": 8}
    sites = [site | {"model": i % 2, "label": word(i + 3), "short": word(i + 3)} for i in range(4)]
    measures = [one | {"label": word(i + 1), "help": word(i + 2)} for i, one in enumerate(head["features"]["measures"])]
    index = head["features"] | {
        "label": [word(i) for i in range(n)], "class": [word(i) for i in range(n)], "measures": measures,
    }  # fmt: skip
    fidelity = head["fidelity"] | {
        "headline": word(4), "warnings": [word(5), word(6)], "sites": [{"label": word(7), "fvu": 0.5}],
    }  # fmt: skip
    return head | {
        "title": word(8), "models": names, "sources": sites[:2], "targets": sites,
        "facts": [[word(9), word(10) or "-"]], "class_help": word(11) or "-", "features": index, "fidelity": fidelity,
    }  # fmt: skip


def cyclic(words: list[str]) -> Callable[[int], str]:
    return lambda i: words[i % len(words)]


def hostile_feature(word: Callable[[int], str]) -> dict[str, Any]:
    feature = full_feature()
    tables = {"correlated_features": [[101, word(1), 0.1, 0.2]], "correlated_b_features": [[101, word(2), 0.1, 0.2]]}
    groups = [group | {"title": word(i)} for i, group in enumerate(feature["groups"])]
    sites = feature["sites"] | {"class": word(3), "note": word(4)}
    logits = [one | {"name": word(i)} for i, one in enumerate(feature["logits"])]
    return feature | {
        "tables": tables, "groups": groups, "sites": sites, "logits": logits, "logits_note": word(5) or "-",
    }  # fmt: skip


def map_of(words: list[str], n: int) -> tuple[dict[str, Any], list[tuple[int, Any]]]:
    word = cyclic(words)
    vocabulary = [word(i) for i in range(max(n, 10))]
    head = make_map_head(n, vocabulary=vocabulary, token_ids=list(range(len(vocabulary))))
    head["features"]["tokens"] = [[i] for i in range(n)]
    head["layout"]["columns"] = make_head()["layout"]["columns"]
    head = place_everywhere(head, word)
    return head, [(number, hostile_feature(word)) for number in head["features"]["id"]]


def texts(page: Page, selector: str) -> list[list[int]]:
    return page.locator(selector).evaluate_all(UNITS)


def check_map(page: Page, words: list[str], n: int) -> None:
    word = cyclic(words)
    expected = [units(word(i)) for i in range(n)]
    assert texts(page, "[data-map-row] .chips .token")[:n] == expected[: page.locator("[data-map-row]").count()]
    assert texts(page, "h1") == [units(word(8))]
    assert texts(page, ".kind .model")[0][-len(units(word(0))) or None :] == (units(word(0)) or [0x25CF])
    assert texts(page, ".headline") == [units(word(4))]
    assert texts(page, ".fidelity li") == [units(word(5)), units(word(6))]
    options = page.get_by_label("colour").locator("option").evaluate_all(UNITS)
    assert [units(word(1)), units(word(2))] == options[-2:]
    assert page.locator(FOREIGN).count() == 0


def check_feature(page: Page, words: list[str]) -> None:
    word = cyclic(words)
    page.keyboard.press("m")
    page.locator("article").wait_for()
    assert texts(page, "[data-panel=DecoderNorms] .note") == ([units(word(4))] if word(4) else [])
    assert texts(page, "h2 .label") == ([units(word(0))] if word(0) else [])
    assert texts(page, "button.chip") == ([units(word(0))] if word(0) else [])
    page.locator("[data-panel=Sequences] [data-token]").nth(2).focus()
    assert texts(page, "#tip [data-field=text]") == [units(word(3))]
    if word(0):
        page.locator("button.chip").focus()
        assert texts(page, "#tip .help") == [units(word(11) or "-")]
    page.keyboard.press("/")
    assert texts(page, "[data-option-id='100'] .label") == [units(word(0))]
    page.keyboard.press("Escape")
    assert page.locator(FOREIGN).count() == 0


def test_hostile_strings_are_text_everywhere(open_page: OpenPage) -> None:
    n = len(HOSTILE)
    page = open_page(*map_of(HOSTILE, n), viewport={"width": 1500, "height": 1600})
    dialogs: list[str] = []
    page.on("dialog", lambda dialog: (dialogs.append(dialog.message), dialog.dismiss()))
    check_map(page, HOSTILE, n)
    check_feature(page, HOSTILE)
    assert dialogs == []


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(words=st.lists(TEXTS, min_size=1, max_size=12))
def test_any_string_is_text_everywhere(open_page: OpenPage, words: list[str]) -> None:
    page = open_page(*map_of(words, 12))
    check_map(page, words, 12)
    check_feature(page, words)


def prompts_of(words: list[str]) -> tuple[dict[str, Any], list[tuple[int, Any]]]:
    word = cyclic(words)
    head, features = make_prompt_page()
    each = head["prompts"]["each"][0]
    each = each | {"scores": {metric: scopes * 2 for metric, scopes in each["scores"].items()}}
    prompts = head["prompts"] | {"scopes": ["all features", word(1)], "each": [each, each]}
    vocabulary = [word(i) for i in range(10)]
    for _, feature in features:
        feature["prompts"] = feature["prompts"] and feature["prompts"] * 2
    return place_everywhere(head, word) | {"prompts": prompts, "vocabulary": vocabulary}, features


@pytest.mark.parametrize("words", [HOSTILE[:10], HOSTILE[10:]])
def test_prompts_and_their_drop_downs_are_text(open_page: OpenPage, words: list[str]) -> None:
    head, features = prompts_of(words)
    page = open_page(head, features)
    scopes = page.get_by_label("Features of").locator("option").evaluate_all(UNITS)
    assert scopes[1] == units(words[1])
    page.get_by_label("Features of").select_option(index=1)
    shown = [units(head["vocabulary"][token]) for token in head["prompts"]["each"][0]["tokens"]]
    assert texts(page, ".prompt .token") == shown
    prompt = "".join(head["vocabulary"][token] for token in head["prompts"]["each"][0]["tokens"])
    expect(page.locator(".caption")).to_contain_text("position 2")
    names = page.get_by_label("Prompt", exact=True).locator("option").evaluate_all(UNITS)
    assert names[1][3:] == units(prompt)[: len(names[1]) - 3]
    assert page.locator(FOREIGN).count() == 0


@pytest.mark.parametrize("view", ["map", "feature", "prompt"])
def test_long_strings_do_not_break_a_narrow_page(open_page: OpenPage, view: str) -> None:
    words = ["x" * 10_000, "あ" * 500, "\u202e" + "m" * 300, "👩‍👩‍👧" * 100]
    head, features = prompts_of(words) if view == "prompt" else map_of(words, 6)
    page = open_page(head, features, "#f=100" if view == "feature" else "", viewport={"width": 380, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") == 380
    if view == "map":
        return
    page.locator("[data-panel=Sequences] [data-token]").first.focus()
    box = page.locator("#tip").bounding_box()
    assert box is not None
    assert box["x"] >= 0
    assert box["x"] + box["width"] <= 380
    assert page.evaluate("document.documentElement.scrollWidth") == 380


def test_what_is_typed_is_text_too(open_page: OpenPage) -> None:
    page = open_page(make_head(), make_features())
    page.keyboard.press("/")
    page.locator("[data-field=jump]").fill("<img src=x onerror=alert(1)>")
    assert page.locator("#matches .none").inner_text() == "No feature has this number, label or token."
    page.goto(page.url.split("#")[0] + "#f=<img src=x onerror=alert(1)>")
    expect(page.locator("article")).to_have_attribute("data-feature-id", "7")
    assert page.locator(FOREIGN).count() == 0
