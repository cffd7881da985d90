"""Checkpoints in their producers' own layouts, with what the producers' own code made of them."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from crossvis_tl import load_dictionary
from crossvis_tl.geometry import decoder_vectors

GOLDEN = sorted(p.parent for p in (Path(__file__).parent / "golden").glob("*/meta.json"))


def read(folder: Path):
    meta = json.loads((folder / "meta.json").read_text())
    inputs = load_file(folder / "inputs.safetensors")
    expected = load_file(folder / "expected.safetensors")
    return meta, [inputs[str(i)].float() for i in range(len(inputs))], expected


def expected_features(expected: dict[str, torch.Tensor]) -> torch.Tensor:
    if "latents" in expected:
        return expected["latents"]
    layers = sorted((k for k in expected if k.startswith("latents.")), key=lambda k: int(k.split(".")[1]))
    return torch.cat([expected[k] for k in layers], -1)


def test_there_are_checkpoints():
    assert len(GOLDEN) == 50


@pytest.mark.parametrize("folder", GOLDEN, ids=lambda p: p.name)
def test_features_and_reconstructions_are_the_producers(folder):
    meta, inputs, expected = read(folder)
    dictionary = load_dictionary(folder / meta["load_path"], **meta["needs_from_user"])
    features = dictionary.encode(inputs)
    torch.testing.assert_close(features, expected_features(expected).float(), **meta["tolerance"])
    recons = dictionary.decode(features, inputs)
    assert len(recons) == sum(name.startswith("recon.") for name in expected)
    for t, recon in enumerate(recons):
        torch.testing.assert_close(recon, expected[f"recon.{t}"].float(), **meta["tolerance"])


@pytest.mark.parametrize("folder", [p for p in GOLDEN if p.name.startswith("f2")], ids=lambda p: p.name)
def test_what_is_shown_is_the_producers_scaled_value(folder):
    """`get_activations` of the producer; reconstructions and the decoders' norms stay what they are."""
    meta, inputs, expected = read(folder)
    dictionary = load_dictionary(folder / meta["load_path"])
    shown = dictionary.comparable()
    acts = shown.encode(inputs)
    torch.testing.assert_close(acts, expected["latents_scaled"].float(), **meta["tolerance"])
    for t, recon in enumerate(shown.decode(acts)):
        torch.testing.assert_close(recon, expected[f"recon.{t}"].float(), **meta["tolerance"])
    features = torch.arange(dictionary.n_features)
    for one, other in zip(decoder_vectors(dictionary, features), decoder_vectors(shown, features), strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("folder", GOLDEN, ids=lambda p: p.name)
def test_some_features_encoded_alone_are_the_same(folder):
    meta, inputs, expected = read(folder)
    dictionary = load_dictionary(folder / meta["load_path"], **meta["needs_from_user"])
    chosen = torch.tensor([7, 0, dictionary.n_features - 1, 3])
    want = expected_features(expected).float()[..., chosen]
    torch.testing.assert_close(dictionary.encode_features(inputs, chosen), want, **meta["tolerance"])


@pytest.mark.parametrize("folder", [p for p in GOLDEN if p.name.startswith(("f1_", "f1b_"))], ids=lambda p: p.name)
def test_a_missing_input_scale_is_asked_for(folder):
    meta, _, _ = read(folder)
    with pytest.raises(ValueError, match=r"does not hold input_scale; pass input_scale=\[one factor per source\]"):
        load_dictionary(folder / meta["load_path"])
