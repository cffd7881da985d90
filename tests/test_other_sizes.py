"""Layouts that no golden checkpoint has, built from the producers' formulas, and calls that cannot be meant."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from crossvis_tl import load_dictionary
from tests.test_formats import copied

GOLDEN = Path(__file__).parent / "golden"
MEANT = "needs the deviation over several tokens"


def model_diffing(folder: Path, models: int, hooks: int, skip: bool = False, activation: str = "ReLU", **more) -> dict:
    """A random `model_diffing` crosscoder of width 6 with 10 features. -> its tensors."""
    generator = torch.Generator().manual_seed(8)
    n = models * hooks
    shapes = {"W_enc_XDH": (models, hooks, 6, 10), "W_dec_HXD": (10, models, hooks, 6), "b_enc_H": (10,)}
    shapes |= {"b_dec_XD": (models, hooks, 6)} | ({"W_skip_XdXd": (n * 6, n * 6)} if skip else {})
    state = {name: torch.randn(*shape, generator=generator) for name, shape in shapes.items()}
    state |= {"is_folded": torch.tensor(True), "folded_scaling_factors_X": torch.ones(models, hooks)}
    folder.mkdir(parents=True)
    torch.save(state, folder / "model.pt")
    config = {"hidden_activation_classname": f"{activation}Activation", "hidden_activation_cfg": more}
    (folder / "model_cfg.yaml").write_text(yaml.safe_dump(config))
    return state


@pytest.mark.parametrize(("models", "hooks"), [(1, 1), (2, 2), (2, 1)])
def test_a_skip_connection_from_all_sources_to_all_targets(tmp_path, models, hooks):
    state = model_diffing(tmp_path / "c", models, hooks, skip=True)
    n = models * hooks
    dictionary = load_dictionary(tmp_path / "c")
    inputs = [torch.randn(5, 6) for _ in range(n)]
    x = torch.stack(inputs, dim=1)
    acts = torch.relu(torch.einsum("tsd,sdh->th", x, state["W_enc_XDH"].reshape(n, 6, 10)) + state["b_enc_H"])
    want = torch.einsum("th,hsd->tsd", acts, state["W_dec_HXD"].reshape(10, n, 6)) + state["b_dec_XD"].reshape(n, 6)
    want = want + (x.flatten(1) @ state["W_skip_XdXd"]).reshape(5, n, 6)
    got = torch.stack(dictionary.decode(dictionary.encode(inputs), inputs), dim=1)
    torch.testing.assert_close(got, want, atol=1e-4, rtol=1e-4)


def test_batchtopk_of_the_model_diffing_line(tmp_path):
    state = model_diffing(tmp_path / "c", 1, 2, activation="BatchTopk", k=3)
    dictionary = load_dictionary(tmp_path / "c")
    inputs = [torch.randn(7, 6) for _ in range(2)]
    pre = torch.einsum("tsd,sdh->th", torch.stack(inputs, 1), state["W_enc_XDH"][0]) + state["b_enc_H"]
    lowest = pre.flatten().topk(3 * 7).values[-1]
    torch.testing.assert_close(dictionary.encode(inputs), torch.where(pre >= lowest, pre, 0.0), atol=1e-4, rtol=1e-4)
    assert dictionary.batch_dependent
    with pytest.raises(ValueError, match=r"the activation is 'gelu', which cannot be read"):
        load_dictionary(tmp_path / "c", activation="gelu")


@pytest.mark.parametrize(("k", "fire"), [(0.37, 45), (0.5, 60), (0.001, 1), (500.0, 120), (7.0, 7)])
def test_a_share_of_the_features(tmp_path, k, fire):
    """The producer takes the ceiling of the share of all 120, and all where k is more than there are."""
    folder = copied(tmp_path, "f7_untied_topk")
    cfg = json.loads((folder / "cfg.json").read_text())
    (folder / "cfg.json").write_text(json.dumps(cfg | {"topk_k": k}))
    acts = load_dictionary(folder).encode([torch.randn(9, 16) for _ in range(3)])
    assert (acts != 0).sum(1).tolist() == [fire] * 9


def test_a_ranking_of_z_scores_takes_several_tokens():
    dictionary = load_dictionary(GOLDEN / "f7_untied_topk/checkpoint")
    one = [torch.randn(1, 16) for _ in range(3)]
    for encode in (dictionary.encode, dictionary.encode_sparse):
        with pytest.raises(ValueError, match=MEANT):
            encode(one)


def test_a_sae_lens_sae_stays_what_it_is_on_another_device():
    path = GOLDEN / "f13_transcoder/checkpoint"
    dictionary = load_dictionary(path, processing="none", hook_point="blocks.1.hook_mlp_in")
    moved = dictionary.to("meta")
    assert moved.device.type == "meta"
    for name in ("name", "sources", "targets", "model_names", "format"):
        assert getattr(moved, name) == getattr(dictionary, name)


def test_one_target_elsewhere(tmp_path):
    generator = torch.Generator().manual_seed(8)
    shapes = {"_W_enc_XiDiL": (1, 6, 10), "_W_dec_LXoDo": (10, 1, 6), "b_enc_L": (10,), "_b_dec_XoDo": (1, 6)}
    state = {name: torch.randn(*shape, generator=generator) for name, shape in shapes.items()}
    ones = {f"folded_scaling_factors_{side}": torch.ones(1) for side in ("in_Xi", "out_Xo")}
    torch.save(state | ones | {"is_folded": torch.tensor(True)}, tmp_path / "model.pt")
    hooks = {"hook_point": "blocks.0.hook_resid_mid", "hook_point_out": "blocks.0.hook_mlp_out"}
    dictionary = load_dictionary(tmp_path, activation="relu", **hooks)
    assert [site.hook for site in (*dictionary.sources, *dictionary.targets)] == list(hooks.values())
    with pytest.raises(ValueError, match="do not fit; give hook_point as a list"):
        load_dictionary(tmp_path, activation="relu", hook_point=[])


def test_layers_that_write_nothing_are_saved(tmp_path):
    folder = copied(tmp_path, "f4_gs2_clt", "checkpoint/clt/width_120_l0_medium")
    file = folder / "params_layer_2.safetensors"
    state = load_file(file)
    save_file(state | {"w_dec": torch.zeros_like(state["w_dec"])}, file)
    dictionary = load_dictionary(folder)
    assert dictionary.writes(dictionary.find("L2F0")) == []
    same = load_dictionary(dictionary.save(tmp_path / "out", format="circuit-tracer"))
    inputs = [torch.randn(5, 16) for _ in range(3)]
    acts = dictionary.encode(inputs)
    for one, other in zip(same.decode(acts), dictionary.decode(acts), strict=True):
        torch.testing.assert_close(one, other)


def test_a_topk_sae_with_a_skip_connection_has_no_place_in_sae_lens(tmp_path):
    path = GOLDEN / "f8_sae_set/checkpoint/h.0.mlp"
    folder = tmp_path / "h.0.mlp"
    folder.mkdir()
    state = load_file(path / "sae.safetensors")
    save_file(
        {n: t for n, t in state.items() if n != "post_enc"} | {"W_skip": torch.eye(16)}, folder / "sae.safetensors"
    )
    cfg = json.loads((path / "cfg.json").read_text()) | {"skip_connection": True, "train_post_encoder": False}
    (folder / "cfg.json").write_text(json.dumps(cfg))
    with pytest.raises(ValueError, match="sae_lens has TopK for SAEs alone"):
        load_dictionary(folder).save(tmp_path / "out", format="sae_lens")


def test_numbers_of_numpy_and_torch_are_facts(tmp_path):
    path = GOLDEN / "f1_tompollak/checkpoint"
    x = [torch.randn(4, 16) for _ in range(3)]
    want = load_dictionary(path, input_scale=[0.5, 1.0, 2.0]).encode(x)
    for scale in (np.array([0.5, 1.0, 2.0]), torch.tensor([0.5, 1.0, 2.0])):
        assert torch.equal(load_dictionary(path, input_scale=scale).encode(x), want)
    openclt = GOLDEN / "f11_openclt_topk/checkpoint/openclt.pt"
    assert load_dictionary(openclt, activation="topk", k=np.int64(5)).groups[0].activation.k == 5  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda d, a, x: d.decode(a, [one[:3] for one in x]), r"activations \(6, 120\) are of other tokens"),
        (lambda d, a, x: d.decode(a, [one[:1] for one in x]), r"activations \(6, 120\) are of other tokens"),
        (lambda d, a, x: d.decode(a[:, :5], x), r"decode takes \[\.\.\., 120\] activations; got \(6, 5\)"),
        (lambda d, a, x: d.decode(torch.tensor(1.0), x), r"decode takes \[\.\.\., 120\] activations; got \(\)"),
        (lambda d, a, x: d.contribution(0, a[:, 0], 5), r"target 5 is out of range: there are targets 0 to 2"),
        (lambda d, a, x: d.contribution(0, a[:, 0], -1), r"target -1 is out of range"),
        (lambda d, a, x: d.decoder(torch.tensor([0]), 7), r"target 7 is out of range"),
        (lambda d, a, x: d.encode([one.numpy() for one in x]), r"expected a tensor \[\.\.\., 16\]; got a ndarray"),
        (lambda d, a, x: d.encode([torch.tensor(1.0)] * 3), r"expected a tensor \[\.\.\., 16\]; got a single number"),
        (lambda d, a, x: d.encode_features(x, torch.tensor([0.5])), r"features holds 0\.5; expected feature numbers"),
        (lambda d, a, x: d.encode_features(x, torch.tensor([True])), r"features holds True; expected feature numbers"),
        (lambda d, a, x: d.encode_features(x, torch.tensor(3)), r"features is 3; expected feature numbers"),
        (lambda d, a, x: load_dictionary("a" * 5000), r"cannot be a path"),
        (lambda d, a, x: load_dictionary(3), r"path is 3; expected a folder, a weight file or an id"),  # type: ignore[arg-type]
        (lambda d, a, x: load_dictionary(".", subfolder=5), r"subfolder is 5"),  # type: ignore[arg-type]
    ],
)
def test_calls_that_cannot_be_meant(call, text):
    dictionary = load_dictionary(GOLDEN / "f6_plt_jumprelu_skip/checkpoint")
    inputs = [torch.randn(6, 16) for _ in range(3)]
    with pytest.raises((ValueError, FileNotFoundError), match=text):
        call(dictionary, dictionary.encode(inputs), inputs)


def test_lists_and_numbers_are_taken_where_they_can_be():
    dictionary = load_dictionary(GOLDEN / "f6_plt_jumprelu_skip/checkpoint")
    inputs = [torch.randn(6, 16) for _ in range(3)]
    assert torch.equal(
        dictionary.encode_features(inputs, range(3)), dictionary.encode_features(inputs, torch.arange(3))
    )  # type: ignore[arg-type]
    assert dictionary.contribution(0, 2.0, 0).shape == (16,)  # type: ignore[arg-type]
    assert dictionary.find(3) == 3  # type: ignore[arg-type]
