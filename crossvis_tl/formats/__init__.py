"""One reader per checkpoint family; `load_dictionary` tells them apart from the files alone."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from crossvis_tl.devices import check_device
from crossvis_tl.dictionary import Dictionary
from crossvis_tl.errors import near_misses, short_list
from crossvis_tl.files import near_siblings
from crossvis_tl.formats import (
    circuit_tracer,
    clt_forge,
    clt_training,
    crosslayer_coding,
    crosslayer_transcoder,
    dictionary_learning,
    flat_crosscoder,
    gemma_scope_2,
    model_diffing,
    openai,
    openclt,
    plain_sae,
    sae_lens_folder,
    transcoder_set,
)
from crossvis_tl.formats.files import check_processing

__all__ = ["load_dictionary"]

READERS = (
    circuit_tracer,
    transcoder_set,
    gemma_scope_2,
    clt_forge,
    crosslayer_transcoder,
    clt_training,
    crosslayer_coding,
    dictionary_learning,
    sae_lens_folder,
    model_diffing,
    openai,
    openclt,
    plain_sae,
    flat_crosscoder,
)
READABLE = (
    "crosscoders as flat state dicts (W_enc, W_dec, b_enc, b_dec in a .pt beside cfg.json), circuit-tracer CLTs "
    "(W_enc_*.safetensors, W_dec_*.safetensors and config.yaml) and transcoder sets (layer_*.safetensors), Gemma Scope "
    "1 transcoders (layer_*/**/params.npz), Gemma Scope 2 (params*.safetensors and config.json), CLT-Forge "
    "(clt_weights.safetensors), crosslayer-transcoder (checkpoint.safetensors or clt.ckpt), dictionary_learning "
    "crosscoders (model_final.pt or model.safetensors), model_diffing's "
    "and crosscode's (model.pt), OpenAI's autoencoders ({layer}.pt) and sae_lens folders (sae_weights.safetensors)"
)


def load_dictionary(path: str | Path, *, device: str = "cpu", **facts: Any) -> Dictionary:
    """Opens a crosscoder, a cross-layer transcoder or a set of transcoders from what its producer wrote.

    `path`: a folder or a weight file. `facts`: what the files do not say (they win where the files say otherwise):
    `processing` ("none" or "tl_default": on what weights the model ran in training); for a crosscoder `input_scale`
    (factor per source) and `hook_point` (TransformerLens name, or one per source); for a CLT `feature_input_hook` and
    `feature_output_hook` (the part after "blocks.L."); for transcoders also `activation` and `k`; for Gemma Scope 2's
    `layers`, where the folder's name does not hold them. -> `Dictionary`.

    FileNotFoundError when nothing is there or a part is missing; ValueError when it is no dictionary that can be read,
    is damaged, or a fact that encoding needs is missing (the text names it). Nothing is guessed.
    """
    path = Path(path)
    _check_facts(facts)
    check_device(device)
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist.{near_siblings(path)}")
    for reader in READERS:
        found = reader.find(path)
        if found is not None:
            _check_use(facts, reader.FACTS, reader.NAME)
            name = path.parent.name if path.is_file() else path.name
            return replace(reader.load(path, found, facts), name=name).to(device)
    inside = short_list(sorted(p.name for p in path.iterdir())) if path.is_dir() else "a file of another kind"
    raise ValueError(f"{path} is no dictionary that can be read (found: {inside or 'nothing'}). Readable: {READABLE}")


def _check_facts(facts: dict[str, Any]) -> None:
    known = set().union(*(reader.FACTS for reader in READERS))
    for name in facts:
        if name not in known:
            raise ValueError(f"unknown fact {name!r}; known: {short_list(sorted(known))}.{near_misses(name, known)}")
    if "processing" in facts:
        check_processing(facts["processing"], "processing")


def _check_use(facts: dict[str, Any], used: set[str], kind: str) -> None:
    """A fact that would be ignored is a misunderstanding to clear up."""
    for name, value in facts.items():
        if name not in used:
            raise ValueError(f"{name}={value!r} says nothing about {kind}; its facts are {short_list(sorted(used))}")
