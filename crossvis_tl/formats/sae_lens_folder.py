"""F13: SAEs and transcoders as sae_lens saves them: `cfg.json` and `sae_weights.safetensors`.

sae_lens itself reads and runs them (`sae_lens.SAE.load_from_disk`), so that every architecture it has gives its own
numbers. On what weights the model ran in training its files seldom say: that is asked for when gathering.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

from crossvis_tl.dictionary import Dictionary
from crossvis_tl.encoders import from_sae_lens
from crossvis_tl.errors import first_line, near_misses, short_list
from crossvis_tl.formats.activations import check_k
from crossvis_tl.formats.files import check_floating, check_hook, read_config, read_state_dict

FACTS = {"processing", "hook_point"}
NAME = "a sae_lens folder"
WEIGHTS = "sae_weights.safetensors"
LOAD_ERRORS = (ValueError, KeyError, TypeError, AttributeError, RuntimeError, NotImplementedError, AssertionError)


def find(path: Path) -> Path | None:
    """-> the folder when the path looks like this layout, else None."""
    if path.is_file():
        return path.parent if path.name == WEIGHTS else None
    return path if (path / WEIGHTS).is_file() else None


def load(_path: Path, folder: Path, facts: dict[str, Any]) -> Dictionary:
    """FileNotFoundError without cfg.json; ValueError when config and weights do not fit, or sae_lens has no such
    architecture."""
    from sae_lens import SAE
    from sae_lens.registry import SAE_CLASS_REGISTRY

    if not (folder / "cfg.json").is_file():
        raise FileNotFoundError(f"{folder} lacks cfg.json, which says what {WEIGHTS} is")
    cfg = read_config(folder / "cfg.json")
    state = read_state_dict(folder / WEIGHTS)
    architecture = str(cfg.get("architecture", "standard"))
    if architecture not in SAE_CLASS_REGISTRY:
        known = sorted(SAE_CLASS_REGISTRY)
        raise ValueError(
            f"{folder / 'cfg.json'}: sae_lens has no architecture {architecture!r}; it has {short_list(known, 20)}."
            f"{near_misses(architecture, known)}"
        )
    for name, tensor in (("d_in", "W_enc"), ("d_sae", "W_enc"), ("d_out", "W_dec")):
        axis = 1 if name in ("d_sae", "d_out") else 0
        if tensor in state and name in cfg and state[tensor].ndim == 2 and state[tensor].shape[axis] != cfg[name]:
            raise ValueError(
                f"{folder / 'cfg.json'} says {name} = {cfg[name]}, but in {WEIGHTS} it is {state[tensor].shape[axis]}"
            )
    check_floating(folder / WEIGHTS, state, state)
    if architecture == "topk":
        check_k(folder / "cfg.json", cfg.get("k"), state["b_enc"].shape[0] if "b_enc" in state else 0)
    for name in ("apply_b_dec_to_input", "rescale_acts_by_decoder_norm"):
        if not isinstance(cfg.get(name, True), bool):
            raise ValueError(f"{folder / 'cfg.json'} says {name} = {cfg[name]!r}; expected true or false")
    try:
        sae = SAE.load_from_disk(folder, device="cpu")
    except LOAD_ERRORS as error:
        raise ValueError(f"{folder}: sae_lens cannot load it: {first_line(error)}") from error
    dictionary = from_sae_lens(sae)
    processing, hook = facts.get("processing"), check_hook(facts.get("hook_point"), "hook_point")
    sources = tuple(replace(site, processing=processing, hook=hook or site.hook) for site in dictionary.sources)
    targets = tuple(replace(site, processing=processing) for site in dictionary.targets)
    if dictionary.sources == dictionary.targets:  # an SAE writes where it reads
        targets = sources
    model = getattr(sae.cfg.metadata, "model_name", None)
    return replace(dictionary, sources=sources, targets=targets, model_names=(model,))
