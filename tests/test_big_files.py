"""Weights stay on disk until they are asked for. Sizes are counted, not timed."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from crossvis_tl import load_dictionary
from scripts.bench_big_files import LAYERS, write
from tests.conftest import write_clt


@pytest.fixture(scope="module")
def steps(tmp_path_factory) -> dict[str, dict[str, float]]:
    """Megabytes of a process of its own, step by step, with a CLT of 400 MB."""
    folder = tmp_path_factory.mktemp("big")
    write(folder, 0.4)
    command = [sys.executable, "-m", "scripts.bench_big_files", "--measure", "--folder", str(folder)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=Path(__file__).parents[1])
    return json.loads(done.stdout)


def grown(steps: dict, step: int) -> dict[str, float]:
    base, now = next(iter(steps.values())), list(steps.values())[step]
    return {name: now[name] - base[name] for name in base}


def test_opening_reads_next_to_nothing(steps):
    """The encoders and decoders small enough to be looked through are mapped; nothing is held."""
    assert grown(steps, 1)["own"] < 60
    assert grown(steps, 1)["mapped"] < 200


def test_two_hundred_features_cost_two_hundred_features(steps):
    """200 features of 8 layers by up to 8 targets are 3 MB as float32; the system may map what lies around them."""
    assert grown(steps, 2)["own"] < 80
    assert grown(steps, 3)["own"] < 120


def test_all_features_of_some_tokens_are_never_dense(steps):
    """Dense, they would be 300 MB as pre-activations and activations, beside 150 MB of encoders as float32."""
    features = int(list(steps)[4].split()[1])
    assert features > 9_000 * LAYERS
    assert grown(steps, 4)["own"] < 350


def test_a_large_tensor_is_checked_where_it_is_taken(tmp_path, monkeypatch):
    """NaN in a decoder too large to look through is found with the feature it belongs to, never shown."""
    monkeypatch.setattr("crossvis_tl.weights.LARGE", 1024)
    folder = write_clt(tmp_path / "clt")
    file = folder / "W_dec_1.safetensors"
    state = load_file(file)
    state["W_dec_1"][3, 0, 0] = float("nan")
    save_file(state, file)
    dictionary = load_dictionary(folder)
    assert torch.isfinite(dictionary.decoder(torch.tensor([22, 24]), 1)).all()
    with pytest.raises(ValueError, match=r"W_dec to target 1 of L1 holds NaN or infinite values; the file is damaged"):
        dictionary.decoder(torch.tensor([22, 23]), 1)


def test_shares_of_the_features_are_joined_where_they_lie(monkeypatch):
    """Rank files of a training on several devices, too large to be copied together."""
    golden = Path(__file__).parent / "golden/f10_cltforge_sharded/checkpoint"
    small = load_dictionary(golden)
    monkeypatch.setattr("crossvis_tl.weights.LARGE", 64)
    large = load_dictionary(golden)
    assert type(large.groups[0].W_dec[0]).__name__ == "Shards"
    assert large.groups[0].W_dec[0].shape == (40, 16)
    inputs = [torch.randn(6, 16) for _ in large.sources]
    torch.testing.assert_close(large.encode(inputs), small.encode(inputs))
    chosen = torch.tensor([39, 0, 21, 64])
    torch.testing.assert_close(large.encode_features(inputs, chosen), small.encode(inputs)[:, chosen])
    torch.testing.assert_close(large.decoder(chosen, 2), small.decoder(chosen, 2))
    for one, other in zip(large.decode(large.encode_sparse(inputs)), small.decode(small.encode(inputs)), strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)
    moved = large.to("cpu")
    assert torch.equal(moved.encode(inputs), large.encode(inputs))
