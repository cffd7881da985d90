"""Gathered activations as the latent cache of Delphi, which explains features and scores the explanations.

The layout is what EleutherAI/delphi writes (delphi/latents/cache.py) and reads (delphi/latents/loader.py): a folder for
each hook point, and nothing else beside them; in it `config.json`, and `{first}_{last}.safetensors` for neighbouring
features, which together are all of the hook point's.

| tensor | holds |
|---|---|
| locations | [fired, 3] row, position, feature counted from the file's first; uint16 where all fit, else uint32 |
| activations | [fired] |
| tokens | [rows, positions], in every file, as the loader may take them from any |

The loader sorts locations by feature, keeping their order; of one feature it needs them in the order of rows and
positions. It looks for `config.json` in every folder, which is therefore written last.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from crossvis_tl.errors import check_word, short_list
from crossvis_tl.export.folders import check_names, digest_of, name_problem, open_folder
from crossvis_tl.export.streamed import NAMES, Append, streamed
from crossvis_tl.feature_acts import Block, FeatureActs
from crossvis_tl.files import read_json, write_whole
from crossvis_tl.fingerprints import tokens_fingerprint
from crossvis_tl.manifest import Manifest
from crossvis_tl.store import open_store

CONFIG, WHAT = "config.json", "an export for Delphi"
# Activations held at a time.
BLOCK = 2**20


@dataclass(frozen=True)
class Split:
    """Some neighbouring features of a hook point. `first`, `last`: numbers in it, both included. `begin`, `end`: which
    of the gathered features, sorted by number, these are. `origin`: number of feature `first` in the dictionary.
    `n_fired`: their activations."""

    first: int
    last: int
    begin: int
    end: int
    origin: int
    n_fired: int

    @property
    def file(self) -> str:
        return f"{self.first}_{self.last}.safetensors"


@dataclass(frozen=True)
class Module:
    """A hook point's folder."""

    name: str
    splits: tuple[Split, ...]

    @property
    def files(self) -> list[str]:
        return [CONFIG, *(split.file for split in self.splits)]


def export_delphi(
    acts: str | Path | FeatureActs,
    folder: str | Path,
    *,
    n_splits: int = 5,
    modules: Sequence[str] | None = None,
    dtype: Literal["float32", "float16"] = "float32",
    model_name: str | None = None,
) -> Path:
    """Writes a latent cache that Delphi's `LatentDataset` opens; an export that was stopped goes on where it was.

    `acts`: a store's folder, or what `gather` or `open_store` gave. A CLT has a folder for each layer, with the layer's
    own feature numbers; a crosscoder has one. `modules`: their names, default the hooks that are read (a crosscoder of
    several hooks: "crosscoder"). `n_splits`: files for each. `dtype`: of activations; Delphi's own are float16, which
    rounds them. `model_name`: whose tokenizer Delphi loads, default where the model was loaded from.

    Every activation that was gathered is written, at most `BLOCK` (or one feature's) at a time; Delphi itself leaves
    out magnitudes up to 1e-5. Its `example_ctx_len` must divide the length of the sequences.

    ValueError for names, splits or activations that cannot be; FileExistsError where `folder` holds something else or
    another export; OSError where it cannot be written.
    """
    check_word("dtype", dtype, ("float32", "float16"))
    if isinstance(n_splits, bool) or not isinstance(n_splits, int) or n_splits < 1:
        raise ValueError(f"n_splits={n_splits!r}; expected a number of files, 1 or more")
    acts = acts if isinstance(acts, FeatureActs) else open_store(acts)
    acts, folder = _sorted(acts), Path(folder)
    planned = _modules(acts, n_splits, modules)
    manifest = acts.manifest
    model = model_name or (manifest.origin.get("models") or manifest.model_names)[0]
    identity = digest_of({
        "dictionary": manifest.dictionary, "models": manifest.models, "tokens": manifest.tokens,
        "mask": manifest.mask, "replacements": manifest.replacements, "dtype": dtype, "model_name": model,
        "features": tokens_fingerprint(acts.features[None]),
        "modules": [[module.name, module.files] for module in planned],
    })  # fmt: skip
    config = _config(acts, n_splits, model, identity)
    check_names(folder, [module.name for module in planned], WHAT)
    # all of it is looked at before anything is written
    there = {module.name: _there(folder / module.name, module, acts, dtype, config) for module in planned}
    for module in planned:
        open_folder(folder / module.name, module.files)
    for module in planned:
        for split in module.splits:
            if split.file not in there[module.name]:
                _write(folder / module.name / split.file, acts, split, dtype, identity)
        if CONFIG not in there[module.name]:
            write_whole(folder / module.name / CONFIG, [json.dumps(config, indent=4)])
    return folder


def _sorted(acts: FeatureActs) -> FeatureActs:
    """By feature number. ValueError where there are none, or one comes twice."""
    features, order = acts.features.sort(stable=True)
    if not len(features):
        raise ValueError("there are no features to export")
    twice = features[1:][features[1:] == features[:-1]]
    if len(twice):
        raise ValueError(f"feature {int(twice[0])} is there twice; each can be exported once")
    return acts if torch.equal(features, acts.features) else acts.select(order.tolist())


def _modules(acts: FeatureActs, n_splits: int, names: Sequence[str] | None) -> list[Module]:
    """The hook points' folders, of features sorted by number."""
    groups = acts.manifest.labels["groups"]
    found = _checked_names(list(names), len(groups)) if names is not None else _hook_names(acts.manifest)
    modules, origin = [], 0
    for name, (_, width) in zip(found, groups, strict=True):
        n = min(n_splits, width)
        edges = [width * i // n for i in range(n + 1)]
        at = torch.searchsorted(acts.features, torch.tensor([origin + edge for edge in edges])).tolist()
        splits = [
            Split(edges[i], edges[i + 1] - 1, at[i], at[i + 1], origin + edges[i],
                  int(acts.starts[at[i + 1]] - acts.starts[at[i]]))
            for i in range(n)
        ]  # fmt: skip
        modules.append(Module(name, tuple(splits)))
        origin += width
    return modules


def _hook_names(manifest: Manifest) -> list[str]:
    """One for each group of features: the hook it reads where that is known and can be a folder's name."""
    groups, sources = manifest.labels["groups"], manifest.hooks[0]
    if len(groups) == 1:
        hooks = set(sources)
        alone = hooks.pop() if len(hooks) == 1 else None
        return [alone if alone and not name_problem(alone) else "crosscoder"]
    hooks = [hook or "" for hook in sources]
    if len(hooks) == len(groups) == len(set(hooks)) and not any(map(name_problem, hooks)):
        return hooks
    names = [name for name, _ in groups]
    usable = len(set(names)) == len(names) and not any(map(name_problem, names))
    return names if usable else [f"group_{g}" for g in range(len(groups))]


def _checked_names(names: list[str], n: int) -> list[str]:
    if len(names) != n:
        raise ValueError(f"modules names {len(names)} hook points ({short_list(names, 4)}); these features are of {n}")
    problems = [problem for name in names if (problem := name_problem(name))]
    if problems:
        raise ValueError(f"modules: {problems[0]}")
    if len(set(names)) < n:
        raise ValueError(f"modules names a hook point twice: {short_list(names, 4)}")
    return names


def _config(acts: FeatureActs, n_splits: int, model_name: str, identity: str) -> dict[str, Any]:
    """What Delphi keeps of its own run. The tokens are in the files, so it has no data set to load; both names of the
    context's length are its own, of different ages."""
    rows, positions = acts.tokens.shape
    return {
        "dataset_repo": "", "dataset_split": "", "dataset_name": "", "dataset_column": "", "cache_ctx_len": positions,
        "ctx_len": positions, "n_tokens": rows * positions, "n_splits": n_splits, "model_name": model_name,
        "crossvis_tl": {"export": identity, "dictionary": acts.manifest.dictionary_name},
    }  # fmt: skip


def _there(folder: Path, module: Module, acts: FeatureActs, dtype: str, config: dict[str, Any]) -> set[str]:
    """Which of a module's files lie there whole. FileExistsError for other things and those of another export,
    ValueError for damaged ones."""
    there = check_names(folder, module.files, WHAT)
    other = "is of another export, with other features, tokens or settings; give another folder"
    if CONFIG in there and read_json(folder / CONFIG, "is damaged") != config:
        raise FileExistsError(f"{folder / CONFIG} {other}")
    for split in module.splits:
        if split.file in there:
            expected = {name: (NAMES[kind], list(shape)) for name, (kind, shape) in _kinds(acts, split, dtype).items()}
            found, about = _described(folder / split.file)
            if about.get("crossvis_tl") != config["crossvis_tl"]["export"] or found != expected:
                raise FileExistsError(f"{folder / split.file} {other}")
    return there


def _described(path: Path) -> tuple[dict[str, tuple[str, list[int]]], dict[str, str]]:
    """-> type and shape of each tensor, and what is said beside; no number is read."""
    try:
        with safe_open(path, "np") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            return {name: (one.get_dtype(), one.get_shape()) for name, one in slices.items()}, file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is damaged ({error}); delete it, and the export makes it again") from error


def _kinds(acts: FeatureActs, split: Split, dtype: str) -> dict[str, tuple[str, tuple[int, ...]]]:
    rows, positions = acts.tokens.shape
    small = max(rows, positions, split.last - split.first + 1) <= 2**16
    return {
        "locations": ("uint16" if small else "uint32", (split.n_fired, 3)),
        "activations": (dtype, (split.n_fired,)),
        "tokens": ("int32", (rows, positions)),
    }


def _write(path: Path, acts: FeatureActs, split: Split, dtype: str, identity: str) -> None:
    chosen = acts.select(range(split.begin, split.end))
    with streamed(path, _kinds(acts, split, dtype), {"crossvis_tl": identity}) as append:
        for block in chosen.blocks(BLOCK):
            features = chosen.features[block.first : block.first + len(block)] - split.origin
            append("locations", _locations(block, features.numpy(), acts.tokens.shape[1]))
            _append_values(append, block, dtype, path)
        step = max(1, BLOCK // acts.tokens.shape[1])
        for row in range(0, len(acts.tokens), step):
            append("tokens", acts.tokens[row : row + step].numpy())


def _locations(block: Block, features: np.ndarray, n_positions: int) -> np.ndarray:
    """-> [fired, 3]: row, position and feature of each activation."""
    rows, positions = np.divmod(block.where.numpy(), n_positions)
    return np.stack([rows, positions, np.repeat(features, np.diff(block.starts.numpy()))], axis=1)


def _append_values(append: Append, block: Block, dtype: str, path: Path) -> None:
    values = block.values.numpy()
    if dtype == "float16" and len(values) and float(np.abs(values).max()) > float(np.finfo(np.float16).max):
        raise ValueError(f"{path}: activations up to {float(np.abs(values).max()):.4g} are too large for float16")
    append("activations", values)
