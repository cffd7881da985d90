"""Stores of feature activations from outside: kept, opened, gone on with, merged, refused; and what is masked."""

import copy
import gc
import json
import logging
import math
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, is_dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sae_vis.data_config_classes import Column, SaeVisConfig, SaeVisLayoutConfig, SequencesConfig
from safetensors import safe_open
from safetensors.torch import save_file
from transformer_lens import HookedTransformer
from typer.testing import CliRunner

import crossvis_tl.gathering
import crossvis_tl.parts
from crossvis_tl import SaeVisData, gather, load_dictionary, merge, open_store
from crossvis_tl.capture import Capture
from crossvis_tl.cli import app
from crossvis_tl.masking import token_mask
from tests.conftest import N_CTX, VOCABULARY, write_clt, write_crosscoder

pytestmark = pytest.mark.filterwarnings("ignore::crossvis_tl.CrossvisWarning")
HOOK = "blocks.1.hook_resid_post"
ROWS = 12  # of the fixture `tokens`
PAD = 59  # an id that tests with padding keep out of their texts
STATISTICS = ["acts_histogram_data", "feature_tables_data"]


@pytest.fixture(scope="module")
def dictionary(tmp_path_factory):
    return load_dictionary(write_crosscoder(tmp_path_factory.mktemp("dictionary") / "crosscoder"))


@pytest.fixture(scope="module")
def memory(dictionary, tl_models, tokens):
    """All features on all tokens, in one part, in memory."""
    return gather(dictionary, tl_models, tokens)


@pytest.fixture(scope="module")
def store(tmp_path_factory, dictionary, tl_models, tokens) -> Path:
    """The same as a store of six parts. Tests that change it take a copy (`own`)."""
    with pytest.MonkeyPatch.context() as patch:
        many_parts(patch)
        folder = tmp_path_factory.mktemp("stores") / "store"
        gather(dictionary, tl_models, tokens, out=folder, rows_per_batch=1)
    assert len(list(folder.glob("part-*"))) == 6
    return folder


@pytest.fixture
def own(store, tmp_path) -> Path:
    return Path(shutil.copytree(store, tmp_path / "own"))


def many_parts(patch: pytest.MonkeyPatch) -> None:
    """Two sequences a part, whatever fires."""
    patch.setattr(crossvis_tl.gathering, "PART_TOKENS", 2 * N_CTX)
    patch.setattr(crossvis_tl.gathering, "MOST_PARTS", 10**9)


def spy(patch: pytest.MonkeyPatch, models, before: Callable[[int], None] = lambda call: None) -> list[torch.Tensor]:
    """-> the tokens of each forward pass, as they come; `before` hears its number. A check of two positions with which
    every call may begin is left out."""
    seen: list[torch.Tensor] = []
    for model in models:
        forward = model.forward

        def spied(tokens, *args, _forward=forward, **kwargs):
            if tokens.shape[1] > 2:
                before(len(seen))
                seen.append(tokens.clone())
            return _forward(tokens, *args, **kwargs)

        patch.setattr(model, "forward", spied)
    return seen


def assert_equal_acts(got, want) -> None:
    """Bit for bit, whatever parts they lie in."""
    assert torch.equal(got.features, want.features)
    assert torch.equal(got.tokens, want.tokens)
    assert torch.equal(got.counted, want.counted)
    for i in range(len(want.features)):
        for mine, theirs in zip(got.of(i), want.of(i), strict=True):
            assert torch.equal(mine, theirs), i


def dense(acts) -> torch.Tensor:
    """[rows, positions, features]"""
    out = torch.zeros(acts.tokens.numel(), len(acts.features))
    for i in range(len(acts.features)):
        where, values = acts.of(i)
        assert (where.diff() > 0).all()
        out[where, i] = values
    return out.unflatten(0, tuple(acts.tokens.shape))


def plain(thing):
    if is_dataclass(thing) and not isinstance(thing, type):
        return {name: plain(getattr(thing, name)) for name in thing.__dataclass_fields__}
    if isinstance(thing, Mapping):
        return {key: plain(value) for key, value in thing.items()}
    return [plain(part) for part in thing] if isinstance(thing, list | tuple) else thing


def assert_close(got, want, *, rel: float = 1e-3, tiny: float = 3e-4) -> None:
    """Plain data alike: numbers nearly (they are rounded to four places, and another batch sums in another order), all
    else exactly."""

    def compare(got, want, path: str) -> None:
        if isinstance(want, float):
            assert math.isclose(got, want, rel_tol=rel, abs_tol=tiny), (path, got, want)
        elif isinstance(want, dict):
            assert got.keys() == want.keys(), path
            for key in want:
                compare(got[key], want[key], f"{path}.{key}")
        elif isinstance(want, list):
            assert len(got) == len(want), path
            for i, (mine, theirs) in enumerate(zip(got, want, strict=True)):
                compare(mine, theirs, f"{path}.{i}")
        else:
            assert got == want, path

    compare(plain(got), plain(want), "")


def assert_same_dashboards(got: SaeVisData, want: SaeVisData) -> None:
    assert list(got.feature_data_dict) == list(want.feature_data_dict)
    assert_close(got.panels, want.panels)
    assert_close(got.feature_data_dict, want.feature_data_dict)
    assert_close(got.feature_stats, want.feature_stats)
    assert_close(got.page, want.page)


def small(features, top: int = 3, **fields) -> SaeVisConfig:
    columns = SaeVisConfig().feature_centric_layout.columns
    for column in columns.values():
        for i, part in enumerate(column):
            if isinstance(part, SequencesConfig):
                column.components[i] = SequencesConfig(top_acts_group_size=top, n_quantiles=2, quantile_group_size=2)
    layout = SaeVisLayoutConfig(list(columns.values()))
    return SaeVisConfig(features=features, feature_centric_layout=layout, **fields)


def lively(acts, n: int = 3) -> list[int]:
    """The features that fire most."""
    return acts.starts.diff().argsort(descending=True)[:n].tolist()


# Opened again


@pytest.mark.parametrize("features", [None, [7, 3, 30]])
def test_a_store_holds_what_memory_does(features, tmp_path, monkeypatch, dictionary, tl_models, tokens):
    want = gather(dictionary, tl_models, tokens, features)
    many_parts(monkeypatch)
    made = gather(dictionary, tl_models, tokens, features, out=tmp_path / "store")
    assert int(want.starts[-1]) > 20
    for got in (made, open_store(tmp_path / "store"), open_store(str(tmp_path / "store"))):
        assert_equal_acts(got, want)
        assert got.mask.text == want.mask.text
        assert torch.equal(got.mask.documents, want.mask.documents)
        assert_close(got.fidelity, want.fidelity, rel=1e-5, tiny=0)


@pytest.mark.parametrize("effect", ["direct", "full", "none"])
def test_dashboards_of_a_store_are_those_made_directly(effect, store, dictionary, memory, tl_models, tokens):
    for features in (lively(memory), [11, 2]):
        want = SaeVisData.create(dictionary, tl_models, tokens, small(features), effect=effect)
        got = SaeVisData.from_store(store, dictionary, small(features), model=tl_models, effect=effect)
        assert_same_dashboards(got, want)
        assert all(panel.logits for panel in got.panels.values())


def test_create_keeps_what_it_gathers(tmp_path, dictionary, tl_models, tokens):
    cfg = small([5, 1, 8])
    want = SaeVisData.create(dictionary, tl_models, tokens, cfg, latent_scaling=True, store=tmp_path / "store")
    assert all(panel.scaling for panel in want.panels.values())
    assert_same_dashboards(SaeVisData.from_store(tmp_path / "store", dictionary, cfg, model=tl_models), want)
    got = SaeVisData.from_store(tmp_path / "store", dictionary, small(None), model=tl_models)
    assert list(got.panels) == [5, 1, 8]
    one = SaeVisData.from_store(tmp_path / "store", dictionary, small([8]), model=tl_models)
    assert_close(one.panels[8], want.panels[8])


def test_a_clts_store(tmp_path, monkeypatch, tl_models, tokens):
    dictionary, cfg = load_dictionary(write_clt(tmp_path / "clt")), small([3, 25, 41])
    want = SaeVisData.create(dictionary, tl_models[1], tokens, cfg)
    many_parts(monkeypatch)
    gather(dictionary, tl_models[1], tokens, out=tmp_path / "store")
    assert_same_dashboards(SaeVisData.from_store(tmp_path / "store", dictionary, cfg, model=tl_models[1]), want)


def test_only_the_sequences_shown_are_run(store, dictionary, memory, tl_models, monkeypatch):
    layout = SaeVisLayoutConfig([Column(SequencesConfig(top_acts_group_size=2, n_quantiles=0))])
    cfg = SaeVisConfig(features=lively(memory, 1), feature_centric_layout=layout)
    seen = spy(monkeypatch, tl_models)
    data = SaeVisData.from_store(store, dictionary, cfg, model=tl_models)
    shown = {s.row for panel in data.panels.values() for group in panel.sequences for s in group}
    assert 1 <= len(shown) <= 2
    run = torch.cat(seen)
    assert len(run) == 2 * len(shown)
    assert {tuple(row) for row in run.tolist()} == {tuple(memory.tokens[row].tolist()) for row in shown}


def test_without_the_model_all_but_its_effects_is_there(
    store, dictionary, memory, tl_models, tokens, monkeypatch, tmp_path
):
    features = lively(memory)
    want = SaeVisData.create(dictionary, tl_models, tokens, small(features))
    seen = spy(monkeypatch, tl_models)
    got = SaeVisData.from_store(store, dictionary, small(features))
    assert seen == []
    assert_close(got.feature_stats, want.feature_stats)
    assert dict(got.page.facts)["logit effects"].lower().startswith("not gathered")
    for feature, panel in got.panels.items():
        other = want.panels[feature]
        assert panel.logits == {}
        assert "not gathered" in str(panel.logits_note).lower()
        for name in ("label", "density", "density_interval", "maximum", "geometry", "bounds"):
            assert_close(getattr(panel, name), getattr(other, name))
        mine, theirs = got.feature_data_dict[feature], want.feature_data_dict[feature]
        for name in STATISTICS:
            assert_close(getattr(mine, name), getattr(theirs, name))
        groups = zip(mine.sequence_data.seq_group_data, theirs.sequence_data.seq_group_data, strict=True)
        for group, wanted in groups:
            assert group.title == wanted.title
            assert [s.token_ids for s in group.seq_data] == [s.token_ids for s in wanted.seq_data]
            assert_close([s.feat_acts for s in group.seq_data], [s.feat_acts for s in wanted.seq_data])
        for group, wanted in zip(panel.sequences, other.sequences, strict=True):
            assert [(s.row, s.position, s.bold) for s in group] == [(s.row, s.position, s.bold) for s in wanted]
    shown = {i for d in got.feature_data_dict.values() for g in d.sequence_data.seq_group_data
             for s in g.seq_data for i in s.token_ids}  # fmt: skip
    assert len(shown) > 20
    for i in shown:
        assert got.page.vocabulary[i] == want.page.vocabulary[i]
    got.save_feature_centric_vis(tmp_path / "page.html")
    assert "not gathered" in (tmp_path / "page.html").read_text().lower()


# Refused


def other_dictionary(tmp_path: Path):
    """Of the same sizes and name; one number of its decoder is another."""
    folder = write_crosscoder(tmp_path / "crosscoder")
    state = torch.load(folder / "cc_weights.pt")
    state["W_dec"][17, 1, 3] += 0.01
    torch.save(state, folder / "cc_weights.pt")
    return load_dictionary(folder)


@pytest.mark.parametrize("what", ["tokens", "fewer tokens", "dictionary", "model", "order", "precision"])
def test_a_store_opened_with_anything_else_is_refused(what, store, dictionary, tl_models, tokens, tmp_path):
    changed = tokens.clone()
    changed[7, 9] = (changed[7, 9] + 1) % VOCABULARY
    given = {"encoder": dictionary, "model": tl_models, "tokens": tokens}
    halves = [copy.deepcopy(model).to(torch.bfloat16) for model in tl_models] if what == "precision" else None
    change, words = {
        "tokens": ({"tokens": changed}, "other tokens"),
        "fewer tokens": ({"tokens": tokens[:-1]}, "other tokens"),
        "dictionary": ({"encoder": other_dictionary(tmp_path)}, "another dictionary"),
        "model": ({"model": [tl_models[0], tl_models[0]]}, "other models"),
        "order": ({"model": tl_models[::-1]}, "order"),
        "precision": ({"model": halves}, "precision"),
    }[what]
    assert SaeVisData.from_store(store, cfg=small([1]), **given).panels
    with pytest.raises(ValueError, match=words):
        SaeVisData.from_store(store, cfg=small([1]), **(given | change))


@pytest.mark.parametrize("what", ["tokens", "dictionary", "model", "order", "features", "masking", "positions",
                                  "documents", "replaced", "latent_scaling"])  # fmt: skip
def test_a_folder_of_another_gathering_is_refused_and_left_alone(what, dictionary, tl_models, tokens, tmp_path):
    many = list(range(1, 12))
    given = {
        "encoder": dictionary,
        "model": tl_models,
        "tokens": tokens,
        "features": [1, 2, 3],
        "masked_positions": many,
    }
    change = {
        "tokens": {"tokens": tokens.flip(0)},
        "dictionary": {"encoder": other_dictionary(tmp_path)},
        "model": {"model": [tl_models[1], tl_models[1]]},
        "order": {"model": tl_models[::-1]},
        "features": {"features": [1, 3, 2]},
        "masking": {"masking": "none"},
        "positions": {"masked_positions": [*many[:-1], 20]},  # as many tokens as before, and named nearly alike
        "documents": {"documents": torch.arange(ROWS) // 4},
        "replaced": {"token_replacements": {0: {3: 4}}},
        "latent_scaling": {"latent_scaling": True},
    }[what]
    folder = tmp_path / "store"
    gather(**given, out=folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(ValueError, match="store"):
        gather(**(given | change), out=folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_features_that_were_not_gathered_are_refused(tmp_path, dictionary, tl_models, tokens):
    gather(dictionary, tl_models, tokens, [4, 9], out=tmp_path / "store")
    with pytest.raises(ValueError, match=r"feature 5 was not gathered"):
        SaeVisData.from_store(tmp_path / "store", dictionary, small([4, 5]))


def test_what_is_no_store_is_said_to_be_none(tmp_path, dictionary, tl_models, tokens):
    (tmp_path / "empty").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("precious")
    (tmp_path / "file").write_text("precious")
    for name in ("nowhere", "empty", "other", "file"):
        with pytest.raises((FileNotFoundError, ValueError), match=name):
            open_store(tmp_path / name)
    for name in ("other", "file"):
        with pytest.raises((OSError, ValueError), match=name):
            gather(dictionary, tl_models, tokens, [1], out=tmp_path / name)
    assert (tmp_path / "other" / "thesis.txt").read_text() == "precious"
    assert [path.name for path in (tmp_path / "other").iterdir()] == ["thesis.txt"]
    assert (tmp_path / "file").read_text() == "precious"


def use(folder: Path, dictionary):
    """All that a page is made of, without models."""
    return SaeVisData.from_store(folder, dictionary, small([1, 2]))


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "{}", '{"format": "another"}', "\x00", "[" * 100_000])
def test_a_damaged_manifest_is_named(text, own, dictionary):
    (own / "manifest.json").write_text(text)
    with pytest.raises(ValueError, match=r"manifest\.json"):
        use(own, dictionary)


def manifest_fields() -> list[str]:
    from crossvis_tl.manifest import Manifest

    return list(Manifest.__dataclass_fields__)


@pytest.mark.parametrize("field", [*manifest_fields(), "format", "version"])
def test_a_manifest_with_a_wrong_field_is_named_or_makes_no_difference(field, own, dictionary, store):
    content = json.loads((own / "manifest.json").read_text())
    want = use(store, dictionary)
    tried = 0
    for value in ("gone", None, "x", 7, [], {}, [["x"]], {"x": "y"}):
        changed = {k: v for k, v in content.items() if k != field} if value == "gone" else {**content, field: value}
        (own / "manifest.json").write_text(json.dumps(changed))
        tried += changed != content
        try:
            got = use(own, dictionary)
        except (ValueError, FileNotFoundError) as error:
            assert str(own) in str(error), (value, error)  # noqa: PT017 - either way is right
        except Exception as error:
            pytest.fail(f"{field}={value!r}: {error!r}")
        else:
            assert_close(got.feature_stats, want.feature_stats)
            assert_close(
                [getattr(d, s) for d in got.feature_data_dict.values() for s in STATISTICS],
                [getattr(d, s) for d in want.feature_data_dict.values() for s in STATISTICS],
            )
    assert tried >= 6


def test_a_newer_version_is_refused(own, dictionary):
    content = json.loads((own / "manifest.json").read_text())
    (own / "manifest.json").write_text(json.dumps({**content, "version": 99, "news": 1}))
    with pytest.raises(ValueError, match=r"own .*version 99"):
        use(own, dictionary)


NAMES = ["tokens.safetensors", "part-00000.safetensors", "part-00003.safetensors", "part-00005.safetensors",
         "sums-00005.safetensors"]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("left", [None, 0, 5, 200, -1, -100, "other"])
def test_a_damaged_file_is_named(name, left, own, dictionary):
    """`left`: bytes that are left, None: the file is gone."""
    path = own / name
    content = path.read_bytes()
    assert len(content) > 300
    if left is None:
        path.unlink()
    else:
        path.write_bytes(b"no safetensors" * 100 if left == "other" else content[:left])
    with pytest.raises((ValueError, FileNotFoundError), match=path.stem):
        use(own, dictionary)


@pytest.mark.parametrize("content", ["", "[]", '{"a": "b"}', "\x00", "{"])
def test_a_damaged_vocabulary_is_named(content, own, dictionary):
    (own / "vocabulary.json").write_text(content)
    with pytest.raises(ValueError, match=r"vocabulary\.json"):
        use(own, dictionary)


def test_a_part_of_another_store_is_refused(own, tmp_path, dictionary, tl_models, tokens):
    gather(dictionary, tl_models, tokens[2:4], [1, 2, 3], out=tmp_path / "few")
    shutil.copy(tmp_path / "few" / "part-00000.safetensors", own / "part-00001.safetensors")
    with pytest.raises(ValueError, match="own"):
        use(own, dictionary)


def test_a_part_of_too_many_rows_is_refused(own, tmp_path, dictionary, tl_models, tokens):
    gather(dictionary, tl_models, tokens[:5], out=tmp_path / "five")
    shutil.copy(tmp_path / "five" / "part-00000.safetensors", own / "part-00001.safetensors")
    with pytest.raises(ValueError, match="own"):
        use(own, dictionary)


# Interrupted


@pytest.fixture(scope="module")
def calls(tmp_path_factory, store, dictionary, tl_models, tokens) -> list[torch.Tensor]:
    """The forward passes of a gathering like `store` that nobody stops: four a part, then those that look for causes of
    a bad fit."""
    with pytest.MonkeyPatch.context() as patch:
        many_parts(patch)
        seen = spy(patch, tl_models)
        gather(dictionary, tl_models, tokens, out=tmp_path_factory.mktemp("calls") / "store", rows_per_batch=1)
    assert len(seen) >= 2 * ROWS
    assert all(len(rows) == 1 for rows in seen[: 2 * ROWS])
    return seen


def stopped(folder, at: int, error: BaseException, *given) -> str:
    """A gathering that `error` ends at a forward pass -> the text it ends with."""

    def before(call: int) -> None:
        if call == at:
            raise error

    with pytest.MonkeyPatch.context() as patch:
        many_parts(patch)
        spy(patch, given[1], before)
        with pytest.raises(type(error)) as caught:
            gather(*given, out=folder, rows_per_batch=1)
    return str(caught.value)


def assert_gone_on(folder, store: Path, calls, kept: int, *given) -> None:
    """The same call again runs what is left only, and ends equal to `store`."""
    with pytest.MonkeyPatch.context() as patch:
        many_parts(patch)
        seen = spy(patch, given[1])
        made = gather(*given, out=folder, rows_per_batch=1)
    want = calls[2 * kept :]
    assert len(seen) == len(want)
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(seen, want, strict=True))
    whole = open_store(store)
    for got in (made, open_store(folder)):
        assert_equal_acts(got, whole)
        assert got.sums.keys() == whole.sums.keys()
        assert all(torch.equal(got.sums[name], whole.sums[name]) for name in whole.sums)
        assert asdict(got.fidelity) == asdict(whole.fidelity)
    names = {path.name for path in folder.iterdir()}
    assert names == {path.name for path in store.iterdir()}


@pytest.mark.parametrize(
    ("at", "error"),
    [
        *((at, KeyboardInterrupt()) for at in (0, 3, 4, 14, 23, 24, -1)),
        *((at, RuntimeError("the roof fell in")) for at in (1, 9, -1)),
    ],
)
def test_what_was_stopped_goes_on(at, error, tmp_path, store, calls, dictionary, tl_models, tokens):
    folder, given = tmp_path / "store", (dictionary, tl_models, tokens)
    at %= len(calls)
    kept = min(2 * (at // 4), ROWS)
    text = stopped(folder, at, error, *given)
    if isinstance(error, KeyboardInterrupt):
        assert f"{kept} of {ROWS} sequences" in text
        assert "same call" in text
        assert str(folder) in text
    else:
        assert text == "the roof fell in"
    with pytest.raises(ValueError, match=rf"{kept} of {ROWS} sequences"):
        open_store(folder)
    assert_gone_on(folder, store, calls, kept, *given)


def test_stopped_again_and_again(tmp_path, store, calls, dictionary, tl_models, tokens):
    folder, given, kept = tmp_path / "store", (dictionary, tl_models, tokens), 0
    for at in (5, 3, 9):  # counted from where it goes on
        text = stopped(folder, at, KeyboardInterrupt(), *given)
        kept += 2 * (at // 4)
        assert f"{kept} of {ROWS}" in text
    assert_gone_on(folder, store, calls, kept, *given)


@pytest.mark.parametrize(
    "name",
    [".part-00001.safetensors.0a1b2c3d.part", ".sums-00001.safetensors.00ff00ff.part", ".manifest.json.00000000.part"],
)
def test_drafts_of_a_run_that_was_killed_do_no_harm(name, tmp_path, store, calls, dictionary, tl_models, tokens):
    folder, given = tmp_path / "store", (dictionary, tl_models, tokens)
    stopped(folder, 10, RuntimeError(), *given)
    (folder / name).write_text("half")
    assert_gone_on(folder, store, calls, 4, *given)
    (folder / name).write_text("half")
    assert_equal_acts(open_store(folder), open_store(store))


def test_killed_before_the_first_file_was_whole(tmp_path, store, calls, dictionary, tl_models, tokens):
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / ".tokens.safetensors.0a1b2c3d.part").write_text("half")
    assert_gone_on(tmp_path / "store", store, calls, 0, dictionary, tl_models, tokens)


def test_killed_before_the_tokens_were_written(tmp_path, store, calls, dictionary, tl_models, tokens):
    folder, given = tmp_path / "store", (dictionary, tl_models, tokens)
    stopped(folder, 0, RuntimeError(), *given)
    (folder / "tokens.safetensors").unlink()  # the manifest is written first
    assert_gone_on(folder, store, calls, 0, *given)


@pytest.mark.parametrize("last", [0, 2])
def test_killed_between_a_part_and_its_sums(last, tmp_path, store, calls, dictionary, tl_models, tokens):
    """What is whole on disk may be a part without sums, or sums of which older ones are left too."""
    folder, given = tmp_path / "store", (dictionary, tl_models, tokens)
    stopped(folder, 4 * (last + 1), RuntimeError(), *given)
    shutil.copy(store / f"part-{last + 1:05}.safetensors", folder)
    assert_gone_on(folder, store, calls, 2 * (last + 1), *given)


def test_a_store_that_is_whole_runs_no_model(own, dictionary, tl_models, tokens, monkeypatch, memory):
    before = {path.name: path.read_bytes() for path in own.iterdir()}
    seen = spy(monkeypatch, tl_models)
    assert_equal_acts(gather(dictionary, tl_models, tokens, out=own), memory)
    assert seen == []
    assert {path.name: path.read_bytes() for path in own.iterdir()} == before


def test_create_goes_on_with_a_store_too(tmp_path, monkeypatch, dictionary, tl_models, tokens):
    want = SaeVisData.create(dictionary, tl_models, tokens, small(None, top=1), effect="none")
    stopped(tmp_path / "store", 10, RuntimeError(), dictionary, tl_models, tokens)
    for _ in range(2):  # the second finds it whole
        got = SaeVisData.create(
            dictionary, tl_models, tokens, small(None, top=1), effect="none", store=tmp_path / "store"
        )
        assert_same_dashboards(got, want)


def test_in_memory_nothing_is_kept_and_that_is_said(dictionary, tl_models, tokens, monkeypatch):
    def before(call: int) -> None:
        if call == 5:
            raise KeyboardInterrupt

    spy(monkeypatch, tl_models, before)
    with pytest.raises(KeyboardInterrupt, match="nothing was kept"):
        gather(dictionary, tl_models, tokens, rows_per_batch=1)


# Merged


@pytest.mark.parametrize(("cuts", "rel"), [([6], 1e-9), ([3, 9], 1e-9), ([1, 5, 7], 1e-5)])
@pytest.mark.parametrize("on_disk", [False, True])
def test_shards_merge_to_what_one_run_gives(cuts, rel, on_disk, tmp_path, dictionary, tl_models, tokens, store):
    """Cut where batches end, sums are the same to the last digits; elsewhere float32 sums differ."""
    tokens = tokens.clone()
    tokens[4, 8] = tokens[10, 3] = 0  # another document begins inside a row
    given = {"rows_per_batch": 3, "masked_tokens": [17], "masked_positions": [-1], "latent_scaling": True}
    want = gather(dictionary, tl_models, tokens, **given)
    shards = []
    for i, rows in enumerate(tokens.tensor_split(cuts)):
        folder = tmp_path / f"shard {i}"
        made = gather(dictionary, tl_models, rows, **given, out=folder if on_disk else None)
        shards.append(folder if on_disk else made)
    got = merge(shards, tmp_path / "whole" if on_disk else None)
    for one in [got, open_store(tmp_path / "whole")] if on_disk else [got]:
        assert torch.equal(one.counted, want.counted)
        assert one.mask.text == want.mask.text
        assert torch.equal(one.mask.documents, want.mask.documents)
        assert int(want.mask.documents.max()) == ROWS + 1
        assert_close(one.fidelity.sites, want.fidelity.sites, rel=rel, tiny=0)
        for name in ("l0", "dead", "n_tokens", "headline", "verdict"):
            assert getattr(one.fidelity, name) == getattr(want.fidelity, name)
        if rel == 1e-9:
            assert_equal_acts(one, want)
        assert torch.equal(dense(one) != 0, dense(want) != 0)
        assert torch.allclose(dense(one), dense(want), atol=1e-5)
        assert one.sums.keys() == want.sums.keys()
        assert len(want.sums) > 8
        for name in want.sums:
            assert torch.allclose(one.sums[name].double(), want.sums[name].double(), rtol=1e-5, atol=1e-4), name


def test_a_merged_store_is_a_store_like_any(tmp_path, dictionary, memory, tl_models, tokens):
    cfg = small(lively(memory))
    for i in range(2):
        gather(dictionary, tl_models, tokens[6 * i : 6 * i + 6], out=tmp_path / str(i))
    merge([tmp_path / "0", tmp_path / "1"], tmp_path / "whole")
    shutil.rmtree(tmp_path / "0")
    shutil.rmtree(tmp_path / "1")
    want = SaeVisData.create(dictionary, tl_models, tokens, cfg)
    got = SaeVisData.from_store(tmp_path / "whole", dictionary, cfg, model=tl_models, tokens=tokens)
    assert_same_dashboards(got, want)
    alone = SaeVisData.from_store(tmp_path / "whole", dictionary, cfg)
    ids = {i for d in alone.feature_data_dict.values() for g in d.sequence_data.seq_group_data
           for s in g.seq_data for i in s.token_ids}  # fmt: skip
    assert {i: alone.page.vocabulary[i] for i in ids} == {i: want.page.vocabulary[i] for i in ids}
    assert_equal_acts(gather(dictionary, tl_models, tokens, out=tmp_path / "whole"), memory)


def test_documents_that_were_given_keep_their_numbers(dictionary, tl_models, tokens):
    documents = torch.tensor([5, 5, 5, 1, 1, 1, 1, 2, 2, 5, 5, 9])
    want = gather(dictionary, tl_models, tokens, [1], documents=documents)
    shards = [gather(dictionary, tl_models, tokens[a:b], [1], documents=documents[a:b]) for a, b in ((0, 8), (8, 12))]
    assert torch.equal(merge(shards).mask.documents, want.mask.documents)
    assert torch.equal(want.mask.documents[:, 3], documents)


@pytest.mark.parametrize("first", [True, False])
def test_given_documents_are_not_mixed_up_with_counted_ones(first, dictionary, tl_models, tokens):
    """No number may stand for two documents."""
    some = gather(dictionary, tl_models, tokens[:4], [1], documents=torch.arange(4))
    others = gather(dictionary, tl_models, tokens[4:8], [1])
    try:
        documents = merge([some, others] if first else [others, some]).mask.documents[:, 0]
    except ValueError as error:
        assert "documents" in str(error)  # noqa: PT017 - either way is right
    else:
        assert len(documents.unique()) == 8


@pytest.mark.parametrize("what", ["dictionary", "model", "order", "masking", "masked_tokens", "positions", "features",
                                  "length", "replaced", "latent_scaling"])  # fmt: skip
def test_shards_that_do_not_belong_together_are_refused(what, tmp_path, dictionary, tl_models, tokens):
    given = {"encoder": dictionary, "model": tl_models, "tokens": tokens[:3], "features": [1, 2, 3]}
    change = {
        "dictionary": {"encoder": other_dictionary(tmp_path)},
        "model": {"model": [tl_models[1], tl_models[1]]},
        "order": {"model": tl_models[::-1]},
        "masking": {"masking": "none"},
        "masked_tokens": {"masked_tokens": [17]},
        "positions": {"masked_positions": [2]},
        "features": {"features": [1, 2]},
        "length": {"tokens": tokens[3:6, :-1]},
        "replaced": {"token_replacements": {0: {3: 4}}},
        "latent_scaling": {"latent_scaling": True},
    }[what]
    folders = [tmp_path / "0", tmp_path / "1", tmp_path / "2"]
    others = given | {"tokens": tokens[3:6]}
    acts = [gather(**one, out=folder) for one, folder in zip((given, others, others | change), folders, strict=True)]
    for shards in (acts, folders):
        assert len(merge(shards[:2]).tokens) == 6
        for pair in ([shards[0], shards[2]], [shards[2], shards[0]]):
            with pytest.raises(ValueError, match="do not belong together"):
                merge(pair, tmp_path / "whole")
    assert not (tmp_path / "whole").exists()


def test_merging_nothing_or_into_something_is_refused(own, store):
    with pytest.raises(ValueError, match="nothing"):
        merge([])
    before = {path.name: path.read_bytes() for path in own.iterdir()}
    with pytest.raises((ValueError, FileExistsError), match="own"):
        merge([store], own)
    assert {path.name: path.read_bytes() for path in own.iterdir()} == before


def test_a_merge_that_was_stopped_can_be_made_again(tmp_path, monkeypatch, dictionary, tl_models, tokens, memory):
    shards = [gather(dictionary, tl_models, rows) for rows in tokens.split(4)]
    write, written = crossvis_tl.parts.Part.write, []

    def full_disk(part, path):
        written.append(path)
        if len(written) == 2:
            raise OSError(28, "No space left on device")
        write(part, path)

    monkeypatch.setattr(crossvis_tl.parts.Part, "write", full_disk)
    with pytest.raises(OSError, match="No space left"):
        merge(shards, tmp_path / "whole")
    with pytest.raises((ValueError, FileNotFoundError)):
        open_store(tmp_path / "whole")
    merge(shards, tmp_path / "whole")
    assert torch.allclose(dense(open_store(tmp_path / "whole")), dense(memory), atol=1e-5)


# Memory


@pytest.mark.parametrize("budget", [0, 4000])
def test_past_a_budget_activations_lie_on_disk(budget, tmp_path, monkeypatch, dictionary, tl_models, tokens, memory):
    many_parts(monkeypatch)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    mask = token_mask(tokens, tl_models[0].tokenizer)
    capture = Capture(dictionary, tl_models)
    acts = crossvis_tl.gathering.gather(capture, tokens, mask, rows_per_batch=2, memory_budget=budget)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) == len(acts.parts) == 6
    inodes = Path("/proc/self/maps").read_text() if Path("/proc/self/maps").exists() else None
    assert inodes is None or all(str(path) in inodes for path in files)
    assert_equal_acts(acts, memory)
    some = acts.select([3, 1])
    del acts
    gc.collect()
    assert list(tmp_path.iterdir())
    assert torch.equal(some.of(0)[1], memory.of(3)[1])
    del some
    gc.collect()
    assert list(tmp_path.iterdir()) == []


def test_within_the_budget_nothing_is_written(tmp_path, monkeypatch, dictionary, tl_models, tokens):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    gather(dictionary, tl_models, tokens)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("most", [1, 3, 5])
@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory. Tried to allocate"), MemoryError()])
def test_out_of_memory_halves_the_batch(
    most, error, monkeypatch, tmp_path, caplog, dictionary, tl_models, tokens, memory
):
    """In memory and into a store, where each part must still hold its rows."""
    monkeypatch.setattr(crossvis_tl.gathering, "PART_TOKENS", 5 * N_CTX)
    limits, sizes = [], []
    for model in tl_models:
        forward = model.forward

        def limited(tokens, *args, _forward=forward, **kwargs):
            if limits and len(tokens) > limits[0] and tokens.shape[1] == N_CTX:
                raise error
            sizes.append(len(tokens))
            return _forward(tokens, *args, **kwargs)

        monkeypatch.setattr(model, "forward", limited)
    monkeypatch.setattr("crossvis_tl.gathering.diagnose", lambda *args: ([], []))  # has its own few sequences
    limits.append(most)
    for out in (None, tmp_path / "store"):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            acts = gather(dictionary, tl_models, tokens, out=out)
        warnings = [record for record in caplog.records if record.levelno == logging.WARNING]
        assert warnings
        assert all("out of memory" in record.getMessage() for record in warnings)
        assert torch.equal(dense(acts) != 0, dense(memory) != 0)
        assert torch.allclose(dense(acts), dense(memory), atol=1e-5)
        assert_close(acts.fidelity.sites, memory.fidelity.sites, rel=1e-5)
    assert max(sizes) <= most


def test_out_of_memory_with_one_sequence_is_raised(monkeypatch, dictionary, tl_models, tokens):
    def before(call: int) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    spy(monkeypatch, tl_models, before)
    with pytest.raises(torch.OutOfMemoryError):
        gather(dictionary, tl_models, tokens)


def test_another_error_is_not_taken_for_one_of_memory(monkeypatch, dictionary, tl_models, tokens):
    def before(call: int) -> None:
        raise RuntimeError("a shape does not fit")

    spy(monkeypatch, tl_models, before)
    with pytest.raises(RuntimeError, match="a shape does not fit"):
        gather(dictionary, tl_models, tokens)


# Masked


def every_activation(dictionary, models, tokens) -> torch.Tensor:
    """[rows, positions, features], from the definition."""
    sources = [model.run_with_cache(tokens, names_filter=HOOK)[1][HOOK] for model in models]
    return dictionary.encode(sources)


def test_activations_are_those_of_the_definition(dictionary, tl_models, hf_models, tokens, memory, store):
    with torch.no_grad():  # HuggingFace's second hidden state is what leaves layer 1
        hidden = [model(tokens, output_hidden_states=True).hidden_states[2] for model in hf_models]
    ways = [every_activation(dictionary, tl_models, tokens), dictionary.encode(hidden)]
    for want in ways:
        assert (want[:, 0] > 0).any(), "BOS fires, and masking must show"
        want[:, 0] = 0
        for acts in (memory, open_store(store)):
            assert torch.allclose(dense(acts), want, atol=2e-4)
    order = [30, 2, 17]
    assert torch.equal(dense(memory.select(order)), dense(memory)[..., order])


TEXT = "X"  # a token as the tokenizer writes it


def masks(tokens, tokenizer) -> dict[str, tuple[dict, torch.Tensor, str]]:
    """-> arguments, what counts, and a word the page must say."""
    columns = torch.arange(N_CTX).expand(tokens.shape)
    not_first, real = columns > 0, torch.ones_like(tokens, dtype=torch.bool)
    named = tokenizer.convert_tokens_to_ids(TEXT)
    return {
        "default": ({}, not_first, "BOS"),
        "none": ({"masking": "none"}, real, "nothing"),
        "all special": ({"masking": "all special"}, tokens != 0, "special"),
        "an id": ({"masked_tokens": [17]}, not_first & (tokens != 17), "17"),
        "a string": ({"masked_tokens": [TEXT]}, not_first & (tokens != named), TEXT),
        "both": ({"masked_tokens": [TEXT, 17]}, not_first & (tokens != named) & (tokens != 17), "17"),
        "positions": ({"masked_positions": [1, 5]}, not_first & (columns != 1) & (columns != 5), "positions 1, 5"),
        "last": ({"masked_positions": [-1, -3]}, not_first & (columns != N_CTX - 1) & (columns != N_CTX - 3), "-1, -3"),
        "only": ({"masking": "none", "masked_positions": [0, 2]}, (columns != 0) & (columns != 2), "positions 0, 2"),
    }


@pytest.mark.parametrize(
    "what", ["default", "none", "all special", "an id", "a string", "both", "positions", "last", "only"]
)
def test_masked_tokens_are_nowhere(what, dictionary, tl_models, tokens):
    tokenizer = tl_models[0].tokenizer
    tokens = tokens.clone()
    tokens[2, 9] = tokens[7, 20] = 0  # a special token inside a text
    tokens[3, 4] = tokens[5, 6] = tokens[5, 7] = 17
    tokens[1, 4] = tokens[8, 6] = tokens[8, 7] = tokenizer.convert_tokens_to_ids(TEXT)
    given, counted, word = masks(tokens, tokenizer)[what]
    n = int(counted.sum())
    want = every_activation(dictionary, tl_models, tokens) * counted[..., None]
    data = SaeVisData.create(dictionary, tl_models, tokens, SaeVisConfig(), effect="none", **given)
    acts = gather(dictionary, tl_models, tokens, **given)
    assert torch.equal(acts.counted, counted)
    assert torch.allclose(dense(acts), want, atol=2e-4)
    assert acts.fidelity.n_tokens == n
    assert acts.fidelity.l0 == pytest.approx(float((want > 0).sum()) / n)
    assert acts.fidelity.dead == pytest.approx(float((want.flatten(0, 1) <= 0).all(0).float().mean()))
    assert word in dict(data.page.facts)["masked"]
    columns = want[counted].double()
    columns = (columns - columns.mean(0)) / columns.std(0, correction=0).clamp_min(
        1e-9
    )  # a dead one correlates with none
    pearson = columns.T @ columns / n
    for feature, panel in data.panels.items():
        fired = int((want[..., feature] > 0).sum())
        assert panel.density == pytest.approx(fired / n)
        assert panel.maximum == pytest.approx(float(want[..., feature].max()), abs=2e-4)
        part = data.feature_data_dict[feature]
        assert sum(part.acts_histogram_data.bar_heights) == fired
        table = part.feature_tables_data
        for other, value in zip(table.correlated_features_indices, table.correlated_features_pearson, strict=True):
            assert value == pytest.approx(float(pearson[feature, other]), abs=1e-3)
        assert all(counted[s.row, s.position] for group in panel.sequences for s in group)
        for group, records in zip(part.sequence_data.seq_group_data, panel.sequences, strict=True):
            for sequence, record in zip(group.seq_data, records, strict=True):
                first = record.position - record.bold
                at = slice(first, first + len(sequence.token_ids))
                assert sequence.token_ids == tokens[record.row, at].tolist()
                assert sequence.feat_acts == pytest.approx(want[record.row, at, feature].tolist(), abs=3e-4)


def test_fvu_is_over_counted_tokens(dictionary, tl_models, tokens):
    acts = gather(dictionary, tl_models, tokens, masked_positions=[4, -2])
    sources = [model.run_with_cache(tokens, names_filter=HOOK)[1][HOOK][acts.counted].double() for model in tl_models]
    fired = dense(acts)[acts.counted].double()
    for m, site in enumerate(acts.fidelity.sites):
        W = torch.stack([dictionary.decoder(torch.tensor([f]), m)[0] for f in range(dictionary.n_features)]).double()
        left = sources[m] - fired @ W
        bias = dictionary.decode(dictionary.encode_sparse([x[:1].float() for x in sources]))[m][0]
        bias = bias.double() - fired[:1].float().double()[0] @ W
        errors = (left - bias).pow(2).sum()
        spread = (sources[m] - sources[m].mean(0)).pow(2).sum()
        assert site.fvu == pytest.approx(float(errors / spread), rel=1e-3)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"masked_tokens": ["<|endoftex|>"]}, r"<\|endoftex\|>.*Did you mean '<\|endoftext\|>'"),
        ({"masked_tokens": "X"}, r"\['X'\]"),
        ({"masked_positions": [N_CTX]}, str(N_CTX)),
        ({"masked_positions": [-N_CTX - 1]}, str(-N_CTX - 1)),
        ({"masked_positions": [1.5]}, r"1\.5"),
        ({"masking": "speciall"}, "'special'"),
        ({"masked_positions": range(N_CTX)}, "nothing is left"),
        ({"masked_tokens": range(VOCABULARY)}, "nothing is left"),
        ({"documents": torch.arange(3)}, "documents"),
    ],
)
def test_what_cannot_be_masked_is_refused_before_the_models_run(
    given, words, dictionary, tl_models, tokens, monkeypatch
):
    seen = spy(monkeypatch, tl_models)
    with pytest.raises(ValueError, match=words):
        gather(dictionary, tl_models, tokens, **given)
    assert seen == []


# Padded


def with_padding(patch: pytest.MonkeyPatch, models, side: str = "right") -> None:
    """Models whose tokenizer pads with a token of its own."""
    for model in models:
        tokenizer = copy.deepcopy(model.tokenizer)
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(PAD)
        tokenizer.padding_side = side
        assert tokenizer.pad_token_id == PAD != tokenizer.bos_token_id
        patch.setattr(model, "tokenizer", tokenizer)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("bos", [True, False])
@settings(max_examples=10, deadline=None)
@given(
    shape=st.lists(st.tuples(st.integers(0, 8), st.integers(3, 12)), min_size=1, max_size=5),
    seed=st.integers(0, 2**16),
)
def test_padding_changes_no_activation(side, bos, shape, seed, dictionary, tl_models):
    """`shape`: of each row, padding before it and its length; what is left of 20 positions is padding after it."""
    width, generator = 20, torch.Generator().manual_seed(seed)
    tokens = torch.full((len(shape), width), PAD)
    want, real = torch.zeros(len(shape), width, 40), torch.zeros(len(shape), width, dtype=torch.bool)
    with pytest.MonkeyPatch.context() as patch:
        with_padding(patch, tl_models, side)
        for r, (left, length) in enumerate(shape):
            row = torch.randint(1, PAD, (length,), generator=generator)
            row[:1] = 0 if bos else row[:1]
            at = slice(left, left + length)
            tokens[r, at] = row
            real[r, left + int(bos) : left + length] = True
            want[r, at] = every_activation(dictionary, tl_models, row[None])[0]
        acts = gather(dictionary, tl_models, tokens)
    assert torch.equal(acts.counted, real)
    assert torch.allclose(dense(acts), want * real[..., None], atol=2e-4)
    assert acts.fidelity.n_tokens == int(real.sum())


@pytest.mark.parametrize("effect", ["direct", "full"])
@pytest.mark.parametrize("own_token", [True, False])
def test_padding_changes_no_dashboard(effect, own_token, dictionary, tl_models, memory, monkeypatch):
    """Rows left as they are, and between padding before and after them: only where they stand differs. A tokenizer
    without a padding token pads with BOS."""
    if own_token:
        with_padding(monkeypatch, tl_models)
    pad = PAD if own_token else tl_models[0].tokenizer.bos_token_id
    n, width, lefts = 16, 22, [0, 6, 3, 0, 1, 6, 5, 2]
    plain_rows = torch.randint(1, PAD, (len(lefts), n), generator=torch.Generator().manual_seed(8))
    plain_rows[:, 0] = 0
    padded = torch.full((len(lefts), width), pad)
    for row, left in enumerate(lefts):
        padded[row, left : left + n] = plain_rows[row]
    cfg = small(lively(memory, 2), top=20)
    want = SaeVisData.create(dictionary, tl_models, plain_rows, cfg, effect=effect)
    got = SaeVisData.create(dictionary, tl_models, padded, cfg, effect=effect)
    for panel in got.panels.values():
        for shown in (s for group in panel.sequences for s in group):
            shown.position -= lefts[shown.row]
    assert_close(got.panels, want.panels)
    assert_close(got.feature_data_dict, want.feature_data_dict)
    assert_close(got.feature_stats, want.feature_stats)
    fidelity, wanted = got.page.fidelity, want.page.fidelity
    assert_close([fidelity[k] for k in ("sites", "l0", "dead", "n_tokens")],
                 [wanted[k] for k in ("sites", "l0", "dead", "n_tokens")])  # fmt: skip
    masked = dict(got.page.facts)["masked"]
    assert f"BOS ({len(lefts)} tokens)" in masked
    assert f"padding ({len(lefts) * (width - n)} tokens)" in masked


def test_positions_are_counted_without_padding(tl_models, monkeypatch):
    with_padding(monkeypatch, tl_models)
    tokens = torch.tensor([[0, 1, 2, 3, 4, 5], [PAD, PAD, 0, 1, 2, 3], [0, 1, 2, 3, PAD, PAD], [PAD, 0, 1, 2, 3, PAD]])
    mask = token_mask(tokens, tl_models[0].tokenizer, masked_positions=[1, -1])
    want = [[0, 0, 1, 1, 1, 0], [0, 0, 0, 0, 1, 0], [0, 0, 1, 0, 0, 0], [0, 0, 0, 1, 0, 0]]
    assert mask.counted.int().tolist() == want
    assert "positions 1, -1 (8 tokens)" in mask.text
    assert "BOS (4 tokens)" in mask.text
    assert "padding (6 tokens)" in mask.text


def test_padding_goes_through_a_store(tmp_path, monkeypatch, dictionary, tl_models, tokens, memory):
    """Left padding is needed again when the shown sequences are run."""
    with_padding(monkeypatch, tl_models)
    many_parts(monkeypatch)
    tokens = torch.where(tokens == PAD, 1, tokens)
    for row, left in enumerate([0, 3, 5, 0, 1, 4]):
        tokens[row, left:] = tokens[row, : N_CTX - left].clone()
        tokens[row, :left] = PAD
    tokens[6:9, -4:] = PAD
    cfg = small(lively(memory))
    want = SaeVisData.create(dictionary, tl_models, tokens, cfg)
    gather(dictionary, tl_models, tokens, out=tmp_path / "store")
    assert_same_dashboards(SaeVisData.from_store(tmp_path / "store", dictionary, cfg, model=tl_models), want)
    shards = [gather(dictionary, tl_models, rows) for rows in (tokens[:5], tokens[5:])]
    assert torch.allclose(dense(merge(shards)), dense(open_store(tmp_path / "store")), atol=1e-5)


# The command line


@pytest.fixture
def desk(tmp_path, models_dir, tokens) -> dict[str, list[str]]:
    """Options of a good call, by name."""
    np.save(tmp_path / "tokens.npy", tokens.numpy().astype("uint16"))
    write_crosscoder(tmp_path / "crosscoder")
    return {
        "model": [str(models_dir / "base"), str(models_dir / "tuned")],
        "dictionary": [str(tmp_path / "crosscoder")],
        "tokens": [str(tmp_path / "tokens.npy")],
        "device": ["cpu"],
    }


def crossvis(command: str, options: Mapping[str, list[str]], *rest):
    words = [word for name, values in options.items() for value in values for word in (f"--{name}", value)]
    return CliRunner().invoke(app, [command, *words, *map(str, rest)])


def made(result) -> str:
    assert result.exit_code == 0, result.output or repr(result.exception)
    return result.stdout


def refusal(result) -> str:
    assert result.exit_code == 2, result.output or repr(result.exception)
    assert "Traceback" not in result.output
    return result.stderr


def test_gather_then_render(desk, tmp_path, dictionary, memory):
    store = tmp_path / "store"
    made(crossvis("gather", desk, "--out", store))
    assert_equal_acts(open_store(store), memory)
    made(crossvis("render", desk, "--features", "top:2", "--out", tmp_path / "a.html", "--json", tmp_path / "a.json"))
    said = made(crossvis("render", {}, "--store", store, "--features", "top:2", "--out", tmp_path / "page.html",
                         "--json", tmp_path / "b.json"))  # fmt: skip
    assert "2 features" in said
    assert (tmp_path / "page.html").read_text().lower().startswith("<!doctype html>")
    want, got = (SaeVisData.load_json(tmp_path / f"{name}.json") for name in "ab")
    assert_same_dashboards(got, want)
    made(crossvis("render", {}, "--store", store, "--features", "2,9", "--out", tmp_path / "page.html", "--no-model",
                  "--json", tmp_path / "c.json"))  # fmt: skip
    alone = SaeVisData.load_json(tmp_path / "c.json")
    assert list(alone.panels) == [2, 9]
    assert all("not gathered" in panel.logits_note.lower() and not panel.logits for panel in alone.panels.values())


def test_paths_that_were_relative_are_found_from_elsewhere(desk, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made(crossvis("gather", desk | {"dictionary": ["crosscoder"], "tokens": ["tokens.npy"]}, "--out", "store"))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    made(crossvis("render", {}, "--store", tmp_path / "store", "--out", "page.html"))


def test_gather_again_and_gather_stopped(desk, tmp_path, monkeypatch, memory):
    store, rows, stop = tmp_path / "store", [], [9]
    forward = HookedTransformer.forward

    def spied(self, tokens, *args, **kwargs):
        if tokens.shape[1] == N_CTX:
            if len(rows) in stop:
                raise KeyboardInterrupt
            rows.append(len(tokens))
        return forward(self, tokens, *args, **kwargs)

    many_parts(monkeypatch)
    monkeypatch.setattr(HookedTransformer, "forward", spied)
    result = crossvis("gather", desk, "--out", store, "--batch", "1")
    assert result.exit_code == 130
    assert f"4 of {ROWS} sequences" in result.stderr
    assert "same" in result.stderr
    assert "4 of 12" in refusal(crossvis("render", {}, "--store", store, "--out", tmp_path / "page.html"))
    assert not (tmp_path / "page.html").exists()
    stop.clear()
    made(crossvis("gather", desk, "--out", store, "--batch", "1"))
    assert_equal_acts(open_store(store), memory)
    rows.clear()
    made(crossvis("gather", desk, "--out", store, "--batch", "1"))
    assert rows == []
    assert "other tokens" in refusal(crossvis("gather", desk, "--out", store, "--sequences", "5"))


@pytest.mark.parametrize("option", [["--tokens", "TOKENS"], ["--sequences", "3"], ["--masking", "none"],
                                    ["--mask-token", "17"], ["--mask-position", "0"], ["--mask-position", "3"],
                                    ["--latent-scaling"]])  # fmt: skip
def test_what_is_over_cannot_be_asked_of_a_store(option, store, desk, tmp_path):
    option = [desk["tokens"][0] if word == "TOKENS" else word for word in option]
    result = crossvis("render", {k: desk[k] for k in ("model", "dictionary")}, "--store", store, *option,
                      "--out", tmp_path / "page.html")  # fmt: skip
    assert option[0] in refusal(result)
    assert not (tmp_path / "page.html").exists()


def test_no_model_needs_a_store_and_no_model(desk, store, tmp_path):
    assert "--store" in refusal(crossvis("render", desk, "--no-model", "--out", tmp_path / "page.html"))
    both = {name: desk[name] for name in ("model", "dictionary")}
    assert "--no-model" in refusal(crossvis("render", both, "--store", store, "--no-model"))


def test_a_store_that_says_no_paths_takes_them(desk, store, dictionary, tmp_path):
    """One made in Python does not know where its models came from."""
    page = ["--out", tmp_path / "page.html"]
    assert "--dictionary" in refusal(crossvis("render", {}, "--store", store, *page))
    known = {"dictionary": desk["dictionary"]}
    assert "--model" in refusal(crossvis("render", known, "--store", store, *page))
    made(crossvis("render", known, "--store", store, "--no-model", *page))
    made(crossvis("render", known | {"model": desk["model"]}, "--store", store, *page))
    swapped = refusal(crossvis("render", known | {"model": desk["model"][::-1]}, "--store", store, *page))
    assert "order" in swapped


def test_merge_then_render(desk, tmp_path, tokens, memory):
    stores = []
    for i, rows in enumerate(tokens.split(7)):
        np.save(tmp_path / "tokens.npy", rows.numpy())
        stores.append(tmp_path / f"store {i}")
        made(crossvis("gather", desk, "--out", stores[-1]))
    made(crossvis("merge", {}, *stores, "--out", tmp_path / "whole"))
    whole = open_store(tmp_path / "whole")
    assert torch.equal(whole.tokens, tokens)
    assert torch.allclose(dense(whole), dense(memory), atol=1e-5)
    made(crossvis("render", {}, "--store", tmp_path / "whole", "--features", "3", "--out", tmp_path / "page.html"))
    np.save(tmp_path / "tokens.npy", tokens[:2].numpy())
    made(crossvis("gather", desk, "--features", "1,2", "--out", tmp_path / "few"))
    assert "other features" in refusal(crossvis("merge", {}, stores[0], tmp_path / "few", "--out", tmp_path / "bad"))
    assert not (tmp_path / "bad").exists()


def test_masking_from_the_command_line(desk, tmp_path, tokens, tl_models):
    made(crossvis("gather", desk, "--out", tmp_path / "store", "--masking", "none", "--mask-token", TEXT,
                  "--mask-token", "17", "--mask-position", "-1"))  # fmt: skip
    counted = (tokens != 17) & (tokens != tl_models[0].tokenizer.convert_tokens_to_ids(TEXT))
    counted[:, -1] = False
    assert torch.equal(open_store(tmp_path / "store").counted, counted)


def change_tensors(path: Path, **changes) -> None:
    """`changes`: from the tensor there to the one in its place."""
    with safe_open(path, "pt") as file:
        tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
        about = file.metadata()
    save_file(tensors | {name: change(tensors[name]) for name, change in changes.items()}, path, about)


def put(value: float, at: int = 0):
    def change(x: torch.Tensor) -> torch.Tensor:
        x[at] = value
        return x

    return change


@pytest.mark.parametrize(
    "changes",
    [
        {"where": put(-1)}, {"where": put(10**6)}, {"values": put(float("nan"))}, {"values": put(float("inf"))},
        {"where": lambda x: x.flip(0).contiguous()}, {"where": torch.zeros_like},
    ],
)  # fmt: skip
def test_activations_that_no_gathering_writes_are_no_picture(own, dictionary, tl_models, changes):
    change_tensors(own / "part-00000.safetensors", **changes)
    with pytest.raises(ValueError, match=r"damaged: it holds activations at no token, twice, or not finite"):
        SaeVisData.from_store(own, dictionary, model=tl_models)


@pytest.mark.parametrize(
    "changes",
    [
        {"documents": lambda x: x[:-1].contiguous()}, {"counted": lambda x: x.long()}, {"lead": put(99)},
        {"features": put(10**6)}, {"features": torch.zeros_like}, {"tokens": lambda x: -x - 1},
    ],
)  # fmt: skip
def test_tokens_that_do_not_fit_together_are_named(own, changes):
    change_tensors(own / "tokens.safetensors", **changes)
    with pytest.raises(ValueError, match=r"tokens\.safetensors is damaged: what it holds does not fit together"):
        open_store(own)
