"""Ways in which a checkpoint comes damaged: what downloads, disks, scripts and hands do to files."""

import json
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from safetensors.torch import load_file, save_file

WEIGHTS = (".safetensors", ".pt", ".ckpt", ".npz")
CONFIGS = (".json", ".yaml")
ANY_K = ("k", "batch_topk", "batchtopk_k", "topk_k")
# What the producer's own loader has a rule for where it is not said: sae_lens', sparsify's and
# circuit-tracer's (ReLU, reported).
LEFT_TO_THE_PRODUCER = ("normalize_activations", "apply_b_dec_to_input", "activation", "transcode")


def files(folder: Path, suffixes: tuple[str, ...]) -> list[Path]:
    return sorted(p for p in folder.rglob("*") if p.suffix in suffixes and p.is_file())


def tensor_places(content: Any, path: tuple = ()) -> Iterator[tuple]:
    """Where tensors stand in nested dicts."""
    if isinstance(content, dict):
        for key, value in content.items():
            yield from tensor_places(value, (*path, key))
    elif isinstance(content, torch.Tensor):
        yield path


def load(file: Path) -> Any:
    if file.suffix == ".safetensors":
        return load_file(file)
    if file.suffix == ".npz":
        with np.load(file) as archive:
            return {name: torch.from_numpy(archive[name]) for name in archive.files}
    return torch.load(file, weights_only=True)


def store(content: Any, file: Path) -> None:
    if file.suffix == ".safetensors":
        save_file({name: tensor.contiguous() for name, tensor in content.items()}, file)
    elif file.suffix == ".npz":
        np.savez(file, **{name: tensor.numpy() for name, tensor in content.items()})
    else:
        torch.save(content, file)


def at(content: Any, place: tuple) -> tuple[dict, Any]:
    """-> the dict that holds what stands at a place, and its key there."""
    for key in place[:-1]:
        content = content[key]
    return content, place[-1]


def change_tensor(change: Callable[[torch.Tensor], torch.Tensor | None], rename: bool = False) -> Callable:
    def apply(folder: Path, chance: random.Random) -> str:
        file = chance.choice(files(folder, WEIGHTS))
        content = load(file)
        place = chance.choice(list(tensor_places(content)))
        holder, key = at(content, place)
        changed = change(holder[key])
        if changed is None or rename:
            del holder[key]
        if changed is not None:
            holder[f"{key[:-1]}q" if rename else key] = changed
        if not content or (not holder and len(place) == 1):
            content = {"nothing": torch.ones(1)}
        store(content, file)
        return f"{file.name}: {'.'.join(map(str, place))}"

    return apply


def nan(tensor: torch.Tensor) -> torch.Tensor:
    out = tensor.clone().float() if not tensor.is_floating_point() else tensor.clone()
    flat = out.reshape(-1).clone()
    flat[-1] = float("nan")
    return flat.reshape(tensor.shape)


def one_less(tensor: torch.Tensor) -> torch.Tensor:
    return tensor[..., :-1].clone() if tensor.ndim else tensor.reshape(1).repeat(3)


def truncated(folder: Path, chance: random.Random) -> str:
    file = chance.choice(files(folder, WEIGHTS + CONFIGS))
    content = file.read_bytes()
    size = chance.randrange(len(content))
    file.write_bytes(content[:size])
    return f"{file.name} cut to {size}"


def gone(folder: Path, chance: random.Random) -> str:
    file = chance.choice(files(folder, WEIGHTS + CONFIGS))
    file.unlink()
    return f"{file.name} gone"


def garbage(folder: Path, chance: random.Random) -> str:
    file = chance.choice(files(folder, WEIGHTS + CONFIGS))
    file.write_bytes(chance.randbytes(chance.randrange(1, 400)))
    return f"{file.name} garbage"


def web_page(folder: Path, chance: random.Random) -> str:
    """What a download that failed leaves: a page that says so, or a pointer to large-file storage."""
    file = chance.choice(files(folder, WEIGHTS + CONFIGS))
    pages = ("<html>401</html>", "version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 9\n", "")
    file.write_text(chance.choice(pages))
    return f"{file.name} a web page"


def head_bytes(folder: Path, chance: random.Random) -> str:
    file = chance.choice(files(folder, WEIGHTS))
    content = bytearray(file.read_bytes())
    head = 8 + int.from_bytes(content[:8], "little") if file.suffix == ".safetensors" else min(len(content), 300)
    place = chance.randrange(min(head, len(content)))
    content[place] ^= 1 << chance.randrange(8)
    file.write_bytes(bytes(content))
    return f"{file.name} byte {place}"


def change_config(change: Callable[[dict, str, random.Random], None]) -> Callable:
    def apply(folder: Path, chance: random.Random) -> str:
        configs = files(folder, CONFIGS)
        if not configs:
            return gone(folder, chance)
        file = chance.choice(configs)
        text = file.read_text()
        content = json.loads(text) if file.suffix == ".json" else yaml.unsafe_load(text)
        holder, path = content, []
        while True:
            inner = [key for key, value in holder.items() if isinstance(value, dict) and value]
            if not inner or chance.random() < 0.5:
                break
            path.append(chance.choice(inner))
            holder = holder[path[-1]]
        key = chance.choice(list(holder))
        change(holder, key, chance)
        file.write_text(json.dumps(content) if file.suffix == ".json" else yaml.dump(content))
        return f"{file.name}: {'.'.join([*path, key])} -> {holder.get(key, 'gone')!r}"

    return apply


def wrong_type(holder: dict, key: str, chance: random.Random) -> None:
    values = [None, [], {}, "x", -1, 0, 10**12, 1.5, True, [[1]], {"a": 1}]
    holder[key] = chance.choice([value for value in values if type(value) is not type(holder[key])])


def drop_key(holder: dict, key: str, chance: random.Random) -> None:
    if key not in LEFT_TO_THE_PRODUCER:
        del holder[key]


def other_number(holder: dict, key: str, chance: random.Random) -> None:
    # another k is another dictionary, and no less a right one
    numbers = [n for n, v in holder.items() if isinstance(v, int) and not isinstance(v, bool) and n not in ANY_K]
    if numbers:
        holder[chance.choice(numbers)] += chance.choice([-1, 1, 7])


def not_a_mapping(folder: Path, chance: random.Random) -> str:
    configs = files(folder, CONFIGS)
    if not configs:
        return gone(folder, chance)
    file = chance.choice(configs)
    file.write_text(chance.choice(["[1, 2]", "3", '"text"', "null"]))
    return f"{file.name} no mapping"


def mixed_up(folder: Path, chance: random.Random) -> str:
    """Two weight files of the checkpoint in each other's place, or one in place of all."""
    weights = files(folder, WEIGHTS)
    one, other = chance.choice(weights), chance.choice(weights)
    if one != other and one.stat().st_size != other.stat().st_size:
        shutil.copy(one, other)
        return f"{one.name} over {other.name}"
    return truncated(folder, chance)


WAYS: dict[str, Callable[[Path, random.Random], str]] = {
    "tensor gone": change_tensor(lambda tensor: None),
    "tensor renamed": change_tensor(lambda tensor: tensor, rename=True),
    "NaN": change_tensor(nan),
    "one less": change_tensor(one_less),
    "empty": change_tensor(lambda tensor: tensor.reshape(-1)[:0]),
    "flat": change_tensor(lambda tensor: tensor.reshape(-1) if tensor.ndim > 1 else tensor.reshape(1, -1)),
    "transposed": change_tensor(lambda t: t.transpose(0, -1) if t.ndim > 1 and t.shape[0] != t.shape[-1] else t[None]),
    "integers": change_tensor(lambda tensor: (tensor.float() * 10).round().to(torch.int8)),
    "another axis": change_tensor(lambda tensor: tensor[None]),
    "truncated": truncated,
    "gone": gone,
    "garbage": garbage,
    "web page": web_page,
    "head": head_bytes,
    "wrong type": change_config(wrong_type),
    "key gone": change_config(drop_key),
    "other number": change_config(other_number),
    "no mapping": not_a_mapping,
    "mixed up": mixed_up,
}
