"""One reader per checkpoint family; `load_dictionary` tells them apart from the files alone."""

from pathlib import Path
from typing import Any, get_args

from crossvis_tl.dictionary import Dictionary, Processing
from crossvis_tl.errors import near_misses, short_list
from crossvis_tl.formats import circuit_tracer, flat_crosscoder

__all__ = ["load_dictionary"]

READABLE = (
    "crosscoders as flat state dicts (W_enc, W_dec, b_enc, b_dec in a .pt beside cfg.json) and circuit-tracer CLTs "
    "(W_enc_*.safetensors, W_dec_*.safetensors and config.yaml)"
)


def load_dictionary(path: str | Path, *, device: str = "cpu", **facts: Any) -> Dictionary:
    """Opens a crosscoder or a cross-layer transcoder from what its producer wrote.

    `path`: a folder or a weight file. `facts`: what the files do not say: `input_scale` (factor per source),
    `hook_point` (TransformerLens name, or one per source), `processing` ("none" or "tl_default": on what weights the
    model ran in training). -> `Dictionary`.

    FileNotFoundError when nothing is there or a part is missing; ValueError when it is no dictionary that can be read,
    is damaged, or a fact that encoding needs is missing (the text names it). Nothing is guessed.
    """
    path = Path(path)
    _check_facts(facts)
    if not path.exists():
        siblings = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        raise FileNotFoundError(f"{path} does not exist.{near_misses(path.name, siblings)}")
    if circuit_tracer.find(path):
        return circuit_tracer.load(path, facts).to(device)
    found = flat_crosscoder.find(path)
    if found is not None:
        return flat_crosscoder.load(*found, facts).to(device)
    inside = short_list(sorted(p.name for p in path.iterdir())) if path.is_dir() else "a file of another kind"
    raise ValueError(f"{path} is no dictionary that can be read (found: {inside or 'nothing'}). Readable: {READABLE}")


def _check_facts(facts: dict[str, Any]) -> None:
    known = flat_crosscoder.FACTS | circuit_tracer.FACTS
    for name in facts:
        if name not in known:
            raise ValueError(f"unknown fact {name!r}; known: {short_list(sorted(known))}.{near_misses(name, known)}")
    allowed = get_args(Processing)
    if facts.get("processing") not in (None, *allowed):
        raise ValueError(f"processing={facts['processing']!r}; expected one of {short_list(allowed)}")
