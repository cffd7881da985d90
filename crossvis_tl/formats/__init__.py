"""One reader per checkpoint family; `load_dictionary` tells them apart from the files alone."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from crossvis_tl.devices import check_device
from crossvis_tl.dictionary import Dictionary
from crossvis_tl.errors import near_misses, short_list
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
from crossvis_tl.formats.files import check_processing, read_wrapped, reading_pickles
from crossvis_tl.hub import HubOptions, hub_options, located

__all__ = ["load_dictionary", "recognised"]

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
# Folders of a repository that are looked into for dictionaries.
LOOKED_INTO = 200
READABLE = (
    "crosscoders as flat state dicts (W_enc, W_dec, b_enc, b_dec in a .pt beside cfg.json) and plain SAEs of the same "
    "names, circuit-tracer CLTs (W_enc_*.safetensors, W_dec_*.safetensors and config.yaml) and transcoder sets "
    "(layer_*.safetensors), Gemma Scope 1 transcoders (layer_*/**/params.npz), Gemma Scope 2 (params*.safetensors and "
    "config.json), CLT-Forge (clt_weights.safetensors), crosslayer-transcoder (checkpoint.safetensors or clt.ckpt), "
    "crosslayer-coding and SAEDashboard's CLTs (*.safetensors and cfg.json), clt-training (*/sae.safetensors), openCLT "
    "(.pt), dictionary_learning crosscoders (model_final.pt or model.safetensors), model_diffing's and crosscode's "
    "(model.pt), OpenAI's autoencoders ({layer}.pt) and sae_lens folders (sae_weights.safetensors)"
)


def load_dictionary(
    path: str | Path,
    *,
    device: str = "cpu",
    subfolder: str | None = None,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    offline: bool = False,
    trust_pickle: bool = False,
    **facts: Any,
) -> Dictionary:
    """Opens a crosscoder, a cross-layer transcoder, a set of transcoders or an SAE from what its producer wrote.

    `path`: a folder or a weight file, or an id of the HuggingFace hub, of which `revision` and `subfolder` say more;
    `cache_dir` and `offline` as the hub's own library takes them. `trust_pickle`: open a pickle that may run code, of
    an author you trust. `facts`: what the files do not say (they win where the files say otherwise): `processing`
    ("none" or "tl_default": on what weights the model ran in training), `activation`, `k` and `threshold` (one number,
    or one per layer); for a crosscoder `input_scale` (factor per source) and `hook_point` (TransformerLens name, or one
    per source); for a CLT `feature_input_hook` and `feature_output_hook` (the part after "blocks.L."); for OpenAI's
    `input_layer_norm`, for a plain SAE `apply_b_dec_to_input`; for Gemma Scope 2's `layers`, where the folder's name
    does not hold them; for crosslayer-coding's `normalization_method` ("none", "mean_std", "sqrt_d_model"), `topk_mode`
    and `weights_filename`, where a folder holds several. -> `Dictionary`, its large weights still on disk.

    FileNotFoundError when nothing is there or a part is missing; ValueError when it is no dictionary that can be read,
    is damaged, or a fact that encoding needs is missing (the text names it). Nothing is guessed.
    """
    # numbers of numpy and torch are numbers too
    facts = {name: value.tolist() if hasattr(value, "tolist") else value for name, value in facts.items()}
    _check_facts(facts)
    check_device(device)
    with hub_options(HubOptions(revision, cache_dir, offline)), reading_pickles(trust=trust_pickle):
        place = located(path, subfolder)
        reader, found = recognised(place)
        _check_use(facts, reader.FACTS, reader.NAME)
        name = place.parent.name if place.is_file() else place.name
        if place != Path(path) / (subfolder or ""):
            name = str(path).removeprefix("hf://")
        return replace(reader.load(place, found, facts), name=name).to(device)


def recognised(path: Path) -> tuple[Any, Any]:
    """-> the reader of what lies there, and what it found. ValueError when there is none."""
    taken = _taken(path)
    if taken is not None:
        return taken
    if path.is_file():
        beside = _taken(path.parent)
        if beside is not None:
            reader, found = beside
            if found == path:
                return beside  # the folder is that file and its config
            raise ValueError(
                f"{path} is no dictionary by itself, but lies in the folder of {reader.NAME}; give {path.parent}"
            )
        raise ValueError(f"{path} is no dictionary that can be read. Readable: {READABLE}")
    files = list(path.glob("*.pt"))
    if len(files) == 1:
        read_wrapped(files[0])  # what is wrong with it is the better answer
    inside = short_list(sorted(p.name for p in path.iterdir()))
    raise ValueError(
        f"{path} is no dictionary that can be read (found: {inside or 'nothing'}).{_readable_inside(path)} "
        f"Readable: {READABLE}"
    )


def _taken(path: Path) -> tuple[Any, Any] | None:
    """-> the first reader that takes what lies there, and what it found; None where none does."""
    for reader in READERS:
        found = reader.find(path)
        if found is not None:
            return reader, found
    return None


def _readable_inside(path: Path) -> str:
    """Which folders in it are dictionaries: a repository often holds several."""
    inside = [p for pattern in ("*", "*/*", "*/*/*") for p in path.glob(pattern) if p.is_dir()]
    found = []
    for folder in sorted(inside)[:LOOKED_INTO]:
        if any(folder.is_relative_to(one) for one in found):
            continue
        try:
            taken = _taken(folder)
        except (ValueError, OSError):
            continue
        if taken is not None:
            found.append(folder)
    names = short_list((repr(one.relative_to(path).as_posix()) for one in found), 4)
    return f" There are dictionaries in it: pass subfolder={names}." if found else ""


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
