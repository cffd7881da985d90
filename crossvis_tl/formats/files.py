"""Reading strangers' files: weights that cannot run code, configs that are only data, and clear errors."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, get_args

import torch
import yaml
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from crossvis_tl.errors import first_line, near_misses, short_list
from crossvis_tl.processing import Processing


def read_state_dict(path: Path, may_be_nan: Iterable[str] = ()) -> dict[str, Tensor]:
    """Tensors of a `.pt` / `.safetensors` file; see `read_wrapped`."""
    return read_wrapped(path, may_be_nan)[0]


def read_wrapped(path: Path, may_be_nan: Iterable[str] = ()) -> tuple[dict[str, Tensor], bool]:
    """-> tensors of a `.pt` / `.safetensors` file, a `model_state_dict` or `state_dict` wrapper taken off, and whether
    they stood in a `model_state_dict`. `may_be_nan`: ends of names whose tensors are not looked at.

    ValueError when the file is no weight file, holds more than tensors can be, or holds no tensor.
    """
    content = _read_safetensors(path) if path.suffix == ".safetensors" else _read_pickle(path)
    wrapped = isinstance(content.get("model_state_dict"), Mapping)
    for wrapper in ("model_state_dict", "state_dict"):
        if isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
    tensors = {name: value for name, value in content.items() if isinstance(value, Tensor)}
    if not tensors:
        raise ValueError(f"{path} holds no tensors, only {short_list(content) or 'nothing'}; is it a weight file?")
    excepted = tuple(may_be_nan)
    check_tensors(path, {name: t for name, t in tensors.items() if not name.endswith(excepted or ("\0",))})
    return tensors, wrapped


def read_content(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """-> tensors of a `.pt` file, and what else stands beside them (names of activations, sizes)."""
    tensors = read_state_dict(path)
    plain = {name: value for name, value in _read_pickle(path).items() if not isinstance(value, Tensor)}
    return tensors, plain


def check_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """ValueError when one is empty, or holds NaN or infinite values."""
    for name, tensor in tensors.items():
        if tensor.numel() == 0:
            raise ValueError(f"{path}: tensor {name!r} is empty, {tuple(tensor.shape)}; there are no features in it")
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise ValueError(f"{path}: tensor {name!r} holds NaN or infinite values; the file is damaged")


def tensor_names(path: Path) -> list[str]:
    """What a `.safetensors` file says it holds; nothing is read but its head. ValueError when it is damaged."""
    try:
        with safe_open(path, "pt") as file:
            return list(file.keys())
    except SafetensorError as error:
        raise ValueError(f"{path} is no readable safetensors file ({error}); was the download complete?") from error


def _read_safetensors(path: Path) -> Mapping[str, Any]:
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is no readable safetensors file ({error}); was the download complete?") from error


def _read_pickle(path: Path) -> Mapping[str, Any]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch, zipfile and pickle each raise their own kinds for damaged files
        raise ValueError(
            f"{path} cannot be read: it is damaged, no weight file, or a pickle that would have to run code when "
            "opened, which is refused; ask for the weights as safetensors or as a plain state dict"
        ) from error
    if not isinstance(content, Mapping):
        raise ValueError(f"{path} holds a {type(content).__name__}, not a dict of tensors; is it a dictionary's file?")
    return content


class _Loader(yaml.SafeLoader):
    """The safe loader, which makes plain data only, and tuples, which producers write."""


def _tuple(loader: yaml.SafeLoader, node: yaml.Node) -> tuple:
    if not isinstance(node, yaml.SequenceNode):
        raise yaml.constructor.ConstructorError(None, None, "a tuple that is no sequence", node.start_mark)
    return tuple(loader.construct_sequence(node))


_Loader.add_constructor("tag:yaml.org,2002:python/tuple", _tuple)


def read_config(path: Path) -> dict[str, Any]:
    """A `.json` / `.yaml` file that holds a mapping. ValueError when it is damaged or something else."""
    try:
        text = path.read_text(encoding="utf-8")
        content = json.loads(text) if path.suffix == ".json" else yaml.load(text, _Loader)  # noqa: S506 - a safe one
    except (UnicodeDecodeError, json.JSONDecodeError, yaml.YAMLError, RecursionError) as error:
        raise ValueError(f"{path} is no readable {path.suffix[1:]} file: {first_line(error)}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}; a config is a mapping of names to values")
    return content


def check_floating(path: Path, state: Mapping[str, Tensor], names: Iterable[str]) -> None:
    """ValueError when one of these tensors holds integers: rounded or quantized weights would give wrong features."""
    for name in names:
        if name in state and not state[name].is_floating_point():
            raise ValueError(f"{path}: {name} holds {state[name].dtype} numbers; weights are floating point")


def check_processing(value: Any, where: str) -> Any:
    """-> the value. ValueError unless it is a `Processing`."""
    allowed = get_args(Processing)
    if value not in allowed:
        raise ValueError(f"{where}={value!r}; expected one of {short_list(allowed)}.{near_misses(str(value), allowed)}")
    return value


def check_hook(value: Any, where: str) -> str | None:
    """-> the value. ValueError unless it is a hook's name or None."""
    if value is not None and (not isinstance(value, str) or not value):
        raise ValueError(f"{where}={value!r}; expected a hook's name such as 'blocks.8.hook_resid_post'")
    return value
