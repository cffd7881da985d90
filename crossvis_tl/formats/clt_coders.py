"""One hook point's folder of a clt-training run: its config, its tensors, and whether they fit each other."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from crossvis_tl.formats.files import check_floating, check_sizes, read_config, read_state_dict
from crossvis_tl.formats.layers import check_shapes, need

WEIGHTS = "sae.safetensors"
MOST_LAYERS = 1000
FLAGS = ("transcode", "normalize_io", "divide_cross_layer", "per_source_tied", "skip_connection", "train_post_encoder")
FLAGS += ("post_encoder_scale", "secondary_target_tied", "topk_coalesced")
PARTS = ("W_dec", "b_dec", "W_skip", "post_enc", "post_enc_scale")


@dataclass(frozen=True)
class Coder:
    """One hook point's folder."""

    folder: Path
    cfg: dict[str, Any]
    state: dict[str, Tensor]

    @property
    def file(self) -> Path:
        return self.folder / WEIGHTS

    @property
    def size(self) -> tuple[int, int]:
        """-> features, width."""
        features, width = self.state["encoder.weight"].shape
        return features, width

    def says(self, name: str) -> bool:
        return bool(self.cfg.get(name, False))

    def get(self, name: str, offset: int) -> Tensor | None:
        """Of the decoder `offset` layers on: `{name}s.{offset}`; for the layer's own also a single coder's `{name}`."""
        several = self.state.get(f"{name}s.{offset}")
        return self.state.get(name) if several is None and offset == 0 else several


def read_coder(folder: Path) -> Coder:
    if not (folder / "cfg.json").is_file():
        raise FileNotFoundError(f"{folder} lacks cfg.json, which says its k and activation")
    coder = Coder(folder, read_config(folder / "cfg.json"), read_state_dict(folder / WEIGHTS))
    need(coder.file, coder.state, ("encoder.weight", "encoder.bias"))
    check_floating(coder.file, coder.state, coder.state)
    if coder.state["encoder.weight"].ndim != 2:
        shape = tuple(coder.state["encoder.weight"].shape)
        raise ValueError(f"{coder.file}: encoder.weight is {shape}; expected [features, d]")
    features, width = coder.size
    shapes: dict[str, tuple[int, ...]] = {"encoder.bias": (features,), "in_norm": (1,), "out_norm": (1,)}
    by_start = {"W_dec": (features, width), "b_dec": (width,), "W_skip": (width, width), "post_enc": (features,)}
    for name in coder.state:
        start = re.sub(r"s?(\.\d+)?$", "", name)
        if start in (*by_start, "post_enc_scale"):
            shapes[name] = by_start.get(start, (features,))
    check_shapes(coder.file, coder.state, shapes)
    _check_flags(coder)
    _check_parts(coder)
    check_sizes(str(folder / "cfg.json"), coder.cfg, {"d_in": width, "num_latents": features}, unset=(None, 0))
    return coder


def _check_flags(coder: Coder) -> None:
    cfg = coder.folder / "cfg.json"
    for name in FLAGS:
        if not isinstance(coder.cfg.get(name, False), bool):
            raise ValueError(f"{cfg} says {name} = {coder.cfg[name]!r}; expected true or false")
    for name in ("secondary_target_tied", "topk_coalesced"):
        if coder.says(name):
            raise ValueError(f"{cfg} says {name}, which cannot be read: no checkpoint of it is known")
    if "n_targets" not in coder.cfg and any(re.fullmatch(r"\w+s\.\d+", name) for name in coder.state):
        raise ValueError(f"{cfg} does not say n_targets, how many layers it writes to")
    if n_targets(coder) and not coder.says("transcode"):
        raise ValueError(f"{cfg} says n_targets = {n_targets(coder)}, but not that it is a transcoder")
    if "in_norm" in coder.state and "normalize_io" not in coder.cfg:
        raise ValueError(f"{coder.file} holds in_norm, but its config does not say normalize_io")


def _check_parts(coder: Coder) -> None:
    """ValueError where the config speaks of tensors that are not there, or there are more than it speaks of."""
    n = n_targets(coder)
    offsets = {str(j) for j in range(n)}
    several = {start: {name.split(".")[1] for name in coder.state if name.startswith(f"{start}s.")} for start in PARTS}
    for start, held in several.items():
        if held - offsets and n:
            raise ValueError(f"{coder.file} holds {start}s.{max(held)}, but its config says n_targets = {n}")
        if held and held != offsets and n:
            raise ValueError(f"{coder.file} lacks the tensor {start}s.{min(offsets - held)}")
    options = {"train_post_encoder": "post_enc", "post_encoder_scale": "post_enc_scale", "skip_connection": "W_skip"}
    wanted = ["W_dec", "b_dec", *(start for option, start in options.items() if coder.says(option))]
    for start in wanted:
        if not several[start] and start not in coder.state:
            raise ValueError(f"{coder.file} lacks the tensor {start}{'s.0' if n else ''}, which its config says it has")
    need(coder.file, coder.state, ["in_norm", "out_norm"] if coder.says("normalize_io") else [])


def n_targets(coder: Coder) -> int:
    value = coder.cfg.get("n_targets", 0)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= MOST_LAYERS:
        raise ValueError(
            f"{coder.folder / 'cfg.json'} says n_targets = {value!r}; expected how many layers it writes to"
        )
    return value
