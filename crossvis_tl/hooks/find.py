"""`find_hook`: from any spelling to one row of the table, or an error that says what was meant."""

import json
import re
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crossvis_tl.errors import first_line, near_misses, short_list
from crossvis_tl.hf_configs import config_behind
from crossvis_tl.hooks import why
from crossvis_tl.hooks.derive import BLOCK, Names, derive
from crossvis_tl.hooks.names import FRIENDLY, PARTS, Spelled, friendly, module_paths, tidy
from crossvis_tl.hooks.record import Hook
from crossvis_tl.hooks.table import HookTable

if TYPE_CHECKING:
    from transformers import PretrainedConfig

SHORT_HOOK = re.compile(r"(?:(?:attn|mlp|ln1|ln2|ln1_post|ln2_post)\.)?hook_\w+")
CONFIG_ERRORS = (OSError, ValueError, KeyError, TypeError, AttributeError)


def find_hook(model: Any, name: str, layer: int | None = None) -> Hook:
    """The tensor that `name` means in `model`, under its TransformerLens and its HuggingFace name.

    `model`: one in hand (HookedTransformer, bridge or HuggingFace's), or a folder or HuggingFace id, of which only
    `config.json` is read. `name`: a TransformerLens hook ("blocks.8.hook_mlp_out", or "hook_mlp_out" with `layer`); a
    HuggingFace path with its side ("transformer.h.8.mlp output", "model.layers[13].output[0]", "mlp.down_proj.input"
    with `layer`); nnterp's accessors ("layers_output[13]"), OpenAI's sites ("resid_delta_mlp"), SAEDashboard's
    templates ("blocks.{}.ln2.hook_normalized"), or a hook type ("residual", "attention_output", "mlp_output",
    "mlp_input"), with `layer`.

    -> `Hook`. Its `note` tells where a name is a trap. A HuggingFace name means HuggingFace's own tensor: "mlp_output"
    of a Gemma 2 is the MLP's raw output, not what is added to the residual stream.

    ValueError, with near misses, for a name that is unknown or could mean several tensors, and for a layer that is
    missing, out of range or contradicts the name.
    """
    return Finder(model).find(name, layer)


def discover_hook_point_for_layer(model: Any, layer_num: int, hook_type: str = "attention_output") -> str:
    """The TransformerLens name of a layer's "residual", "attention_output", "mlp_output", "mlp_input" ... in `model`.

    As `find_hook`, for code written against the sae_vis crosscoder adapter. ValueError also where no single hook holds
    the tensor as it is.
    """
    hook = find_hook(model, hook_type, layer_num)
    if hook.status == "absent" or hook.name is None:
        raise ValueError(f"no hook of this model holds {hook_type} of layer {layer_num}: {hook.note}")
    if hook.transform not in ("none", "flatten heads"):
        raise ValueError(
            f"no hook of this model holds {hook_type} of layer {layer_num} as it is; {hook.hf_name} is made from "
            f"{' and '.join(hook.reads)} ({hook.transform}). Gathering does that when the dictionary's hook is "
            f"{hook.hf_name!r}"
        )
    return hook.name


def hook_table(model: Any, layer: int | None = None) -> list[Hook]:
    """Every row for `model` (see `find_hook`), or those of one layer. ValueError for a layer that is not there."""
    finder = Finder(model)
    if layer is not None:
        finder.check_layer(layer, str(layer))
    return list(finder.table().rows(layer))


class Finder:
    """Names of one model, looked up one after the other."""

    def __init__(self, model: Any):
        self.config = config_of(model)
        self.hooks: set[str] | None = set(model.hook_dict) if hasattr(model, "hook_dict") else None
        self.names = names_of(self.config) if self.config is not None else None
        if self.names is None and self.hooks is None:
            raise ValueError(f"{type(model).__name__} has neither hooks nor a HuggingFace config to take names from")
        self.n_layers = self.names.skeleton.n_layers if self.names else int(model.cfg.n_layers)

    def table(self) -> HookTable:
        if self.names is None:
            raise ValueError(
                "this model has no HuggingFace twin that could be found, so there is no table; its TransformerLens "
                "hooks are in model.hook_dict"
            )
        return HookTable(self.names, self.has if self.hooks is not None else None)

    def has(self, name: str) -> bool:
        """Whether the model in hand has a hook of this name that fires."""
        if self.hooks is None or name not in self.hooks:
            return False
        match = BLOCK.fullmatch(name)
        # a bridge lists this hook for blocks without a second norm too, where it never fires
        silent = match is not None and match[2] == "hook_mlp_in" and "blocks.0.hook_in" in self.hooks
        return not (silent and f"blocks.{match[1]}.ln2.hook_in" not in self.hooks) if match else True

    def canonical(self, name: str) -> str | None:
        """The hook that `name` is known by, whichever model is in hand; None where no hook holds it as it is."""
        found = Finder(self.config).find(name) if self.config is not None else self.find(name)
        return found.name if found.transform in ("none", "flatten heads", "affine") else None

    def same_tensor(self, name: str) -> list[str]:
        """The TransformerLens names of the tensor that `name` means, whichever of them the model in hand has."""
        spelled = tidy(name, None).text
        if self.config is None or self.names is None:
            return [self.find(name).name or spelled]
        if spelled in self.names.points:
            point = self.names.points[spelled]
        else:
            row = Finder(self.config).find(name)
            if row.hf_path is None or row.side is None or BLOCK.fullmatch(spelled):
                return [spelled]  # a hook's own name: what it holds is no HuggingFace tensor as it is
            point = self.table().point(row.hf_path, row.side, row.index)
        return list(self.names.by_tensor.get(point.tensor, [])) if point else [spelled]

    def has_norm(self, path: str) -> bool:
        """Whether the architecture has a norm at a TransformerLens path."""
        return path in self.names.norms if self.names else f"{path}.hook_normalized" in (self.hooks or ())

    def find(self, name: str, layer: int | None = None) -> Hook:
        if not isinstance(name, str):
            raise TypeError(f"a hook's name is a text; got {type(name).__name__}")
        spelled = tidy(name, layer)
        if layer is not None:
            self.check_layer(layer, name)
        return self._by_hook(spelled.text, name, layer) or self._by_module(spelled, name, layer)

    def check_layer(self, layer: int, name: str) -> None:
        if not 0 <= layer < self.n_layers:
            there = f"{name!r}: there is no layer {layer}; this model has layers 0 to {self.n_layers - 1}"
            match = BLOCK.fullmatch(name)
            raise ValueError(there + (f".{self._near(f'blocks.{self.n_layers - 1}.{match[2]}')}" if match else ""))

    def _layer(self, written: int | None, given: int | None, name: str) -> int:
        if written is not None and given is not None and written != given:
            raise ValueError(f"{name!r} names layer {written}, but layer={given} was given")
        layer = written if written is not None else given
        if layer is None:
            raise ValueError(f"{name!r} could be in any layer; which one? Pass layer=0 to {self.n_layers - 1}")
        self.check_layer(layer, name)
        return layer

    def _by_hook(self, text: str, name: str, layer: int | None) -> Hook | None:
        """A TransformerLens name, whole or after "blocks.L.", or a friendly one; None where it is neither."""
        if meant := friendly(text):
            short, written = meant
            return self._friendly(short, self._layer(written, layer, name))
        match = BLOCK.fullmatch(text)
        if match is not None:
            self._layer(int(match[1]), layer, name)
        elif SHORT_HOOK.fullmatch(text) and not self._known(text):
            text = f"blocks.{self._layer(None, layer, name)}.{text}"
        if self._known(text):
            return self._row(text)
        if not (text.startswith("blocks.") or "hook_" in text):
            return None
        row = self._row(text) if BLOCK.fullmatch(text) and self.names else None
        if row is not None and row.note != why.NO_MODULE:
            raise ValueError(f"{name!r} does not exist here: {row.note}.{self._near(text)}")
        raise ValueError(f"{name!r} is not a hook of this model.{self._near(text)}")

    def _known(self, text: str) -> bool:
        return self.table().known(text) if self.names else text in (self.hooks or ())

    def _row(self, text: str) -> Hook:
        if self.names is None:
            layer = BLOCK.fullmatch(text)
            return Hook(
                text, None, None, None, "none", None, "absent", "this model has no HuggingFace twin",
                int(layer[1]) if layer else None, reads=(text,),
            )  # fmt: skip
        return self.table().row(text)

    def _friendly(self, short: str, layer: int) -> Hook:
        """The first of the names that stand for it which this architecture has."""
        for candidate in (short, *PARTS.get(short, ())):
            text = f"blocks.{layer}.{candidate}"
            if self.names is None and self._known(text):
                return self._row(text)
            point = self.names.points.get(text) if self.names else None
            if point is not None:
                return self.table().at(point)
        row = self._row(f"blocks.{layer}.{short}")
        if row.status == "absent":
            raise ValueError(f"this model has no {short} in layer {layer}: {row.note}")
        return row

    def _by_module(self, spelled: Spelled, name: str, layer: int | None) -> Hook:
        if self.names is None:
            raise ValueError(f"{name!r} is not a hook of this model.{self._near(spelled.text)}")
        bones = self.names.skeleton
        path = spelled.text if spelled.path is None else spelled.path
        found = module_paths(path, bones.paths, bones.layers, layer)
        if not found:
            raise ValueError(f"{name!r} is neither a hook nor a module of this model.{self._near(spelled.text)}")
        if len(found) > 1:
            hint = " Pass layer=..." if layer is None and any(p.startswith(bones.layers) for p in found) else ""
            raise ValueError(f"{name!r} could be {short_list(found, 4)}; write the whole path.{hint}")
        if spelled.side is None:
            sides = [f"{found[0]}.{side}" for side in ("input", "output") if (found[0], side) in bones.points]
            raise ValueError(f"{name!r} is a module; its input or its output? Write {' or '.join(map(repr, sides))}")
        match = re.match(rf"{re.escape(bones.layers)}\.(\d+)(\.|$)", found[0])
        if match and layer is not None:
            self._layer(int(match[1]), layer, name)
        point = self.table().point(found[0], spelled.side, spelled.index)
        if point is None and spelled.index is None:
            raise ValueError(f"the {spelled.side} of {found[0]} is no activation: no real numbers pass there")
        if point is None:
            raise ValueError(f"{found[0]} gives no element [{spelled.index}].{self._near(spelled.text)}")
        row = self.table().at(point)
        return why.literal_index(row) if spelled.index == 0 and point.index is None else row

    def _near(self, text: str) -> str:
        known: list[str] = list(FRIENDLY)
        if self.names is not None:
            known += self.table().all_names() if self.hooks is None else []
            known += [point.spelled for point in self.names.skeleton.points.values() if point.path]
        return near_misses(text, [*known, *(self.hooks or ())])


def config_of(model: Any) -> "PretrainedConfig | None":
    """The HuggingFace config of a model in hand, a folder or an id (only `config.json` is read); None for a
    TransformerLens model without a HuggingFace twin.

    FileNotFoundError when a folder is missing; ValueError when there is no config to read.
    """
    if not isinstance(model, str | Path):
        return config_behind(model)
    from transformers import AutoConfig

    path = Path(model)
    if path.is_file() and path.name == "config.json":
        path = path.parent
    elif path.is_file():
        raise ValueError(f"{path} is a file; give the model's folder, its config.json, or a HuggingFace id")
    if path.is_dir() and not (path / "config.json").is_file():
        raise ValueError(f"{path} has no config.json, so its hooks cannot be told")
    try:
        return AutoConfig.from_pretrained(str(path))
    except CONFIG_ERRORS as error:
        kind: Callable[[str], Exception] = ValueError if path.exists() else FileNotFoundError
        raise kind(f"the config of {model} cannot be read: {first_line(error)}") from error


def names_of(config: "PretrainedConfig") -> Names:
    """`derive(config)`, once for every config. Of a model that reads images too, the language model's."""
    config = config.get_text_config()
    return _names(type(config), json.dumps(config.to_dict(), sort_keys=True, default=str))


@lru_cache(maxsize=8)
def _names(kind: type, text: str) -> Names:
    return derive(kind.from_dict(json.loads(text)))  # type: ignore[attr-defined]
