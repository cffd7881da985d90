"""Dictionaries saved for circuit-tracer, and what it should make of them: the first half of a check run by hand.

    python -m tests.compat.circuit_tracer_writes FOLDER

in this project's environment, then `circuit_tracer_loads.py FOLDER` in circuit-tracer's (it says how to make one).
FOLDER then holds

| | |
|---|---|
| golden/{name}/ | every golden checkpoint that the layout can hold, as `Dictionary.save` writes it |
| golden/{name}.safetensors | inputs and, of our code, activations and reconstructions; half of what is stored in half |
| models/{name}/ | tiny random HuggingFace models with a tokenizer: GPT-2 (layernorm) and Llama (rmsnorm) |
| graphs/{model}-{kind}/ | dictionaries that read them, at several hooks |
| graphs/{model}-{kind}.safetensors | tokens and the features that fire on them, by our own capture |
| refused.json | of the golden checkpoints that are not there, why |
"""

import json
import sys
import warnings
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from crossvis_tl import load_dictionary, load_model
from crossvis_tl.activation_fns import Activation, JumpReLU, ReLU, TopK
from crossvis_tl.capture import Capture
from crossvis_tl.dictionary import Dictionary, Group, Site
from tests.conftest import D_MODEL, N_LAYERS, VOCABULARY, tiny_hf, tiny_tokenizer
from tests.test_golden import GOLDEN, read

FEATURES, K = 24, 5
TOKENS = [0, 14, 7, 33, 21, 7, 50, 2, 19, 33]
# Where the features of each kind read and write: HuggingFace's modules, or the part of a hook after "blocks.L.".
MLP = {
    "layernorm": ("transformer.h.{}.mlp.input", "transformer.h.{}.mlp.output"),
    "rmsnorm": ("model.layers.{}.mlp.input", "model.layers.{}.mlp.output"),
}
RESIDUAL = ("blocks.{}.hook_resid_mid", "blocks.{}.hook_mlp_out")


def main(folder: Path) -> None:
    (folder / "golden").mkdir(parents=True)
    refused = {}
    for place in GOLDEN:
        meta, inputs, _ = read(place)
        dictionary = load_dictionary(place / meta["load_path"], **meta["needs_from_user"])
        try:
            save(dictionary, folder / "golden" / place.name)
        except ValueError as error:
            refused[place.name] = str(error)
            continue
        inputs = [x.float() for x in inputs]
        acts = dictionary.encode(inputs)
        expected = by_site("input", inputs) | by_site("recon", dictionary.decode(acts, inputs))
        expected |= by_site("acts", list(acts.split([g.n_features for g in dictionary.groups], -1)))
        save_file(expected, folder / "golden" / f"{place.name}.safetensors")
    (folder / "refused.json").write_text(json.dumps(refused, indent=1))
    for name in MLP:
        write_model(folder / "models" / name, name)
        model = load_model(folder / "models" / name)
        for kind, dictionary in dictionaries(name).items():
            save(dictionary, folder / "graphs" / f"{name}-{kind}")
            inputs = [x[0] for x in Capture(dictionary, [model]).run(torch.tensor([TOKENS])).sources]
            acts = dictionary.encode(inputs).unflatten(-1, (N_LAYERS, FEATURES))  # [position, layer, feature]
            save_file(
                {"tokens": torch.tensor(TOKENS), "acts": acts.transpose(0, 1).contiguous()},
                folder / "graphs" / f"{name}-{kind}.safetensors",
            )


def save(dictionary: Dictionary, path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what release 0.5.0 reads otherwise is checked there
        dictionary.save(path, format="circuit-tracer")


def by_site(name: str, tensors: list[Tensor]) -> dict[str, Tensor]:
    return {f"{name}.{i}": tensor.contiguous().clone() for i, tensor in enumerate(tensors)}


def write_model(folder: Path, name: str) -> None:
    if name == "layernorm":
        model = tiny_hf(1)
    else:
        torch.manual_seed(4)
        config = LlamaConfig(
            vocab_size=VOCABULARY, hidden_size=D_MODEL, intermediate_size=32, num_hidden_layers=N_LAYERS,
            num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=24, bos_token_id=0, eos_token_id=0,
            tie_word_embeddings=False,
        )  # fmt: skip
        model = LlamaForCausalLM(config).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.2 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    # circuit-tracer's transformers 4 does not know the name that 5 writes, and its TransformerLens looks for n_ctx
    amend(folder / "tokenizer_config.json", tokenizer_class="PreTrainedTokenizerFast")
    amend(folder / "config.json", n_ctx=model.config.max_position_embeddings)


def amend(file: Path, **values: object) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def dictionaries(model: str) -> dict[str, Dictionary]:
    generator = torch.Generator().manual_seed(9)
    thresholds = [0.3 * torch.rand(FEATURES, generator=generator) for _ in range(N_LAYERS)]
    jump = [JumpReLU(threshold, strict=i > 0) for i, threshold in enumerate(thresholds)]
    relu, top = [ReLU()] * N_LAYERS, [TopK(K, relu=False)] * N_LAYERS
    return {
        "clt-relu": random_dictionary("clt", RESIDUAL, relu, generator),
        "clt-jumprelu-mlp": random_dictionary("clt", MLP[model], jump, generator),
        "plt-relu-skip-mlp": random_dictionary("plt", MLP[model], relu, generator, skip=True),
        "plt-jumprelu": random_dictionary("plt", RESIDUAL, jump, generator),
        "plt-topk-mlp": random_dictionary("plt", MLP[model], top, generator),
    }


def random_dictionary(
    kind: str, places: tuple[str, str], activations: list[Activation], generator: torch.Generator, *, skip: bool = False
) -> Dictionary:
    """One that reads and writes `places` of every layer."""

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    def sites(place: str) -> tuple[Site, ...]:
        names = [place.format(i) for i in range(N_LAYERS)]
        hooks = place.startswith("blocks.")
        return tuple(Site(0, n if hooks else None, D_MODEL, "none", hf_path=None if hooks else n) for n in names)

    groups = tuple(
        Group(
            f"L{i}", {i: 0.3 * normal(D_MODEL, FEATURES)}, 0.2 * normal(FEATURES) - 0.3, activations[i],
            {t: 0.3 * normal(FEATURES, D_MODEL) for t in range(i, N_LAYERS if kind == "clt" else i + 1)},
        )
        for i in range(N_LAYERS)
    )  # fmt: skip
    connections = {(i, i): 0.2 * normal(D_MODEL, D_MODEL) for i in range(N_LAYERS)} if skip else {}
    return Dictionary(
        kind=kind, sources=sites(places[0]), targets=sites(places[1]), groups=groups,
        b_dec=tuple(0.1 * normal(D_MODEL) for _ in range(N_LAYERS)), format="random", skip=connections,
    )  # fmt: skip


if __name__ == "__main__":
    main(Path(sys.argv[1]))
