"""What ships beside the weights: a sample of held-out tokens, measured figures and the texts' sources."""

import json
import platform
from pathlib import Path
from typing import Any

import numpy as np

from .activations import KINDS

SAMPLE_SEQUENCES = 1035  # about 131,000 tokens: all code held out, and of prose and docs as many each as fill it up
MEASURED_ON = "held-out texts of all three kinds, with the stored float16 weights computed with in float32"
SOURCES = """\
# Where the demo assets come from

| What | Made from | Licence |
| --- | --- | --- |
| *prose* texts | King James Bible, Debian package `bible-kjv` | public domain |
| *docs* texts | Python documentation, Debian package `python3.11-doc` | PSF licence |
| *code* texts | standard library source of CPython VERSION, which ran the training | PSF licence |
| `base/`, `tuned/` (models, tokenizer) | `scripts/train_demo`, trained on those texts | MIT |
| `crosscoder/`, `clt/` (dictionaries) | `scripts/train_demo`, trained on those models' activations | MIT |
| `tokens.npy` | a sample of the held-out texts, tokenized | as the texts |
| `report.json` | `scripts/train_demo`, measured with the stored weights on held-out texts | MIT |

Python documentation and standard library: Copyright (c) Python Software Foundation; All Rights Reserved.
`python -m scripts.train_demo` makes everything again.
"""


def sample(tokens: dict[str, np.ndarray], seed: int) -> np.ndarray:
    """-> uint16 [sequences, position], all held out and shuffled."""
    generator = np.random.default_rng(seed)
    unseen = {kind: tokens[f"{kind}.held_out"] for kind in KINDS}
    rest = (SAMPLE_SEQUENCES - len(unseen["code"])) // 2
    wanted = {"prose": rest, "docs": rest, "code": len(unseen["code"])}
    drawn = [unseen[kind][generator.permutation(len(unseen[kind]))[: wanted[kind]]] for kind in KINDS]
    mixed = np.concatenate(drawn)
    return mixed[generator.permutation(len(mixed))]


def rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: rounded(inner) for name, inner in value.items()}
    return round(value, 4) if isinstance(value, float) else value


def write(out: Path, losses: dict, figures: dict) -> None:
    content = {"measured_on": MEASURED_ON, "nats_per_token": losses, **figures}
    (out / "report.json").write_text(json.dumps(rounded(content), indent=2) + "\n", encoding="utf-8")
    (out / "SOURCES.md").write_text(SOURCES.replace("VERSION", platform.python_version()), encoding="utf-8")
