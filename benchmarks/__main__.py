"""Runs workloads, each measurement in a fresh process, and shows their tables.

    python -m benchmarks W1 W3 [--scale small] [--out results.json] [--reuse] [--only ours,floor]
    python -m benchmarks --readme results.json

Inputs (random models, tokens, dictionaries) and SAEDashboard's environment are kept in `--work` and made once.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.dashboard_env import dashboard_python
from benchmarks.report import fill_readme, show
from benchmarks.shapes import SCALES, Scale
from benchmarks.workloads import WORKLOADS, Task

ROOT = Path(__file__).parents[1]
# One thread in every library; waiting threads sleep; nothing asks the hub or a GPU.
ENVIRONMENT = {
    "OMP_WAIT_POLICY": "passive", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "",
}  # fmt: skip


@dataclass
class Driver:
    """Runs tasks of a scale. `python`: SAEDashboard's interpreter, if one was given."""

    scale: Scale
    work: Path
    python: Path | None
    console: Console

    def run(self, task: Task) -> dict[str, Any]:
        """-> the record that the task's subprocess wrote. RuntimeError with its last words when it failed."""
        module, python = "benchmarks.run_one", Path(sys.executable)
        if task.what.startswith("dashboard"):
            module, python = "benchmarks.run_dashboard", self.python or dashboard_python(self.work / "dashboard_env")
        inputs = str(self._inputs(task.kind))
        command = [str(python), "-m", module, task.what, "--scale", self.scale.name, "--inputs", inputs]
        command += ["--rows", str(task.rows), "--features", str(task.features), "--effect", task.effect]
        record = json.loads(_output(command).strip().splitlines()[-1])
        cost = record["cost"]
        self.console.print(f"{task.key}: {cost['cpu_s']:.1f} s of CPU, grew {cost['growth_mb']:,.0f} MB")
        return record

    def prepare(self, tasks: Sequence[Task]) -> None:
        """Makes the inputs of all tasks that are not there yet."""
        for kind in sorted({task.kind for task in tasks}):
            self._make_inputs(kind)

    def _inputs(self, kind: str) -> Path:
        return self.work / f"{self.scale.name}_{kind}"

    def _make_inputs(self, kind: str) -> None:
        folder = self._inputs(kind)
        if not (folder / "facts.json").is_file():
            command = [sys.executable, "-m", "benchmarks.inputs", "--scale", self.scale.name, "--kind", kind]
            with self.console.status(f"making {folder.name}"):
                _output([*command, "--folder", str(folder)])


def _output(command: list[str]) -> str:
    done = subprocess.run(command, cwd=ROOT, env=os.environ | ENVIRONMENT, capture_output=True, text=True, check=False)  # noqa: S603
    if done.returncode:
        raise RuntimeError(f"{' '.join(command[1:])} failed:\n{done.stderr[-3000:]}")
    return done.stdout


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    named = (text.split(":", 1)[1].strip() for text in lines if text.startswith("model name"))
    return next(named, platform.machine())


def _read(path: Path | None, scale: Scale, workloads: list[str]) -> dict[str, Any]:
    """Results so far, of this scale, or none yet."""
    results = {"scale": scale.name, "processor": _processor(), "workloads": workloads, "records": {}}
    if path is None or not path.is_file():
        return results
    known = json.loads(path.read_text())
    if known["scale"] != scale.name:
        raise SystemExit(f"{path} holds results of the scale {known['scale']!r}; give another --out")
    return results | {"records": known["records"], "workloads": sorted({*known["workloads"], *workloads})}


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workloads", nargs="*", help=f"of {', '.join(WORKLOADS)}")
    parser.add_argument("--scale", choices=SCALES, default="full")
    parser.add_argument("--out", type=Path, help="where the results go; what it holds already stays")
    parser.add_argument("--reuse", action="store_true", help="do not measure again what --out holds")
    parser.add_argument("--only", default="", help="measure only these (stock,floor,ours,...); the rest stays open")
    parser.add_argument(
        "--jobs", type=int, default=1, help="measure so many at once: to try the suite, not to quote it"
    )
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "crossvis_benchmarks")
    parser.add_argument("--dashboard-python", type=Path, help="an interpreter that has sae-dashboard")
    parser.add_argument("--readme", type=Path, metavar="RESULTS", help="fill README.md's results from this file")
    args = parser.parse_args()
    unknown = sorted(set(args.workloads) - set(WORKLOADS))
    if unknown or not (args.workloads or args.readme):
        parser.error(f"no such workload: {', '.join(unknown)}" if unknown else "name a workload, or --readme RESULTS")
    return args


def main() -> None:
    args, console = _parse(), Console(soft_wrap=True)
    if args.readme:
        fill_readme(json.loads(args.readme.read_text()))
        return
    scale = SCALES[args.scale]
    results = _read(args.out, scale, args.workloads)
    driver = Driver(scale, args.work, args.dashboard_python, console)
    only = set(filter(None, args.only.split(",")))
    asked = {task.key: task for name in args.workloads for task in WORKLOADS[name].tasks(scale)}
    tasks = [task for task in asked.values() if not only or task.what in only]
    if args.reuse:
        tasks = [task for task in tasks if task.key not in results["records"]]
    driver.prepare(tasks)
    with ThreadPoolExecutor(args.jobs) as pool:
        for task, record in zip(tasks, pool.map(driver.run, tasks), strict=True):
            results["records"][task.key] = record
            _write(args.out, results)  # after each: the next may take an hour
    _write(args.out, results)
    show(console, results)


def _write(path: Path | None, results: dict[str, Any]) -> None:
    if path is not None:
        path.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
