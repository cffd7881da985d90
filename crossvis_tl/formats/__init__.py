"""One reader per checkpoint family; `load_dictionary` tells them apart from the files alone."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from crossvis_tl.devices import check_device
from crossvis_tl.dictionary import Dictionary
from crossvis_tl.errors import near_misses, short_list
from crossvis_tl.files import near_siblings
from crossvis_tl.formats import circuit_tracer, flat_crosscoder
from crossvis_tl.formats.files import check_processing

__all__ = ["load_dictionary"]

READABLE = (
    "crosscoders as flat state dicts (W_enc, W_dec, b_enc, b_dec in a .pt beside cfg.json) and circuit-tracer CLTs "
    "(W_enc_*.safetensors, W_dec_*.safetensors and config.yaml)"
)


def load_dictionary(path: str | Path, *, device: str = "cpu", **facts: Any) -> Dictionary:
    """Opens a crosscoder or a cross-layer transcoder from what its producer wrote.

    `path`: a folder or a weight file. `facts`: what the files do not say (they win where the files say otherwise):
    `processing` ("none" or "tl_default": on what weights the model ran in training); for a crosscoder `input_scale`
    (factor per source) and `hook_point` (TransformerLens name, or one per source); for a CLT `feature_input_hook` and
    `feature_output_hook` (the part after "blocks.L."). -> `Dictionary`.

    FileNotFoundError when nothing is there or a part is missing; ValueError when it is no dictionary that can be read,
    is damaged, or a fact that encoding needs is missing (the text names it). Nothing is guessed.
    """
    path = Path(path)
    _check_facts(facts)
    check_device(device)
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist.{near_siblings(path)}")
    if circuit_tracer.find(path):
        _check_use(facts, circuit_tracer.FACTS, "a circuit-tracer CLT")
        return replace(circuit_tracer.load(path, facts), name=path.name).to(device)
    found = flat_crosscoder.find(path)
    if found is not None:
        _check_use(facts, flat_crosscoder.FACTS, "a flat crosscoder")
        name = path.parent.name if path.is_file() else path.name
        return replace(flat_crosscoder.load(*found, facts), name=name).to(device)
    inside = short_list(sorted(p.name for p in path.iterdir())) if path.is_dir() else "a file of another kind"
    raise ValueError(f"{path} is no dictionary that can be read (found: {inside or 'nothing'}). Readable: {READABLE}")


def _check_facts(facts: dict[str, Any]) -> None:
    known = flat_crosscoder.FACTS | circuit_tracer.FACTS
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
