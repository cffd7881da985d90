"""Trains the *base* and the *tuned* language model: two small GPT-2s, the second continued from the first."""

import logging
import math
from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import cross_entropy
from transformers import GPT2Config, GPT2LMHeadModel

from .corpus import CONTEXT, VOCABULARY

log = logging.getLogger(__name__)
BATCH = 32


def new_model(bos: int) -> GPT2LMHeadModel:
    config = GPT2Config(
        vocab_size=VOCABULARY, n_positions=CONTEXT, n_embd=128, n_layer=4, n_head=4, bos_token_id=bos, eos_token_id=bos,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
    )  # fmt: skip
    return GPT2LMHeadModel(config)


def next_token_loss(model: GPT2LMHeadModel, tokens: torch.Tensor) -> torch.Tensor:
    """Mean nats per token over tokens [batch, position], the first of each sequence (BOS) given."""
    logits = model(tokens).logits[:, :-1].float()
    return cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())


def train(model: GPT2LMHeadModel, pool: np.ndarray, n_tokens: int, peak: float, seed: int) -> None:
    """AdamW, warm-up and cosine decay to a tenth; sequences drawn without replacement, epoch by epoch."""
    steps = n_tokens // (BATCH * CONTEXT)
    generator = np.random.default_rng(seed)
    order = np.concatenate([generator.permutation(len(pool)) for _ in range(math.ceil(steps * BATCH / len(pool)))])
    decay = [p for p in model.parameters() if p.ndim > 1]
    plain = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": decay, "weight_decay": 0.1}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=peak, betas=(0.9, 0.95))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: learning_rate(step, steps))
    model.train()
    for step in range(steps):
        rows = order[step * BATCH : (step + 1) * BATCH]
        tokens = torch.from_numpy(pool[rows].astype(np.int64))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = next_token_loss(model, tokens)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 100 == 0:
            log.info("step %d of %d, loss %.3f nats per token", step, steps, loss.item())


def learning_rate(step: int, steps: int, warmup: int = 100) -> float:
    progress = step / max(steps, 1)
    return min(1.0, (step + 1) / warmup) * (0.1 + 0.45 * (1 + math.cos(math.pi * progress)))


@torch.no_grad()
def loss_on(model: GPT2LMHeadModel, tokens: np.ndarray) -> float:
    model.eval()
    batches = [torch.from_numpy(tokens[i : i + 64].astype(np.int64)) for i in range(0, len(tokens), 64)]
    losses = [next_token_loss(model, batch).item() * len(batch) for batch in batches]
    return sum(losses) / len(tokens)


def unigram_loss(train_tokens: np.ndarray, tokens: np.ndarray) -> float:
    """Nats per token of the add-one unigram model of `train_tokens`, on all of `tokens` but the BOS."""
    counts = np.bincount(train_tokens[:, 1:].ravel(), minlength=VOCABULARY) + 1.0
    return float(-np.log(counts / counts.sum())[tokens[:, 1:].ravel()].mean())


def save(model: GPT2LMHeadModel, folder: Path) -> None:
    """Rounds the model to float16 in place and stores it so: what is trained on later is what ships."""
    model.half().save_pretrained(folder)
    model.float()
