"""Dictionaries written in other tools' layouts, and read again."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from crossvis_tl import load_dictionary
from crossvis_tl.geometry import decoder_vectors
from crossvis_tl.writers import WRITERS
from tests.test_golden import GOLDEN, read

FOLDER = GOLDEN[0].parent
# What each layout can hold of the golden checkpoints: so many at least, or a refusal has become too wide.
HELD = {"circuit-tracer": 26, "crosscoder": 14, "sae_lens": 14}


def opened(folder: Path):
    meta, inputs, _ = read(folder)
    return load_dictionary(folder / meta["load_path"], **meta["needs_from_user"]), inputs


@pytest.mark.parametrize("format", HELD)
def test_what_is_written_is_read_again(format, tmp_path):
    written = 0
    for folder in GOLDEN:
        dictionary, inputs = opened(folder)
        try:
            WRITERS[format].check(dictionary)
        except ValueError:
            continue
        written += 1
        saved = dictionary.save(tmp_path / folder.name, format=format)
        same = load_dictionary(saved)
        acts = dictionary.encode(inputs)
        torch.testing.assert_close(same.encode(inputs), acts, atol=1e-4, rtol=1e-4, msg=folder.name)
        for one, other in zip(same.decode(acts, inputs), dictionary.decode(acts, inputs), strict=True):
            torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4, msg=folder.name)
        if format != "sae_lens":
            assert [site.place for site in same.sources] == [site.place for site in dictionary.sources]
            assert [site.processing for site in same.targets] == [site.processing for site in dictionary.targets]
    assert written >= HELD[format]


def test_relative_norms_survive(tmp_path):
    """They are of training units, which the folded scale leads back to."""
    dictionary, _ = opened(FOLDER / "f1_ckkissane_hf_scaled")
    same = load_dictionary(dictionary.save(tmp_path / "out", format="crosscoder"))
    features = torch.arange(dictionary.n_features)
    for one, other in zip(decoder_vectors(dictionary, features), decoder_vectors(same, features), strict=True):
        torch.testing.assert_close(one, other)


def test_half_precision_stays(tmp_path):
    dictionary, _ = opened(FOLDER / "f6_clt_jumprelu_bf16")
    dictionary.save(tmp_path / "out", format="circuit-tracer")
    assert load_file(tmp_path / "out/W_enc_1.safetensors")["W_enc_1"].dtype == torch.bfloat16
    stored = load_file(FOLDER / "f6_clt_jumprelu_bf16/checkpoint/W_dec_0.safetensors")["W_dec_0"]
    assert torch.equal(load_file(tmp_path / "out/W_dec_0.safetensors")["W_dec_0"], stored)


def test_sae_lens_reads_what_is_written_for_it(tmp_path):
    from sae_lens import SAE

    dictionary, inputs = opened(FOLDER / "f12_openai_relu")
    sae = SAE.load_from_disk(dictionary.save(tmp_path / "out", format="sae_lens"))
    torch.testing.assert_close(sae.encode(inputs[0]), dictionary.encode(inputs), atol=1e-4, rtol=1e-4)
    cfg = json.loads((tmp_path / "out/cfg.json").read_text())
    assert (cfg["architecture"], cfg["apply_b_dec_to_input"]) == ("standard", False)


@pytest.mark.parametrize(
    ("name", "format", "text"),
    [
        ("f1_tompollak", "circuit-tracer", r"is a crosscoder; circuit-tracer's layouts hold transcoders"),
        ("f6_clt_relu", "crosscoder", r"its features do not read and write all of the same sites"),
        ("f6_clt_relu", "sae_lens", r"that reads one site and writes one"),
        ("f7_untied_batchtopk", "circuit-tracer", r"it ranks the features of all layers against each other"),
        ("f7_tied_per_source_affine", "circuit-tracer", r"it adds an offset to activations before they are decoded"),
        ("f11_openclt_relu", "circuit-tracer", r"it normalises each token, which has no place there"),
        ("f1b_liuhaozhe_batchtopk", "crosscoder", r"depends on the batch it is given \(crossvis_tl\.calibrate ends"),
        ("f2_batchtopk_pt", "crosscoder", r"that has ReLU or TopK, and no JumpReLU"),
        ("f2_batchtopk_decoupled_pt", "crosscoder", r"it has an activation for each source"),
        ("f13_topk_sae", "crosscoder", r"it is run by sae_lens"),
        ("f9_clt_topk", "circuit-tracer", r"its TopK is another than circuit-tracer's"),
        ("f6_plt_topk", "sae_lens", r"that reads one site and writes one"),
        (
            "f6_clt_relu",
            "circuit_tracer",
            r"known: circuit-tracer, sae_lens, crosscoder\. Did you mean 'circuit-tracer'\?",
        ),
    ],
)
def test_what_a_layout_cannot_hold_is_refused(tmp_path, name, format, text):
    dictionary, _ = opened(FOLDER / name)
    with pytest.raises(ValueError, match=text):
        dictionary.save(tmp_path / "out", format=format)
    assert not list(tmp_path.iterdir())


def test_a_folder_appears_whole_or_not_at_all(tmp_path, monkeypatch):
    dictionary, _ = opened(FOLDER / "f6_clt_relu")

    def fail(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("crossvis_tl.writers.circuit_tracer.yaml.safe_dump", fail)
    with pytest.raises(OSError, match=r"out cannot be written: no space left on device"):
        dictionary.save(tmp_path / "out", format="circuit-tracer")
    assert not list(tmp_path.iterdir())
    (tmp_path / "out").mkdir()
    with pytest.raises(FileExistsError, match=r"out is there already; give the name of a new folder"):
        dictionary.save(tmp_path / "out", format="circuit-tracer")
