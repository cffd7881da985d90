"""F9: Goreg12345/crosslayer-transcoder: `config.yaml` and `checkpoint.safetensors`, or a Lightning `clt.ckpt`.

`encoder.W [L, d, F]`, `encoder.b [L, F]`; a CLT's `decoder.W_{t} [t + 1, F, d]`, indexed by target and in it by source,
or per layer `decoder.W [L, F, d]`; `decoder.b [L, d]`. `nonlinearity.theta [1, L, F]`: x where x > theta and x > 0;
`nonlinearity.threshold [1]` or `[L]` (BatchTopK at inference): x where x > max(0, threshold); neither: ReLU, or the
config's TopK. Unfolded files have `{input,output}_standardizer.mean` and `.std`, `[L, d]` or `[L]`: (x - mean) / std
in, y * std + mean out.
"""

from pathlib import Path
from typing import Any

from torch import Tensor

from crossvis_tl.activation_fns import Activation, JumpReLU, ReLU, TopK
from crossvis_tl.dictionary import Affine, Dictionary, Group
from crossvis_tl.errors import MissingFact
from crossvis_tl.formats.activations import check_k
from crossvis_tl.formats.files import check_floating, read_config, read_state_dict
from crossvis_tl.formats.layers import HOOK_FACTS, check_shapes, layer_sites, need

FACTS = {"processing", "activation", "k"} | HOOK_FACTS
NAME = "a crosslayer-transcoder checkpoint"
HOOKS = {"feature_input_hook": "hook_resid_mid", "feature_output_hook": "hook_mlp_out"}
STANDARDIZERS = ("input_standardizer", "output_standardizer")


def find(path: Path) -> Path | None:
    """-> the weight file when the path looks like this layout, else None."""
    if not path.is_dir():
        return path if path.name == "clt.ckpt" else None
    files = (path / "checkpoint.safetensors", path / "clt.ckpt")
    return next((file for file in files if file.is_file()), None)


def load(path: Path, file: Path, facts: dict[str, Any]) -> Dictionary:
    """ValueError when tensors are missing, do not fit each other or the nonlinearity is not known."""
    config = file.parent / "config.yaml"
    cfg = read_config(config) if config.is_file() else {}
    state = {name.removeprefix("model."): tensor for name, tensor in read_state_dict(file).items()}
    need(file, state, ("encoder.W", "encoder.b", "decoder.b"))
    check_floating(
        file, state, [name for name in state if name.startswith(("encoder", "decoder", "nonlinearity", *STANDARDIZERS))]
    )
    if state["encoder.W"].ndim != 3:
        raise ValueError(
            f"{file}: encoder.W is {tuple(state['encoder.W'].shape)}; expected [layers, d_model, features]"
        )
    n_layers, width, features = state["encoder.W"].shape
    across = "decoder.W" not in state
    decoders = {f"decoder.W_{t}": (t + 1, features, width) for t in range(n_layers)}
    decoders = decoders if across else {"decoder.W": (n_layers, features, width)}
    need(file, state, list(decoders))
    check_shapes(file, state, {"encoder.b": (n_layers, features), "decoder.b": (n_layers, width)} | decoders)
    standard = {name: _standardizer(file, state, name, n_layers, width) for name in STANDARDIZERS}
    activations = _activations(file, state, cfg, facts, n_layers, features)
    groups = []
    for i in range(n_layers):
        written = {t: state[f"decoder.W_{t}"][i] for t in range(i, n_layers)} if across else {i: state["decoder.W"][i]}
        groups.append(Group(f"L{i}", {i: state["encoder.W"][i]}, state["encoder.b"][i], activations[i], written))
    layers, processing = range(n_layers), facts.get("processing")
    return Dictionary(
        kind="clt" if across else "plt", sources=layer_sites(HOOKS, facts, "input", layers, width, processing),
        targets=layer_sites(HOOKS, facts, "output", layers, width, processing), groups=tuple(groups),
        b_dec=tuple(state["decoder.b"]), format="crosslayer-transcoder (F9)", normalize=standard[STANDARDIZERS[0]],
        denormalize=standard[STANDARDIZERS[1]],
    )  # fmt: skip


def _standardizer(file: Path, state: dict[str, Tensor], name: str, n_layers: int, width: int) -> dict[int, Affine]:
    """By layer; none where the file has none (folded)."""
    mean, std = state.get(f"{name}.mean"), state.get(f"{name}.std")
    if (mean is None) != (std is None):
        raise ValueError(f"{file} holds one of {name}.mean and {name}.std, and not the other")
    if mean is None or std is None:
        return {}
    wide = []
    for part, value in (("mean", mean), ("std", std)):
        if tuple(value.shape) not in ((n_layers,), (n_layers, width)):
            raise ValueError(f"{file}: {name}.{part} is {tuple(value.shape)}; expected {(n_layers, width)}")
        wide.append(value.float().reshape(n_layers, -1))
    if bool((wide[1] <= 0).any()):
        raise ValueError(f"{file}: {name}.std is not positive everywhere; the file is damaged")
    return {i: Affine(wide[0][i], 1 / wide[1][i]) for i in range(n_layers)}


def _activations(
    file: Path, state: dict[str, Tensor], cfg: dict[str, Any], facts: dict[str, Any], n_layers: int, features: int
) -> list[Activation]:
    """One for each layer."""
    theta, threshold = state.get("nonlinearity.theta"), state.get("nonlinearity.threshold")
    if theta is not None:
        check_shapes(file, {"nonlinearity.theta": theta}, {"nonlinearity.theta": (1, n_layers, features)})
        return [JumpReLU(theta[0, i], relu=True) for i in range(n_layers)]
    if threshold is not None:
        if threshold.numel() not in (1, n_layers):
            raise ValueError(
                f"{file}: nonlinearity.threshold is {tuple(threshold.shape)}; expected one, or one a layer"
            )
        each = threshold.float().flatten().expand(n_layers)
        return [JumpReLU(each[i].expand(features), relu=True) for i in range(n_layers)]
    kind, k = _said(cfg)
    kind, k = str(facts.get("activation", kind)).lower(), facts.get("k", k)
    if kind == "relu":
        return [ReLU()] * n_layers
    if kind in ("topk", "perlayertopk"):
        k = check_k(file, k, features)
        return [TopK(k) for _ in range(n_layers)]
    raise MissingFact(
        "activation",
        f"{file} holds no threshold, and its config names the nonlinearity {kind!r}; pass activation='relu', or "
        "activation='topk' and k=...",
        "relu",
    )


def _said(cfg: dict[str, Any]) -> tuple[str, Any]:
    """-> the last name of the nonlinearity's class, and its k."""
    try:
        part = cfg["model"]["init_args"]["nonlinearity"]
        return str(part["class_path"]).rsplit(".", 1)[-1], (part.get("init_args") or {}).get("k")
    except (KeyError, TypeError, AttributeError):
        return "", None
