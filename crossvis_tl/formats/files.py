"""Reading strangers' files: weights that cannot run code, configs that are only data, and clear errors.

Large files are mapped into memory, not read: a tensor costs nothing until a part of it is taken
(`crossvis_tl.weights`).
"""

import json
import pickle
import types
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import torch
import yaml
from safetensors import SafetensorError, safe_open
from torch import Tensor

from crossvis_tl.errors import first_line, near_misses, short_list
from crossvis_tl.processing import Processing
from crossvis_tl.weights import MAPPED, all_finite, is_large


@dataclass(frozen=True)
class _Reading:
    """How pickles are read, and those that were read already."""

    trust: bool = False
    held: dict[Path, Mapping[str, Any]] | None = None


_DEFAULT = _Reading()
_READING: ContextVar[_Reading] = ContextVar("reading", default=_DEFAULT)


@contextmanager
def reading_pickles(*, trust: bool) -> Iterator[None]:
    """Inside, each pickle is read once, however many readers look at it. With `trust` it may hold objects of any class,
    as its author's code would have run them."""
    token = _READING.set(_Reading(trust, {}))
    try:
        yield
    finally:
        _READING.reset(token)


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


def near_content(path: Path) -> tuple[Path, Mapping[str, Any]]:
    """-> the `.pt` file at `path`, or the only one in that folder, and what it holds; nothing where there is none or it
    cannot be read (another reader says what is wrong with it)."""
    file = path
    if path.is_dir():
        files = list(path.glob("*.pt"))
        file = files[0] if len(files) == 1 else path
    if file.suffix not in (".pt", ".pth", ".bin") or not file.is_file():
        return path, {}
    try:
        return file, _read_pickle(file)
    except ValueError:
        return file, {}


def check_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """ValueError when one is empty, or holds NaN or infinite values. Large ones are looked through when a part of them
    is taken."""
    for name, tensor in tensors.items():
        if tensor.numel() == 0:
            raise ValueError(f"{path}: tensor {name!r} is empty, {tuple(tensor.shape)}; there are no features in it")
        if tensor.is_floating_point() and not is_large(tensor) and not all_finite(tensor):
            raise ValueError(f"{path}: tensor {name!r} holds NaN or infinite values; the file is damaged")


def tensor_names(path: Path) -> list[str]:
    """What a `.safetensors` file says it holds; nothing is read but its head. ValueError when it is damaged."""
    try:
        with safe_open(path, "pt") as file:
            return list(file.keys())
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is no readable safetensors file ({error}); was the download complete?") from error


def _is_mapped(path: Path) -> bool:
    return path.stat().st_size > MAPPED


def _read_safetensors(path: Path) -> Mapping[str, Any]:
    try:
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
        return tensors if _is_mapped(path) else {name: tensor.clone() for name, tensor in tensors.items()}
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is no readable safetensors file ({error}); was the download complete?") from error


def _read_pickle(path: Path) -> Mapping[str, Any]:
    held = _READING.get().held
    if held is None:
        return _load_pickle(path)
    if path not in held:
        held[path] = _load_pickle(path)
    return held[path]


def _load_pickle(path: Path) -> Mapping[str, Any]:
    try:
        # files of before torch 1.6 are no zip and cannot be mapped
        zipped = zipfile.is_zipfile(path)
        mapped = _is_mapped(path) and zipped
        if zipped:
            _check_sums(path, whole=not mapped)
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except pickle.UnpicklingError as error:
        content = _read_trusted(path, error)
    except Exception as error:  # torch, zipfile and pickle each raise their own kinds for damaged files
        raise ValueError(
            f"{path} cannot be read ({first_line(error)}): it is damaged or no weight file; was the download complete?"
        ) from error
    if not isinstance(content, Mapping):
        raise ValueError(f"{path} holds a {type(content).__name__}, not a dict of tensors; is it a dictionary's file?")
    return content


def _check_sums(path: Path, whole: bool) -> None:
    """zipfile.BadZipFile when the file is damaged, which torch would not see: of large files, the part that says what
    is where."""
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            if whole or info.filename.endswith("/data.pkl"):
                with archive.open(info) as part:
                    while part.read(2**20):
                        pass


def _read_trusted(path: Path, error: Exception) -> Any:
    if not _READING.get().trust:
        raise ValueError(
            f"{path} cannot be read: it is damaged, no weight file, or a pickle that would have to run code when "
            "opened, which is refused; ask for the weights as safetensors or as a plain state dict, or, where you "
            "trust its author with this machine, pass trust_pickle=True"
        ) from error
    try:
        return torch.load(path, map_location="cpu", weights_only=False, pickle_module=_TRUSTING)
    except Exception as again:
        raise ValueError(f"{path} is damaged or no weight file ({first_line(again)})") from again


class _Stub:
    """Stands for an object of a class that is not installed here; its fields are what they were."""

    def __init__(self, *args: Any, **kwargs: Any):
        pass

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, dict):
            self.__dict__.update(state)


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        try:
            return super().find_class(module, name)
        except (ImportError, AttributeError):
            return type(name, (_Stub,), {})


_TRUSTING = types.ModuleType("trusting_pickle")
_TRUSTING.__dict__.update(pickle.__dict__)
_TRUSTING.__dict__["Unpickler"] = _Unpickler


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


def check_sizes(said_by: str, cfg: Mapping[str, Any], sizes: Mapping[str, int], unset: tuple = ()) -> None:
    """ValueError where a config names another size than the weights have; `unset`: values that name none."""
    for name, size in sizes.items():
        if cfg.get(name, size) not in (size, *unset):
            raise ValueError(f"{said_by} says {name} = {cfg[name]}, but in the weights it is {size}")


def one_number_each(name: str, value: Any, n: int, of_what: str, *, positive: bool = False) -> list[float]:
    """A fact that is one number for all, or a list of n. ValueError when they are others, or not finite."""
    given = list(value) if isinstance(value, list | tuple) else [value] * n
    numbers = [float(v) for v in given if isinstance(v, int | float) and not isinstance(v, bool)]
    fit = all((v > 0 if positive else -float("inf") < v) and v < float("inf") for v in numbers)
    if not fit or not len(numbers) == len(given) == n:
        kind = "positive numbers" if positive else "numbers"
        raise ValueError(f"{name}={value!r}: expected {n} {kind}, one per {of_what}")
    return numbers


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
