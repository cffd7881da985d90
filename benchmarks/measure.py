"""CPU seconds, wall seconds and peak memory of one call in a process of its own."""

import contextlib
import ctypes
import gc
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Cost:
    """What a call took. Megabytes are 2**20 bytes.

    `cpu_s`: of all of the process' threads. `peak_mb`: the most that the process held at any time of the call,
    `held_mb`: what it held before it, `growth_mb`: the difference. `peak_is_of_call`: False where the system cannot
    forget an earlier peak, so that `peak_mb` may be from before the call.
    """

    cpu_s: float
    wall_s: float
    peak_mb: float
    held_mb: float
    growth_mb: float
    peak_is_of_call: bool


def measured(call: Callable[[], T]) -> tuple[T, Cost]:
    """Runs `call`, what it writes to stdout sent to stderr: stdout is for the one line of JSON."""
    _give_back()
    forgot = _forget_peak()
    held = _held_mb()
    cpu, wall = time.process_time(), time.perf_counter()
    with contextlib.redirect_stdout(sys.stderr):
        result = call()
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    rounded = (round(value, 3) for value in (cpu, wall, peak, held, peak - held))
    return result, Cost(*rounded, peak_is_of_call=forgot)


def _give_back() -> None:
    """Memory that loading left behind goes back to the system, so that the call does not live on it."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def _forget_peak() -> bool:
    """Linux: the peak starts again from what is held now."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def _held_mb() -> float:
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    fields = dict(line.split(":", 1) for line in status.splitlines())
    return int(fields["VmRSS"].split()[0]) / 1024
