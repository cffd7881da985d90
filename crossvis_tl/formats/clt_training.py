"""F8: EleutherAI/clt-training, and the sparsify it grew from: a folder for each hook point, `{cfg.json,
sae.safetensors}` in `h.0.mlp` or `layers.3.mlp`.

`encoder.weight [F, d]`, `encoder.bias`; features are TopK(k) of the rectified pre-activations, or the largest of each
of k groups. A cross-layer transcoder writes from layer i to i + j with `W_decs.{j} [F, d]`, `b_decs.{j}`,
`W_skips.{j}`; with `per_source_tied` one `W_dec` for all of them; with `coalesce_topk` "concat" (its "tied") the
decoder, bias and skip are the target's. `post_encs.{j}`, `post_enc_scales.{j} [F]`: (a + post_enc) * scale where a > 0.
Inputs are x * sqrt(d) / in_norm, outputs taken times out_norm / sqrt(d), of the target. `divide_cross_layer`: what
other layers add is divided by how many there are. Single coders have `W_dec`, `W_skip`, `post_enc`, `post_enc_scale`;
SAEs (`transcode` false) take b_dec from the normalised input. HuggingFace's own activations: a module's input, or
`hookpoints_in`, and its output.
"""

from pathlib import Path
from typing import Any

import torch
from einops import einsum
from torch import Tensor

from crossvis_tl.activation_fns import Activation, GroupMax, TopK
from crossvis_tl.dictionary import Affine, Dictionary, Group, Kind, Post, Site
from crossvis_tl.errors import short_list
from crossvis_tl.formats.activations import check_activation, check_k
from crossvis_tl.formats.clt_coders import WEIGHTS, Coder, n_targets, read_coder
from crossvis_tl.formats.files import check_hook, read_config
from crossvis_tl.formats.layers import need
from crossvis_tl.normalizers import scaling
from crossvis_tl.sites import layer_in

FACTS = {"processing", "k"}
NAME = "a clt-training folder"


def find(path: Path) -> list[Path] | None:
    """-> the folders of the hook points, by layer, when the path looks like this layout, else None."""
    if not path.is_dir():
        return None
    if (path / WEIGHTS).is_file():
        return [path]
    folders = [p.parent for p in path.glob(f"*/{WEIGHTS}")]
    return sorted(folders, key=lambda p: (_layer(p.name), p.name)) or None


def _layer(name: str) -> int:
    layer = layer_in(name)
    return -1 if layer is None else layer


def load(path: Path, folders: list[Path], facts: dict[str, Any]) -> Dictionary:
    """ValueError when tensors are missing, do not fit each other, or the config asks for what is not known."""
    coders = [read_coder(folder) for folder in folders]
    run_file = next((one for one in (path / "config.json", path.parent / "config.json") if one.is_file()), None)
    run = read_config(run_file) if run_file else {}
    if len({coder.size for coder in coders}) > 1:
        raise ValueError(f"{path}: its hook points are of different sizes; they are no one dictionary")
    across = any(n_targets(coder) > 1 or "W_decs.0" in coder.state for coder in coders)
    if across and (lacking := _missing_layers(folders, run)):
        raise FileNotFoundError(f"{path} lacks {short_list(lacking)}; was the download complete?")
    kind: Kind = "clt" if across else "plt" if coders[0].says("transcode") else "sae"
    n = len(coders)
    reach = [max(1, n_targets(coder)) if across else 1 for coder in coders]
    pairs = [(s, t) for s in range(n) for t in range(s, min(n, s + reach[s]))]
    names = [f"L{_layer(folder.name)}" if n > 1 else "" for folder in folders]
    groups = tuple(_group(names[s], s, [t for a, t in pairs if a == s], coders, facts) for s in range(n))
    norms = [(_norm(coder, "in_norm"), _norm(coder, "out_norm")) for coder in coders]
    sources, targets = _sites(folders, coders, run, kind, facts)
    return Dictionary(
        kind=kind, sources=sources, targets=targets, groups=groups, b_dec=_biases(coders, pairs),
        format="clt-training (F8)", model_names=(run.get("model"),),
        skip=_skips(coders, pairs), normalize={i: a for i, (a, _) in enumerate(norms) if a is not None},
        denormalize={i: b for i, (_, b) in enumerate(norms) if b is not None},
    )  # fmt: skip


def _missing_layers(folders: list[Path], run: dict[str, Any]) -> list[str]:
    said = run.get("hookpoints")
    present = {folder.name for folder in folders}
    return [str(one) for one in said if one not in present] if isinstance(said, list) else []


def _group(name: str, source: int, targets: list[int], coders: list[Coder], facts: dict[str, Any]) -> Group:
    coder = coders[source]
    post = {t: one for t in targets if (one := _post(coder, source, t, coders)) is not None}
    W_enc, b_enc = coder.state["encoder.weight"].T, coder.state["encoder.bias"]
    if not coder.says("transcode"):
        inward = einsum(_need(coder, "b_dec").float(), W_enc.float(), "d, d features -> features")
        b_enc = b_enc.float() - inward
    return Group(
        name, {source: W_enc}, b_enc, _activation(coder, facts), {t: _decoder(coders, source, t) for t in targets},
        post=post,
    )  # fmt: skip


def _decoder(coders: list[Coder], source: int, target: int) -> Tensor:
    if _is_concat(coders[source]):
        return _need(coders[target], "W_dec")
    if coders[source].says("per_source_tied"):
        return _need(coders[source], "W_dec")
    W_dec = coders[source].get("W_dec", target - source)
    if W_dec is None:
        raise ValueError(f"{coders[source].file} lacks the tensor W_decs.{target - source}")
    return W_dec


def _need(coder: Coder, name: str) -> Tensor:
    need(coder.file, coder.state, [name])
    return coder.state[name]


def _is_concat(coder: Coder) -> bool:
    said = str(coder.cfg.get("coalesce_topk", "none"))
    if said not in ("none", "concat"):
        raise ValueError(
            f"{coder.folder / 'cfg.json'} says coalesce_topk = {said!r}, where features of one layer are chosen by "
            "what they are in others; 'none' and 'concat' can be read"
        )
    return said == "concat"


def _post(coder: Coder, source: int, target: int, coders: list[Coder]) -> Post | None:
    """What is decoded in place of an activation, a layer's share of a divided sum included."""
    offset, scale = (coder.get(name, target - source) for name in ("post_enc", "post_enc_scale"))
    share = _share(coders, source, target)
    if share != 1:
        scale = share * (torch.ones(coder.size[0]) if scale is None else scale.float())
    return None if offset is None and scale is None else Post(offset, scale)


def _share(coders: list[Coder], source: int, target: int) -> float:
    """What is left of what `source` adds to a later layer where the producer divides it by how many layers do."""
    if source == target or not coders[target].says("divide_cross_layer"):
        return 1.0
    others = sum(s + max(1, n_targets(coders[s])) > target for s in range(target))
    return 1 / max(1, others)


def _activation(coder: Coder, facts: dict[str, Any]) -> Activation:
    features = coder.size[0]
    kind = check_activation(coder.folder / "cfg.json", coder.cfg.get("activation", "topk"), ("topk", "groupmax"))
    k = check_k(coder.folder / "cfg.json", facts.get("k", coder.cfg.get("k")), features)
    if kind == "topk":
        return TopK(k)
    if features % k:
        raise ValueError(f"{coder.folder / 'cfg.json'}: {features} features cannot be parted in k = {k} groups")
    return GroupMax(features // k)


def _biases(coders: list[Coder], pairs: list[tuple[int, int]]) -> tuple[Tensor, ...]:
    """Of each target: of all that write to it, or of its own alone where the decoder is the target's."""
    found = [torch.zeros(coders[0].size[1]) for _ in coders]
    for source, target in pairs:
        if _is_concat(coders[source]):
            bias = coders[target].get("b_dec", 0) if source == target else None
        else:
            bias = coders[source].get("b_dec", target - source)
        if bias is not None:
            found[target] = found[target] + bias.float() * _share(coders, source, target)
    return tuple(found)


def _skips(coders: list[Coder], pairs: list[tuple[int, int]]) -> dict[tuple[int, int], Tensor]:
    skips = {}
    for source, target in pairs:
        W_skip = coders[source].get("W_skip", target - source)
        if W_skip is not None and (source == target or not _is_concat(coders[source])):
            skips[source, target] = W_skip.T.float() * _share(coders, source, target)
    return skips


def _norm(coder: Coder, name: str) -> Affine | None:
    norm = coder.state.get(name)
    if norm is None or not coder.says("normalize_io"):
        return None
    if not bool((norm > 0).all()):
        raise ValueError(f"{coder.file}: {name} is {norm.tolist()}; expected a positive number")
    return scaling(coder.size[1] ** 0.5 / norm.float())


def _sites(
    folders: list[Path], coders: list[Coder], run: dict[str, Any], kind: Kind, facts: dict[str, Any]
) -> tuple[tuple[Site, ...], tuple[Site, ...]]:
    """A coder's folder is named after the module whose output it reconstructs; transcoders read that module's input."""
    names, read = run.get("hookpoints"), run.get("hookpoints_in")
    given: dict[str, str | None] = {}
    if isinstance(names, list) and isinstance(read, list):
        given = {str(name): check_hook(one, "hookpoints_in") for name, one in zip(names, read, strict=False)}
    processing, width = facts.get("processing", "none"), coders[0].size[1]

    def site(path: str) -> Site:
        return Site(0, None, width, processing, hf_path=path)

    targets = tuple(site(f"{folder.name}.output") for folder in folders)
    if kind == "sae":
        return targets, targets
    sources = (site(f"{given[f.name]}.output" if f.name in given else f"{f.name}.input") for f in folders)
    return tuple(sources), targets
