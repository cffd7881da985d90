"""Feature activations of some rows of tokens, kept by feature, in memory or mapped from a file."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from crossvis_tl.files import clear_errors, drafted
from crossvis_tl.sums import Fired

TENSORS = ("starts", "where", "values", "scales", "shares")


@dataclass(frozen=True)
class Part:
    """Activations of stored features in `n_rows` rows of tokens.

    Column i (the i-th stored feature) fires at `where[starts[i]:starts[i+1]]` (row * positions + position, counted from
    the part's first row, ascending) with `values[...]`. `scales`: for each target in `Capture.scaled`, what a decoder
    row is multiplied by at every position. `shares`: each source's share of every activation's pre-activation
    (`attribution`), [fired, 0] where that was not gathered.
    """

    n_rows: int
    starts: Int[Tensor, " stored_plus_1"]
    where: Int[Tensor, " fired"]
    values: Float[Tensor, " fired"]
    scales: Float[Tensor, "positions scaled"]
    shares: Float[Tensor, "fired sources"]

    @property
    def n_fired(self) -> int:
        return len(self.values)

    @property
    def nbytes(self) -> int:
        return sum(getattr(self, name).nbytes for name in TENSORS)

    def write(self, path: Path) -> None:
        """As safetensors; the file appears whole or not at all."""
        write_tensors(path, {name: getattr(self, name) for name in TENSORS}, {"n_rows": str(self.n_rows)})

    @classmethod
    def open(cls, path: Path) -> "Part":
        """Mapped from its file. ValueError when it is damaged."""
        tensors, about = open_tensors(path)
        try:
            part = cls(int(about["n_rows"]), *(tensors[name] for name in TENSORS))
        except (KeyError, ValueError) as error:
            raise ValueError(f"{path} is damaged: {error} is not as it should be") from error
        kinds = [(part.starts, torch.long), (part.where, torch.int32), (part.values, torch.float32)]
        flat = all(x.ndim == 1 and x.dtype == dtype for x, dtype in kinds) and len(part.starts) > 1
        if not flat or part.scales.ndim != 2 or part.shares.ndim != 2 or part.shares.dtype != torch.float16:
            raise ValueError(f"{path} is damaged: it holds tensors of another kind than it should")
        n, starts = len(part.values), part.starts
        whole = (
            len(part.where) == n
            and len(part.shares) == n
            and part.n_rows > 0
            and int(starts[0]) == 0
            and int(starts[-1]) == n
        )
        if not whole or bool((starts.diff() < 0).any()):
            raise ValueError(f"{path} is damaged: its features and activations do not fit together")
        return part


def write_tensors(path: Path, tensors: Mapping[str, Tensor], about: Mapping[str, str]) -> None:
    """A safetensors file, whole or not at all. OSError naming the path."""
    with drafted(path) as draft:
        with clear_errors(path):
            draft.touch()  # with the rights a new file has here: safetensors would give it to its owner alone
            rights = draft.stat().st_mode
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, draft, dict(about))
        draft.chmod(rights)


def open_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """-> mapped tensors and what is said of them. FileNotFoundError, or ValueError when the file is damaged."""
    try:
        with safe_open(path, "pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{path} is missing; the store is incomplete") from error
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is damaged ({error})") from error


@dataclass
class PartBuilder:
    """Takes batches, and makes one part of them. Batches come in the order of their rows."""

    n_stored: int
    n_rows: int = 0
    n_fired: int = 0
    counts: list[Tensor] = field(default_factory=list)
    where: list[Tensor] = field(default_factory=list)
    values: list[Tensor] = field(default_factory=list)
    scales: list[Tensor] = field(default_factory=list)
    shares: list[Tensor] = field(default_factory=list)
    n_sources: int = 0

    def add(self, fired: Fired, positions: Int[Tensor, " tokens"], shares: Tensor | None = None) -> None:
        """`positions`: of the batch's tokens, counted from the part's first row. `shares`: [fired, n_sources], where
        there are sources to tell apart."""
        self.counts.append(fired.counts.to("cpu", torch.int32))
        self.where.append(positions.to(torch.int32)[fired.tokens.cpu()])
        self.values.append(fired.values.float().cpu())
        none = torch.zeros(len(fired.values), 0)
        self.shares.append((none if shares is None else shares).to("cpu", torch.float16))
        self.n_fired += len(self.where[-1])

    def seal(self) -> Part:
        """Every batch is sorted by column already, so where each number goes can be counted, without sorting."""
        totals = torch.zeros(self.n_stored, dtype=torch.long)
        for counts in self.counts:
            totals += counts
        starts = torch.cat([torch.zeros(1, dtype=torch.long), totals.cumsum(0)])
        where = torch.empty(self.n_fired, dtype=torch.int32)
        values = torch.empty(self.n_fired)
        shares = torch.empty(self.n_fired, self.n_sources, dtype=torch.float16)
        free = starts[:-1].clone()
        for counts, *batch in zip(self.counts, self.where, self.values, self.shares, strict=True):
            first = counts.long().cumsum(0) - counts
            target = torch.arange(len(batch[0])) + (free - first).repeat_interleave(counts.long())
            where[target], values[target], shares[target] = batch
            free += counts
        scales = torch.cat(self.scales) if self.scales else torch.zeros(0, 0)
        return Part(self.n_rows, starts, where, values, scales, shares)
