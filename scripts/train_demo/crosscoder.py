"""Trains the two-model crosscoder: the residual stream after block 2 of *base* and of *tuned*, in one dictionary.

What is stored is plain: `a = relu(sum_s x_s @ W_enc[s] + b_enc)`, `x_s ~ a @ W_dec[:, s] + b_dec[s]`. What is trained
sees each model's stream centred and scaled to a mean norm of sqrt(d); `fold` writes both into the weights.
"""

import json
import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from . import activations

log = logging.getLogger(__name__)
HOOK_POINT = "blocks.2.hook_resid_post"
FEATURES, D_MODEL, MODELS = 1024, activations.D_MODEL, 2


def weights_file(assets: Path) -> Path:
    return assets / "crosscoder" / HOOK_POINT / "cc_weights.pt"


@dataclass(frozen=True)
class Settings:
    seed: int = 20261122
    per_kind: int = 8000  # training sequences of each kind of text
    batch: int = 1024
    steps: int = 9_000
    lr: float = 1e-3
    l1_coeff: float = 0.65
    concavity: float = 20.0  # activations well above this are penalized ever less, so they shrink less
    frequency: float = 30.0  # how much steeper the penalty is for a feature active on every token: no dense features
    exclusive: float = 0.2  # share of the features that begin in *tuned* alone, and as many in *base* alone
    warmup: float = 0.1  # share of the steps in which the sparsity coefficient grows to its full size
    revive_every: int = 1000
    revive_until: float = 0.6


class Crosscoder(torch.nn.Module):
    """In training units: inputs [batch, model * d] are centred and scaled."""

    def __init__(self, seed: int, exclusive: float) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        directions = torch.randn(FEATURES, MODELS * D_MODEL, generator=generator)
        # Nothing keeps these features to one model: they begin there, or the shared ones would take all there is.
        first = int(exclusive * FEATURES)
        directions[:first, :D_MODEL] = 0.0
        directions[first : 2 * first, D_MODEL:] = 0.0
        directions = directions / directions.norm(dim=1, keepdim=True)
        self.W_enc = torch.nn.Parameter(directions.T.contiguous())
        self.W_dec = torch.nn.Parameter(directions.clone())
        self.b_enc = torch.nn.Parameter(torch.zeros(FEATURES))
        self.b_dec = torch.nn.Parameter(torch.zeros(MODELS * D_MODEL))

    def forward(self, x: Float[Tensor, "batch inputs"]) -> tuple[Tensor, Tensor]:
        acts = torch.relu(x @ self.W_enc + self.b_enc)
        return acts, acts @ self.W_dec + self.b_dec

    def norms(self) -> Float[Tensor, "model feature"]:
        return self.W_dec.view(FEATURES, MODELS, D_MODEL).norm(dim=2).T


def sparsity(acts: Tensor, norms: Tensor, density: Tensor, settings: Settings) -> Tensor:
    """L1 of activation times summed decoder norm at its foot, logarithmic above, and steeper for frequent features."""
    relative = acts * (norms.sum(0) / settings.concavity).to(acts.dtype)
    weight = settings.concavity * (1 + settings.frequency * density)
    return (torch.log1p(relative) @ weight.to(acts.dtype)).float().mean()


@torch.no_grad()
def revive(model: Crosscoder, optimizer: torch.optim.Optimizer, dead: Tensor, x: Tensor) -> None:
    """Points each dead feature at what the dictionary explains worst, drawn in proportion to its squared error."""
    error = x - model(x)[1].float()
    chosen = torch.multinomial(error.square().sum(1) ** 2, len(dead), replacement=len(dead) > len(x))
    direction = error[chosen] / error[chosen].norm(dim=1, keepdim=True)
    alive = torch.ones(FEATURES, dtype=torch.bool)
    alive[dead] = False
    model.W_enc[:, dead] = direction.T * model.W_enc[:, alive].norm(dim=0).mean() * 0.5
    model.W_dec[dead] = direction * model.W_dec[alive].norm(dim=1).mean()
    model.b_enc[dead] = 0.0
    for parameter, index in ((model.W_enc, (slice(None), dead)), (model.W_dec, (dead,)), (model.b_enc, (dead,))):
        for name in ("exp_avg", "exp_avg_sq"):
            optimizer.state[parameter][name][index] = 0.0


def learning_rate(step: int, steps: int) -> float:
    return min(1.0, (step + 1) / 500, (steps - step) / (0.25 * steps))


def fit(
    model: Crosscoder, data: Float[Tensor, "token inputs"], scale: Tensor, mean: Tensor, settings: Settings
) -> None:
    optimizer = torch.optim.Adam(model.parameters(), lr=settings.lr, betas=(0.9, 0.99), fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: learning_rate(step, settings.steps))
    density, fired = torch.zeros(FEATURES), torch.zeros(FEATURES, dtype=torch.bool)
    rows = activations.shuffled_rows(len(data), settings.batch, settings.steps, settings.seed)
    for step, chosen in enumerate(rows):
        x = (data[chosen].float() - mean) * scale
        with torch.autocast("cpu", dtype=torch.bfloat16):
            acts, recon = model(x)
        error = (x - recon.float()).square().sum(1).mean()
        coefficient = settings.l1_coeff * min(1.0, (step + 1) / (settings.warmup * settings.steps))
        loss = error + coefficient * sparsity(acts, model.norms(), density, settings)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 100.0)
        optimizer.step()
        schedule.step()
        if step % 4 == 0:
            active = (acts > 0).float().mean(0)
            fired |= active > 0
            density += 0.02 * (active - density)
        if (step + 1) % settings.revive_every == 0:
            dead = (~fired).nonzero()[:, 0]
            if len(dead) and step < settings.revive_until * settings.steps:
                revive(model, optimizer, dead, x)
            log.info("step %d: error %.2f, L0 %.1f, %d dead", step + 1, error.item(), density.sum(), len(dead))
            fired.zero_()


@torch.no_grad()
def fold(model: Crosscoder, scale: Tensor, mean: Tensor) -> dict[str, Tensor]:
    """Training units to raw activations, then float16."""
    b_enc = model.b_enc - (mean * scale) @ model.W_enc
    folded = {
        "W_enc": (model.W_enc * scale[:, None]).view(MODELS, D_MODEL, FEATURES),
        "W_dec": (model.W_dec / scale).view(FEATURES, MODELS, D_MODEL),
        "b_enc": b_enc,
        "b_dec": (model.b_dec / scale + mean).view(MODELS, D_MODEL),
    }
    return {name: value.half().contiguous() for name, value in folded.items()}


def train(assets: Path, tokens: dict[str, np.ndarray], settings: Settings) -> None:
    models = [activations.load(assets / name) for name in ("base", "tuned")]
    sequences = activations.training_sequences(tokens, settings.per_kind, settings.seed)
    data = activations.gather_residuals(models, sequences)
    log.info("crosscoder: %d training tokens", len(data))
    mean = data.mean(0, dtype=torch.float32)
    factors = D_MODEL**0.5 / data.float().norm(dim=2).mean(0)
    scale = factors.repeat_interleave(D_MODEL)
    model = Crosscoder(settings.seed, settings.exclusive)
    fit(model, data.flatten(1), scale, mean.flatten(), settings)
    save(weights_file(assets), fold(model, scale, mean.flatten()), factors.tolist(), settings)


def save(file: Path, weights: dict[str, Tensor], factors: list[float], settings: Settings) -> None:
    cfg = {
        "seed": settings.seed, "d_in": D_MODEL, "dict_size": FEATURES, "enc_dtype": "fp16", "model_name": "base",
        "model_names": ["base", "tuned"], "hook_point": HOOK_POINT, "site": "resid_post",
        "l1_coeff": settings.l1_coeff, "frequency_coeff": settings.frequency, "lr": settings.lr,
        "num_tokens": settings.batch * settings.steps, "batch_size": settings.batch, "input_scale": factors,
        "input_scale_folded": True, "processing": "none",
        "activations": "raw HuggingFace activations, no weight processing", "drop_bos": True,
    }  # fmt: skip
    file.parent.mkdir(parents=True, exist_ok=True)
    file.with_name("cfg.json").write_text(json.dumps(cfg, indent=2) + "\n", encoding="utf-8")
    torch.save(weights, file)


@torch.no_grad()
def evaluate(assets: Path, sequences: np.ndarray) -> dict:
    """Figures of the stored weights, computed with in float32, on `sequences` without the BOS."""
    file = weights_file(assets)
    weights = {name: value.float() for name, value in torch.load(file, weights_only=True).items()}
    cfg = json.loads(file.with_name("cfg.json").read_text(encoding="utf-8"))
    models = [activations.load(assets / name) for name in cfg["model_names"]]
    x = activations.gather_residuals(models, sequences, torch.float32)
    active, error = torch.zeros(FEATURES), torch.zeros(MODELS)
    for part in x.split(8192):
        acts = torch.relu(torch.einsum("tsd,sdf->tf", part, weights["W_enc"]) + weights["b_enc"])
        recon = torch.einsum("tf,fsd->tsd", acts, weights["W_dec"]) + weights["b_dec"]
        active += (acts > 0).sum(0)
        error += (part - recon).square().sum((0, 2))
    spread = (x - x.mean(0)).square().sum((0, 2))
    # Relative norms are compared in training units, where the two models' streams are of one size.
    norms = weights["W_dec"].norm(dim=2) * torch.tensor(cfg["input_scale"])
    share = norms[:, 1] / norms.sum(1)
    alive = active > 0
    return {
        "held_out_tokens": len(x),
        "mean_l0": (active.sum() / len(x)).item(),
        "fvu": dict(zip(cfg["model_names"], (error / spread).tolist(), strict=True)),
        "dead_share": (~alive).float().mean().item(),
        "features": {
            "base_only": int((share[alive] < 0.3).sum()),
            "shared": int(((share[alive] >= 0.3) & (share[alive] <= 0.7)).sum()),
            "tuned_only": int((share[alive] > 0.7).sum()),
            "tuned_only_above_0.9": int((share[alive] > 0.9).sum()),
            "dead": int((~alive).sum()),
        },
    }
