"""Checkpoints in their producers' own layouts, with what the producers' own code made of them."""

import json
from pathlib import Path

import pytest
import torch
from sae_vis.data_config_classes import SaeVisConfig
from safetensors.torch import load_file

from crossvis_tl import SaeVisData, calibrate, load_dictionary
from crossvis_tl.attribution import Attribution, driving_sources
from crossvis_tl.capture import Capture
from crossvis_tl.geometry import decoder_vectors
from crossvis_tl.logit_effects import residual_written

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
    assert len(GOLDEN) == 86


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


@pytest.mark.parametrize(
    "folder", [p for p in GOLDEN if p.name.startswith("f2") and "decoupled" not in p.name], ids=lambda p: p.name
)
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


def test_a_decoupled_crosscoder_has_an_activation_for_each_source():
    """The producer's `encode` gives one for each source; each reconstruction takes its own, from the joint one too."""
    meta, inputs, expected = read(next(p for p in GOLDEN if "decoupled" in p.name))
    dictionary = load_dictionary(next(p for p in GOLDEN if "decoupled" in p.name) / meta["load_path"])
    each = dictionary.encode(inputs, per_source=True)
    for s in range(2):
        torch.testing.assert_close(each[:, s], expected[f"latents.{s}"], **meta["tolerance"])
    assert bool(((each[:, 0] != 0) != (each[:, 1] != 0)).any())
    assert torch.equal(each.amax(1), dictionary.encode(inputs))
    shown = dictionary.comparable()
    norms = torch.stack([dictionary.decoder(torch.arange(40), t).norm(dim=-1) for t in range(2)])
    torch.testing.assert_close(shown.encode(inputs, per_source=True).amax(1), each.amax(1) * norms.amax(0))
    for t, recon in enumerate(shown.decode(shown.encode(inputs))):
        torch.testing.assert_close(recon, expected[f"recon.{t}"], **meta["tolerance"])
    with pytest.raises(ValueError, match="one activation for all of its sources"):
        load_dictionary(GOLDEN[0].parent / "f2_l1_pt/checkpoint").encode(inputs, per_source=True)
    joint = load_dictionary(GOLDEN[0].parent / "f7_untied_topk/checkpoint")
    with pytest.raises(ValueError, match="one activation for all of its sources"):
        joint.encode([torch.randn(4, 16) for _ in range(3)], per_source=True)


@pytest.mark.parametrize("folder", GOLDEN, ids=lambda p: p.name)
def test_sparse_activations_are_the_dense_ones(folder, monkeypatch):
    """Taken three features at a time (four where they stand in groups of five), as very large dictionaries are."""
    meta, inputs, _ = read(folder)
    dictionary = load_dictionary(folder / meta["load_path"], **meta["needs_from_user"])
    dense = dictionary.encode(inputs)
    monkeypatch.setattr("crossvis_tl.weights.CHUNK", 3 * inputs[0].shape[-1])
    monkeypatch.setattr("crossvis_tl.sparse.CHUNK", 3 * inputs[0].shape[-1])
    rows = [x.reshape(4, 8, -1) for x in inputs]
    sparse = dictionary.encode_sparse(rows)
    assert sparse.shape == (4, 8, dictionary.n_features)
    torch.testing.assert_close(sparse.to_dense().flatten(0, 1), dense, atol=1e-5, rtol=1e-5)
    order = sparse.tokens * dictionary.n_features + sparse.features
    assert bool((order.diff() > 0).all())
    assert bool((sparse.values != 0).all())
    for one, other in zip(dictionary.decode(sparse, rows), dictionary.decode(dense, inputs), strict=True):
        torch.testing.assert_close(one.flatten(0, 1), other, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("folder", GOLDEN, ids=lambda p: p.name)
def test_contributions_add_up_to_the_reconstruction(folder):
    """What each feature adds, all together, is what `decode` makes of all features less what it makes of none."""
    meta, inputs, _ = read(folder)
    dictionary = load_dictionary(folder / meta["load_path"], **meta["needs_from_user"]).comparable()
    acts = dictionary.encode(inputs)
    if dictionary.target_norm:
        with pytest.raises(ValueError, match="what a feature adds in the model's own units is not defined"):
            dictionary.contribution(0, acts[:, 0], 0)
        return
    full, none = dictionary.decode(acts, inputs), dictionary.decode(torch.zeros_like(acts), inputs)
    features = torch.arange(dictionary.n_features)
    for t in range(len(full)):
        parts = [dictionary.contribution(f, acts[:, f], t, inputs) for f in features.tolist()]
        torch.testing.assert_close(torch.stack(parts).sum(0), full[t] - none[t], atol=1e-3, rtol=1e-3)


@pytest.mark.filterwarnings("ignore::crossvis_tl.CrossvisWarning")
@pytest.mark.parametrize(
    "folder", [p for p in GOLDEN if p.name.startswith(("f6", "f7", "f8", "f11"))], ids=lambda p: p.name
)
def test_dashboards_of_what_fits_the_tiny_model(folder, tl_models, tokens):
    """Their hooks are found in a model, and what is gathered there is what the dictionary makes of it."""
    meta, _, _ = read(folder)
    dictionary = load_dictionary(folder / meta["load_path"], **meta["needs_from_user"])
    if dictionary.batch_dependent:
        dictionary = calibrate(dictionary, tl_models[0], tokens)
    inputs = Capture(dictionary, tl_models[:1]).run(tokens).sources
    counts = (dictionary.encode(inputs)[:, 1:] != 0).flatten(0, 1).sum(0)
    chosen = counts.topk(2).indices.tolist()
    data = SaeVisData.create(dictionary, tl_models[0], tokens, SaeVisConfig(features=chosen))
    assert data.page.fidelity is not None
    assert data.page.fidelity["l0"] == pytest.approx(float(counts.sum()) / tokens[:, 1:].numel())
    for feature in chosen:
        frequency = data.panels[feature].density
        assert frequency == pytest.approx(float(counts[feature]) / tokens[:, 1:].numel())
        assert bool(data.panels[feature].logits) == (not folder.name.startswith("f11"))


@pytest.mark.parametrize("name", ["f7_tied_per_source_affine", "f8_clt_untied_window2_divide", "f6_clt_relu"])
def test_what_is_taken_away_for_logit_effects_is_the_contribution(name, tl_models):
    """Offset and scale after the encoder, and normalised outputs, included."""
    dictionary = load_dictionary(GOLDEN[0].parent / name / "checkpoint")
    features = torch.tensor([0, 7, 45, 119])
    written = residual_written(dictionary, features, tl_models[0], 0)
    assert written is not None
    assert (written.base is None) == (name == "f6_clt_relu")
    acts = torch.tensor([0.0, 0.3, 2.0])
    for i, feature in enumerate(features.tolist()):
        amounts, fires = written.removed(i, acts)
        removed = amounts[:, None] * written.direction[i]
        if written.base is not None:
            removed = removed + fires[:, None] * written.base[i]
        want = sum(dictionary.contribution(feature, acts, t) for t in range(3))
        torch.testing.assert_close(removed, want, atol=1e-5, rtol=1e-5)


def test_half_precision_at_rest_and_in_arithmetic_when_asked():
    """Stored bfloat16 stays that, and is computed with as float32; `computing_in` gives up digits, not the meaning."""
    _meta, inputs, expected = read(GOLDEN[0].parent / "f6_clt_jumprelu_bf16")
    dictionary = load_dictionary(GOLDEN[0].parent / "f6_clt_jumprelu_bf16/checkpoint")
    group = dictionary.groups[0]
    assert {weight.dtype for weight in (*group.W_enc.values(), *group.W_dec.values())} == {torch.bfloat16}
    half = dictionary.computing_in(torch.bfloat16)
    exact, rough = dictionary.groups[1].pre(inputs), half.groups[1].pre(inputs)
    assert rough.dtype == torch.float32
    assert 1e-4 < float((exact - rough).abs().max()) < 0.1
    acts = expected_features(expected).float()
    for one, other in zip(half.decode(acts), dictionary.decode(acts), strict=True):
        torch.testing.assert_close(one, other, atol=0.1, rtol=0.05)


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


@pytest.mark.parametrize("folder", GOLDEN, ids=lambda p: p.name)
def test_what_drives_a_feature_adds_up_to_its_pre_activation(folder):
    """Of every dictionary whose features read several sources together; of the others nothing is said."""
    meta, inputs, _ = read(folder)
    dictionary = load_dictionary(folder / meta["load_path"], **meta["needs_from_user"]).comparable()
    features = torch.arange(0, dictionary.n_features, 3)
    several = driving_sources(dictionary, len(features))
    alone = len(dictionary.sources) == 1 or any(len(g.W_enc) < len(dictionary.sources) for g in dictionary.groups)
    assert several == (0 if alone else len(dictionary.sources))
    if alone:
        return
    flat = [x.flatten(0, -2) for x in inputs]
    tokens, which = torch.meshgrid(torch.arange(len(flat[0])), torch.arange(len(features)), indexing="ij")
    found = Attribution(dictionary, features).shares(flat, which.flatten(), tokens.flatten())
    pre = torch.cat([g.pre(dictionary.normalised(flat)) for g in dictionary.groups], -1)[:, features]
    bias = torch.cat([g.b_enc for g in dictionary.groups])[features]
    apart = pre.abs() > 1e-2  # where sources and bias cancel, shares are large numbers
    total = found.sum(-1).reshape(pre.shape) * pre + bias
    torch.testing.assert_close(total[apart], pre[apart], rtol=1e-3, atol=1e-4)
