"""Tiny models and dictionaries, built in place: no test needs a hub."""

import json
import os
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # as the command line does; before torch is loaded

os.environ["CUDA_VISIBLE_DEVICES"] = ""  # tests compare tensors on the CPU, on every machine

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from crossvis_tl import load_model

D_MODEL, N_LAYERS, N_CTX, VOCABULARY = 16, 3, 24, 60


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level, one token a character for the first printable ones; id 0 is BOS, end and padding at once."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())[: VOCABULARY - 1]
    vocabulary = {"<|endoftext|>": 0} | {piece: i + 1 for i, piece in enumerate(alphabet)}
    raw = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    end = "<|endoftext|>"
    return PreTrainedTokenizerFast(tokenizer_object=raw, bos_token=end, eos_token=end, unk_token=end)


def tiny_hf(seed: int) -> GPT2LMHeadModel:
    """A random GPT-2 with weights large enough that every part matters."""
    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=VOCABULARY, n_positions=N_CTX, n_embd=D_MODEL, n_layer=N_LAYERS, n_head=2, bos_token_id=0,
        eos_token_id=0,
    )  # fmt: skip
    model = GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


@pytest.fixture(scope="session")
def hf_models() -> list[GPT2LMHeadModel]:
    return [tiny_hf(1), tiny_hf(2)]


@pytest.fixture(scope="session")
def models_dir(tmp_path_factory, hf_models) -> Path:
    """Folders `base` and `tuned`, as a user has them."""
    root = tmp_path_factory.mktemp("models")
    for name, model in zip(("base", "tuned"), hf_models, strict=True):
        model.save_pretrained(root / name)
        tiny_tokenizer().save_pretrained(root / name)
    return root


@pytest.fixture(scope="session")
def tl_models(models_dir):
    return [load_model(models_dir / "base"), load_model(models_dir / "tuned")]


@pytest.fixture(scope="session")
def tokens() -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    rows = torch.randint(1, VOCABULARY, (12, N_CTX), generator=generator)
    rows[:, 0] = 0
    return rows


def write_crosscoder(folder: Path, n_sources: int = 2, features: int = 40, **config) -> Path:
    """A random flat crosscoder (F1), its input scale folded in unless `config` says otherwise."""
    generator = torch.Generator().manual_seed(5)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    folder.mkdir(parents=True, exist_ok=True)
    state = {
        "W_enc": 0.4 * normal(n_sources, D_MODEL, features),
        "W_dec": 0.4 * normal(features, n_sources, D_MODEL),
        "b_enc": -0.8 + 0.3 * normal(features),
        "b_dec": 0.1 * normal(n_sources, D_MODEL),
    }
    torch.save(state, folder / "cc_weights.pt")
    cfg = {
        "d_in": D_MODEL, "dict_size": features, "hook_point": "blocks.1.hook_resid_post", "processing": "none",
        "input_scale": [1.0] * n_sources, "input_scale_folded": True,
    }  # fmt: skip
    (folder / "cfg.json").write_text(json.dumps(cfg | config))
    return folder


@pytest.fixture
def crosscoder_dir(tmp_path) -> Path:
    return write_crosscoder(tmp_path / "crosscoder")


def write_clt(folder: Path, features: int = 20, *, jumprelu: bool = True) -> Path:
    """A random circuit-tracer CLT (F6) of the tiny model."""
    from safetensors.torch import save_file

    generator = torch.Generator().manual_seed(7)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    folder.mkdir(parents=True, exist_ok=True)
    for i in range(N_LAYERS):
        encoder = {
            f"W_enc_{i}": 0.5 * normal(features, D_MODEL),
            f"b_enc_{i}": -0.5 + 0.3 * normal(features),
            f"b_dec_{i}": 0.1 * normal(D_MODEL),
        }
        if jumprelu:
            encoder[f"threshold_{i}"] = 0.3 * normal(features).abs() + 0.05
        save_file(encoder, folder / f"W_enc_{i}.safetensors")
        decoder = {f"W_dec_{i}": 0.3 * normal(features, N_LAYERS - i, D_MODEL)}
        save_file(decoder, folder / f"W_dec_{i}.safetensors")
    (folder / "config.yaml").write_text(
        "model_name: tuned\nmodel_kind: cross_layer_transcoder\nfeature_input_hook: hook_resid_mid\n"
        "feature_output_hook: hook_mlp_out\nscan: test\n"
    )
    return folder


@pytest.fixture
def clt_dir(tmp_path) -> Path:
    return write_clt(tmp_path / "clt")
