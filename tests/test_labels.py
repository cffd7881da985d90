"""Descriptions made elsewhere: each kind of file, what it is refused for, and where the texts end up."""

import csv
import gzip
import io
import json
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import sae_vis

from crossvis_tl import CrossvisWarning, SaeVisData, gather, load_dictionary
from crossvis_tl.label_files import read_rows
from crossvis_tl.labels import Labels, load_labels
from crossvis_tl.page_data import feature_page, prompt_page
from crossvis_tl.panels import LONGEST
from crossvis_tl.prompts import gather_prompts
from tests.conftest import write_clt, write_crosscoder
from tests.page.page_reader import read_page
from tests.test_cli import desk  # noqa: F401 - a fixture

HOSTILE = {
    0: "</script><script>alert(1)</script>",
    1: "one\u2028two\u2029three\nfour",
    2: "long " * 1000,
    3: "lone \ud800 surrogate",
    4: "nul \x00, escape \x1b[31m and \u202e turned",
    5: "a, \"quoted\" <b>text</b> & '=1+1'",
}


@pytest.fixture(scope="module")
def clt(tmp_path_factory):
    """Three layers of 20 features each."""
    return load_dictionary(write_clt(tmp_path_factory.mktemp("clt")))


@pytest.fixture(scope="module")
def crosscoder(tmp_path_factory):
    return load_dictionary(write_crosscoder(tmp_path_factory.mktemp("crosscoder")))


@pytest.fixture(scope="module")
def data(crosscoder, tl_models, tokens):
    with pytest.warns(CrossvisWarning):
        return SaeVisData.create(crosscoder, tl_models, tokens, sae_vis.SaeVisConfig(features=[*range(6)]))


@pytest.fixture(scope="module")
def clt_data(clt, tl_models, tokens):
    with pytest.warns(CrossvisWarning):
        return SaeVisData.create(clt, tl_models[1], tokens, sae_vis.SaeVisConfig(features=[5, 25]))


@pytest.fixture
def put(tmp_path):
    """put(content, name) -> a file of it."""

    def put(content: str | bytes, name: str = "labels.csv") -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass"))
        return path

    return put


def exported(index: int | str, description: str | None, layer: str = "1-clt-hp", **more) -> dict:
    """An entry of Neuronpedia's bulk export."""
    return {
        "id": f"c{index}", "modelId": "gemma-2-2b", "layer": layer, "index": str(index), "authorId": "x",
        "description": description, "embedding": "[0.1,-0.2]", "typeName": "oai_token-act-pair",
        "explanationModelName": "gpt-4o-mini", "umap_x": 0, "umap_y": 0, "umap_cluster": 0, **more,
    }  # fmt: skip


def lines(*entries: object) -> str:
    return "\n".join(map(json.dumps, entries)) + "\n"


# Neuronpedia


@pytest.mark.parametrize("packed", [False, True])
def test_a_bulk_export(put, clt, packed):
    text = lines(exported(3, " dates"), exported(4, "months", "0-clt-hp"), exported(5, ""), exported(6, None))
    path = put(gzip.compress(text.encode()), "batch-0.jsonl.gz") if packed else put(text, "anything.txt")
    assert load_labels(path, clt) == {23: "dates", 4: "months"}


def test_a_folder_of_exports_and_one_for_each_layer(put, clt, tmp_path):
    for layer in (0, 1):
        for batch in (0, 1):
            text = lines(exported(batch, f"{layer} {batch}", f"{layer}-clt-hp"))
            put(gzip.compress(text.encode()), f"{layer}-clt-hp/explanations/batch-{batch}.jsonl.gz")
        put(lines({"id": "gemma-2-2b"}), f"{layer}-clt-hp/model.jsonl")
    assert load_labels(tmp_path, clt) == {0: "0 0", 1: "0 1", 20: "1 0", 21: "1 1"}
    assert load_labels(tmp_path / "1-clt-hp", clt) == {20: "1 0", 21: "1 1"}
    assert load_labels(tmp_path / "1-clt-hp" / "explanations", clt) == {20: "1 0", 21: "1 1"}
    assert load_labels(tmp_path, clt, layer=1) == {20: "1 0", 21: "1 1"}


def test_answers_of_the_api(put, clt):
    entries = [exported(3, "dates"), exported(4, "months")]
    assert load_labels(put(json.dumps(entries, indent=1)), clt) == {23: "dates", 24: "months"}
    assert load_labels(put(json.dumps({"request": {}, "results": entries})), clt) == {23: "dates", 24: "months"}
    feature = {"modelId": "m", "layer": "1-clt-hp", "index": "3", "createdAt": "2020-01-01T00:00:00Z", "pos_str": ["x"]}
    explanations = [
        {"description": "a", "scores": []},
        {"description": "b", "scores": [{"value": 0.9}, {"value": 0.1}]},
    ]
    assert load_labels(put(json.dumps(feature | {"explanations": explanations})), clt) == {23: "b"}


@pytest.mark.parametrize(
    ("several", "chosen"),
    [
        ([{}, {}], "0"),
        ([{"score": 0.2}, {"score": 0.4}, {"score": 0.3}], "1"),
        ([{"createdAt": "2024-01-01"}, {"createdAt": "2025-03-01T10:00:00.000Z"}, {"createdAt": "no date"}], "1"),
        ([{"createdAt": "2026-01-01"}, {"score": 0.1, "createdAt": "2020-01-01"}], "1"),
        ([{"score": 0.5, "createdAt": "2020-01-01"}, {"score": 0.5, "createdAt": "2021-01-01"}], "1"),
        ([{"score": "bad"}, {"score": float("inf")}, {"score": 10**400}, {"scores": "none"}], "0"),
    ],
)
def test_the_best_scored_then_the_newest_then_the_first(put, clt, several, chosen):
    text = lines(*(exported(3, str(i), **more) for i, more in enumerate(several)))
    assert load_labels(put(text), clt) == {23: chosen}


# Delphi


def test_delphis_folder(put, clt, tmp_path):
    put(json.dumps("dates é"), "run/explanations/layers.1.mlp_latent3.txt")
    put(json.dumps({"explanation": "months"}), "run/explanations/layers.0.mlp_latent14.txt")
    put(json.dumps("Explanation could not be parsed."), "run/explanations/layers.0.mlp_latent15.txt")
    put("{}", "run/run_config.json")
    assert load_labels(tmp_path / "run", clt) == {23: "dates é", 14: "months"}
    assert load_labels(tmp_path / "run" / "explanations", clt) == {23: "dates é", 14: "months"}
    put(json.dumps("old"), "old/.gpt_neox.layers.1.mlp_feature7.txt")
    assert load_labels(tmp_path / "old", clt) == {27: "old"}


def test_a_module_that_names_no_layer(put, clt, crosscoder, tmp_path):
    put(json.dumps("dates"), "explanations/encoder_latent3.txt")
    assert load_labels(tmp_path, crosscoder) == {3: "dates"}
    assert load_labels(tmp_path, clt, layer=1) == {23: "dates"}
    with pytest.raises(ValueError, match=r"encoder_latent3.txt: 'encoder' says no number of a layer.*layer="):
        load_labels(tmp_path, clt)


# Tables


@pytest.mark.parametrize(
    "text",
    [
        "feature,description\nL1F3,dates\nl0f4,months\n",
        "Feature;Label\r\n23;dates\r\n4;months\r\n",
        "index\tlayer\texplanation\n3\t1\tdates\n4\t0\tmonths",
        "\ufefflatent,layer,label\n3,L1,dates\n4,L0,months\n",
        "label,description\nL1F3,dates\nL0F4,months\n",
        '\n\nfeature,description,score\n23,"dates",1\n\n#4,months,\n4,worse,\n',
        json.dumps({"L1F3": "dates", "4": "months"}),
        json.dumps([{"feature": "L1F3", "label": "dates"}, {"latent": 4, "layer": 0, "explanation": "months"}]),
    ],
)
def test_tables(put, clt, text):
    assert load_labels(put(text), clt) == {23: "dates", 4: "months"}


def test_a_cell_may_hold_commas_quotes_and_lines(put, crosscoder):
    file = io.StringIO()
    texts = {key: text for key, text in HOSTILE.items() if key != 3}  # CSV in UTF-8 cannot hold a lone surrogate
    csv.writer(file).writerows([["feature", "label"], *texts.items()])
    assert load_labels(put(file.getvalue()), crosscoder) == {key: text.strip() for key, text in texts.items()}


def test_jsonl_keeps_what_json_can_hold(put, crosscoder):
    text = "\n".join(json.dumps({"index": key, "label": text}, ensure_ascii=key == 3) for key, text in HOSTILE.items())
    assert load_labels(put(text), crosscoder) == {key: text.strip() for key, text in HOSTILE.items()}


# Layers


def test_layers_of_a_dictionary_that_has_one(put, crosscoder):
    one = put(lines(exported(3, "dates", "13-res")))
    assert load_labels(one, crosscoder) == {3: "dates"}
    several = put(lines(exported(3, "a", "13-res"), exported(3, "b", "14-res"), exported(4, "c", "14-att")), "b.jsonl")
    with pytest.raises(ValueError, match=r"'13-res', '14-res', '14-att'.* same ones; say which is meant with layer="):
        load_labels(several, crosscoder)
    assert load_labels(several, crosscoder, layer=13) == {3: "a"}
    assert load_labels(several, crosscoder, layer="14-res") == {3: "b"}
    with pytest.raises(ValueError, match=r"no feature of layer 2; its layers are '13-res', '14-att', '14-res'"):
        load_labels(several, crosscoder, layer=2)


def test_two_dictionaries_of_one_layer_are_not_mixed(put, clt):
    path = put(lines(exported(3, "a", "1-clt-hp"), exported(3, "b", "1-res"), exported(3, "c", "0-clt-hp")))
    with pytest.raises(ValueError, match="'1-clt-hp', '1-res'"):
        load_labels(path, clt)


def test_without_layers_a_number_runs_through_all(put, clt):
    path = put("feature,label\n23,dates\n")
    assert load_labels(path, clt) == load_labels(path) == {23: "dates"}
    assert load_labels(put("feature,label\n3,dates\n"), clt, layer=1) == {23: "dates"}


# Refusals


REFUSED = {
    "out of range": ("feature,label\n1,a\n60,b\n", r"labels.csv, line 3: feature 60 is out of range: .* 0 to 59"),
    "out of its layer": (lines(exported(1, "a"), exported(20, "b")), r"line 2: there is no feature 20 in L1;"),
    "no such layer": ("feature,label\nL7F1,a", r"line 2: 'L7F1': there is no layer 7; this clt has L0 to L2"),
    "no feature": ("feature,label\nseven,a", r"line 2: 'seven' names no feature; .*'L3F7'"),
    "a fraction": ("feature,label\n1.5,a", r"line 2: '1.5' names no feature"),
    "a truth": (lines({"index": True, "label": "a"}), r"labels.csv: 'True' names no feature"),
    "below zero": ("feature,label\n-1,a", r"line 2: '-1' names no feature"),
    "two layers": ("feature,layer,label\nL1F3,0,a", r"line 2: 'L1F3' is not of layer '0'"),
    "no number of a layer": ("feature,layer,label\n3,first,a", r"line 2: 'first' says no number of a layer"),
    "misspelt": ("featre,description\n1,a", r"line 1: the columns are 'featre', .*Did you mean 'feature'"),
    "no text": ("feature,layer,score\n1,1,1", r"line 1: .*expected one of feature, index and latent, and one of desc"),
    "no header": ("1,dates\n2,months", r"line 1: the columns are '1', 'dates'"),
    "twice": ("feature,label,label\n1,a,b", r"line 1: the column 'label' is there twice"),
    "a bare comma": ("feature,label\n1,a\n2,days, months\n", r"line 3: 3 cells where the header has 2.*double quotes"),
    "an open quote": ('feature,label\n1,"a', r"labels.csv, line 2: unexpected end"),
    "only a header": ("feature,label\n", r"labels.csv holds no description of any feature"),
    "only empty texts": (lines(exported(1, "")), r"holds no description"),
    "empty": ("", r"labels.csv is empty"),
    "blank": ("\n \n", r"labels.csv is empty"),
    "an empty list": ("[]", r"holds no description"),
    "numbers": ("[1, 2]", r"entry 1: '1' is no description; expected one of"),
    "another JSON": (lines({"modelId": "a", "layers": 3}), r"csv: this has 'modelid', 'layers'; expected one of"),
    "other JSON texts": (lines({"modelId": "a"}), r"'modelId' names no feature"),
    "cut JSON": (lines(exported(1, "a")) + '{"index": ', r"labels.csv, line 2 is no JSON: "),
    "a number as text": (lines(exported(1, 5)), r"labels.csv: the description is '5'; expected a text"),  # type: ignore[arg-type]
    "deep": ("[" * 100_000, r"is no JSON"),
    "binary": (b"\x93NUMPY\x01\x00", r"labels.csv is no text in UTF-8.*save it as UTF-8"),
    "UTF-16": ("feature,label".encode("utf-16"), r"labels.csv is no text in UTF-8"),
    "cut gzip": (gzip.compress(lines(exported(1, "a")).encode())[:-9], r"labels.csv is damaged"),
    "no gzip": (b"\x1f\x8bnothing", r"labels.csv is damaged"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_read_is_said(put, clt, case):
    content, words = REFUSED[case]
    with pytest.raises(ValueError, match=words):
        load_labels(put(content), clt)


def test_places_that_hold_none(put, clt, tmp_path):
    put("feature,label\n1,a", "labels.csv")
    with pytest.raises(FileNotFoundError, match=r"labls.csv does not exist. Did you mean 'labels.csv'"):
        load_labels(tmp_path / "labls.csv", clt)
    with pytest.raises(ValueError, match=r"neither Delphi's .* nor Neuronpedia's"):
        load_labels(tmp_path, clt)
    put("plain words", "explanations/layers.1.mlp_latent3.txt")
    with pytest.raises(ValueError, match=r"layers.1.mlp_latent3.txt is none of Delphi's explanations"):
        load_labels(tmp_path, clt)


def test_a_small_file_that_inflates_to_a_huge_one(put, monkeypatch):
    monkeypatch.setattr("crossvis_tl.label_files.LARGEST", 2**20)
    with pytest.raises(ValueError, match=r"larger than 1 MiB; give its parts"):
        read_rows(put(gzip.compress(b"[" + b" " * 2**21)))


# On dashboards


def heads(data) -> dict[int, str]:
    """-> what the page calls each feature."""
    head, _ = feature_page(data, None)
    return dict(zip(head["features"]["id"], head["features"]["label"], strict=True))


def test_a_description_stands_behind_the_dictionarys_label(clt_data, put):
    made = clt_data.with_labels(put(lines(exported(5, "dates"), exported(6, "not shown"))))
    assert heads(made) == {5: "L0F5", 25: "L1F5 · dates"}
    assert [panel.label for panel in made.panels.values()] == ["L0F5", "L1F5"]
    assert heads(clt_data) == {5: "L0F5", 25: "L1F5"}
    assert heads(made.with_labels({"L0F5": "months"})) == {5: "L0F5 · months", 25: "L1F5 · dates"}
    with pytest.raises(ValueError, match=r"labels, 'L3F5': 'L3F5': there is no layer 3"):
        made.with_labels({"L3F5": "a"})
    with pytest.raises(ValueError, match=r"labels, 3: the description is '4'; expected a text"):
        made.with_labels({3: 4})
    with pytest.warns(CrossvisWarning, match="none of the features shown is among those described"):
        made.with_labels({6: "other"})


def test_hostile_texts_reach_the_page_whole_and_harmless(data, tmp_path, tl_models):
    made = data.with_labels(HOSTILE)
    assert [panel.description for panel in made.panels.values()] == [text.strip() for text in HOSTILE.values()]
    made.save_feature_centric_vis(tmp_path / "page.html")
    written = (tmp_path / "page.html").read_text()
    assert "alert(1)</script>" not in written
    head, _ = read_page(written)
    shown = head["features"]["label"]
    assert shown[0] == HOSTILE[0]
    assert shown[1] == "one two three four"
    assert len(shown[2]) == LONGEST
    assert re.fullmatch(r"(long )+long?…", shown[2])
    assert shown[3:] == [HOSTILE[3], HOSTILE[4], HOSTILE[5]]


def test_json_keeps_them_and_reads_what_was_saved_without(data, tmp_path):
    path = tmp_path / "data.json"
    made = data.with_labels(HOSTILE)
    made.save_json(path)
    loaded = SaeVisData.load_json(path)
    assert loaded.panels == made.panels
    assert heads(loaded) == heads(made)
    content = json.loads(path.read_text())
    for panel in content["crossvis_tl"]["panels"].values():
        del panel["description"]
    path.write_text(json.dumps(content))
    assert SaeVisData.load_json(path).panels == data.panels


def test_saved_dashboards_need_no_dictionary(clt_data, tmp_path):
    clt_data.save_json(tmp_path / "data.json")
    loaded = SaeVisData.load_json(tmp_path / "data.json")
    labels = {"L1F5": "dates", "L9F9": "not shown, for all one knows", 5: "months"}
    assert heads(loaded.with_labels(labels)) == {5: "L0F5 · months", 25: "L1F5 · dates"}


def test_correlated_features_prompts_and_live_pages_say_them(data, tl_models):
    from crossvis_tl.live import live_page

    made = data.with_labels({feature: f"what {feature} says" for feature in range(6)})
    _, payloads = feature_page(made, None)
    rows = [row for _, payload in payloads for row in payload["tables"].get("correlated_features", ())]
    known = [row for row in rows if row[0] in range(6)]
    assert known
    assert all(row[1] == f"what {row[0]} says" for row in known)
    shown = gather_prompts(made, made.ready(), ["HELLO"], None, None, 10)
    head, _ = prompt_page(made, shown)
    assert all(label.startswith("what ") for label in head["features"]["label"])
    assert not any(panel.prompts for panel in data.panels.values())
    assert "what 3 says" in live_page(made)


def test_other_encoders_and_stores(crosscoder, tl_models, tokens, tmp_path):
    encoder = SimpleNamespace(panels=None)
    with pytest.raises(TypeError, match="expected a dictionary"):
        Labels.of({0: "a"}).on(encoder)
    with pytest.warns(CrossvisWarning):
        acts = gather(crosscoder, tl_models, tokens[:4], features=[3, 12])
    with pytest.warns(CrossvisWarning):
        stored = SaeVisData.from_store(acts, crosscoder)
    assert heads(stored.with_labels({3: "dates"})) == {3: "dates", 12: ""}
    with pytest.raises(ValueError, match="feature 4000 is out of range"):
        stored.with_labels({4000: "dates"})


# On the command line


def test_the_command_line_shows_them(desk):  # noqa: F811
    labels = desk.folder / "labels.tsv"
    labels.write_text("feature\tlabel\n1\tfires on dates\n7\tnot shown\n")
    stdout, data = desk.shown(labels=labels)
    assert f"1 of 2 features described, from {labels}" in stdout
    assert [panel.description for panel in data.panels.values()] == ["", "fires on dates"]
    assert '"label":["","fires on dates"]' in (desk.folder / "page.html").read_text()


def test_the_command_line_refuses_labels_before_it_loads_a_model(desk, monkeypatch):  # noqa: F811
    monkeypatch.setattr("crossvis_tl.render.load_models", lambda *args: pytest.fail("models were loaded"))
    labels = desk.folder / "labels.csv"
    labels.write_text("feature,label\n24,a\n")
    assert re.search(r"labels.csv, line 2: feature 24 is out of range: .* 0 to 23", desk.refused(labels=labels))
    labels.write_text(lines(exported(1, "a", "1-x"), exported(1, "b", "2-x")))
    assert "say which is meant with layer=" in desk.refused(labels=labels)
    assert "no feature of layer 3" in desk.refused(labels=labels, labels_layer=3)
    assert "--labels-layer goes with --labels" in desk.refused(labels_layer=3)
    assert "labls.csv does not exist. Did you mean 'labels.csv'" in desk.refused(labels=desk.folder / "labls.csv")


def test_a_page_of_saved_dashboards_gets_them_too(desk):  # noqa: F811
    from typer.testing import CliRunner

    from crossvis_tl.cli import app

    assert desk.run().exit_code == 0
    labels, page = desk.folder / "labels.csv", desk.folder / "again.html"
    labels.write_text(lines(exported(1, "a", "1-x"), exported(1, "dates", "2-x")))
    asked = ["page", str(desk.folder / "data.json"), "--out", str(page), "--labels", str(labels), "--labels-layer", "2"]
    result = CliRunner().invoke(app, asked)
    assert result.exit_code == 0, result.output
    assert '"label":["","dates"]' in page.read_text()
