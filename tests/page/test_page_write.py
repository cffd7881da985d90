"""From Python to the file: round trips, refusals, and files that are whole or not there."""

import gzip
import math
import re
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from page_reader import read_page, read_tags
from page_samples import make_effect, make_feature, make_features, make_head, make_prompt_page, make_sequence

from crossvis_tl.page import render_page, write_page
from crossvis_tl.page.build import SCRIPTS, viewer_script

ANY_TEXT = st.text(st.characters(exclude_categories=()))  # lone surrogates as well


def as_written(feature: dict[str, Any]) -> dict[str, Any]:
    """What is null is left out, and the second token raised stands as fiftieths of the first."""
    kept = {name: value for name, value in feature.items() if value is not None} | {"prompts": feature["prompts"]}
    for sequence in (s for group in kept["groups"] for s in group["sequences"]):
        for effect in sequence["e"]:
            effect["p"] = [None] * len(sequence["t"])
            effect["up"] = [[0.31, 0.31 * 32 / 50] if up else [] for up in effect["up"]]
    return kept


def test_page_holds_what_it_was_given() -> None:
    head, features = read_page(render_page(make_head(), make_features()))
    assert head == make_head()
    assert features == {number: as_written(feature) for number, feature in make_features()}


@settings(max_examples=60, deadline=None)
@given(words=st.lists(ANY_TEXT, min_size=10, max_size=12), label=ANY_TEXT, title=ANY_TEXT)
def test_any_text_survives(words: list[str], label: str, title: str) -> None:
    head = make_head(vocabulary=words, token_ids=list(range(len(words))), title=title, class_help=label)
    feature = make_feature(logits=[], logits_note=label)
    page = render_page(head, [(7, feature), (12, feature), (40, feature)])
    page.encode("utf-8")
    read_head, read_features = read_page(page)
    assert read_head == head
    assert read_features[7] == as_written(feature)
    plain = render_page(make_head(), [(7, feature), (12, feature), (40, feature)])
    assert read_tags(page).tags == read_tags(plain).tags


def test_title_cannot_end_its_tag() -> None:
    page = render_page(make_head(title="</title><script>alert(1)</script>"), make_features())
    assert read_tags(page).texts["title"] == "</title><script>alert(1)</script>"
    assert "<script>alert" not in page


def test_text_that_reads_like_a_mark_of_the_shell_is_kept() -> None:
    head, _ = read_page(render_page(make_head(title="%%HEAD%% %%FEATURES%%"), make_features()))
    assert head["title"] == "%%HEAD%% %%FEATURES%%"


def test_page_forbids_connections_and_names_no_address() -> None:
    page = render_page(make_head(), make_features())
    policy = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
    assert f'http-equiv="Content-Security-Policy" content="{policy}"' in page
    assert re.findall(r"https?://[^\"' ]+", page) == ["http://www.w3.org/2000/svg"]  # the name of SVG, never fetched


def test_shell_stays_within_its_budget() -> None:
    page = render_page(make_head(), make_features())
    empty = re.sub(r'<script type=("application/json"|t ).*?</script>\n', "", page, flags=re.DOTALL)
    assert len(empty.encode()) < 80_000
    assert len(gzip.compress(viewer_script().encode())) < 30_000


def test_pages_carry_only_what_their_view_draws() -> None:
    scripts = {view: viewer_script(view) for view in ("feature", "prompt", "live")}
    for view, name in {"feature": "featureMap=(", "prompt": "promptView=(", "live": "liveView=("}.items():
        assert [other for other, script in scripts.items() if name in script] == [view]
    assert max(len(script) for script in scripts.values()) < 75_000
    assert "/**" not in "".join(scripts.values())


def test_viewer_files_are_all_used_and_never_parse_text_as_html() -> None:
    scripts = {path.name: path.read_text(encoding="utf-8") for path in (files("crossvis_tl.page") / "viewer").iterdir()}
    assert set(scripts) == set(SCRIPTS)
    for name, script in scripts.items():
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|</script", script), name
        nested = re.search(r"`[^`]*\$\{[^}`]*`", script)  # the minifier takes spaces out of such texts
        assert nested is None, f"{name}: a template inside a template: {nested}"


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_numbers_that_are_not_finite_are_refused_by_feature_and_place(value: float) -> None:
    feature = make_feature()
    feature["groups"][0]["sequences"][1]["a"][2] = value
    with pytest.raises(ValueError, match=rf"feature 12 .*groups\[0\]\.sequences\[1\]\.a\[2\] is {value}"):
        render_page(make_head(), [(7, make_feature()), (12, feature), (40, make_feature())])


def test_not_finite_in_the_head_is_refused() -> None:
    features = make_head()["features"] | {"max": [2.0, math.nan, 0.0]}
    with pytest.raises(ValueError, match=r"the head .*features\.max\[1\] is nan"):
        render_page(make_head(features=features), make_features())


def test_what_json_does_not_know_is_refused() -> None:
    feature = make_feature(acts_histogram={"heights": {1, 2}, "low": 0.0, "high": 1.0})
    with pytest.raises(ValueError, match=r"feature 7 .*acts_histogram\.heights is of type set"):
        render_page(make_head(), [(7, feature), *make_features()[1:]])


def bad_head(**changes: Any) -> dict[str, Any]:
    return make_head() | changes


@pytest.mark.parametrize(
    ("head", "message"),
    [
        (bad_head(version=1), "of version 1; this viewer reads version 2"),
        ({"version": 2}, "head lacks title, kind, view"),
        (bad_head(kind="transcoder"), "kind is 'transcoder'.*Did you mean"),
        (bad_head(first=8), "first is feature 8, which is not in the index"),
        (bad_head(token_ids=[1]), "vocabulary has 10 entries, token_ids 1"),
        (bad_head(features=make_head()["features"] | {"id": [7, 7, 40]}), "more than once in the index: 7"),
        (bad_head(features=make_head()["features"] | {"label": ["a"]}), "must have one length"),
        (bad_head(features=make_head()["features"] | {"id": [7, "12", 40]}), "ids are whole numbers.*'12'"),
        (bad_head(features={name: [] for name in make_head()["features"]}), "has no features"),
        (
            bad_head(layout={"height": 1, "columns": [{"width": None, "components": [{"name": "Logits"}]}]}),
            "LogitsTable",
        ),
        (bad_head(view="prompt"), r"needs head\['prompts'\]"),
    ],
)
def test_heads_that_do_not_fit_the_contract_are_refused(head: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        render_page(head, make_features())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"position": 5}, "position is 5, the prompt has 5 tokens"),
        ({"scores": {"act_size": [[]]}}, "metric is 'act_quantile'; it can be 'act_size'"),
        ({"scores": {"act_quantile": [[], []]}}, "cover 2 scopes, not 1"),
        ({"scores": {"act_quantile": [[[]]]}}, "cover 1 positions, the prompt has 5"),
        ({"scores": {"act_quantile": [[[[8, "1"]], [], [], [], []]]}}, "not in the index: 8"),
    ],
)
def test_prompts_that_do_not_fit_are_refused(change: dict[str, Any], message: str) -> None:
    head, features = make_prompt_page()
    with pytest.raises(ValueError, match=message):
        render_page(head | {"prompts": head["prompts"] | {"each": [head["prompts"]["each"][0] | change]}}, features)


def sequence_page(**changes: Any) -> list[tuple[int, dict[str, Any]]]:
    group = {"title": "Top", "low": None, "high": None, "share": None, "sequences": [make_sequence() | changes]}
    return [(7, make_feature(groups=[group])), *make_features()[1:]]


@pytest.mark.parametrize(
    ("features", "message"),
    [
        (make_features()[:2], "without a payload: 40"),
        ([*make_features(), (7, make_feature())], "feature 7 has two payloads"),
        ([(8, make_feature()), *make_features()], "feature 8 has a payload but is not in the index"),
        (sequence_page(e=[make_effect(4)]), "feature 7: loss of a sequence of 5 tokens has 4 entries"),
        (sequence_page(e=[make_effect(5) | {"up": [[]] * 5}]), "feature 7: up and up_ids of a sequence do not match"),
        (sequence_page(s=[[0.0]]), "feature 7: source shares of a sequence of 5 tokens have 1 entries"),
        (sequence_page(a=[1.0]), "feature 7: a sequence has 5 tokens and 1 activations"),
        (sequence_page(t=[0, 1, 2, 3, 10]), "feature 7: a sequence names a token outside the vocabulary of 10"),
    ],
)
def test_features_that_do_not_fit_are_refused(features: list[tuple[int, Any]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        render_page(make_head(), features)


def test_file_is_the_rendered_page_and_its_size_is_returned(tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    size = write_page(path, make_head(), iter(make_features()))
    assert path.read_text(encoding="utf-8") == render_page(make_head(), make_features())
    assert size == path.stat().st_size
    assert list(tmp_path.iterdir()) == [path]


def test_failing_halfway_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    path.write_text("old")

    def broken() -> Any:
        yield from make_features()[:2]
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        write_page(path, make_head(), broken())
    with pytest.raises(ValueError, match="without a payload"):
        write_page(path, make_head(), make_features()[:1])
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_paths_that_cannot_be_written_are_named(tmp_path: Path) -> None:
    missing = tmp_path / "nowhere" / "page.html"
    with pytest.raises(FileNotFoundError, match=f"{missing} cannot be written: there is no folder {missing.parent}"):
        write_page(missing, make_head(), make_features())
    folder = tmp_path / "folder"
    folder.mkdir()
    with pytest.raises(IsADirectoryError, match=f"{folder} cannot be written: is a directory"):
        write_page(folder, make_head(), make_features())
    assert list(tmp_path.iterdir()) == [folder]
