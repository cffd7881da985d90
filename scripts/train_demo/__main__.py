"""`python -m scripts.train_demo [--work DIR] [--install DIR]`: every demo asset from nothing, in stages that resume.

All is made in the work folder, and copied from there when it is whole, so that a tokenizer never meets the models of
another run.
"""

import argparse
import copy
import dataclasses
import json
import logging
import shutil
from pathlib import Path

import numpy as np
import torch
from transformers import GPT2LMHeadModel

from . import activations, clt, corpus, crosscoder, language_models, report

log = logging.getLogger("train_demo")
BASE_TOKENS, TUNED_TOKENS, SEED = 12_000_000, 6_000_000, 20261122


def prepare(out: Path, work: Path) -> dict[str, np.ndarray]:
    """Tokenizes all texts once: arrays `prose`, `docs`, `code` and `prose.held_out` and so on."""
    stored = work / "tokens.npz"
    if not stored.exists():
        documents = {kind: getattr(corpus, kind)() for kind in ("prose", "docs", "code")}
        tokenizer = corpus.train_tokenizer([d for group in documents.values() for d in group], out / "base")
        tokenizer.save_pretrained(out / "tuned")
        arrays = {}
        for kind, group in documents.items():
            arrays[kind] = corpus.sequences([d for d in group if not corpus.held_out(d)], tokenizer)
            arrays[f"{kind}.held_out"] = corpus.sequences([d for d in group if corpus.held_out(d)], tokenizer)
        np.savez(stored, **arrays)
    arrays = dict(np.load(stored))
    for name, array in arrays.items():
        log.info("%s: %d tokens in %d sequences", name, array.size, len(array))
    return arrays


def train_language_models(out: Path, tokens: dict[str, np.ndarray], scale: float) -> dict:
    mixed = np.concatenate([tokens["prose"], tokens["docs"]])
    generator = np.random.default_rng(SEED)
    replay = mixed[generator.permutation(len(mixed))[: len(tokens["code"]) // 3]]
    tuned_pool = np.concatenate([tokens["code"], replay])
    if not (out / "base" / "config.json").exists():
        torch.manual_seed(SEED)
        base = language_models.new_model(bos=0)
        language_models.train(base, mixed, int(BASE_TOKENS * scale), peak=3e-3, seed=SEED)
        language_models.save(base, out / "base")
    base = GPT2LMHeadModel.from_pretrained(out / "base", dtype=torch.float32)
    if not (out / "tuned" / "config.json").exists():
        tuned = copy.deepcopy(base)
        language_models.train(tuned, tuned_pool, int(TUNED_TOKENS * scale), peak=1.5e-3, seed=SEED + 1)
        language_models.save(tuned, out / "tuned")
    tuned = GPT2LMHeadModel.from_pretrained(out / "tuned", dtype=torch.float32)
    losses = {}
    for kind in activations.KINDS:
        unseen = tokens[f"{kind}.held_out"]
        losses[kind] = {
            "held_out_tokens": int(unseen.size),
            "unigram": language_models.unigram_loss(tokens[kind], unseen),
            "base": language_models.loss_on(base, unseen),
            "tuned": language_models.loss_on(tuned, unseen),
        }
    log.info("nats per token: %s", json.dumps(losses, indent=1))
    return losses


def train_dictionaries(out: Path, tokens: dict[str, np.ndarray], scale: float) -> dict:
    """Trains what is missing, then measures what is stored."""
    for stage, made in ((crosscoder, crosscoder.weights_file(out)), (clt, out / "clt" / "config.yaml")):
        if not made.exists():
            settings = stage.Settings()
            stage.train(out, tokens, dataclasses.replace(settings, steps=max(1, int(settings.steps * scale))))
    unseen = activations.held_out_sequences(tokens)
    figures = {"crosscoder": crosscoder.evaluate(out, unseen), "clt": clt.evaluate(out, unseen)}
    log.info("dictionaries: %s", json.dumps(figures, indent=1))
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("build/train-demo"))
    parser.add_argument("--install", type=Path, help="folder to copy the finished assets to")
    parser.add_argument("--scale", type=float, default=1.0, help="share of the training tokens to use")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    out = args.work / "assets"
    out.mkdir(parents=True, exist_ok=True)
    tokens = prepare(out, args.work)
    losses = train_language_models(out, tokens, args.scale)
    figures = train_dictionaries(out, tokens, args.scale)
    np.save(out / "tokens.npy", report.sample(tokens, SEED))
    report.write(out, losses, figures)
    if args.install is not None:
        shutil.copytree(out, args.install, dirs_exist_ok=True)
        log.info(
            "installed in %s; highlights.json there names features of the dictionary it was read from", args.install
        )


if __name__ == "__main__":
    main()
