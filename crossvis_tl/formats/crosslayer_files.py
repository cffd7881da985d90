"""Which files of a crosslayer-coding folder (F7) are its weights, its config and its statistics, and what they hold.

Training leaves `clt_checkpoint_{step or latest}.safetensors`, `*/model.safetensors` or shares by rank; SAEDashboard
(jbloomAus/SAEDashboard, `neuronpedia_runner.py`) takes the file it is told, else the first `*.safetensors`, else
`model.pt` or `model.bin`, beside `cfg.json`. Where several files may be meant, this asks instead.
"""

import re
from collections.abc import Mapping
from pathlib import Path, PureWindowsPath
from typing import Any

import torch
from torch import Tensor

from crossvis_tl.errors import MissingFact, near_misses, short_list
from crossvis_tl.formats.files import near_content, read_config, read_state_dict, tensor_names

NAME = "a crosslayer-coding transcoder"
SIZES = ("num_layers", "num_features", "d_model")
CHECKPOINT = re.compile(r"(?:clt_)?checkpoint_(\d+|latest)\.safetensors|clt\.safetensors|model\.safetensors")
STEP = re.compile(r"(\d+)")
PREFIX = re.compile(r"^(?:_orig_mod\.|module\.)*(?:encoder_module\.|decoder_module\.|theta_manager\.)?")
RANK = re.compile(r"rank_(\d+)_model\.(?:pt|safetensors)")
PICKLES = (".pt", ".pth", ".bin")


def find(path: Path) -> list[Path] | None:
    """-> the shares of the features by rank, or each file that may be meant; None when nothing here is of the kind."""
    if path.is_file():
        return [path] if _is_ours(path) else None
    ranks = {int(m[1]): p for p in path.iterdir() if (m := RANK.fullmatch(p.name))}
    if ranks and _is_ours(ranks[min(ranks)]):
        absent = sorted(set(range(max(ranks) + 1)) - set(ranks))
        if absent:
            raise FileNotFoundError(
                f"{path} lacks the shares of ranks {short_list(absent)}; was the download complete?"
            )
        return [ranks[rank] for rank in sorted(ranks)]
    named = [*path.glob("*.safetensors"), *path.glob("*/model.safetensors")]
    found = [file for file in named if CHECKPOINT.fullmatch(file.name) and _is_ours(file)]
    pickles = [p for p in path.iterdir() if p.suffix in PICKLES and p.is_file()]
    if _says_sizes(path):  # else a file of any name is more likely another family's
        found += [file for file in named if not CHECKPOINT.fullmatch(file.name) and _seems_ours(file)]
        return found or [file for file in pickles if _is_ours(file)] or None
    return found or ([pickles[0]] if len(pickles) == 1 and _is_ours(pickles[0]) else None)


def _says_sizes(folder: Path) -> bool:
    try:
        return set(SIZES) <= set(read_config(folder / "cfg.json"))
    except (OSError, ValueError):
        return False


def _seems_ours(file: Path) -> bool:
    """Of a file that may be anything: what is damaged is not it."""
    try:
        return _is_ours(file)
    except ValueError:
        return False


def _is_ours(file: Path) -> bool:
    if file.suffix == ".safetensors":
        names = tensor_names(file)
    else:
        content = near_content(file)[1]
        inner = content.get("state_dict", content)
        names = list(inner) if isinstance(inner, Mapping) else []
    return any(re.fullmatch(r"encoders\.\d+\.weight", PREFIX.sub("", str(name))) for name in names)


def chosen(path: Path, files: list[Path], filename: object) -> list[Path]:
    """What `find` found -> the weights, several where each holds a share of the features.

    `filename`: the fact `weights_filename`, or None: then the last step of a training. `MissingFact` where other files
    may be meant too; FileNotFoundError and ValueError for a name that is no such file.
    """
    if filename is not None:
        return [_told(path, files, filename)]
    if all(RANK.fullmatch(file.name) for file in files):
        return files
    if len(files) > 1 and not all(CHECKPOINT.fullmatch(file.name) for file in files):
        names = sorted(file.relative_to(path).as_posix() for file in files)
        text = f"{path} holds several transcoders: {short_list(names)}; pass weights_filename=, the one that is meant"
        raise MissingFact("weights_filename", text, names[0])
    return [max(files, key=_newest)]


def _told(path: Path, files: list[Path], filename: object) -> Path:
    if path.is_file():
        raise ValueError(f"{path} is a weight file; leave weights_filename={filename!r} out, or give its folder")
    known = [one.relative_to(path).as_posix() for one in files]
    # by the name alone: in the hub's cache every file is a link that leads out of its folder
    name = PureWindowsPath(str(filename))  # which takes both kinds of slashes
    if name.anchor or ".." in name.parts:
        raise ValueError(
            f"weights_filename={filename!r} leads out of {path}; give the name of a file in it: {short_list(known)}"
        )
    file = path / str(filename)
    if not file.is_file():
        raise FileNotFoundError(
            f"{path} has no file weights_filename={filename!r}; there is {short_list(known)}."
            f"{near_misses(str(filename), known)}"
        )
    if not _is_ours(file):
        raise ValueError(f"weights_filename={filename!r}: {file} is not {NAME}, it lacks the tensor encoders.0.weight")
    return file


def _newest(file: Path) -> tuple[bool, int, str]:
    """ "latest" before the highest step; of the same step the checkpoint itself."""
    steps = STEP.findall(file.stem) or STEP.findall(file.parent.name)
    return "latest" in (file.stem.split("_")[-1], file.parent.name), int(steps[-1]) if steps else -1, file.name


def config(file: Path) -> dict[str, Any]:
    """`cfg.json` beside the weights or above them, else what a `.pt` holds."""
    found = _beside(file, "cfg.json")
    if found is not None:
        return read_config(found)
    inner = near_content(file)[1].get("config") if file.suffix in PICKLES else None
    if not isinstance(inner, dict):
        raise FileNotFoundError(f"{file.parent} lacks cfg.json, which says its activation and normalisation")
    return inner


def size(file: Path, cfg: dict[str, Any], name: str) -> int:
    value = cfg.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"the config of {file} says {name} = {value!r}; expected a positive number")
    return value


def statistics(file: Path) -> tuple[Path, dict[str, Any]] | None:
    """`norm_stats.json` beside the weights or above them, and what it holds."""
    found = _beside(file, "norm_stats.json")
    return None if found is None else (found, read_config(found))


def _beside(file: Path, name: str) -> Path | None:
    places = [folder / name for folder in (file.parent, file.parent.parent)]
    return next((one for one in places if one.is_file()), None)


def read(files: list[Path]) -> dict[str, Tensor]:
    """Tensors by their names without prefixes; the ranks' shares of the features side by side, what is the same size in
    all is held by each in whole."""
    states = [{PREFIX.sub("", name): tensor for name, tensor in read_state_dict(file).items()} for file in files]
    if len(states) == 1:
        return states[0]
    joined = {}
    for name, first in states[0].items():
        parts = [state[name] for state in states if name in state]
        split = name.startswith("encoders.") or name.startswith(("feature_", "log_threshold"))
        axis = 0 if name.startswith(("encoders.", "feature_")) else -1
        split = split or (name.startswith("decoders.") and name.endswith(".weight"))
        joined[name] = torch.cat(parts, dim=axis) if split else first
    return joined
