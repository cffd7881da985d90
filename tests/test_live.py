"""The live widget's Python side: what fires on a typed prompt, and every message answered."""

import builtins
import json
import sys

import pytest
import sae_vis
import torch
from sae_vis.model_fns import AutoEncoder, AutoEncoderConfig

from crossvis_tl import SaeVisData, load_dictionary
from crossvis_tl.live import Session, live, packed_dashboard, run_prompt
from tests.conftest import D_MODEL, N_CTX, N_LAYERS, write_clt, write_crosscoder

pytestmark = [
    pytest.mark.filterwarnings("error"),
    pytest.mark.filterwarnings("ignore::crossvis_tl.CrossvisWarning"),
]
HOOK = "blocks.1.hook_resid_post"
PROMPT = "HELLO!"


@pytest.fixture(scope="module")
def crosscoder(tmp_path_factory, tl_models, tokens):
    folder = write_crosscoder(tmp_path_factory.mktemp("live") / "crosscoder")
    return SaeVisData.create(load_dictionary(folder), tl_models, tokens, sae_vis.SaeVisConfig(features=[3, 12, 30]))


@pytest.fixture(scope="module")
def clt(tmp_path_factory, tl_models, tokens):
    folder = write_clt(tmp_path_factory.mktemp("live") / "clt")
    return SaeVisData.create(load_dictionary(folder), tl_models[1], tokens, sae_vis.SaeVisConfig(features=[25, 45]))


@pytest.fixture(scope="module")
def sae(tl_models, tokens):
    torch.manual_seed(9)
    encoder = AutoEncoder(AutoEncoderConfig(d_in=D_MODEL, d_hidden=32))
    with torch.no_grad():
        encoder.b_enc.copy_(torch.randn_like(encoder.b_enc))
    cfg = sae_vis.SaeVisConfig(hook_point=HOOK, features=[0, 4])
    return SaeVisData.create(encoder.requires_grad_(False), tl_models[0], tokens, cfg)


def run(data, text=PROMPT, **options):
    return run_prompt(data.ready(), data, text, **options)


def dense(answer, n_features):
    """What was sent, [position, feature]."""
    acts = torch.zeros(len(answer["ids"]), n_features)
    columns = answer["acts"]
    acts[columns["token"], columns["feature"]] = torch.tensor(columns["value"])
    return acts


def by_hand(data, ids):
    """The dictionary on plain cached activations, [position, feature]; BOS does not count."""
    dictionary = data.ready().dictionary
    caches = [model.run_with_cache(torch.tensor([ids]))[1] for model in data.models]
    acts = dictionary.encode([caches[site.model][site.hook][0] for site in dictionary.sources])
    acts[0] = 0
    return acts


@pytest.mark.parametrize("name", ["sae", "crosscoder", "clt"])
def test_activations_are_the_dictionarys_on_the_models_activations(name, request):
    data = request.getfixturevalue(name)
    answer = run(data)
    assert answer["tokens"] == ["<|endoftext|>", *PROMPT]
    assert answer["ids"][0] == 0
    assert answer["counted"] == [False] + [True] * len(PROMPT)
    assert answer["whole"]
    expected = by_hand(data, answer["ids"])
    assert (expected != 0).any()
    torch.testing.assert_close(dense(answer, expected.shape[1]), expected, rtol=1e-4, atol=1e-5)
    assert answer["fired"] == (expected != 0).sum(-1).tolist()
    assert answer["features"] == (expected != 0).any(0).nonzero().squeeze(-1).tolist()


def test_a_clts_features_have_their_layers_names(clt):
    answer = run(clt)
    assert {label[:2] for label in answer["labels"]} == {f"L{i}" for i in range(N_LAYERS)}
    assert dict(zip(answer["features"], answer["labels"], strict=True)) == {
        feature: f"L{feature // 20}F{feature % 20}" for feature in answer["features"]
    }


def test_the_strongest_of_each_token_are_sent_and_those_asked_for_always(crosscoder):
    whole = dense(run(crosscoder), 40)
    weak = int((whole != 0).sum(0).argmax())
    answer = run(crosscoder, listed=2, keep=[weak])
    sent = dense(answer, 40)
    always = [3, 12, 30, weak]
    assert not answer["whole"]
    assert answer["fired"] == (whole != 0).sum(-1).tolist()
    assert torch.equal(sent[:, always], whole[:, always])
    for position in range(len(whole)):
        best = whole[position].topk(2).indices
        assert torch.equal(sent[position, best], whole[position, best])
        others = (sent[position] != 0).nonzero().squeeze(-1).tolist()
        assert set(others) <= {*best.tolist(), *always}
    columns = answer["acts"]
    order = [(token, -value) for token, value in zip(columns["token"], columns["value"], strict=True)]
    assert order == sorted(order)


def test_what_the_dashboards_mask_fires_nowhere(crosscoder_dir, tl_models, tokens):
    data = SaeVisData.create(
        load_dictionary(crosscoder_dir), tl_models, tokens, sae_vis.SaeVisConfig(features=[3]), masked_tokens=["L"]
    )
    answer = run(data)
    assert [t for t, counts in zip(answer["tokens"], answer["counted"], strict=True) if not counts] == [
        "<|endoftext|>", "L", "L",
    ]  # fmt: skip
    expected = by_hand(data, answer["ids"])
    expected[[3, 4]] = 0
    torch.testing.assert_close(dense(answer, 40), expected, rtol=1e-4, atol=1e-5)


def test_an_empty_prompt_has_nothing(crosscoder):
    assert run(crosscoder, "") == {
        "text": "", "ids": [], "tokens": [], "counted": [], "fired": [], "features": [], "labels": [], "whole": True,
        "acts": {"token": [], "feature": [], "value": []},
    }  # fmt: skip


def ask(session, text=PROMPT, feature=None, pins=(), **more):
    return session.answer({"kind": "ask", "text": text, "feature": feature, "pins": [*pins], "seq": 1, **more})


def test_a_question_is_answered_under_its_number_and_view(crosscoder):
    session = Session(crosscoder)
    answer = ask(session, seq=7, view="a")
    assert {name: answer[name] for name in ("kind", "seq", "view")} == {"kind": "answer", "seq": 7, "view": "a"}
    answer["tokens"] = json.loads(answer["tokens"])
    assert {name: answer[name] for name in run(crosscoder)} == run(crosscoder)
    json.dumps(answer, allow_nan=False)
    assert session.answer({"kind": "toString"}) is None
    assert session.answer("ask") is None
    assert session.answer({"kind": []}) is None


def test_a_page_drawn_anew_goes_on_with_what_was_asked_last(crosscoder):
    session = Session(crosscoder, "A")
    start = {"kind": "start", "view": None, "seq": None, "text": "A", "feature": None, "pins": []}
    assert session.answer({"kind": "hello"}) == start
    ask(session, "BC", 5, [5, 12])
    assert session.answer({"kind": "hello"}) == start | {"text": "BC", "feature": 5, "pins": [5, 12]}


@pytest.mark.parametrize(
    ("question", "message"),
    [
        ({"text": "A" * 30}, f"the prompt's tokens are 31 positions long; the model's context is {N_CTX}"),
        ({"feature": 40}, "feature 40 is out of range: this crosscoder has features 0 to 39"),
        ({"pins": None}, "TypeError: "),
    ],
)
def test_what_goes_wrong_is_answered_in_words_and_the_next_question_as_ever(crosscoder, question, message):
    session = Session(crosscoder)
    asked = {"kind": "ask", "text": PROMPT, "feature": None, "pins": [], "seq": 1} | question
    answer = session.answer(asked)
    assert answer["kind"] == "answer"
    assert answer["seq"] == 1
    assert message in answer["error"]
    assert ask(session)["ids"]


def test_a_prompt_of_masked_tokens_alone_has_nothing_that_fires(crosscoder):
    answer = ask(Session(crosscoder), "<|endoftext|>")
    assert (answer["counted"], answer["fired"], answer["acts"]["feature"]) == ([False], [0], [])


def test_activations_that_are_no_numbers_are_said_to_be(crosscoder, monkeypatch):
    dictionary = crosscoder.ready().dictionary
    nothing = torch.full((D_MODEL, 40), torch.nan)
    monkeypatch.setattr(type(dictionary.groups[0]), "pre", lambda self, x, *at: x[0] @ nothing)
    assert "at position 0 is not a finite number" in ask(Session(crosscoder))["error"]


def test_a_model_that_fails_does_not_end_the_widget(crosscoder, monkeypatch):
    session = Session(crosscoder)

    def fails(*_args, **_options):
        raise torch.OutOfMemoryError("CUDA out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(session.capture, "run", fails)
        assert ask(session)["error"] == "OutOfMemoryError: CUDA out of memory"
    assert "error" not in ask(session)


def test_features_are_found_by_number_and_label(crosscoder, clt):
    found = Session(crosscoder).answer({"kind": "find", "text": " #12 ", "view": "a"})
    assert found == {"kind": "found", "view": "a", "seq": None, "feature": 12, "label": ""}
    assert "0 to 39" in Session(crosscoder).answer({"kind": "find", "text": "40"})["error"]
    assert Session(clt).answer({"kind": "find", "text": "l1f5"})["feature"] == 25
    assert "names no feature" in Session(clt).answer({"kind": "find", "text": "cats"})["error"]


def test_dashboards_stay_as_they_are(crosscoder):
    before = list(crosscoder.feature_data_dict)
    packed_dashboard(crosscoder, 12)
    assert list(crosscoder.feature_data_dict) == before


def test_the_widget_answers_its_front_end(crosscoder, monkeypatch):
    widget = live(crosscoder, PROMPT, height=500)
    sent = []
    monkeypatch.setattr(widget, "send", lambda content, buffers=None: sent.append(content))
    for message in ({"kind": "page"}, {"kind": "hello"}, {"kind": "other"}, {"kind": "find", "text": "3"}):
        widget._handle_custom_msg({**message, "view": "a"}, [])
    assert [message["kind"] for message in sent] == ["page", "start", "found"]
    assert {message["view"] for message in sent} == {"a"}
    assert sent[1]["text"] == PROMPT
    assert widget.height == 500
    assert "export default" in widget._esm


def test_dashboards_without_model_or_dictionary_say_so(crosscoder, tmp_path, tl_models):
    crosscoder.save_json(tmp_path / "data.json")
    with pytest.raises(ValueError, match=r"needs the model, .* pass model="):
        live(SaeVisData.load_json(tmp_path / "data.json"))
    with pytest.raises(ValueError, match=r"needs the dictionary, .* pass encoder="):
        live(SaeVisData.load_json(tmp_path / "data.json", model=tl_models))
    loaded = SaeVisData.load_json(tmp_path / "data.json", model=tl_models, encoder=crosscoder.encoder)
    assert run(loaded) == run(crosscoder)


def test_without_anywidget_it_says_what_to_install(crosscoder, monkeypatch):
    from crossvis_tl.live import _widget_class

    plain = builtins.__import__

    def without(name, *args, **options):
        if name == "anywidget":
            raise ModuleNotFoundError("No module named 'anywidget'")
        return plain(name, *args, **options)

    _widget_class.cache_clear()
    monkeypatch.delitem(sys.modules, "anywidget", raising=False)
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(RuntimeError, match=r"pip install 'crossvis-tl\[widget\]'"):
        live(crosscoder)
