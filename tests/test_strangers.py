"""Files from strangers: damaged in hundreds of ways, pickles that would run code, configs that lead elsewhere."""

import pickle
import random
import re
import shutil
import sys
import tempfile
import types
import zipfile
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from crossvis_tl import load_dictionary
from tests.corruption import WAYS
from tests.test_golden import GOLDEN, read

FOLDER = GOLDEN[0].parent
_HOLDS: dict[str, tuple] = {}


def producer(folder: Path) -> tuple:
    """-> meta, inputs, activations and reconstructions of the checkpoint as it is."""
    if folder.name not in _HOLDS:
        meta, inputs, _ = read(folder)
        dictionary = load_dictionary(folder / meta["load_path"], **meta["needs_from_user"])
        acts = dictionary.encode(inputs)
        _HOLDS[folder.name] = (meta, inputs, acts, dictionary.decode(acts, inputs))
    return _HOLDS[folder.name]


@given(st.sampled_from(GOLDEN), st.sampled_from(sorted(WAYS)), st.integers(0, 2**32))
@settings(max_examples=800, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
def test_a_damaged_checkpoint_is_refused_or_loads_as_it_was(folder, way, seed):
    """Never another error, and never other numbers: where what was hit does not matter, they are the same."""
    meta, inputs, acts, recons = producer(folder)
    with tempfile.TemporaryDirectory() as name:
        target = Path(name)
        shutil.copytree(folder / "checkpoint", target / "checkpoint")
        what = WAYS[way](target / "checkpoint", random.Random(seed))  # noqa: S311 - reproducible, no secret
        try:
            dictionary = load_dictionary(target / meta["load_path"], **meta["needs_from_user"])
        except (ValueError, FileNotFoundError) as error:
            said = str(error)
        else:
            said = ""
            if what.endswith(" gone") and dictionary.kind in ("plt", "sae") and len(dictionary.sources) < len(inputs):
                return  # a set of transcoders without its last layer is one of fewer layers
            got = dictionary.encode(inputs)
            again = dictionary.decode(got, inputs)
    if said:
        # it names the file, the fact that is asked for, or the field that was hit
        assert any(part in said for part in (name, *meta["needs_from_user"], *re.findall(r"\w{4,}", what))), said
        return
    torch.testing.assert_close(got, acts, atol=1e-4, rtol=1e-4, msg=what)
    for one, other in zip(again, recons, strict=True):
        torch.testing.assert_close(one, other, atol=1e-3, rtol=1e-3, msg=what)


def test_a_file_of_a_folder():
    """One that is the whole dictionary beside its config loads; one of several says where the others are."""
    file = FOLDER / "f9_clt_jumprelu_folded/checkpoint/checkpoint.safetensors"
    assert load_dictionary(file).n_features == load_dictionary(file.parent).n_features
    assert load_dictionary(FOLDER / "f2_l1_hf_legacy/checkpoint/model.safetensors").kind == "crosscoder"
    with pytest.raises(
        ValueError, match=r"is no dictionary by itself, but lies in the folder of a circuit-tracer CLT; give "
    ):
        load_dictionary(FOLDER / "f6_clt_relu/checkpoint/W_enc_1.safetensors")


def test_absurd_sizes_do_not_fill_the_memory(tmp_path):
    import json

    shutil.copytree(FOLDER / "f7_untied_topk/checkpoint", tmp_path / "c")
    cfg = json.loads((tmp_path / "c/cfg.json").read_text())
    (tmp_path / "c/cfg.json").write_text(json.dumps(cfg | {"num_layers": 10**12}))
    with pytest.raises(ValueError, match=r"holds 3 encoders, but its config says num_layers = 1000000000000"):
        load_dictionary(tmp_path / "c")


def test_a_pickle_damaged_where_torch_does_not_look(tmp_path):
    """torch reads a zip's parts without their checksums: a flipped bit would be another weight."""
    shutil.copytree(FOLDER / "f1_tompollak/checkpoint", tmp_path / "c")
    file = tmp_path / "c/cc_weights.pt"
    with zipfile.ZipFile(file) as archive:
        info = next(one for one in archive.infolist() if one.filename.endswith("data/0"))
    content = bytearray(file.read_bytes())
    content[info.header_offset + 400] ^= 64
    file.write_bytes(bytes(content))
    assert torch.load(file, weights_only=True)
    with pytest.raises(ValueError, match=r"Bad CRC-32.*it is damaged"):
        load_dictionary(tmp_path / "c", input_scale=1.0)


class Exploit:
    def __reduce__(self):
        return (exec, ("raise SystemExit('code of the file was run')",))


def test_a_pickle_that_would_run_code_is_refused(tmp_path):
    torch.save({"W_enc": torch.ones(2, 3), "cfg": Exploit()}, tmp_path / "sae.pt")
    with pytest.raises(ValueError, match=r"a pickle that would have to run code.*pass trust_pickle=True"):
        load_dictionary(tmp_path / "sae.pt")
    with pytest.raises(ValueError, match="pass trust_pickle=True"):
        load_dictionary(tmp_path)


@pytest.fixture
def old_sae(tmp_path, monkeypatch) -> Path:
    """As jbloom/GPT2-Small-SAEs: a config object of training code that is not installed here."""
    module = types.ModuleType("sae_training.config")
    parent = types.ModuleType("sae_training")

    class LanguageModelSAERunnerConfig:
        def __init__(self):
            self.d_in, self.hook_point, self.model_name = 16, "blocks.1.hook_resid_pre", "gpt2-small"

    LanguageModelSAERunnerConfig.__module__ = "sae_training.config"
    LanguageModelSAERunnerConfig.__qualname__ = "LanguageModelSAERunnerConfig"
    module.LanguageModelSAERunnerConfig = LanguageModelSAERunnerConfig  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "sae_training", parent)
    monkeypatch.setitem(sys.modules, "sae_training.config", module)
    state = plain_state()
    file = tmp_path / "final_sparse_autoencoder_gpt2-small_blocks.1.hook_resid_pre_40.pt"
    torch.save({"cfg": LanguageModelSAERunnerConfig(), "state_dict": state}, file)
    monkeypatch.delitem(sys.modules, "sae_training.config")
    monkeypatch.delitem(sys.modules, "sae_training")
    return file


def plain_state(width: int = 16, features: int = 40) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(4)
    shapes = {"W_enc": (width, features), "W_dec": (features, width), "b_enc": (features,), "b_dec": (width,)}
    return {name: torch.randn(*shape, generator=generator) for name, shape in shapes.items()}


def test_an_old_sae_is_opened_when_its_pickle_is_trusted(old_sae):
    with pytest.raises(ValueError, match=r"pass trust_pickle=True"):
        load_dictionary(old_sae)
    dictionary = load_dictionary(old_sae, trust_pickle=True)
    assert [site.hook for site in dictionary.sources] == ["blocks.1.hook_resid_pre"]
    assert dictionary.model_names == ("gpt2-small",)
    assert dictionary.sources[0].processing == "tl_default"
    state, x = plain_state(), torch.randn(5, 16)
    want = torch.relu((x - state["b_dec"]) @ state["W_enc"] + state["b_enc"])
    torch.testing.assert_close(dictionary.encode([x]), want, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(dictionary.decode(want)[0], want @ state["W_dec"] + state["b_dec"])


def test_a_bare_state_dict(tmp_path):
    """As NeelNanda/sparse_autoencoder's 25.pt: nothing but four tensors."""
    state, x = plain_state(), torch.randn(5, 16)
    torch.save(state, tmp_path / "25.pt")
    dictionary = load_dictionary(tmp_path / "25.pt")
    assert (dictionary.kind, dictionary.missing) == ("sae", ("hook_point",))
    assert str(dictionary.facts["apply_b_dec_to_input"]).startswith("True, as the producers of this layout do")
    want = torch.relu((x - state["b_dec"]) @ state["W_enc"] + state["b_enc"])
    torch.testing.assert_close(dictionary.encode([x]), want, atol=1e-5, rtol=1e-5)
    other = load_dictionary(tmp_path / "25.pt", apply_b_dec_to_input=False, activation="topk", k=3)
    pre = x @ state["W_enc"] + state["b_enc"]
    torch.testing.assert_close(other.encode([x]), torch.where(pre >= pre.topk(3).values[:, -1:], pre, 0.0).relu())
    with pytest.raises(ValueError, match=r"apply_b_dec_to_input='no': expected True or False"):
        load_dictionary(tmp_path / "25.pt", apply_b_dec_to_input="no")
    with pytest.raises(ValueError, match=r"does not say k, how many features fire on a token"):
        load_dictionary(tmp_path / "25.pt", activation="topk")


def test_a_bare_crosscoder(tmp_path):
    """Without a config it is read as its layout's producers write it; of one source too."""
    for n in (1, 3):
        generator = torch.Generator().manual_seed(n)
        shapes = {"W_enc": (n, 16, 40), "W_dec": (40, n, 16), "b_enc": (40,), "b_dec": (n, 16)}
        state = {name: torch.randn(*shape, generator=generator) for name, shape in shapes.items()}
        file = tmp_path / f"bare{n}.pt"
        torch.save(state, file)
        with pytest.raises(ValueError, match=r"does not hold input_scale"):
            load_dictionary(file)
        scale = [0.5 + s for s in range(n)]
        dictionary = load_dictionary(file, input_scale=scale)
        assert (dictionary.kind, len(dictionary.sources)) == ("crosscoder", n)
        assert str(dictionary.facts["activation"]).startswith("ReLU, as the producers of this layout use")
        x = [torch.randn(5, 16) for _ in range(n)]
        pre = sum(f * one @ W for f, one, W in zip(scale, x, state["W_enc"], strict=True)) + state["b_enc"]
        torch.testing.assert_close(dictionary.encode(x), torch.relu(pre), atol=1e-4, rtol=1e-4)
        for s, recon in enumerate(dictionary.decode(torch.relu(pre))):
            want = (torch.relu(pre) @ state["W_dec"][:, s] + state["b_dec"][s]) / scale[s]
            torch.testing.assert_close(recon, want, atol=1e-4, rtol=1e-4)
    with pytest.raises(ValueError, match=r"k=5 says nothing about ReLU; pass activation='topk' too"):
        load_dictionary(file, input_scale=1.0, k=5)


def test_a_plain_pickle_of_another_kind(tmp_path):
    (tmp_path / "x.pt").write_bytes(pickle.dumps([1, 2]))
    with pytest.raises(ValueError, match=r"x\.pt"):
        load_dictionary(tmp_path / "x.pt")
