"""Every hook of the table against plain HuggingFace forward hooks; `python -m tests.hook_matrix` prints the matrix."""

import copy
import tempfile
import warnings
from dataclasses import dataclass, field
from pathlib import Path

import torch

from crossvis_tl import load_model
from crossvis_tl.bridge import BridgedTransformer
from crossvis_tl.hf_configs import placeholder_tokenizer, write_config
from crossvis_tl.hooks.find import Finder
from crossvis_tl.hooks.reading import settings_for, value
from tests.architectures import ARCHITECTURES, V, build

TOKENS = torch.randint(2, V, (3, 9), generator=torch.Generator().manual_seed(0))
Place = tuple[str, str, int | None]


def hf_tensors(hf: torch.nn.Module, tokens: torch.Tensor = TOKENS) -> dict[Place, torch.Tensor]:
    """What goes into and comes out of every module of a copy of `hf`, by (path, side, index)."""
    hf = copy.deepcopy(hf)
    hf.set_attn_implementation("eager")  # the others do not give the attention pattern
    seen: dict[Place, torch.Tensor] = {}

    def keep(path):
        def hook(_module, args, kwargs, output):
            read = args[0] if args else kwargs.get("hidden_states")
            if isinstance(read, torch.Tensor):
                seen[path, "input", None] = read.clone()
            if isinstance(output, torch.Tensor):
                seen[path, "output", None] = output.clone()
            elif isinstance(output, tuple):
                for i, element in enumerate(output):
                    if isinstance(element, torch.Tensor):
                        seen[path, "output", i] = element.clone()

        return hook

    for path, module in hf.named_modules():
        module.register_forward_hook(keep(path), with_kwargs=True)
    with torch.no_grad():
        hf(tokens, use_cache=False)
    return {place: x for place, x in seen.items() if place[0] and x.is_floating_point() and "rotary" not in place[0]}


def bridged(hf: torch.nn.Module) -> BridgedTransformer:
    """The model by way of TransformerLens' bridge, whatever `load_model` would make of it."""
    from transformer_lens.model_bridge import TransformerBridge

    hf = copy.deepcopy(hf)
    hf.set_attn_implementation("eager")
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(action="ignore"):
        hf.config.architectures = write_config(hf.config, type(hf).__name__, Path(folder))["architectures"]
        tokenizer = placeholder_tokenizer()
        bridge = TransformerBridge.boot_transformers(folder, hf_model=hf, tokenizer=tokenizer, device="cpu")
    return BridgedTransformer(bridge)


def read(model, hook, tokens: torch.Tensor = TOKENS) -> torch.Tensor:
    """HuggingFace's tensor of a row, from the model's hooks."""
    found: dict[str, torch.Tensor] = {}
    hooks = [(name, lambda x, hook, name=name: found.__setitem__(name, x.clone())) for name in hook.reads]
    with settings_for(model, hook.reads), torch.no_grad():
        model.run_with_hooks(tokens, fwd_hooks=hooks, return_type="logits")
    return value(hook, model, found)


def difference(got: torch.Tensor, want: torch.Tensor) -> float:
    """Largest; OPT's fc1 and fc2 have their tokens in one axis, learned positions only one row."""
    if got.ndim == want.ndim and want.shape[0] == 1:
        got = got[:1]
    return (got.reshape(-1) - want.reshape(-1)).abs().max().item()


@dataclass
class Outcome:
    """Of one model: how many places are exact, transformed, absent; the worst differences; what went wrong."""

    counts: dict[str, int] = field(default_factory=lambda: {"exact": 0, "transformed": 0, "absent": 0})
    worst: dict[str, float] = field(default_factory=lambda: {"exact": 0.0, "transformed": 0.0})
    absent: set[str] = field(default_factory=set)
    transforms: set[str] = field(default_factory=set)
    wrong: list[str] = field(default_factory=list)


def compare(hf: torch.nn.Module, model, tolerance: float = 1e-4) -> Outcome:
    """Every input and output of every module of `hf` against what the table says of it on `model`."""
    table, outcome = Finder(model).table(), Outcome()
    for (path, side, index), want in hf_tensors(hf).items():
        point = table.point(path, side, index)
        if point is None:
            outcome.wrong.append(f"{path}.{side}[{index}] is not in the table")
            continue
        row = table.at(point)
        outcome.counts[row.status] += 1
        if row.status == "absent":
            outcome.absent.add(path.rsplit(".", 1)[-1])
            continue
        outcome.transforms.add(row.transform)
        error = difference(read(model, row), want)
        outcome.worst[row.status] = max(outcome.worst[row.status], error)
        if error > tolerance or (row.width != want.shape[-1] and row.transform != "none"):
            outcome.wrong.append(f"{path}.{side}[{index}] by {row.reads}, {row.transform}: off by {error:.1e}")
    return outcome


def main() -> None:
    from rich.console import Console
    from rich.table import Table

    shown = Table(
        "architecture", "model", "exact", "transformed", "absent", "worst exact", "worst transformed", "wrong"
    )
    for name in ARCHITECTURES:
        hf = build(name)
        for model in (load_model(hf), bridged(hf)):
            o = compare(hf, model)
            counts = [str(o.counts[k]) for k in ("exact", "transformed", "absent")]
            absent = f"{counts[2]} {' '.join(sorted(o.absent))}".strip()
            errors = [f"{o.worst[k]:.0e}" for k in ("exact", "transformed")]
            shown.add_row(name, type(model).__name__, *counts[:2], absent, *errors, str(len(o.wrong)))
    Console(width=160).print(shown)


if __name__ == "__main__":
    main()
