"""Records what SAEDashboard 0.8.0 writes for Neuronpedia, into tests/oracles/neuronpedia/. Run by hand.

    python3.11 -m venv ENV
    ENV/bin/pip install torch==2.13.0 sae-dashboard==0.8.0
    ENV/bin/pip install "pyarrow<22"
    ENV/bin/pip uninstall -y torchvision torchaudio
    ENV/bin/python tests/compat/record_neuronpedia.py

It needs nothing of this package, and no network: model, SAE and tokenizer are made here, and SAEDashboard's own
`NeuronpediaRunner.run` is let loose on them. Its constructor alone is left out, which fetches all three.
`tests/test_neuronpedia_compat.py` reads weights and tokens into our own way and compares the files.

| there | what |
|---|---|
| model.safetensors, model.json | of the HookedTransformer, its weights as TransformerLens' processing leaves them |
| sae/ | the SAE as sae_lens saves it, with decoder rows of length 1, which SAEDashboard leaves as they are |
| sae_scaled/ | the same, its decoder rows of other lengths |
| tokenizer.json | byte-level, with tokens of several bytes |
| plain/ | on tokens without any special one |
| scaled/ | of sae_scaled, on the same tokens |
| bos/ | on rows that begin with BOS, which SAEDashboard masks in some places and not in others |
| runner_defaults.json | fields of `NeuronpediaRunnerConfig` and their defaults, null where there is none |
| versions.json | what wrote all this |
"""

import json
import shutil
import sys
from dataclasses import MISSING, fields
from importlib.metadata import version
from pathlib import Path

import torch
from sae_dashboard.neuronpedia.neuronpedia_runner import NeuronpediaRunner
from sae_dashboard.neuronpedia.neuronpedia_runner_config import NeuronpediaRunnerConfig
from sae_lens import HookedSAETransformer, StandardSAE, StandardSAEConfig
from sae_lens.saes.sae import SAEMetadata
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformer_lens import HookedTransformerConfig
from transformers import PreTrainedTokenizerFast

OUT = Path(__file__).parents[1] / "oracles" / "neuronpedia"
HOOK, MODEL, SET = "blocks.0.hook_resid_post", "tiny", "res-tiny"
D_MODEL, FEATURES, ROWS, POSITIONS = 16, 8, 30, 10
SPECIAL = ["<bos>", "<eos>", "<pad>"]
# Pieces of a byte-level alphabet: a space, a line's end, one letter of two bytes, a dash of three, half a letter.
PIECES = [*"abcdefghijklmnopqrstuvwxyz,.", "Ġ", "Ċ", "Ġthe", "Ġof", "Ã©", "âĢĵ", "Ã"]
MODEL_CONFIG = {
    "n_layers": 1, "d_model": D_MODEL, "n_ctx": POSITIONS, "d_head": 8, "n_heads": 2, "d_mlp": 32, "act_fn": "gelu",
    "d_vocab": 60, "normalization_type": "LNPre", "model_name": MODEL,
}  # fmt: skip


def tokenizer() -> PreTrainedTokenizerFast:
    """Has fewer tokens than the model has room for."""
    pieces = sorted({*PIECES, "â", "Ģ", "ĵ", "©", "t", "h", "e"})
    vocabulary = {piece: i for i, piece in enumerate([*SPECIAL, *pieces])}
    raw = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    names = dict(zip(("bos_token", "eos_token", "pad_token"), SPECIAL, strict=True))
    return PreTrainedTokenizerFast(tokenizer_object=raw, **names)


def tiny_model() -> HookedSAETransformer:
    torch.manual_seed(0)
    model = HookedSAETransformer(HookedTransformerConfig(**MODEL_CONFIG, device="cpu"))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.5 * torch.randn_like(parameter))
        # as folding and centring leave it: what reads a norm's output does not see the mean
        model.unembed.W_U -= model.unembed.W_U.mean(0)
    model.tokenizer = tokenizer()
    return model


def tiny_sae(*, scaled: bool = False) -> StandardSAE:
    """The last feature never fires."""
    torch.manual_seed(1)
    metadata = SAEMetadata(model_name=MODEL, hook_name=HOOK, hook_layer=0, prepend_bos=True)
    sae = StandardSAE(StandardSAEConfig(d_in=D_MODEL, d_sae=FEATURES, metadata=metadata))
    with torch.no_grad():
        sae.W_enc.copy_(0.4 * torch.randn(D_MODEL, FEATURES))
        sae.b_enc.copy_(-1.0 + 0.3 * torch.randn(FEATURES))
        sae.b_enc[-1] = -1000.0
        sae.W_dec.copy_(torch.nn.functional.normalize(torch.randn(FEATURES, D_MODEL), dim=-1))
        if scaled:
            sae.W_dec *= torch.linspace(0.4, 2.5, FEATURES)[:, None]
        sae.b_dec.copy_(0.1 * torch.randn(D_MODEL))
    return sae


def rows(with_bos: bool) -> torch.Tensor:
    generator = torch.Generator().manual_seed(2)
    last = len(tokenizer())
    tokens = torch.randint(len(SPECIAL), last, (ROWS, POSITIONS), generator=generator)
    # no two rows begin alike, so that no two activations are the same
    tokens[:, int(with_bos)] = len(SPECIAL) + torch.randperm(last - len(SPECIAL), generator=generator)[:ROWS]
    if with_bos:
        tokens[:, 0] = 0
    return tokens


def run(folder: Path, tokens: torch.Tensor, model: HookedSAETransformer, sae: StandardSAE) -> None:
    """`NeuronpediaRunner.run`, on what was made here."""
    folder.mkdir(parents=True)
    cfg = NeuronpediaRunnerConfig(
        sae_set=SET, sae_path="sae", outputs_dir=str(folder), np_set_name=SET, from_local_sae=True,
        huggingface_dataset_path="none", n_prompts_total=ROWS, n_tokens_in_prompt=POSITIONS,
        n_features_at_a_time=5, n_quantiles=3, top_acts_group_size=6, quantile_group_size=2, sae_dtype="float32",
        model_dtype="float32",
    )  # fmt: skip
    runner = NeuronpediaRunner.__new__(NeuronpediaRunner)
    runner.cfg, runner.sae, runner.model = cfg, sae, model
    runner.device_count = runner._setup_devices()
    runner._extract_model_info()
    runner.hook_name, runner.cached_activations_dir, runner.activations_store = HOOK, None, None
    runner.vocab_dict = runner.get_vocab_dict()
    torch.save(tokens, folder / f"tokens_{ROWS}.pt")  # where it looks for them before it makes its own
    runner.run()
    (folder / f"tokens_{ROWS}.pt").unlink()
    save_file({"tokens": tokens}, folder / "tokens.safetensors")
    settings = json.loads((folder / "run_settings.json").read_text())
    (folder / "run_settings.json").write_text(json.dumps({**settings, "outputs_dir": folder.name}, indent=4))


def main() -> None:
    torch.set_num_threads(1)
    shutil.rmtree(OUT, ignore_errors=True)
    OUT.mkdir(parents=True)
    model = tiny_model()
    skipped = ("mask", "IGNORE")  # buffers that every version makes anew
    state = {k: v.contiguous() for k, v in model.state_dict().items() if not k.endswith(skipped)}
    save_file(state, OUT / "model.safetensors")
    (OUT / "model.json").write_text(json.dumps(MODEL_CONFIG, indent=1))
    for name in ("sae", "sae_scaled"):
        tiny_sae(scaled=name == "sae_scaled").save_model(OUT / name)
    model.tokenizer.backend_tokenizer.save(str(OUT / "tokenizer.json"), pretty=False)
    for name in ("plain", "scaled", "bos"):
        run(OUT / name, rows(name == "bos"), model, tiny_sae(scaled=name == "scaled"))
    defaults = {f.name: None if f.default is MISSING else f.default for f in fields(NeuronpediaRunnerConfig)}
    (OUT / "runner_defaults.json").write_text(json.dumps(defaults, indent=1))
    names = ("sae-dashboard", "sae-lens", "transformer-lens", "torch", "numpy")
    (OUT / "versions.json").write_text(json.dumps({name: version(name) for name in names}, indent=1))


if __name__ == "__main__":
    sys.exit(main())
