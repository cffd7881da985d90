"""Where the parts of a gathering are kept: in memory, or on disk where that is asked for or there is too much."""

import logging
import tempfile
from pathlib import Path

from crossvis_tl.parts import Part
from crossvis_tl.store import Store
from crossvis_tl.sums import Sums

log = logging.getLogger(__name__)


class InMemory:
    """Keeps parts; past a budget all go to a temporary folder, which goes with the last that uses it."""

    def __init__(self, budget: int):
        self.budget, self.parts = budget, list[Part]()
        self.home: tempfile.TemporaryDirectory | None = None

    def add(self, part: Part, sums: Sums) -> None:
        self.parts.append(part)
        if self.home is None and sum(part.nbytes for part in self.parts) > self.budget:
            self.home = tempfile.TemporaryDirectory(prefix="crossvis_")
            log.info("activations take more than %.1f GB: they are kept in %s", self.budget / 1e9, self.home.name)
            self.parts = [self._on_disk(i, one) for i, one in enumerate(self.parts)]
        elif self.home is not None:
            self.parts[-1] = self._on_disk(len(self.parts) - 1, part)

    def _on_disk(self, number: int, part: Part) -> Part:
        if self.home is None:
            return part
        path = Path(self.home.name) / f"part-{number:05}.safetensors"
        part.write(path)
        return Part.open(path)


class OnDisk:
    """Keeps parts in a store."""

    def __init__(self, store: Store):
        self.store, self.home = store, None
        self.parts = store.parts()

    def add(self, part: Part, sums: Sums) -> None:
        self.parts.append(self.store.add(part, len(self.parts), sums))
