"""Dictionaries written in other tools' layouts, so that they can be moved between them."""

import shutil
from pathlib import Path
from secrets import token_hex

from crossvis_tl.dictionary import Dictionary
from crossvis_tl.errors import near_misses, short_list
from crossvis_tl.files import clear_errors
from crossvis_tl.writers import circuit_tracer, flat_crosscoder, sae_lens_folder

WRITERS = {"circuit-tracer": circuit_tracer, "sae_lens": sae_lens_folder, "crosscoder": flat_crosscoder}


def save(dictionary: Dictionary, path: str | Path, *, format: str) -> Path:
    """Writes `dictionary` as a new folder. -> the folder.

    `format`: "circuit-tracer" (a CLT or a set of transcoders), "sae_lens" (an SAE or one transcoder) or "crosscoder"
    (a flat `cc_weights.pt` with `cfg.json`). Normalisers of inputs and outputs are folded into the weights; weights
    keep their type where nothing is folded. Activations are the producer's own: the factors that make them comparable
    between features (`Dictionary.comparable`) have no place in these layouts. The folder appears whole or not at all.

    ValueError for another format, and where the layout has no place for something the dictionary does: then the file
    would be another dictionary. FileExistsError when something is there already.
    """
    if format not in WRITERS:
        raise ValueError(f"format={format!r}; known: {short_list(WRITERS)}.{near_misses(format, WRITERS)}")
    path = Path(path)
    if path.exists():
        raise FileExistsError(f"{path} is there already; give the name of a new folder")
    writer = WRITERS[format]
    writer.check(dictionary)
    draft = path.parent / f".{path.name}.{token_hex(4)}.part"
    try:
        with clear_errors(path):
            draft.mkdir(parents=True)
            writer.write(dictionary, draft)
            draft.rename(path)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return path
