"""The feature view in Chromium: what is shown, and how one moves."""

import pytest
from page_samples import CAT, DOG, MAT, OpenPage, make_feature, make_features, make_fidelity, make_head, make_layout
from playwright.sync_api import Page, expect


@pytest.fixture
def page(open_page: OpenPage) -> Page:
    return open_page(make_head(), make_features())


def shows(page: Page, number: int) -> None:
    expect(page.locator("main article")).to_have_attribute("data-feature-id", str(number))


def field(page: Page, name: str) -> str:
    return page.locator(f"main [data-field='{name}']").first.inner_text()


def token(page: Page, at: int, row: int = 0):
    return page.locator("[data-panel=Sequences] .tokens").nth(row).locator("[data-token]").nth(at)


def test_first_feature_is_shown_with_its_numbers(page: Page) -> None:
    shows(page, 7)
    names = ["id", "label", "density", "max", "class", "relative-norm", "cosine"]
    assert [field(page, name) for name in names] == ["#7", "cats", "1.250%", "2.000", "shared", "0.250", "0.875"]
    assert [page.locator(f"[data-site-norm='{i}']").inner_text() for i in (0, 1)] == ["1.500", "0.500"]
    assert page.title() == "#7 · A crosscoder"
    assert page.locator("h1").inner_text() == "A crosscoder"
    assert "masked BOS: 1,024 tokens" in page.locator(".facts").inner_text().replace("\n", " ")


def test_every_panel_of_the_layout_is_there_in_its_column(page: Page) -> None:
    columns = page.locator(".column").all()
    panels = [[node.get_attribute("data-panel") for node in column.locator("[data-panel]").all()] for column in columns]
    assert panels == [
        ["FeatureTables", "DecoderNorms", "DecoderCosine"],
        ["ActsHistogram", "LogitsTable", "LogitsHistogram"],
        ["Sequences"],
    ]


def test_tables_print_their_rows(page: Page) -> None:
    rows = {
        table: page.locator(f"[data-table={table}] tbody").inner_text()
        for table in ("neuron_alignment", "correlated_features")
    }
    assert rows["neuron_alignment"] == "52\t+0.203\t2.8%"
    assert rows["correlated_features"].splitlines()[0] == "#12 dogs\t+0.378\t+0.454"


def test_only_features_on_the_page_are_linked(page: Page) -> None:
    links = page.locator("[data-panel=FeatureTables] a").all()
    assert [link.get_attribute("href") for link in links] == ["#f=12"]  # not 999, no neuron, no feature of B
    links[0].click()
    shows(page, 12)
    page.go_back()
    shows(page, 7)


def test_steps_by_button_and_by_key(page: Page) -> None:
    previous, following = page.locator("[data-action=previous]"), page.locator("[data-action=next]")
    assert previous.is_disabled()
    following.click()
    shows(page, 12)
    assert field(page, "density") == "0.00020%"
    assert page.url.endswith("#f=12")
    assert page.locator("[data-field=place]").inner_text() == "2 of 3"
    page.keyboard.press("j")
    shows(page, 40)
    assert following.is_disabled()
    page.keyboard.press("j")
    shows(page, 40)
    for key in ("ArrowLeft", "k"):
        page.keyboard.press(key)
    shows(page, 7)
    page.keyboard.press("ArrowRight")
    shows(page, 12)


def test_the_address_opens_a_feature_and_follows(open_page: OpenPage) -> None:
    page = open_page(make_head(), make_features(), "#f=12")
    shows(page, 12)
    page.evaluate("location.hash = '#f=40'")
    shows(page, 40)
    page.evaluate("location.hash = '#f=12345'")  # not on the page
    shows(page, 40)


def test_an_unknown_address_opens_the_first_feature(open_page: OpenPage) -> None:
    shows(open_page(make_head(first=12), make_features(), "#f=999"), 12)


def test_jump_finds_by_label_and_number(page: Page) -> None:
    page.keyboard.press("/")
    jump = page.locator("[data-field=jump]")
    expect(jump).to_be_focused()
    assert page.locator("[data-option-id]").count() == 3
    page.keyboard.type("dog")
    assert page.locator("[data-option-id]").evaluate_all("options => options.map(o => o.dataset.optionId)") == ["12"]
    page.keyboard.press("Enter")
    shows(page, 12)
    page.keyboard.press("/")
    page.keyboard.type("#40")
    page.locator("[data-option-id='40']").click()
    shows(page, 40)
    page.keyboard.press("/")
    page.keyboard.type("zebra j")  # a letter typed here is text
    assert "No feature" in page.locator("#matches").inner_text()
    page.keyboard.press("Escape")
    assert page.locator("#matches").is_hidden()
    shows(page, 40)


def test_arrow_keys_choose_among_matches(page: Page) -> None:
    page.keyboard.press("/")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    shows(page, 12)


def test_question_mark_opens_help_and_escape_closes_it(page: Page) -> None:
    page.keyboard.press("?")
    expect(page.locator("#help")).to_be_visible()
    assert "next feature" in page.locator("#help").inner_text()
    page.keyboard.press("Escape")
    expect(page.locator("#help")).to_be_hidden()


@pytest.mark.parametrize("way", ["hover", "focus"])
def test_tooltip_by_pointer_and_by_focus(page: Page, way: str) -> None:
    newline = token(page, 3)
    getattr(newline, way)()
    tip = page.locator("#tip")
    expect(tip).to_be_visible()
    assert tip.locator("[data-field=text]").text_content() == "\n"
    assert tip.locator("[data-field=token-id]").inner_text() == "1004"
    assert tip.locator("[data-field=activation]").inner_text() == "1.000"
    assert "sequence 17, position 41" in tip.inner_text()
    losses = tip.locator("[data-field=loss]").all_inner_texts()
    assert losses == ["−0.400 nats", "+0.200 nats"]
    base, chat = tip.locator("[data-effect]").all()
    assert "helps" in base.inner_text()
    assert "hurts" in chat.inner_text()
    moved = base.locator("tr").evaluate_all("rows => rows.map(r => [...r.cells].map(c => c.textContent))")
    assert moved == [[" mat", "+0.31"], [" dog", "+0.20"], ["The", "−0.25"]]
    assert newline.get_attribute("aria-describedby") == "tip"
    page.keyboard.press("Escape")
    expect(tip).to_be_hidden()


def test_pointed_token_is_marked_in_the_histograms(page: Page) -> None:
    token(page, 3).hover()
    marks = page.locator("svg g[data-value]").evaluate_all(
        "groups => groups.map(g => [g.dataset.value, g.textContent])"
    )
    assert marks == [["1", "“↵” 1.000"], ["0.1", "“↵” +0.100"], ["-0.15", "“↵” −0.150"]]
    page.locator("h1").hover()
    assert page.locator("svg g[data-value]").evaluate_all("groups => groups.map(g => g.textContent)") == ["", "", ""]


def test_first_token_has_no_effect_to_show(page: Page) -> None:
    token(page, 0).hover()
    assert page.locator("#tip table").count() == 0


def test_arrow_keys_move_among_tokens_not_features(page: Page) -> None:
    token(page, 2).focus()
    page.keyboard.press("ArrowRight")
    expect(token(page, 3)).to_be_focused()
    page.keyboard.press("ArrowDown")
    expect(token(page, 3, row=1)).to_be_focused()
    page.keyboard.press("Home")
    expect(token(page, 0, row=1)).to_be_focused()
    page.keyboard.press("ArrowLeft")
    shows(page, 7)
    assert page.locator("[data-panel=Sequences] [tabindex='0']").count() == 1


def test_sequences_are_shaded_numbered_and_underlined(page: Page) -> None:
    row = page.locator("[data-panel=Sequences] .row").first
    assert row.locator(".act").inner_text() == "2.00"
    cells = row.locator("[data-token]")
    assert cells.evaluate_all("cells => cells.map(c => c.dataset.act)") == ["0", "0.5", "2", "1", "0"]
    assert cells.evaluate_all("cells => cells.map(c => c.style.getPropertyValue('--shade'))") == [
        "0",
        "0.25",
        "1",
        "0.5",
        "0",
    ]
    peak = cells.nth(2)
    assert peak.evaluate("cell => getComputedStyle(cell).textDecorationLine") == "underline"
    assert int(peak.evaluate("cell => getComputedStyle(cell).fontWeight")) >= 700
    assert "rgb(255, 148, 26)" in peak.evaluate("cell => getComputedStyle(cell).backgroundColor")


def test_bars_follow_the_chosen_model(page: Page) -> None:
    newline = token(page, 3)
    assert "helps" in (newline.get_attribute("class") or "")
    assert newline.evaluate("cell => getComputedStyle(cell).borderBottomStyle") == "solid"
    page.locator("[data-loss-model='1']").click()
    assert "hurts" in (newline.get_attribute("class") or "")
    assert newline.evaluate("cell => getComputedStyle(cell).borderBottomStyle") == "dashed"
    page.keyboard.press("j")
    shows(page, 12)
    assert "hurts" in (token(page, 3).get_attribute("class") or "")


def test_logits_of_each_model_under_its_name(page: Page) -> None:
    tables = page.locator("[data-panel=LogitsTable] [data-logits]")
    assert [tables.nth(i).locator("h4").inner_text() for i in (0, 1)] == ["●base", "■chat"]
    read = "tables => tables.map(t => [...t.rows].map(r => [r.cells[0].textContent, r.cells[1].textContent]))"
    assert tables.nth(0).locator("table").evaluate_all(read) == [
        [[" sat", "−0.40"], ["<|bos|>", "−0.30"]],  # two rows: n_rows of the layout
        [[" cat", "+0.50"], [" mat", "+0.25"]],
    ]
    assert tables.nth(1).locator("table").evaluate_all(read)[1][0] == [" dog", "+0.50"]
    assert page.locator("[data-panel=LogitsHistogram] svg").count() == 2


def test_missing_logits_say_why(open_page: OpenPage) -> None:
    feature = make_feature(logits=[], logits_note="The decoder does not write to the residual stream.")
    page = open_page(make_head(), [(7, feature), *make_features()[1:]])
    assert "does not write to the residual stream" in page.locator("[data-panel=LogitsTable]").inner_text()
    assert page.locator("[data-panel=LogitsHistogram]").count() == 0


def test_dead_feature_says_so_and_keeps_what_weights_tell(open_page: OpenPage) -> None:
    page = open_page(make_head(), make_features(), "#f=40")
    shows(page, 40)
    assert page.locator("[data-field=never-fired]").all_inner_texts() == ["Never fired on these tokens."] * 2
    assert page.locator("[data-token]").count() == 0
    assert page.locator("[data-panel=LogitsTable] tr").count() == 8
    assert field(page, "density") == "0.000%"


def test_class_help_opens_on_hover_and_focus(page: Page) -> None:
    chip = page.locator("button[data-field=class]")
    chip.focus()
    expect(page.locator("#tip")).to_have_text("shared: relative norm from 0.3 to 0.7")
    page.keyboard.press("Escape")
    chip.hover()
    expect(page.locator("#tip")).to_be_visible()


def test_plausible_verdict_is_quiet(page: Page) -> None:
    banner = page.locator("#app > :first-child")
    assert banner.get_attribute("data-verdict") == "plausible"
    assert banner.get_attribute("role") == "region"
    assert [page.locator(f"[data-site-fvu='{i}']").inner_text() for i in (0, 1)] == ["0.125", "1.900"]
    assert [banner.locator(f"[data-field={name}]").inner_text() for name in ("l0", "dead")] == ["61.3", "3.1%"]


def test_implausible_verdict_is_loud(open_page: OpenPage) -> None:
    fidelity = make_fidelity("implausible", ("FVU is 1.9.", "Half of the features fire everywhere."))
    page = open_page(make_head(fidelity=fidelity), make_features())
    banner = page.locator("#app > :first-child")
    assert banner.get_attribute("role") == "alert"
    assert "Implausible" in banner.inner_text()
    assert banner.locator("li").all_inner_texts() == fidelity["warnings"]
    assert banner.evaluate("node => getComputedStyle(node).backgroundColor") == "rgb(179, 32, 15)"


def test_no_fidelity_no_banner(open_page: OpenPage) -> None:
    page = open_page(make_head(fidelity=None), make_features())
    assert page.locator("[data-verdict]").count() == 0


@pytest.mark.parametrize(
    ("mode", "sizes"), [("stack-all", [5]), ("stack-quantiles", [1, 4]), ("stack-none", [1, 3, 1])]
)
def test_groups_are_stacked_as_the_layout_says(open_page: OpenPage, mode: str, sizes: list[int]) -> None:
    page = open_page(make_head(layout=make_layout(stack_mode=mode)), make_features())
    assert [stack.locator("section").count() for stack in page.locator(".stack").all()] == sizes
    titles = page.locator("[data-panel=Sequences] h3").all_text_contents()
    assert titles[:2] == ["Top activationsmax 2.000", "Interval1.500 to 2.000 · contains 1.230% of tokens"]


def test_clt_shows_only_the_targets_it_writes(open_page: OpenPage) -> None:
    targets = [{"model": 0, "hook": f"blocks.{i}.hook_mlp_out", "label": f"mlp {i}"} for i in range(4)]
    sites = {
        "target_index": [1, 2, 3],
        "norms": [0.5, 2.0, 1.0],
        "relative_norm": None,
        "cosine": [[1.0, 0.5, -0.25], [0.5, 1.0, 0.1], [-0.25, 0.1, 1.0]],
        "class": None,
        "note": "Written from layer 1 on.",
    }
    feature = make_feature(sites=sites)
    head = make_head(kind="clt", targets=targets)
    page = open_page(head, [(7, feature), *make_features()[1:]])
    norms = page.locator("[data-panel=DecoderNorms]")
    assert norms.locator("th[scope=row]").all_inner_texts() == ["●mlp 1", "●mlp 2", "●mlp 3"]
    assert norms.locator(".gauge").nth(1).evaluate("bar => bar.style.getPropertyValue('--share')") == "1"
    assert "Written from layer 1 on." in norms.inner_text()
    matrix = page.locator("[data-panel=DecoderCosine] tbody").inner_text()
    assert matrix.splitlines()[0] == "mlp 1\t1.00\t0.50\t−0.25"
    assert page.locator("[data-field=relative-norm]").count() == 0


def test_one_model_needs_no_names_and_no_choice(open_page: OpenPage) -> None:
    feature = make_feature(sites=None)
    feature["logits"] = feature["logits"][:1]
    page = open_page(make_head(kind="sae", models=["gpt2"]), [(number, feature) for number in (7, 12, 40)])
    assert page.locator("[data-loss-model]").count() == 0
    assert page.locator("h4").count() == 0
    assert page.locator("[data-panel^=Decoder]").count() == 0


def test_damaged_feature_says_so_and_the_others_still_open(open_page: OpenPage, browser, tmp_path) -> None:
    page = open_page(make_head(), make_features())
    page.evaluate("document.getElementById('f12').textContent = 'AAAA'")
    page.keyboard.press("j")
    shows(page, 12)
    assert "Feature 12 could not be read" in page.locator("main").inner_text()
    page.keyboard.press("j")
    shows(page, 40)


def test_quick_steps_end_at_the_last_one_asked_for(page: Page) -> None:
    page.evaluate("for (const key of 'jjkkj') document.dispatchEvent(new KeyboardEvent('keydown', { key }))")
    shows(page, 12)
    assert page.locator("article").count() == 1


def test_vocabulary_constants_match_the_sample() -> None:
    words = make_head()["vocabulary"]
    assert [words[i] for i in (CAT, DOG, MAT)] == [" cat", " dog", " mat"]


def test_probabilities_are_whole_percentages_as_they_are_written(open_page: OpenPage) -> None:
    feature = make_feature()
    for sequence in (one for group in feature["groups"] for one in group["sequences"]):
        sequence["e"][0]["p"], sequence["e"][1]["p"] = [None, 0.5, 0.004, 0.126, 1.0], [None] * 5
    page = open_page(make_head(), [(7, feature), *make_features()[1:]])
    shown = []
    for at in (2, 3, 4):
        token(page, at).focus()
        shown.append(page.locator("#tip [data-field=probability]").all_inner_texts())
    assert shown == [["< 0.5%"], ["13%"], ["100%"]]
