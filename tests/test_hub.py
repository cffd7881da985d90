"""Ids of the hub, against a cache laid out as the hub's own library lays it out; nothing is downloaded."""

import shutil
from pathlib import Path

import pytest
import torch

from crossvis_tl import load_dictionary

GOLDEN = Path(__file__).parent / "golden"
COMMITS = {"main": "a" * 40, "v2": "b" * 40}


@pytest.fixture
def cache(tmp_path) -> Path:
    """`lab/clt` with a CLT in `clt/big`, and, on the branch v2, a crosscoder at its top."""
    repo = tmp_path / "hub/models--lab--clt"
    contents = {"main": ("f6_clt_relu", "clt/big"), "v2": ("f1c_antebe_topk", "")}
    for branch, (name, inside) in contents.items():
        (repo / "refs").mkdir(parents=True, exist_ok=True)
        (repo / "refs" / branch).write_text(COMMITS[branch])
        snapshot = repo / "snapshots" / COMMITS[branch] / inside
        shutil.copytree(GOLDEN / name / "checkpoint", snapshot, dirs_exist_ok=True)
    return tmp_path / "hub"


def test_an_id_with_a_folder_inside(cache):
    dictionary = load_dictionary("lab/clt", subfolder="clt/big", cache_dir=cache, offline=True)
    same = load_dictionary(GOLDEN / "f6_clt_relu/checkpoint")
    inputs = [torch.randn(5, 16) for _ in dictionary.sources]
    assert torch.equal(dictionary.encode(inputs), same.encode(inputs))
    assert dictionary.name == "lab/clt"
    assert load_dictionary("hf://lab/clt/clt/big", cache_dir=cache, offline=True).kind == "clt"


def test_a_revision(cache):
    for at in ("v2", COMMITS["v2"]):
        assert load_dictionary("lab/clt", revision=at, cache_dir=cache, offline=True).kind == "crosscoder"
    assert load_dictionary("hf://lab/clt@v2", cache_dir=cache, offline=True).kind == "crosscoder"
    with pytest.raises(
        FileNotFoundError, match=r"lab/clt at revision 'v3'.*is not in the cache.*offline was asked for"
    ):
        load_dictionary("lab/clt", revision="v3", cache_dir=cache, offline=True)


def test_a_repository_of_several_dictionaries_names_them(cache):
    with pytest.raises(ValueError, match=r"There are dictionaries in it: pass subfolder='clt/big'\."):
        load_dictionary("lab/clt", cache_dir=cache, offline=True)


@pytest.mark.parametrize(
    ("path", "more", "error", "text"),
    [
        ("lab/other", {}, FileNotFoundError, r"lab/other is no folder or file here, is not in the cache"),
        ("lab/clt", {"subfolder": "clt/bigg"}, FileNotFoundError, r"has no 'clt/bigg'\. Did you mean 'clt/big'\?"),
        ("lab/clt", {"subfolder": "../x"}, ValueError, r"'\.\./x' leads out of its folder"),
        ("lab/clt", {"subfolder": "/etc"}, ValueError, r"'/etc' leads out of its folder"),
        (".", {"revision": "main"}, ValueError, r"revision='main' is for ids of the hub"),
    ],
)
def test_what_is_not_there(cache, path, more, error, text):
    with pytest.raises(error, match=text):
        load_dictionary(path, cache_dir=cache, offline=True, **more)


def test_a_local_folder_wins_and_its_near_misses_are_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(GOLDEN / "f6_clt_relu/checkpoint", tmp_path / "lab/clt")
    assert load_dictionary("lab/clt", offline=True).kind == "clt"
    assert load_dictionary("lab", subfolder="clt", offline=True).kind == "clt"
    with pytest.raises(FileNotFoundError, match=r"lab/clr does not exist\. Did you mean 'clt'\?"):
        load_dictionary("lab/clr", offline=True)


def test_a_set_whose_config_names_its_files(cache, tmp_path):
    """As circuit-tracer's sets of other people's transcoders are: a config alone."""
    folder = tmp_path / "set"
    folder.mkdir()
    layers = [f"layer_{i}.safetensors" for i in range(3)]
    repo = cache / "models--lab--plt"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs/main").write_text("c" * 40)
    shutil.copytree(GOLDEN / "f6_plt_relu/checkpoint", repo / "snapshots" / ("c" * 40))
    head = (
        "model_kind: transcoder_set\nfeature_input_hook: mlp.hook_in\nfeature_output_hook: mlp.hook_out\ntranscoders:\n"
    )
    (folder / "config.yaml").write_text(head + "".join(f"- hf://lab/plt/{name}\n" for name in layers))
    dictionary = load_dictionary(folder, cache_dir=cache, offline=True)
    same = load_dictionary(GOLDEN / "f6_plt_relu/checkpoint")
    inputs = [torch.randn(5, 16) for _ in dictionary.sources]
    assert torch.equal(dictionary.encode(inputs), same.encode(inputs))
    (folder / "config.yaml").write_text(head + "- ../../secret.safetensors\n")
    with pytest.raises(ValueError, match=r"'\.\./\.\./secret\.safetensors' leads out of its folder"):
        load_dictionary(folder, offline=True)
    (folder / "config.yaml").write_text(head + "- 3\n")
    with pytest.raises(ValueError, match=r"transcoders names 3; expected a weight file of each layer"):
        load_dictionary(folder, offline=True)
