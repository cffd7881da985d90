"""The live widget's front end in Chromium: its page in its frame, with Python, or a stand-in, answering."""

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import sae_vis
from page_reader import read_page
from page_samples import make_features, make_head
from playwright.sync_api import Browser, FrameLocator, Page, expect

from crossvis_tl import SaeVisData, load_dictionary
from crossvis_tl.live import Session
from crossvis_tl.page import render_page
from crossvis_tl.page.build import page_chunks, read
from crossvis_tl.page.encode import deflate
from crossvis_tl.page.pack import pack
from crossvis_tl.page_data import feature_page

pytestmark = pytest.mark.filterwarnings("ignore::crossvis_tl.CrossvisWarning")
Message = dict[str, Any]

# A notebook's cell: the widget's module, on a model whose messages go to Python and whose answers come from there.
CELL = """<!doctype html><meta charset="utf-8"><body style="margin: 0"><div id="cell"></div>
<script type="module">
const { default: widget } = await import(URL.createObjectURL(new Blob([%s], { type: "text/javascript" })));
const hearers = { "msg:custom": [], "change:height": [] };
let height = 700;
const model = {
  get: (name) => ({ height })[name], send: (message) => window.toPython(message),
  on: (name, hear) => hearers[name].push(hear),
  off: (name, hear) => hearers[name].splice(hearers[name].indexOf(hear), 1),
};
window.hear = (message) => [...hearers["msg:custom"]].forEach((one) => one(message));
window.resize = (to) => { height = to; hearers["change:height"].forEach((one) => one()); };
window.hearing = () => Object.values(hearers).flat().length;
window.draw = () => { window.takeDown = widget.render({ model, el: document.getElementById("cell") }); };
draw();
</script>"""


class StandIn:
    """Python's part with numbers made up: a token a word, feature 7 fires with the length of one, 12 on every second
    word, 900 on the first; features 7, 12 and 40 have dashboards."""

    def __init__(self, **head: Any):
        shell = page_chunks(make_head(view="live") | head, ())
        self.html = next(iter(shell)) + read("shell.html").split("%%FEATURES%%")[1]
        self.features = dict(make_features())
        self.prompt, self.whole, self.labels = "", True, {900: "first"}

    def answer(self, message: Message) -> Message:
        make: dict[str, Callable[[Message], Message]] = {
            "page": lambda _: {"kind": "page", "html": self.html},
            "hello": lambda _: {"kind": "start", "text": self.prompt, "feature": None, "pins": []},
            "ask": lambda asked: {"kind": "answer"} | self.ask(asked["text"]),
            "find": lambda asked: {"kind": "found"} | self.find(asked["text"]),
            "open": lambda asked: {"kind": "dashboard"} | self.open(asked["feature"]),
        }
        return {"view": message["view"], "seq": message.get("seq")} | make[message["kind"]](message)

    def ask(self, text: str) -> Message:
        if "TOO LONG" in text:
            return {"error": "the prompt's tokens are 31 positions long; the model's context is 24"}
        words = ["<|bos|>", *re.findall(r"\s?\S+|\s+", text)] if text else []
        at = [[] for _ in words]
        for position, word in list(enumerate(words))[1:]:
            fires = [(7, float(len(word))), (12, 3.5 if position % 2 == 0 else 0), (900, 9.25 if position == 1 else 0)]
            at[position] = sorted(((v, f) for f, v in fires if v), reverse=True)
        flat = [(position, feature, value) for position, pairs in enumerate(at) for value, feature in pairs]
        features = sorted({feature for _, feature, _ in flat})
        return {
            "text": text, "ids": [5000 + hash(word) % 999 if word != "<|bos|>" else 1000 for word in words],
            "tokens": json.dumps(words), "counted": [position > 0 for position in range(len(words))],
            "fired": [len(pairs) for pairs in at], "whole": self.whole,
            "acts": {name: [row[i] for row in flat] for i, name in enumerate(("token", "feature", "value"))},
            "features": features, "labels": [self.labels.get(feature, "") for feature in features],
        }  # fmt: skip

    def find(self, text: str) -> Message:
        known = text.strip("#").isdecimal()
        return {"feature": int(text.strip("#")), "label": ""} if known else {"error": f"{text!r} names no feature"}

    def open(self, feature: int) -> Message:
        return {"feature": feature, "packed": deflate(pack(self.features[feature]), "a feature")}


class Notebook:
    """A cell on a page. `asked`: every message that came to Python; while `held`, none is answered."""

    def __init__(self, page: Page, python: Any):
        self.page, self.python, self.asked, self.held = page, python, [], False
        self.frame: FrameLocator = page.frame_locator("iframe")

    def to_python(self, message: Message) -> None:
        self.asked.append(message)
        if not self.held:
            self.hear(self.python.answer(message))

    def hear(self, answer: Message) -> None:
        """Give an answer to the widget; asynchronously, as this runs inside a call from the page."""
        self.page.evaluate("(answer) => { setTimeout(() => window.hear(answer)); }", answer)

    def asks(self) -> list[Message]:
        return [message for message in self.asked if message["kind"] == "ask"]

    def wait_for(self, n_asks: int) -> None:
        while len(self.asks()) < n_asks:
            self.page.wait_for_timeout(10)

    @property
    def prompt(self):
        return self.frame.get_by_label("Prompt", exact=True)

    @property
    def tokens(self):
        return self.frame.locator(".typed .token")

    def type(self, text: str, n_tokens: int) -> None:
        """Type once the page has heard from Python, and wait for the tokens."""
        expect(self.frame.get_by_role("status")).not_to_have_text("Waiting for the kernel…")
        self.prompt.fill(text)
        expect(self.tokens).to_have_count(n_tokens)

    def acts(self, expected: list[float]) -> None:
        expect(self.tokens).to_have_count(len(expected))
        for token, act in enumerate(expected):
            expect(self.tokens.nth(token)).to_have_attribute("data-act", f"{act:g}")

    def listed(self) -> list[str]:
        return self.frame.locator(".rank").evaluate_all("nodes => nodes.map(({ dataset }) => dataset.feature)")


@pytest.fixture
def open_cell(browser: Browser, tmp_path: Path) -> Iterator[Callable[..., Notebook]]:
    """-> open_cell(python, **context options). When the test ends: nothing was asked for but the cell's own file and
    script, and nothing was written to the console."""
    watched: list[tuple[Notebook, list[str], list[str]]] = []

    def open_one(python: Any = None, **options: Any) -> Notebook:
        path = tmp_path / "cell.html"
        path.write_text(CELL % json.dumps(read("live_widget.js")), encoding="utf-8")
        context = browser.new_context(**{"viewport": {"width": 1100, "height": 720}, **options})
        context.set_offline(True)
        page, requests, faults = context.new_page(), [], []
        page.set_default_timeout(10_000)
        page.on("request", lambda request: requests.append(request.url))
        page.on("console", lambda message: faults.append(message.text))
        page.on("pageerror", lambda error: faults.append(str(error)))
        notebook = Notebook(page, python or StandIn())
        page.expose_function("toPython", notebook.to_python)
        watched.append((notebook, requests, faults))
        page.goto(path.as_uri())
        return notebook

    yield open_one
    for notebook, requests, faults in watched:
        assert [url for url in requests if not url.startswith(("blob:", "about:srcdoc"))] == [
            (tmp_path / "cell.html").as_uri()
        ]
        assert faults == []
        notebook.page.context.close()


@pytest.fixture
def cell(open_cell: Callable[..., Notebook]) -> Notebook:
    """A cell with "The cat sat" typed; tokens have 3, 4 and 4 characters."""
    cell = open_cell()
    cell.type("The cat sat", 4)
    return cell


def test_what_is_typed_is_run_and_its_tokens_are_coloured(cell: Notebook) -> None:
    assert [message["text"] for message in cell.asks()] == ["The cat sat"]
    assert cell.tokens.all_text_contents() == ["<|bos|>", "The", " cat", " sat"]
    cell.acts([0, 3, 4, 4])  # the strongest on the last token, 7
    shades = cell.tokens.evaluate_all("nodes => nodes.map((node) => node.style.getPropertyValue('--shade'))")
    assert shades == ["0", "0.75", "1", "1"]
    assert "3 of 4 tokens" in cell.frame.locator("main .legend").first.inner_text()
    expect(cell.frame.get_by_role("status")).to_have_text("4 tokens, 1.3 features a token")
    cell.tokens.nth(1).hover()
    tip = cell.frame.locator("#tip")
    assert "id 5" in tip.inner_text()
    assert "Activation\n3.000" in tip.inner_text()
    assert "position 1" in tip.inner_text()


def test_a_prompt_given_at_the_start_is_run(open_cell: Callable[..., Notebook]) -> None:
    python = StandIn()
    python.prompt = "A dog"
    cell = open_cell(python)
    expect(cell.prompt).to_have_value("A dog")
    expect(cell.tokens).to_have_count(3)


def test_a_token_is_chosen_and_its_features_are_listed(cell: Notebook) -> None:
    assert cell.listed() == ["7"]
    cell.tokens.nth(1).click()
    expect(cell.tokens.nth(1)).to_have_attribute("aria-pressed", "true")
    assert cell.listed() == ["900", "7"]
    rows = cell.frame.locator(".rank")
    assert rows.all_inner_texts()[0].split("\n") == ["#900 first", "9.250"]
    assert rows.nth(1).locator(".gauge").evaluate("node => node.style.getPropertyValue('--share')") == str(3 / 9.25)
    cell.acts([0, 9.25, 0, 0])  # the strongest there
    assert "was not gathered" in cell.frame.locator("main").inner_text()
    cell.tokens.nth(0).click()
    expect(cell.frame.locator("[data-panel=Firing]")).to_have_text(
        "“<|bos|>” at position 0 is masked, as in the dashboards."
    )


def test_a_feature_colours_the_prompt_and_shows_its_dashboard(cell: Notebook) -> None:
    cell.tokens.nth(2).click()
    cell.frame.locator(".rank[data-feature='12']").click()
    cell.acts([0, 0, 3.5, 0])
    article = cell.frame.locator("article")
    expect(article).to_have_attribute("data-feature-id", "12")
    assert "0 to 4.000, its largest in the data" in cell.frame.locator("main .legend").first.inner_text()
    mark = article.locator("[data-panel=ActsHistogram] g[data-value]")
    expect(mark).to_have_text("“ cat” 3.500")
    cell.tokens.nth(1).hover()
    expect(mark).to_have_text("“The” 0.000")
    cell.tokens.nth(3).click()
    cell.frame.locator("h1").hover()
    expect(cell.frame.locator("[data-colour='12']")).to_have_attribute("aria-pressed", "true")
    cell.tokens.nth(3).blur()
    expect(mark).to_have_text("“ sat” 0.000")
    assert [message["feature"] for message in cell.asked if message["kind"] == "open"] == [7, 12]
    cell.frame.locator(".rank[data-feature='7']").click()
    expect(article).to_have_attribute("data-feature-id", "7")
    cell.frame.locator("[data-colour='strongest']").click()
    cell.tokens.nth(2).click()
    expect(article).to_have_attribute("data-feature-id", "7")
    assert [message["feature"] for message in cell.asked if message["kind"] == "open"] == [7, 12]  # kept


def test_pinned_features_and_the_chosen_one_stay_while_the_text_changes(cell: Notebook) -> None:
    cell.tokens.nth(2).click()
    cell.frame.locator(".rank[data-feature='12']").click()
    cell.frame.get_by_role("button", name="Pin").click()
    cell.frame.locator(".rank[data-feature='7']").click()
    chips = cell.frame.locator(".colours button")
    assert chips.all_inner_texts() == ["Strongest here", "#12 dogs", "#7 cats"]
    cell.prompt.fill("The cat sat on a mat")
    cell.acts([0, 3, 4, 4, 3, 2, 4])
    last = cell.asks()[-1]
    assert (last["feature"], last["pins"]) == (7, [12])
    expect(cell.tokens.nth(2)).to_have_attribute("aria-pressed", "true")
    chips.nth(1).click()
    cell.acts([0, 0, 3.5, 0, 3.5, 0, 3.5])
    cell.frame.get_by_role("button", name="Unpin").click()
    assert chips.all_inner_texts() == ["Strongest here", "#12 dogs"]
    cell.prompt.fill("A")
    expect(cell.tokens.nth(1)).to_have_attribute("aria-pressed", "true")  # there is no third token any more


def test_any_feature_is_found_by_its_number(cell: Notebook) -> None:
    box = cell.frame.get_by_label("Colour by feature")
    box.fill("#12")
    box.press("Enter")
    cell.acts([0, 0, 3.5, 0])
    expect(box).to_have_value("")
    box.fill("cats")
    box.press("Enter")
    expect(cell.frame.get_by_role("status")).to_have_text("'cats' names no feature")
    cell.acts([0, 0, 3.5, 0])
    box.fill("900")
    box.press("Enter")
    cell.acts([0, 9.25, 0, 0])
    expect(cell.frame.get_by_role("status")).to_have_text("4 tokens, 1.3 features a token")


def test_a_feature_of_which_not_all_was_sent_is_asked_for(open_cell: Callable[..., Notebook]) -> None:
    python = StandIn()
    python.whole = False
    cell = open_cell(python)
    cell.type("The cat", 3)
    cell.tokens.nth(1).click()
    cell.frame.locator(".rank[data-feature='900']").click()
    cell.wait_for(2)
    assert cell.asks()[-1]["feature"] == 900
    expect(cell.frame.locator(".rank[data-feature='900']")).to_be_focused()  # in a list that was drawn anew
    cell.frame.locator(".rank[data-feature='7']").click()  # gathered: always whole
    cell.acts([0, 3, 4])
    assert len(cell.asks()) == 2


def test_answers_to_what_is_no_longer_asked_are_dropped(cell: Notebook) -> None:
    cell.held = True
    cell.prompt.fill("One")
    cell.prompt.press("Enter")
    cell.prompt.fill("One two")
    cell.prompt.press("Enter")
    cell.wait_for(3)
    first, second = cell.asks()[1:]
    assert first["seq"] < second["seq"]
    expect(cell.frame.locator("main")).to_have_attribute("aria-busy", "true")
    cell.hear(cell.python.answer(second))
    expect(cell.tokens).to_have_text(["<|bos|>", "One", " two"])
    expect(cell.frame.locator("main")).to_have_attribute("aria-busy", "false")
    cell.hear(cell.python.answer(first))
    cell.hear(cell.python.answer(second) | {"view": "another"})
    cell.held = False
    cell.prompt.press("Enter")
    cell.wait_for(4)
    expect(cell.tokens).to_have_text(["<|bos|>", "One", " two"])


def test_typing_waits_for_the_answer_before_and_then_sends_the_last_text(cell: Notebook) -> None:
    cell.held = True
    cell.prompt.press("End")
    cell.prompt.press("s")
    cell.wait_for(2)
    for key in "abc":
        cell.prompt.press(key)
        cell.page.wait_for_timeout(200)
    assert len(cell.asks()) == 2
    cell.hear(cell.python.answer(cell.asks()[1]))
    cell.wait_for(3)
    assert [message["text"] for message in cell.asks()[1:]] == ["The cat sats", "The cat satsabc"]
    cell.hear(cell.python.answer(cell.asks()[2]))
    expect(cell.tokens.last).to_have_text(" satsabc")


def test_enter_runs_and_shift_enter_is_a_new_line(cell: Notebook) -> None:
    cell.prompt.press("End")
    cell.prompt.press("Shift+Enter")
    cell.prompt.press("Enter")
    cell.wait_for(2)
    assert cell.asks()[1]["text"] == "The cat sat\n"
    expect(cell.prompt).to_have_value("The cat sat\n")


def test_an_error_is_shown_until_the_next_answer(cell: Notebook) -> None:
    cell.prompt.fill("TOO LONG")
    status = cell.frame.get_by_role("status")
    expect(status).to_have_text("the prompt's tokens are 31 positions long; the model's context is 24")
    expect(cell.frame.locator("main")).to_have_class("stale")
    expect(cell.tokens).to_have_count(4)  # of the last prompt that could be run
    cell.prompt.fill("Short")
    expect(status).to_have_text("2 tokens, 1.0 features a token")
    expect(cell.frame.locator("main")).not_to_have_class("stale")
    cell.prompt.fill("")
    expect(cell.frame.locator("main [data-field=nothing]")).to_contain_text("Type a prompt.")
    expect(cell.tokens).to_have_count(0)
    cell.prompt.fill("Short")
    expect(cell.tokens).to_have_count(2)


def test_strings_are_text_whatever_they_say(open_cell: Callable[..., Notebook]) -> None:
    evil = "<img/src=x/onerror=alert(1)> </script><script>alert(2)</script> \u202e\u0000 %%HEAD%% 猫🐈"
    python = StandIn(title=evil)
    python.labels = {900: "<b onclick=alert(3)>", 7: evil}
    cell = open_cell(python)
    words = re.findall(r"\s?\S+|\s+", evil)
    cell.type(evil, len(words) + 1)
    assert cell.tokens.all_text_contents()[1:] == words
    cell.tokens.nth(1).click()
    assert cell.frame.locator(".rank[data-feature='900'] .called").inner_text() == "#900 <b onclick=alert(3)>"
    cell.frame.locator(".rank[data-feature='900']").click()
    assert cell.frame.locator("[data-colour='900']").inner_text() == "#900 <b onclick=alert(3)>"
    for position in range(len(words) + 1):
        cell.tokens.nth(position).hover()
        cell.tokens.nth(position).click()
    assert cell.frame.locator("img, [onclick], [onerror]").count() == 0
    assert cell.frame.locator("h1").text_content() == evil


def test_everything_is_reached_by_keys(cell: Notebook) -> None:
    cell.frame.locator("h1").click()
    cell.page.keyboard.press("/")
    expect(cell.prompt).to_be_focused()
    for _ in range(4):  # the box, "strongest", Pin, help
        cell.page.keyboard.press("Tab")
    cell.page.keyboard.press("Tab")
    expect(cell.tokens.nth(3)).to_be_focused()
    cell.page.keyboard.press("ArrowLeft")
    expect(cell.tokens.nth(2)).to_be_focused()
    expect(cell.frame.locator("#tip")).to_contain_text("position 2")
    cell.page.keyboard.press("Home")
    cell.page.keyboard.press("ArrowRight")
    cell.page.keyboard.press("Enter")
    expect(cell.tokens.nth(1)).to_have_attribute("aria-pressed", "true")
    cell.page.keyboard.press("Tab")
    expect(cell.frame.locator(".rank").first).to_be_focused()
    cell.page.keyboard.press("ArrowDown")
    expect(cell.frame.locator(".rank").nth(1)).to_be_focused()
    cell.page.keyboard.press("Enter")
    cell.acts([0, 3, 4, 4])
    cell.page.keyboard.press("j")
    expect(cell.tokens.nth(2)).to_have_attribute("aria-pressed", "true")
    cell.page.keyboard.press("?")
    help_dialog = cell.frame.get_by_role("dialog")
    assert "to the prompt" in help_dialog.inner_text()
    help_dialog.get_by_role("button", name="Close").click()
    expect(help_dialog).to_be_hidden()


def test_the_frame_is_a_sandbox_and_hears_only_its_own(cell: Notebook) -> None:
    frame = cell.page.locator("iframe")
    assert frame.get_attribute("sandbox") == "allow-scripts"
    before = len(cell.asked)
    cell.page.evaluate("window.postMessage({ kind: 'ask', seq: 99, text: 'no', feature: null, pins: [] }, '*')")
    cell.page.evaluate("window.resize(500)")
    assert frame.evaluate("node => node.offsetHeight") == 500
    assert len(cell.asked) == before
    cell.page.evaluate("window.takeDown()")
    assert cell.page.evaluate("window.hearing()") == 0


def test_a_page_that_cannot_be_made_says_why(open_cell: Callable[..., Notebook]) -> None:
    class Broken:
        def answer(self, message: Message) -> Message:
            return {"kind": "page", "view": message["view"], "error": "there are no features to show"}

    cell = open_cell(Broken())
    expect(cell.page.locator("#cell")).to_have_text("there are no features to show")


def test_until_the_kernel_answers_it_says_that_it_waits(open_cell: Callable[..., Notebook]) -> None:
    class Silent:
        def answer(self, message: Message) -> Message:
            return {"view": "another"}

    expect(open_cell(Silent()).page.locator("#cell")).to_contain_text("Waiting for the kernel")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_narrow_cell_does_not_scroll_sideways(open_cell: Callable[..., Notebook], scheme: str) -> None:
    cell = open_cell(viewport={"width": 380, "height": 720}, color_scheme=scheme)
    cell.type("The cat sat on a mat, and a dog looked at it for a while before it lay down.", 20)
    cell.frame.locator(".rank[data-feature='7']").click()
    cell.frame.locator("article").wait_for()
    assert cell.frame.locator("body").evaluate("node => node.scrollWidth <= innerWidth")


@pytest.fixture
def crosscoder_data(crosscoder_dir, tl_models, tokens) -> SaeVisData:
    cfg = sae_vis.SaeVisConfig(features=[3, 12, 30])
    return SaeVisData.create(load_dictionary(crosscoder_dir), tl_models, tokens, cfg)


def test_from_a_dictionary_to_the_screen(crosscoder_data, open_cell: Callable[..., Notebook]) -> None:
    cell = open_cell(Session(crosscoder_data, "HELLO"))
    expect(cell.tokens).to_have_text(["<|endoftext|>", *"HELLO"])
    answer = Session(crosscoder_data).answer({"kind": "ask", "text": "HELLO", "feature": None, "pins": []})
    rows = list(zip(*answer["acts"].values(), strict=True))
    for feature in [*sorted({feature for _, feature, _ in rows})[:4], 12]:
        box = cell.frame.get_by_label("Colour by feature")
        box.fill(str(feature))
        box.press("Enter")
        of = {token: value for token, other, value in rows if other == feature}
        expect(cell.frame.locator(f"[data-colour='{feature}']")).to_have_attribute("aria-pressed", "true")
        acts = cell.tokens.evaluate_all("nodes => nodes.map((node) => Number(node.dataset.act))")
        assert acts == [of.get(token, 0) for token in range(6)]
    expect(cell.frame.locator("article")).to_have_attribute("data-feature-id", "12")
    assert cell.frame.locator("article [data-panel=Sequences] [data-token]").count() > 10


def test_the_page_has_the_index_and_each_dashboard_is_had_by_asking(crosscoder_data) -> None:
    session = Session(crosscoder_data)
    html = session.answer({"kind": "page"})["html"]
    head, features = read_page(html)
    assert features == {}
    assert head["view"] == "live"
    assert html.endswith("</html>\n")
    saved_head, saved = read_page(render_page(*feature_page(crosscoder_data, None)))
    assert head["features"] == saved_head["features"]
    assert head["vocabulary"] == saved_head["vocabulary"]
    for feature in (12, 30):
        packed = session.answer({"kind": "open", "feature": feature})["packed"]
        tag = f"<script type=t id=f{feature}>{packed}</script>\n</body>"
        assert read_page(html.replace("</body>", tag))[1] == {feature: saved[feature]}
    error = session.answer({"kind": "open", "feature": 5})
    assert (error["feature"], error["error"]) == (5, "feature 5 was not gathered")


def test_no_saved_page_carries_the_live_view() -> None:
    saved = render_page(make_head(), make_features())
    assert "const liveView" not in saved
    assert ".ask " not in saved
    assert "const liveView" in StandIn().html
