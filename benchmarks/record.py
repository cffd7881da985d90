"""What a measurement's subprocess is told, and the line of JSON that it answers with."""

import argparse
import json
import platform
import sys
from collections.abc import Iterable
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from benchmarks.measure import Cost
from benchmarks.shapes import SCALES


def parse_args(description: str | None, whats: Iterable[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=list(whats))
    parser.add_argument("--scale", choices=SCALES, required=True)
    parser.add_argument("--inputs", type=Path, required=True)
    parser.add_argument("--rows", type=int, required=True)
    parser.add_argument("--features", type=int, default=0)
    parser.add_argument("--effect", choices=("direct", "none", "full"), default="direct")
    return parser.parse_args()


def write_record(args: argparse.Namespace, cost: Cost, result: Any, notes: list[str], packages: Iterable[str]) -> None:
    """`first_maxima`: of the first features' activations, by which the driver sees that all computed the same."""
    stats = getattr(result, "feature_stats", None)
    record = {
        "what": args.what, "scale": args.scale, "rows": args.rows, "features": args.features, "effect": args.effect,
        "cost": asdict(cost),
        "first_maxima": [] if stats is None else [round(float(value), 5) for value in stats.max[:2]],
        "density": json.loads((args.inputs / "facts.json").read_text())["density"],
        "notes": notes,
        "versions": {"python": platform.python_version()} | {name: version(name) for name in packages},
        "machine": platform.machine(), "threads": torch.get_num_threads(),
    }  # fmt: skip
    sys.stdout.write(json.dumps(record) + "\n")
