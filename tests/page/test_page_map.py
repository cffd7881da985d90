"""The feature map in Chromium: what it draws, how it is searched, sorted and filtered, and how one moves."""

import itertools
from typing import Any

import pytest
from page_samples import CAT, NEWLINE, THE, OpenPage, make_features, make_head, make_map_features, make_map_head
from playwright.sync_api import Page, expect
from test_page_text_and_looks import CONTRASTS, HOSTILE, UNITS, units

INK = """canvas => {
  const { width, height } = canvas;
  const copy = new OffscreenCanvas(width, height).getContext("2d", { willReadFrequently: true });
  copy.drawImage(canvas, 0, 0);
  const bytes = copy.getImageData(0, 0, width, height).data;
  const seen = new Map();
  for (let i = 0; i < bytes.length; i += 4) {
    if (bytes[i + 3] > 200) { const rgb = bytes.slice(i, i + 3).join(); seen.set(rgb, (seen.get(rgb) ?? 0) + 1); }
  }
  return [...seen].sort(([, a], [, b]) => b - a).slice(0, 8).map(([rgb]) => rgb);
}"""


@pytest.fixture
def page(open_page: OpenPage) -> Page:
    head = make_map_head()
    return open_page(head, make_map_features(head))


def rows(page: Page) -> list[int]:
    """Ids in the table, of the rows in view."""
    read = "nodes => nodes.map(node => Number(node.dataset.mapRow))"
    return page.locator("[data-map-row]").evaluate_all(read)


def status(page: Page) -> str:
    return page.locator(".status").inner_text()


def search(page: Page, text: str) -> None:
    page.locator("[data-field=search]").fill(text)


def shows(page: Page, number: int) -> None:
    expect(page.locator("main article")).to_have_attribute("data-feature-id", str(number))


def dot(page: Page, number: int) -> tuple[float, float]:
    """Where the dot of a feature is on the screen: pointing at its row puts the ring around it."""
    page.locator(f"[data-map-row='{number}'] a").hover()
    ring = page.locator(".ring").bounding_box()
    assert ring is not None
    return ring["x"] + ring["width"] / 2, ring["y"] + ring["height"] / 2


def drag(page: Page, start: tuple[float, float], end: tuple[float, float]) -> None:
    page.mouse.move(*start)
    page.mouse.down()
    page.mouse.move(*end, steps=4)
    page.mouse.up()


def test_many_features_open_on_the_map_and_no_payload_is_read(open_page: OpenPage) -> None:
    head = make_map_head()
    page = open_page(head, make_map_features(head))
    expect(page.locator("main [data-map]")).to_be_visible()
    assert page.url.endswith("#map")
    assert page.title() == "Map · A crosscoder"
    assert page.locator("article").count() == 0
    assert status(page) == "40 features"
    assert rows(page)[:3] == [100, 101, 102]
    assert page.locator("nav.bar:visible").count() == 1


def test_a_page_without_a_map_has_no_way_to_one(open_page: OpenPage) -> None:
    page = open_page(make_head(), make_features(), "#map")
    shows(page, 7)
    assert page.locator("[data-action=map]").count() == 0
    page.keyboard.press("m")
    shows(page, 7)
    assert "map" not in page.locator("#help").text_content()


def test_an_address_of_a_feature_opens_it_instead(open_page: OpenPage) -> None:
    head = make_map_head()
    page = open_page(head, make_map_features(head), "#f=105")
    shows(page, 105)
    assert page.locator(".legend").is_visible()
    page.locator("[data-action=map]").click()
    expect(page.locator("main [data-map]")).to_be_visible()
    assert page.locator(".legend").is_hidden()


def test_a_page_that_opens_on_a_feature_has_its_map_at_its_address(open_page: OpenPage) -> None:
    head = make_map_head(open_map=False)
    shows(open_page(head, make_map_features(head)), 100)
    expect(open_page(head, make_map_features(head), "#map").locator("[data-map]")).to_be_visible()


def test_a_row_has_the_numbers_of_its_feature(page: Page) -> None:
    heads = page.locator(".sheet th").all_inner_texts()
    numbers = ["density", "max activation", "relative norm", "decoder cosine"]
    assert heads == ["Feature", "Label", "Fires on", "Class", *numbers]
    cells = "nodes => [...nodes[0].cells].map(cell => cell.textContent)"
    row = page.locator("[data-map-row='101']").evaluate_all(cells)
    assert row == ["#101", "label 1", " matThe", "●only base", "1.000%", "2.000", "0.026", "0.051"]
    silent = page.locator("[data-map-row='119']").evaluate_all(cells)
    assert silent[2:] == ["", "▲shared", "0.000%", "0.000", "0.487", "–"]


def test_axes_are_those_that_suit_the_page(open_page: OpenPage) -> None:
    def chosen(head: dict[str, Any]) -> list[str]:
        page = open_page(head, make_map_features(head))
        return page.locator(".axes select").evaluate_all("nodes => nodes.map(n => n.selectedOptions[0].text)")

    plain = make_map_head()["features"] | {"class": [None] * 40}
    layers = [{"name": "layer", "label": "layer", "scale": "linear", "values": [i // 4 for i in range(40)], "help": ""}]
    wanted = make_map_head()["layout"] | {"map": {"x": "max", "y": "cosine", "color": "density"}}
    unknown = make_map_head()["layout"] | {"map": {"x": "nothing", "y": None, "color": "class"}}
    assert chosen(make_map_head()) == ["decoder cosine", "relative norm", "class"]
    assert chosen(make_map_head(features=plain | {"measures": layers})) == ["density", "layer", "max activation"]
    assert chosen(make_map_head(features=plain | {"measures": []})) == ["max activation", "density", "none"]
    assert chosen(make_map_head(layout=wanted)) == ["decoder cosine", "max activation", "density"]
    assert chosen(make_map_head(layout=unknown)) == ["decoder cosine", "relative norm", "class"]


def test_other_axes_move_the_dots_and_log_scales_are_in_decades(page: Page) -> None:
    before = dot(page, 101)
    page.get_by_label("horizontal").select_option(label="density")
    texts = page.locator(".plot text").all_text_contents()
    assert texts[:5] == ["0.001%", "0.01%", "0.1%", "1%", "10%"]
    assert texts[5] == "0"  # the strip of the dead ones
    assert "density, log scale" in texts
    assert dot(page, 101) != before
    assert dot(page, 109)[0] < min(dot(page, number)[0] for number in (100, 101, 102, 103, 104))  # 109 is dead
    steps = [dot(page, number)[0] for number in (104, 103, 102, 101, 100)]
    gaps = [b - a for a, b in itertools.pairwise(steps)]
    assert max(gaps) - min(gaps) < 1


def test_whole_numbers_get_a_band_each(open_page: OpenPage) -> None:
    layers = [
        {"name": "layer", "label": "layer", "scale": "linear", "values": [i // 10 for i in range(40)], "help": ""}
    ]
    head = make_map_head(features=make_map_head()["features"] | {"measures": layers})
    page = open_page(head, make_map_features(head))
    bands = [[dot(page, 100 + 10 * layer + i)[0] for i in range(5)] for layer in range(2)]
    assert len({round(x, 1) for x in bands[0]}) == 5
    assert max(bands[0]) < min(bands[1])
    assert page.locator(".plot text.middle").all_text_contents()[:4] == ["0", "1", "2", "3"]


def test_colour_can_be_a_measure_and_says_what_it_means(page: Page) -> None:
    by_class = page.locator("canvas").evaluate(INK)
    page.get_by_label("colour").select_option(label="max activation")
    assert page.locator(".ramp-key").inner_text().split() == ["1.000", "7.000", "○0"]
    assert page.locator("canvas").evaluate(INK) != by_class


def test_classes_have_shapes_of_their_own_and_their_models_colours(page: Page) -> None:
    assert [text.replace(" ", "") for text in page.locator("[data-class]").all_inner_texts()] == [
        "●onlybase12", "▲shared16", "■onlychat12",
    ]  # fmt: skip
    color = "node => getComputedStyle(node).color"
    marks = [page.locator(f"[data-class='{name}'] .mark").evaluate(color) for name in ("only base", "only chat")]
    assert marks == [page.locator(f".kind [data-model='{i}']").evaluate(color) for i in (0, 1)]


def test_search_by_number_label_and_token(page: Page) -> None:
    search(page, "#13")
    assert rows(page) == [130, 131, 132, 133, 134, 135, 136, 137, 138, 139]
    search(page, "LABEL 33 ")
    assert rows(page) == [133]
    search(page, " Mat")
    assert status(page) == "12 of 40 features"
    assert rows(page)[:3] == [101, 104, 107]
    assert page.locator("[data-map-row='101'] .hit").all_text_contents() == [" mat"]
    search(page, "zebra")
    assert (rows(page), status(page)) == ([], "0 of 40 features")


def test_a_leading_space_counts_for_tokens(open_page: OpenPage) -> None:
    words = [" return", "return", "Return x", "\n", "x", " y", "z", "a", "b", "c"]
    tokens = [[0], [1], [2], [3], [4, 0]] + [[]] * 35
    head = make_map_head(vocabulary=words, features=make_map_head()["features"] | {"tokens": tokens})
    page = open_page(head, make_map_features(head))
    for query, found in [(" return", [100, 104]), ("return", [100, 101, 102, 104]), ("\\n", [103]), ("↵", [103])]:
        search(page, query)
        assert rows(page) == found, query
    page.keyboard.press("Escape")
    assert status(page) == "40 features"


def test_enter_in_the_search_opens_the_exact_number_or_the_first_row(page: Page) -> None:
    page.keyboard.press("/")
    expect(page.locator("[data-field=search]")).to_be_focused()
    page.keyboard.type("label 2")
    page.keyboard.press("Enter")
    shows(page, 121)
    page.keyboard.press("m")
    search(page, "104")
    page.keyboard.press("Enter")
    shows(page, 104)


def test_headers_sort_one_way_the_other_and_back(page: Page) -> None:
    header = page.locator("th[data-column=relative_norm]")
    for order, first in [("descending", 139), ("ascending", 100), ("none", 100)]:
        header.locator("button").click()
        assert header.get_attribute("aria-sort") == order
        assert rows(page)[0] == first
    page.locator("th[data-column=label] button").focus()
    page.keyboard.press("Enter")
    assert rows(page)[:3] == [101, 103, 105]  # "label 1", then 3, 5 ... 11: by number, not by letter
    page.locator("th[data-column=cosine] button").click()
    page.keyboard.press("End")
    page.locator(".sheet").evaluate("node => node.scrollTop = 1e6")
    expect(page.locator("[data-map-row]").last).to_have_attribute("data-map-row", "139")  # no cosine: last
    assert page.locator("th[aria-sort=descending]").count() == 1
    page.locator("th[data-column=cosine] button").click()
    page.locator(".sheet").evaluate("node => node.scrollTop = 1e6")
    expect(page.locator("[data-map-row]").last).to_have_attribute("data-map-row", "139")
    assert rows(page)[-2:] == [119, 139]  # last this way, too


def test_classes_filter_and_their_counts_follow_the_search(page: Page) -> None:
    shared, chat = page.locator("[data-class=shared]"), page.locator("[data-class='only chat']")
    chat.click()
    assert chat.get_attribute("aria-pressed") == "true"
    assert status(page) == "12 of 40 features"
    assert rows(page)[0] == 128
    shared.click()
    assert status(page) == "28 of 40 features"
    search(page, " cat")
    assert shared.inner_text().split() == ["▲shared", "6"]
    assert status(page) == "9 of 40 features"
    page.locator("[data-action=clear]").click()
    assert status(page) == "40 features"
    assert page.locator("[data-action=clear]").is_hidden()


def test_a_box_keeps_what_is_inside_and_escape_takes_it_away(page: Page) -> None:
    left, right = dot(page, 100), dot(page, 105)
    drag(page, (left[0] - 6, left[1] + 6), (right[0] + 6, right[1] - 6))
    assert rows(page) == [100, 101, 102, 103, 104, 105]
    expect(page.locator(".band")).to_be_visible()
    page.keyboard.press("Escape")
    assert status(page) == "40 features"
    expect(page.locator(".band")).to_be_hidden()
    drag(page, (left[0] - 6, left[1] + 6), (right[0] + 6, right[1] - 6))
    page.get_by_label("vertical").select_option(label="density")  # the box is of other axes
    assert status(page) == "40 features"


def test_pointing_shows_a_card_and_a_click_opens(page: Page) -> None:
    page.mouse.move(*dot(page, 101))
    tip = page.locator("#tip")
    expect(tip).to_be_visible()
    text = tip.inner_text()
    for part in ("#101", "only base", "label 1", "1.000%", "2.000", "0.026", "fires on"):
        assert part in text
    assert tip.locator(".token").all_text_contents() == [" mat", "The"]
    page.mouse.click(*dot(page, 101))
    shows(page, 101)
    expect(tip).to_be_hidden()


def test_a_finger_is_shown_the_card_first(open_page: OpenPage) -> None:
    head = make_map_head()
    page = open_page(head, make_map_features(head), has_touch=True)
    at = dot(page, 101)
    page.mouse.move(5, 5)
    page.touchscreen.tap(*at)
    expect(page.locator("#tip")).to_be_visible()
    assert page.locator("article").count() == 0
    page.touchscreen.tap(*at)
    shows(page, 101)


def test_arrow_keys_go_from_dot_to_dot(page: Page) -> None:
    plot = page.locator(".plot")
    plot.focus()
    seen = []
    for key in ("ArrowRight", "ArrowRight", "ArrowRight", "ArrowLeft", "ArrowUp"):
        page.keyboard.press(key)
        seen.append(plot.get_attribute("data-pointed"))
    assert seen == ["100", "101", "102", "101", "102"]
    expect(page.locator("#tip")).to_contain_text("#102")
    page.keyboard.press("Enter")
    shows(page, 102)


def test_the_table_by_keyboard(page: Page) -> None:
    page.keyboard.press("j")
    expect(page.locator("[data-link='100']")).to_be_focused()
    for key, number in [("j", 101), ("ArrowDown", 102), ("k", 101), ("End", 139), ("ArrowUp", 138), ("Home", 100)]:
        page.keyboard.press(key)
        expect(page.locator(f"[data-link='{number}']")).to_be_focused()
        assert page.locator(".plot").get_attribute("data-pointed") == str(number)
    page.keyboard.press("PageDown")
    assert rows(page)
    page.keyboard.press("Home")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    shows(page, 101)
    page.keyboard.press("Escape")  # a feature, not the map: nothing to leave
    shows(page, 101)
    page.keyboard.press("m")
    expect(page.locator("[data-link='101']")).to_be_focused()  # where one was
    page.keyboard.press("Escape")
    shows(page, 101)


def test_a_click_anywhere_in_a_row_opens_it(page: Page) -> None:
    page.locator("[data-map-row='103'] td").nth(4).click()
    shows(page, 103)
    assert page.locator("[data-field=place]").inner_text() == "4 of 40"
    assert page.locator("[data-action=all]").is_hidden()


def test_previous_and_next_follow_the_filtered_table(page: Page) -> None:
    search(page, " cat")
    page.locator("th[data-column=id] button").click()
    page.locator("th[data-column=id] button").click()
    order = rows(page)
    page.locator(f"[data-link='{order[1]}']").click()
    shows(page, order[1])
    place = page.locator("[data-field=place]")
    assert place.inner_text() == f"2 of {len(order)} (filtered)"
    page.keyboard.press("j")
    shows(page, order[2])
    page.keyboard.press("k")
    page.keyboard.press("k")
    shows(page, order[0])
    assert page.locator("[data-action=previous]").is_disabled()
    page.locator("[data-action=all]").click()
    assert place.inner_text() == f"{order[0] - 99} of 40"
    page.keyboard.press("k")
    shows(page, order[0] - 1)


def test_a_sorted_table_is_an_order_too_and_other_features_end_it(page: Page) -> None:
    page.locator("th[data-column=relative_norm] button").click()
    page.locator("[data-link='139']").click()
    shows(page, 139)
    assert page.locator("[data-field=place]").inner_text() == "1 of 40 (sorted)"
    page.keyboard.press("m")
    search(page, "label 1")
    page.locator("[data-link='111']").click()
    shows(page, 111)
    page.keyboard.press("/")
    page.keyboard.type("102")
    page.keyboard.press("Enter")
    shows(page, 102)
    assert page.locator("[data-field=place]").inner_text() == "3 of 40"


def test_back_and_forward_go_through_map_and_features(page: Page) -> None:
    page.locator("[data-link='102']").click()
    shows(page, 102)
    page.go_back()
    expect(page.locator("main [data-map]")).to_be_visible()
    assert page.locator("article").count() == 0
    page.go_forward()
    shows(page, 102)
    page.keyboard.press("m")
    search(page, "label 5")
    page.go_back()
    shows(page, 102)
    page.go_forward()
    expect(page.locator("main [data-map]")).to_be_visible()
    assert rows(page) == [105]  # the map is as it was left
    page.evaluate("location.hash = '#f=104'")
    shows(page, 104)


def test_leaving_the_map_without_having_seen_a_feature(page: Page) -> None:
    page.keyboard.press("Escape")
    expect(page.locator("main [data-map]")).to_be_visible()
    page.locator("[data-action=leave]").click()
    shows(page, 100)
    page.keyboard.press("m")
    assert page.locator("[data-action=leave]").inner_text().startswith("Back to #100")


def test_help_lists_the_keys_of_the_map(page: Page) -> None:
    page.keyboard.press("?")
    assert "the map of all features" in page.locator("#help").inner_text()


def test_jump_says_which_token_matched(open_page: OpenPage) -> None:
    page = open_page(make_head(), make_features())
    page.keyboard.press("/")
    page.keyboard.type("\\ton")
    assert page.locator("[data-option-id]").evaluate_all("nodes => nodes.map(n => n.dataset.optionId)") == ["12"]
    assert page.locator("#matches .hit").all_text_contents() == ["\ton"]
    page.locator("[data-field=jump]").fill("dog")
    assert page.locator("#matches .hit").count() == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_of_the_map_stands_out(open_page: OpenPage, scheme: str) -> None:
    head = make_map_head()
    page = open_page(head, make_map_features(head), color_scheme=scheme)
    search(page, " ")
    page.locator("[data-class=shared]").click()
    page.get_by_label("colour").select_option(label="max activation")
    page.locator("th[data-column=max] button").click()
    page.locator(".plot").focus()
    page.keyboard.press("ArrowRight")
    expect(page.locator("#tip")).to_be_visible()
    found = page.evaluate(CONTRASTS)
    assert len(found) > 100
    assert [entry for entry in found if entry[1] < (4.5 if entry[0] == "text" else 3)] == []


def test_dots_take_the_colours_of_the_scheme_when_it_changes(page: Page) -> None:
    frames = "() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))"
    light = page.locator("canvas").evaluate(INK)
    page.emulate_media(color_scheme="dark")
    page.evaluate(frames)  # a page hears of another scheme with the next frame
    dark = page.locator("canvas").evaluate(INK)
    assert light != dark
    page.emulate_media(color_scheme="light")
    page.evaluate(frames)
    assert page.locator("canvas").evaluate(INK) == light


def test_heaps_along_the_edges_count_the_dots_shown(page: Page) -> None:
    def widest() -> list[int]:
        """First and last pixel painted in the strip above the plot, as hundredths of its width."""
        return page.locator("canvas").evaluate(
            """canvas => {
              const copy = new OffscreenCanvas(canvas.width, 42).getContext("2d");
              copy.drawImage(canvas, 0, 0);
              const alpha = copy.getImageData(0, 0, canvas.width, 42).data.filter((_, i) => i % 4 === 3);
              const columns = [...alpha.keys()].filter((i) => alpha[i]).map((i) => i % canvas.width);
              return [Math.min(...columns), Math.max(...columns)].map((x) => Math.round((100 * x) / canvas.width));
            }"""
        )

    low, high = widest()
    assert low < 25
    assert high > 80
    page.locator("[data-class='only base']").click()
    assert widest()[0] == low
    assert widest()[1] < 50


def test_canvas_has_the_pixels_of_the_screen(open_page: OpenPage) -> None:
    head = make_map_head()
    page = open_page(head, make_map_features(head), device_scale_factor=2)
    width, shown = page.locator("canvas").evaluate("node => [node.width, node.clientWidth]")
    assert width == 2 * shown > 0


@pytest.mark.parametrize("screen", ["map", "feature"])
def test_a_narrow_screen_does_not_scroll_sideways(open_page: OpenPage, screen: str) -> None:
    head = make_map_head()
    page = open_page(head, make_map_features(head), viewport={"width": 380, "height": 800})
    search(page, " cat")
    if screen == "feature":
        page.locator("[data-map-row] a").first.click()
        shows(page, 100)
    assert page.evaluate("document.documentElement.scrollWidth") == 380


def test_hostile_text_is_shown_as_it_is(open_page: OpenPage) -> None:
    n = len(HOSTILE)
    head = make_map_head(n, vocabulary=HOSTILE, token_ids=list(range(n)))
    head["features"] |= {"label": HOSTILE, "class": HOSTILE, "tokens": [[i] for i in range(n)]}
    head["features"]["measures"][0] |= {"label": HOSTILE[1], "help": HOSTILE[1]}
    page = open_page(head, make_map_features(head))
    expected = [units(word) for word in HOSTILE]
    assert page.locator("[data-map-row] .chips .token").evaluate_all(UNITS) == expected
    assert page.locator("[data-map-row] td:nth-child(2)").evaluate_all(UNITS) == expected
    assert page.locator(".classes button").count() == n
    page.mouse.move(*dot(page, 101))
    expect(page.locator("#tip")).to_be_visible()
    assert page.locator("#app img, #app script, #tip img").count() == 0
    for word in ("<img", "constructor", "\u202e", "${1}", "\\"):
        search(page, word)
        assert rows(page) == [100 + i for i, text in enumerate(HOSTILE) if word in text]


def test_ten_thousand_features(open_page: OpenPage) -> None:
    head = make_map_head(10_000)
    page = open_page(head, make_map_features(head))
    assert status(page) == "10,000 features"
    assert len(rows(page)) < 80
    assert page.locator(".sheet table").get_attribute("aria-rowcount") == "10001"
    page.locator(".sheet").evaluate("node => node.scrollTop = 5000 * 32")
    expect(page.locator("[data-map-row='5105']")).to_be_visible()
    page.locator("th[data-column=relative_norm] button").click()
    assert rows(page)[0] == 10_099
    search(page, "4242")
    assert rows(page) == [4242]
    page.keyboard.press("Enter")
    shows(page, 4242)
    assert page.locator("[data-field=place]").inner_text() == "1 of 1 (filtered)"


def test_one_feature_and_none_that_fires(open_page: OpenPage) -> None:
    features = {
        "id": [3], "label": [""], "density": [0.0], "max": [0.0], "class": [None], "tokens": [[]], "measures": [],
    }  # fmt: skip
    head = make_map_head(features=features, first=3)
    page = open_page(head, make_map_features(head))
    assert rows(page) == [3]
    assert page.locator(".sheet th").all_inner_texts() == ["Feature", "density", "max activation"]
    page.mouse.click(*dot(page, 3))
    shows(page, 3)


def test_vocabulary_constants_match_the_sample() -> None:
    words = make_map_head()["vocabulary"]
    assert [words[i] for i in (CAT, NEWLINE, THE)] == [" cat", "\n", "The"]
