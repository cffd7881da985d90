"""`crossvis render` from outside: what it writes, what it says, and how it refuses."""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from crossvis_tl import SaeVisData, load_dictionary
from crossvis_tl.cli import app
from tests import conftest
from tests.conftest import D_MODEL, N_CTX, VOCABULARY, write_clt, write_crosscoder

HOOK = "blocks.1.hook_resid_post"
FEATURES, ROWS = 24, 5
OLD = {"page.html": "an old page", "data.json": "old data"}


@dataclass
class Desk:
    """A folder with everything a good call needs, and older outputs that a bad one must leave alone."""

    folder: Path
    arguments: dict

    def command(self, **changes) -> list[str]:
        given = self.arguments | changes
        command = ["render"]
        for name, value in given.items():
            for one in value if isinstance(value, list) else [value]:
                command += [] if one is None else [f"--{name.replace('_', '-')}", str(one)]
        return command

    def run(self, **changes):
        return CliRunner().invoke(app, self.command(**changes))

    def shown(self, **changes) -> tuple[str, SaeVisData]:
        """-> what a good call prints, and the data it saves."""
        result = self.run(**changes)
        assert result.exit_code == 0, result.output
        assert (self.folder / "page.html").read_text().lower().startswith("<!doctype html>")
        return result.stdout, SaeVisData.load_json(self.folder / "data.json")

    def files(self) -> dict[str, bytes]:
        return {str(p.relative_to(self.folder)): p.read_bytes() for p in self.folder.rglob("*") if p.is_file()}

    def refused(self, **changes) -> str:
        """-> the one line of a refusal that changed no file."""
        before = self.files()
        result = self.run(**changes)
        assert result.exit_code == 2, result.output or repr(result.exception)
        assert self.files() == before
        lines = result.stderr.splitlines()
        assert len(lines) == 1, result.stderr
        assert lines[0].startswith("error: ")
        assert "Traceback" not in result.output
        return lines[0]


@pytest.fixture
def desk(tmp_path, models_dir, tokens) -> Desk:
    np.save(tmp_path / "tokens.npy", tokens[:ROWS].numpy().astype("uint16"))
    for name, content in OLD.items():
        (tmp_path / name).write_text(content)
    return Desk(
        tmp_path,
        {
            "model": [models_dir / "base", models_dir / "tuned"],
            "dictionary": write_crosscoder(tmp_path / "crosscoder", features=FEATURES),
            "tokens": tmp_path / "tokens.npy",
            "features": "0,1",
            "out": tmp_path / "page.html",
            "json": tmp_path / "data.json",
            "device": "cpu",
        },
    )


# What it shows


@pytest.mark.parametrize(
    ("spec", "features"),
    [
        ("0,5,10-20", [0, 5, *range(10, 21)]),
        ("7, 3", [7, 3]),
        ("3,3,2-4", [3, 2, 4]),
        ("23", [23]),
        ("all", list(range(FEATURES))),
    ],
)
def test_features_are_shown_as_named(desk, spec, features):
    stdout, data = desk.shown(features=spec)
    assert list(data.feature_data_dict) == features
    assert f"{len(features)} feature{'s' if len(features) > 1 else ''} in " in stdout
    assert str(desk.folder / "page.html") in stdout


def maxima(desk, tl_models, tokens) -> torch.Tensor:
    """Maximum activation of every feature over all but the BOS tokens, straight from the definition."""
    tokens = tokens[:ROWS]
    sources = [model.run_with_cache(tokens, names_filter=HOOK)[1][HOOK] for model in tl_models]
    acts = load_dictionary(desk.arguments["dictionary"]).encode(sources)
    return acts[:, 1:].flatten(0, 1).max(0).values


@pytest.mark.parametrize("spec", ["top:5", " top:3", "top:50"])
def test_top_is_by_maximum_activation(desk, tl_models, tokens, spec):
    count = int(spec.split(":")[1])
    _, data = desk.shown(features=spec)
    expected = maxima(desk, tl_models, tokens)
    assert (expected <= 0).any(), "features that never fire are left out"
    count = min(count, int((expected > 0).sum()))
    assert list(data.feature_data_dict) == expected.argsort(descending=True)[:count].tolist()
    shown = torch.tensor([panel.maximum for panel in data.panels.values()])
    assert torch.allclose(shown, expected.sort(descending=True).values[:count], rtol=1e-3)


def test_a_label_names_a_feature_of_a_clt(desk):
    clt = write_clt(desk.folder / "clt")
    _, data = desk.shown(dictionary=clt, model=desk.arguments["model"][1], features="L1F3,0")
    assert list(data.feature_data_dict) == [23, 0]
    assert [panel.label for panel in data.panels.values()] == ["L1F3", "L0F0"]


def test_a_feature_that_never_fires_can_be_asked_for(desk, tl_models, tokens):
    dead = int((maxima(desk, tl_models, tokens) <= 0).nonzero()[0])
    _, data = desk.shown(features=str(dead))
    assert list(data.feature_data_dict) == [dead]
    assert data.panels[dead].density == 0


def test_without_json_only_the_page_is_written(desk):
    (desk.folder / "data.json").unlink()
    before = set(desk.files())
    assert desk.run(json=None).exit_code == 0
    assert set(desk.files()) == before


def test_facts_the_files_lack_can_be_given(desk):
    _, expected = desk.shown()
    config = desk.folder / "crosscoder" / "cfg.json"
    config.write_text(json.dumps({"d_in": D_MODEL}))
    _, data = desk.shown(input_scale="1,1.0", hook_point=HOOK, processing="none")
    assert [p.maximum for p in data.panels.values()] == [p.maximum for p in expected.panels.values()]


def test_sequences_limits_the_tokens(desk, tl_models, tokens):
    stdout, data = desk.shown(features="top:3", sequences=3)
    expected = maxima(desk, tl_models, tokens[:3]).sort(descending=True).values[:3]
    assert [panel.maximum for panel in data.panels.values()] == pytest.approx(expected.tolist(), rel=1e-3)
    assert f"{3 * (N_CTX - 1)} tokens" in stdout


def test_a_text_is_as_good_as_ids(desk):
    (desk.folder / "text.txt").write_text("THEQUICKBROWNFOX" * 10)
    stdout, data = desk.shown(tokens=desk.folder / "text.txt", context=9)
    assert "160 tokens" in stdout
    assert list(data.feature_data_dict) == [0, 1]


def test_special_characters_in_names_are_printed_as_they_are(desk):
    page = desk.folder / "a [bold]page b.html"
    result = desk.run(out=page)
    assert result.exit_code == 0
    assert str(page) in result.stdout
    assert page.exists()
    assert "no [red]such.npy" in desk.refused(tokens=desk.folder / "no [red]such.npy")


# The verdict


def test_the_verdict_comes_before_the_page(desk, monkeypatch):
    def fail(self, *args, **kwargs):
        raise OSError("the disk is full")

    monkeypatch.setattr(SaeVisData, "save_feature_centric_vis", fail)
    result = desk.run()
    assert result.exit_code == 2
    assert re.search(r"fidelity (plausible|doubtful|implausible): .*FVU \d.*L0 \d", result.stdout)
    assert "the disk is full" in result.stderr
    assert {name: (desk.folder / name).read_text() for name in OLD} == OLD


def write_own_axes(folder: Path, models, tokens, rank: int = 7) -> Path:
    """A crosscoder that writes each model's residuals in that model's own leading axes around its own mean: each axis
    has a feature for either sign. Features that never fire keep it sparse."""
    width = 12 * rank
    state = {
        "W_enc": torch.zeros(2, D_MODEL, width),
        "W_dec": torch.zeros(width, 2, D_MODEL),
        "b_enc": torch.full((width,), -1e6),
        "b_dec": torch.zeros(2, D_MODEL),
    }
    for s, model in enumerate(models):
        x = model.run_with_cache(tokens, names_filter=HOOK)[1][HOOK][:, 1:].flatten(0, 1)
        mean = x.mean(0)
        axes = torch.linalg.svd(x - mean, full_matrices=False).Vh[:rank]
        signed = torch.cat([axes, -axes])
        here = slice(2 * rank * s, 2 * rank * (s + 1))
        state["W_enc"][s, :, here] = signed.T
        state["W_dec"][here, s] = signed
        state["b_enc"][here] = -signed @ mean
        state["b_dec"][s] = mean
    write_crosscoder(folder, features=width)
    torch.save(state, folder / "cc_weights.pt")
    return folder


def test_swapped_models_are_found_out(desk, tl_models, tokens):
    own = write_own_axes(desk.folder / "own", tl_models, tokens[:ROWS])
    good, _ = desk.shown(dictionary=own)
    assert "fidelity plausible" in good
    assert "likely cause" not in good
    bad, _ = desk.shown(dictionary=own, model=desk.arguments["model"][::-1])
    assert "fidelity implausible" in bad
    causes = [line for line in bad.splitlines() if "likely cause" in line]
    assert "swapped" in causes[0]
    assert re.search(r"give base first, then tuned", causes[0])


def test_the_printed_fvu_and_l0_are_true(desk, tl_models, tokens):
    dictionary = load_dictionary(desk.arguments["dictionary"])
    sources = [m.run_with_cache(tokens[:ROWS], names_filter=HOOK)[1][HOOK][:, 1:].flatten(0, 1) for m in tl_models]
    acts = dictionary.encode(sources)
    expected = [
        float((x - recon).pow(2).sum() / (x - x.mean(0)).pow(2).sum())
        for x, recon in zip(sources, dictionary.decode(acts), strict=True)
    ]
    stdout, _ = desk.shown()
    assert stdout.count("fidelity ") == 1
    printed = [float(n) for n in re.findall(r"^ +FVU ([\d.]+) ", stdout, re.MULTILINE)]
    assert printed == pytest.approx(expected, abs=2e-3)
    assert f"L0 {(acts > 0).sum(-1).float().mean():.1f}" in stdout


# What it refuses


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("20-10", "20-10.*backwards"),
        ("top:0", "top:0.*top:50"),
        ("top:", "top:.*top:50"),
        ("top:-3", "top:-3.*top:50"),
        ("top:many", "top:many.*top:50"),
        ("foo", "'foo'.*0,5,10-20.*all"),
        ("L9F1", "'L9F1'.*0,5,10-20.*all"),
        ("40", "feature 40 .*0 to 23"),
        ("20-30", "feature 30 .*0 to 23"),
        ("0-99999999999", "0 to 23"),
        ("", "no feature.*0,5,10-20.*all"),
        (",", "no feature.*0,5,10-20.*all"),
        ("1;2", "'1;2'"),
        ("1-", "'1-'"),
        ("all,3", "'all'"),
        ("3,top:5", "'top:5'"),
    ],
)
def test_features_that_cannot_be_read(desk, spec, words):
    text = desk.refused(features=spec)
    assert re.search(words, text)
    assert "Did you mean ''" not in text


def bad_model(desk, content: str | None = None, cut: int | None = None) -> dict:
    folder = Path(shutil.copytree(desk.arguments["model"][0], desk.folder / "damaged"))
    if content is not None:
        (folder / "config.json").write_text(content)
    if cut is not None:
        weights = folder / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:cut])
    return {"model": [folder, desk.arguments["model"][1]]}


def bad_tokens(desk, array, name: str = "bad.npy") -> dict:
    np.save(desk.folder / name, np.asarray(array))
    return {"tokens": desk.folder / name}


def bad_file(desk, name: str, content: bytes, option: str) -> dict:
    (desk.folder / name).write_bytes(content)
    return {option: desk.folder / name}


def bad_config(desk, drop: str = "", **changes) -> dict:
    config = desk.folder / "crosscoder" / "cfg.json"
    content = json.loads(config.read_text()) | changes
    content.pop(drop, None)
    config.write_text(json.dumps(content))
    return {}


def narrow(desk) -> dict:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(conftest, "D_MODEL", 8)
        return {"dictionary": write_crosscoder(desk.folder / "narrow")}


def make_folder(desk, name: str, option: str) -> dict:
    (desk.folder / name).mkdir()
    return {option: desk.folder / name}


def all_bos(rows: int, width: int) -> np.ndarray:
    return np.zeros((rows, width), int)


REFUSED = {
    "missing model": (lambda d: {"model": [d.arguments["model"][0].with_name("bass")] * 2}, "bass.*'base'"),
    "no model": (lambda d: {"model": [d.folder / "crosscoder"] * 2}, "crosscoder is no model"),
    "a file as model": (lambda d: {"model": [d.folder / "tokens.npy"] * 2}, "tokens.npy is a file"),
    "garbage config": (lambda d: bad_model(d, "{garbage"), "damaged.*config.json"),
    "truncated model": (lambda d: bad_model(d, cut=5000), "damaged"),
    "one model for two": (lambda d: {"model": d.arguments["model"][0]}, "crosscoder reads 2 models.*got 1"),
    "three models for two": (lambda d: {"model": d.arguments["model"] * 2}, "crosscoder reads 2 models.*got 4"),
    "missing dictionary": (lambda d: {"dictionary": d.folder / "croscoder"}, "croscoder does not.*'crosscoder'"),
    "model as dictionary": (lambda d: {"dictionary": d.arguments["model"][0]}, "base is no dictionary"),
    "tokens as dictionary": (lambda d: {"dictionary": d.folder / "tokens.npy"}, "tokens.npy is no dictionary"),
    "text as dictionary": (lambda d: bad_file(d, "x.pt", b"hello", "dictionary"), "x.pt cannot be read"),
    "other width": (narrow, "narrow is 8 wide.*base is 16 wide"),
    "no input scale": (lambda d: bad_config(d, drop="input_scale"), "input_scale"),
    "no hook": (lambda d: bad_config(d, drop="hook_point"), "hook.point"),
    "wrong hook": (
        lambda d: bad_config(d, hook_point="blocks.9.hook_resid_post"),
        "blocks.9.*blocks.2.hook_resid_post",
    ),
    "input scale of words": (lambda d: {"input_scale": "a,b"}, "--input-scale 'a,b'"),
    "input scale twice": (lambda d: {"input_scale": "1,1"}, "folded.*leave input_scale out"),
    "unknown processing": (lambda d: {"processing": "nonee"}, "'nonee'.*none, tl_default"),
    "missing tokens": (lambda d: {"tokens": d.folder / "nope.npy"}, "nope.npy does not exist"),
    "folder as tokens": (lambda d: {"tokens": d.folder / "crosscoder"}, "crosscoder.*is a folder"),
    "float tokens": (lambda d: bad_tokens(d, [[0.0, 1.0, 2.0]]), "bad.npy.*integers"),
    "word tokens": (lambda d: bad_tokens(d, [["a", "b"]]), "bad.npy"),
    "no tokens": (lambda d: bad_tokens(d, all_bos(0, 5)), "bad.npy.*empty"),
    "tokens past the vocabulary": (lambda d: bad_tokens(d, [[0, 1, VOCABULARY]]), f"bad.npy.*id {VOCABULARY},"),
    "negative tokens": (lambda d: bad_tokens(d, [[0, 1, -3]]), "bad.npy.*id -3,"),
    "long tokens": (lambda d: bad_tokens(d, all_bos(2, N_CTX + 1) + 1), f"bad.npy.*{N_CTX + 1} positions.*{N_CTX}"),
    "BOS alone": (lambda d: bad_tokens(d, all_bos(2, 5)), "every token is BOS"),
    "noise as tokens": (lambda d: bad_file(d, "x.pt", b"abc", "tokens"), "x.pt"),
    "empty text": (lambda d: bad_file(d, "x.txt", b"", "tokens"), "x.txt.*empty"),
    "binary text": (lambda d: bad_file(d, "x.bin", b"\xff\xfe\x80", "tokens"), "x.bin.*UTF-8"),
    "page in a missing folder": (lambda d: {"out": d.folder / "nowhere" / "p.html"}, "nowhere does not exist"),
    "page is a folder": (lambda d: make_folder(d, "pages", "out"), "pages is a folder"),
    "page inside a file": (lambda d: {"out": d.folder / "data.json" / "p.html"}, "data.json"),
    "JSON in a missing folder": (lambda d: {"json": d.folder / "nowhere" / "d.json"}, "nowhere does not exist"),
    "JSON is a folder": (lambda d: make_folder(d, "saved.json", "json"), "saved.json is a folder"),
    "JSON under another name": (lambda d: {"json": d.folder / "data.txt"}, "data.txt.*.json"),
    "page and JSON in one": (lambda d: {"out": d.folder / "data.json"}, "data.json"),
    "unknown device": (lambda d: {"device": "qpu"}, "qpu"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_bad_input_is_refused_in_one_line_and_touches_no_file(desk, case):
    prepare, words = REFUSED[case]
    changes = prepare(desk)
    assert re.search(words, desk.refused(**changes))


@pytest.mark.parametrize("option", ["out", "json"])
def test_a_page_without_permission(desk, models_dir, option):
    """In a folder anyone may read and nobody may write, as someone who is not root."""
    root = os.geteuid() == 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "closed"
        folder.mkdir()
        Path(name).chmod(0o777)
        folder.chmod(0o555)
        outputs = {"out": Path(name) / "p.html", "json": None} | {option: folder / "x.json"}
        if root:
            os.setresuid(65534, 65534, 0)
        try:
            result = desk.run(**outputs)
        finally:
            if root:
                os.setresuid(0, 0, 0)
        assert result.exit_code == 2
        assert re.search(r"x.json cannot be written: no permission", result.stderr)


def test_wrong_output_is_found_before_anything_is_read(desk):
    text = desk.refused(out=desk.folder / "nowhere" / "p.html", dictionary=desk.folder / "no", tokens="no", model="no")
    assert "nowhere does not exist" in text


def test_nothing_firing_is_said_for_top(desk):
    state = torch.load(desk.folder / "crosscoder" / "cc_weights.pt")
    torch.save(state | {"b_enc": torch.full((FEATURES,), -1e6)}, desk.folder / "crosscoder" / "cc_weights.pt")
    before = desk.files()
    result = desk.run(features="top:5")
    assert result.exit_code == 2
    assert "no feature fires" in result.stderr
    assert "Traceback" not in result.output
    assert desk.files() == before


@pytest.mark.parametrize("option", ["model", "dictionary", "tokens"])
def test_a_missing_option_is_named(desk, option):
    before = desk.files()
    result = desk.run(**{option: None})
    assert result.exit_code == 2
    assert f"--{option}" in result.stderr
    assert desk.files() == before


@pytest.mark.parametrize("option", ["batch", "sequences", "context"])
def test_a_count_of_zero_is_refused(desk, option):
    before = desk.files()
    result = desk.run(**{option: 0})
    assert result.exit_code == 2
    assert f"--{option}" in result.stderr
    assert desk.files() == before


def test_a_full_disk_leaves_the_old_files(desk, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    before = desk.files()
    monkeypatch.setattr("os.replace", full)
    result = desk.run()
    monkeypatch.undo()
    assert result.exit_code == 2
    assert "page.html" in result.stderr
    assert desk.files() == before


# The real program


def real(desk, **changes) -> subprocess.CompletedProcess:
    program = [sys.executable, "-c", "from crossvis_tl.cli import main; main()"]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    return subprocess.run(
        [*program, *desk.command(**changes)], capture_output=True, text=True, timeout=120, env=environment, check=False
    )


@pytest.mark.parametrize("what", ["truncated dictionary", "tokens"])
def test_the_real_program_refuses_alike(desk, what):
    weights = desk.folder / "crosscoder" / "cc_weights.pt"
    changes = bad_tokens(desk, [[0, 1, VOCABULARY]]) if what == "tokens" else {}
    if what != "tokens":
        weights.write_bytes(weights.read_bytes()[:2000])
    before = desk.files()
    result = real(desk, **changes)
    assert result.returncode == 2
    assert result.stdout == ""
    assert result.stderr.startswith("error: ")
    assert len(result.stderr.splitlines()) == 1
    assert ("bad.npy" if what == "tokens" else str(weights)) in result.stderr
    assert desk.files() == before


def test_prompts_get_a_page_of_their_own(desk):
    prompts = desk.folder / "prompts.html"
    result = desk.run(prompt=["HELLO!", "HO"], **{"prompt-out": prompts})
    assert result.exit_code == 0, result.output
    assert "2 prompts in" in result.stdout
    assert '"prompts":{"metric":"act_quantile"' in prompts.read_text()
    assert "--prompt is empty" in desk.run(prompt=[""]).stderr
    assert "both name" in desk.run(prompt=["HO"], **{"prompt-out": desk.folder / "page.html"}).stderr


def test_a_page_is_made_again_from_what_was_saved(desk):
    assert desk.run().exit_code == 0
    saved, again = desk.folder / "data.json", desk.folder / "again.html"
    result = CliRunner().invoke(app, ["page", str(saved), "--out", str(again)])
    assert result.exit_code == 0, result.output
    assert again.read_text() == (desk.folder / "page.html").read_text()
    wrong = CliRunner().invoke(app, ["page", str(saved), "--out", str(again), "--feature", "99999"])
    assert wrong.exit_code == 2
    assert "feature_idx is 99999, which was not gathered" in wrong.stderr
    missing = CliRunner().invoke(app, ["page", str(desk.folder / "none.json"), "--out", str(again)])
    assert "none.json does not exist" in missing.stderr
