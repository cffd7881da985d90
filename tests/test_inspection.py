"""What a file is said to be, without a model."""

import json
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from crossvis_tl import inspect, load_dictionary
from crossvis_tl.cli import app
from crossvis_tl.errors import parse_facts
from tests.test_golden import GOLDEN, read

FOLDER = GOLDEN[0].parent


def run(*arguments: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["inspect", *arguments])
    return result.exit_code, result.stdout, result.stderr


@pytest.mark.parametrize("folder", GOLDEN, ids=lambda p: p.name)
def test_the_line_loads_it(folder):
    """With what the producer did not write put in place of the dots, the line is Python that loads the checkpoint."""
    meta, _, _ = read(folder)
    path, facts = folder / meta["load_path"], meta["needs_from_user"]
    found = inspect(path)
    unknowable = {name for name in facts if name in ("activation", "input_scale")}
    assert unknowable == set(found.needed)
    whole = inspect(path, **facts)
    assert whole.needed == {}
    line = whole.line
    for name in whole.missing:
        line = line.replace(f", {name}=...", "")
    dictionary = eval(line, {"crossvis_tl": __import__("crossvis_tl")})  # noqa: S307 - our own line
    assert (dictionary.n_features, dictionary.kind) == (whole.n_features, whole.kind)
    assert whole.n_features == sum(whole.groups.values())
    assert [site.place for site in whole.sources] == [site.place for site in dictionary.sources]
    assert json.loads(whole.as_json())["activation"] == dictionary.activation


def test_what_is_missing_comes_before_the_line():
    code, out, _ = run(str(FOLDER / "f1_ckkissane/checkpoint/version_0"))
    assert code == 0
    lines = out.splitlines()
    assert lines[0].split() == ["format", "flat", "crosscoder", "(F1),", "a", "crosscoder"]
    assert "40 ReLU" in lines[1]
    assert "model 1: blocks.14.hook_resid_pre, 16 wide, processing tl_default" in out
    assert lines[-2].startswith("needed")
    assert "does not hold input_scale" in lines[-2]
    assert lines[-1].endswith("f1_ckkissane/checkpoint/version_0', input_scale=...)")


def test_facts_are_taken_and_shown():
    path = str(FOLDER / "f11_openclt_topk/checkpoint/openclt.pt")
    code, out, _ = run(path, "--fact", "activation=topk", "--fact", "k=5")
    assert code == 0
    assert "120 TopK in 3 layers of 40 (L0 to L2)" in out
    assert out.rstrip().endswith("openclt.pt', activation='topk', k=5)")
    assert "needed" not in out


def test_json():
    code, out, _ = run(str(FOLDER / "f7_untied_batchtopk/checkpoint"), "--json")
    found = json.loads(out)
    assert code == 0
    assert (found["kind"], found["activation"], found["n_features"]) == ("clt", "BatchTopK", 120)
    assert found["sources"][1]["place"] == "transformer.h.1.mlp.input"
    assert "crossvis_tl.calibrate" in found["notes"][0]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["nothing/here/at/all"], r"nothing/here/at/all does not exist"),
        ([str(FOLDER / "f6_clt_relu"), "--fact", "k"], "fact 'k'; expected NAME=VALUE, such as k=32"),
        ([str(FOLDER / "f6_clt_relu/checkpoint"), "--fact", "kk=3"], "unknown fact 'kk'"),
        ([str(FOLDER / "f6_clt_relu")], "There are dictionaries in it: pass subfolder='checkpoint'."),
        ([str(FOLDER / "f6_clt_relu"), "--subfolder", "chekpoint"], "Did you mean 'checkpoint'?"),
    ],
)
def test_what_cannot_be_inspected(arguments, text):
    code, _, err = run(*arguments)
    assert code == 2
    assert text in err


def test_a_damaged_file_is_said_to_be_damaged(tmp_path):
    shutil.copytree(FOLDER / "f6_clt_relu/checkpoint", tmp_path / "c")
    (tmp_path / "c/W_dec_1.safetensors").write_bytes(b"\x00" * 40)
    code, _, err = run(str(tmp_path / "c"))
    assert code == 2
    assert "W_dec_1.safetensors is no readable safetensors file" in err


def test_facts_from_the_command_line():
    said = ["k=32", "input_scale=0.28,0.24", "activation=topk", "input_layer_norm=false", "layers=7"]
    want = {"k": 32, "input_scale": [0.28, 0.24], "activation": "topk", "input_layer_norm": False, "layers": 7}
    assert parse_facts(said) == want


def test_sae_lens_transcoders_are_called_so():
    found = inspect(FOLDER / "f13_jumprelu_skip_transcoder/checkpoint")
    assert found.activation == "JumpReLU"
    assert found.missing == ["processing"]
    _, out, _ = run(str(FOLDER / "f13_jumprelu_skip_transcoder/checkpoint"))
    assert out.splitlines()[0].endswith("a transcoder")
    assert load_dictionary(Path(found.path)).activation == "JumpReLU"
