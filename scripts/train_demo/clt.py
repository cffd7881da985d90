"""Trains the cross-layer transcoder of the *tuned* model: a layer's features write to its own MLP and all later ones.

Stored in circuit-tracer's layout: `pre = x_i @ W_enc_i.T + b_enc_i`, `a_i = pre * (pre > threshold_i)`, and the MLP
output of layer l is `b_dec_l + sum_{i <= l} a_i @ W_dec_i[:, l - i]`. Trained with one threshold for all features on
activation times decoder norm, steered so that the wanted number is active (BatchTopK over a running batch); a feature's
stored threshold is that number divided by its decoder norm. What is trained sees centred, scaled inputs and outputs.
"""

import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import yaml
from jaxtyping import Float
from safetensors.torch import load_file, save_file
from torch import Tensor

from . import activations
from .activations import D_MODEL, LAYERS

log = logging.getLogger(__name__)
FEATURES = 512  # a layer


@dataclass(frozen=True)
class Settings:
    seed: int = 20261122
    per_kind: int = 8000  # training sequences of each kind of text
    batch: int = 1024
    steps: int = 6_000
    lr: float = 1e-3
    active: float = 11.0  # mean number of active features a layer
    active_at_first: float = 60.0
    anneal: float = 0.3  # share of the steps in which the number of active features shrinks to its aim
    dead_after: int = 150  # steps without firing
    revival: float = 1 / 16  # weight of the loss that lets dead features explain what is left over


class Transcoder(torch.nn.Module):
    """In training units. `W_dec[i]` holds layer i's rows for the outputs i, i + 1, ..., side by side."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        encoder = torch.randn(LAYERS, D_MODEL, FEATURES, generator=generator) / D_MODEL**0.5
        self.W_enc = torch.nn.Parameter(encoder)
        self.b_enc = torch.nn.Parameter(torch.zeros(LAYERS, 1, FEATURES))
        rows = [torch.randn(FEATURES, (LAYERS - i) * D_MODEL, generator=generator) for i in range(LAYERS)]
        self.W_dec = torch.nn.ParameterList([row / row.norm(dim=1, keepdim=True) for row in rows])
        self.b_dec = torch.nn.Parameter(torch.zeros(LAYERS, D_MODEL))

    def norms(self) -> Float[Tensor, "layer 1 feature"]:
        return torch.stack([rows.norm(dim=1) for rows in self.W_dec])[:, None]

    def encode(self, x: Float[Tensor, "layer batch d"]) -> Float[Tensor, "layer batch feature"]:
        return torch.relu(torch.baddbmm(self.b_enc.to(x.dtype), x, self.W_enc.to(x.dtype)))

    def decode(self, acts: list[Tensor], chosen: list[Tensor] | None = None) -> Float[Tensor, "batch outputs"]:
        """All outputs side by side. `chosen`: the rows of each layer's features that `acts` holds."""
        parts = []
        for layer in range(LAYERS):
            rows = self.W_dec[layer] if chosen is None else self.W_dec[layer][chosen[layer]]
            parts.append(torch.nn.functional.pad(acts[layer] @ rows, (layer * D_MODEL, 0)))
        return parts[0] + parts[1] + parts[2] + parts[3]


def batch_threshold(weighted: Float[Tensor, "layer batch feature"], active: float) -> float:
    """The weighted activation that lets `active` features a layer through, read off an eighth of the batch."""
    part = weighted[:, ::8].flatten().float()
    keep = int(active * LAYERS * len(weighted[0, ::8]))
    return torch.kthvalue(part, max(1, part.numel() - keep)).values.item()


def revival_loss(model: Transcoder, acts: Tensor, dead: Tensor, left_over: Tensor) -> Tensor:
    """Lets the features that never fire, thresholds aside, explain the present error; zero where none is dead."""
    chosen = [row.nonzero()[:, 0] for row in dead]
    tried = [acts[layer][:, index] for layer, index in enumerate(chosen)]
    return (left_over - model.decode(tried, chosen).float()).square().sum(1).mean()


def wanted(step: int, settings: Settings) -> float:
    progress = min(1.0, step / (settings.anneal * settings.steps))
    return settings.active_at_first ** (1 - progress) * settings.active**progress


def learning_rate(step: int, steps: int) -> float:
    return min(1.0, (step + 1) / 300, (steps - step) / (0.3 * steps))


def fit(model: Transcoder, read: Tensor, written: Tensor, units: dict[str, Tensor], settings: Settings) -> float:
    """-> the threshold on activation times decoder norm."""
    optimizer = torch.optim.Adam(model.parameters(), lr=settings.lr, betas=(0.9, 0.99), fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: learning_rate(step, settings.steps))
    threshold, silent = 0.0, torch.zeros(LAYERS, FEATURES)
    dead = silent > 0
    rows = activations.shuffled_rows(len(read), settings.batch, settings.steps, settings.seed)
    for step, chosen in enumerate(rows):
        x = ((read[chosen].float() - units["read_mean"]) * units["read_scale"]).transpose(0, 1).bfloat16()
        y = ((written[chosen].float() - units["written_mean"]) * units["written_scale"]).flatten(1)
        acts = model.encode(x)
        with torch.no_grad():
            weighted = acts * model.norms().bfloat16()
            seen = batch_threshold(weighted, wanted(step, settings))
            threshold = seen if step == 0 else threshold + 0.05 * (seen - threshold)
            through = (weighted > threshold).bfloat16()
            if step % 8 == 0:
                silent = (silent + 8) * (through.amax(1) == 0)
                dead = silent > settings.dead_after
        with torch.autocast("cpu", dtype=torch.bfloat16):
            left_over = y - model.decode(list(acts * through)).float() - model.b_dec.flatten()
            error = left_over.square().sum(1).mean()
            loss = error
            if dead.any():
                loss = loss + settings.revival * revival_loss(model, acts, dead, left_over.detach())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 100.0)
        optimizer.step()
        schedule.step()
        if (step + 1) % 500 == 0:
            active = [f"{n:.1f}" for n in through.float().sum(2).mean(1).tolist()]
            message = "step %d: error %.2f of %.2f, L0 %s, %d dead, threshold %.3f"
            log.info(message, step + 1, error.item(), y.square().sum(1).mean(), active, dead.sum(), threshold)
    return threshold


def training_units(read: Tensor, written: Tensor) -> dict[str, Tensor]:
    """Means, and a factor a layer that gives centred activations a mean square of 1 a dimension: layers weigh alike."""
    units = {}
    for name, values in (("read", read), ("written", written)):
        mean = values.mean(0, dtype=torch.float32)
        squares = torch.zeros(LAYERS)
        for part in values.split(100_000):
            squares += (part.float() - mean).square().sum((0, 2))
        units[f"{name}_mean"] = mean
        units[f"{name}_scale"] = (len(values) * D_MODEL / squares).sqrt()[:, None]
    return units


@torch.no_grad()
def fold(model: Transcoder, threshold: float, units: dict[str, Tensor]) -> list[dict[str, Tensor]]:
    """Training units to raw activations, then float16; one dictionary a layer."""
    folded = []
    for layer in range(LAYERS):
        encoder = model.W_enc[layer] * units["read_scale"][layer]
        decoder = model.W_dec[layer].view(FEATURES, LAYERS - layer, D_MODEL)
        values = {
            f"W_enc_{layer}": encoder.T,
            f"b_enc_{layer}": model.b_enc[layer, 0] - units["read_mean"][layer] @ encoder,
            f"b_dec_{layer}": model.b_dec[layer] / units["written_scale"][layer] + units["written_mean"][layer],
            f"threshold_{layer}": threshold / model.norms()[layer, 0],
            f"W_dec_{layer}": decoder / units["written_scale"][layer:, None].transpose(0, 1),
        }
        folded.append({name: value.half().contiguous() for name, value in values.items()})
    return folded


def train(assets: Path, tokens: dict[str, np.ndarray], settings: Settings) -> None:
    sequences = activations.training_sequences(tokens, settings.per_kind, settings.seed)
    read, written = activations.gather_mlps(activations.load(assets / "tuned"), sequences)
    log.info("transcoder: %d training tokens", len(read))
    units = training_units(read, written)
    model = Transcoder(settings.seed)
    threshold = fit(model, read, written, units, settings)
    save(assets / "clt", fold(model, threshold, units))


def save(folder: Path, layers: list[dict[str, Tensor]]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for layer, weights in enumerate(layers):
        decoder = {f"W_dec_{layer}": weights.pop(f"W_dec_{layer}")}
        save_file(weights, folder / f"W_enc_{layer}.safetensors")
        save_file(decoder, folder / f"W_dec_{layer}.safetensors")
    config = {
        "model_name": "tuned", "model_kind": "cross_layer_transcoder", "feature_input_hook": "hook_resid_mid",
        "feature_output_hook": "hook_mlp_out", "scan": "crossvis_tl/demo",
    }  # fmt: skip
    (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")


@torch.no_grad()
def evaluate(assets: Path, sequences: np.ndarray) -> dict:
    """Figures of the stored weights, computed with in float32, on `sequences` without the BOS."""
    weights = {}
    for path in sorted((assets / "clt").glob("*.safetensors")):
        weights |= {name: value.float() for name, value in load_file(path).items()}
    read, written = activations.gather_mlps(activations.load(assets / "tuned"), sequences, torch.float32)
    active, error = torch.zeros(LAYERS, FEATURES), torch.zeros(LAYERS)
    for x, y in zip(read.split(8192), written.split(8192), strict=True):
        recon = torch.stack([weights[f"b_dec_{layer}"].expand(len(x), -1) for layer in range(LAYERS)], dim=1)
        for layer in range(LAYERS):
            pre = x[:, layer] @ weights[f"W_enc_{layer}"].T + weights[f"b_enc_{layer}"]
            acts = pre * (pre > weights[f"threshold_{layer}"])
            active[layer] += (acts > 0).sum(0)
            recon[:, layer:] += torch.einsum("tf,fld->tld", acts, weights[f"W_dec_{layer}"])
        error += (y - recon).square().sum((0, 2))
    spread = (written - written.mean(0)).square().sum((0, 2))
    return {
        "held_out_tokens": len(read),
        "mean_l0": {f"blocks.{n}": value for n, value in enumerate((active.sum(1) / len(read)).tolist())},
        "fvu": {f"blocks.{n}.hook_mlp_out": value for n, value in enumerate((error / spread).tolist())},
        "dead_share": {f"blocks.{n}": value for n, value in enumerate((active == 0).float().mean(1).tolist())},
    }
