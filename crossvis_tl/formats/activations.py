"""What the readers share in telling which activation function a file means."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from crossvis_tl.activation_fns import Activation, ReLU, TopK
from crossvis_tl.errors import MissingFact, short_list

RELU_OR_TOP_K = ("relu", "topk", "batchtopk")


def check_k(where: str | Path, k: Any, features: int) -> int:
    """-> k. `MissingFact` when there is none, ValueError when it cannot be how many features fire on a token."""
    if k is None:
        raise MissingFact(
            "k", f"{where} does not say k, how many features fire on a token (on average, for BatchTopK); pass k=...", 1
        )
    whole = int(k) if isinstance(k, float) and k.is_integer() else k
    if not isinstance(whole, int) or isinstance(whole, bool) or not 1 <= whole <= features:
        raise ValueError(f"{where}: k = {k!r}; expected how many of the {features} features fire on a token")
    return whole


def check_activation(where: str | Path, said: Any, known: Sequence[str], how: str = "") -> str:
    """-> the name in lower case. `MissingFact` when there is none, ValueError when it is not known."""
    if said is None:
        how = how or f"activation=..., one of {short_list(known)}"
        raise MissingFact("activation", f"{where} does not say its activation function; pass {how}", "relu")
    name = str(said).lower().replace("_", "").replace("-", "")
    if name not in known:
        raise ValueError(f"{where}: activation={said!r}; expected one of {short_list(known)}")
    return name


def relu_or_top_k(where: str | Path, kind: str, k: Any, features: int, *, relu: bool = True) -> Activation:
    """One of `RELU_OR_TOP_K`. `relu`: whether the producer's TopK drops negative values."""
    return ReLU() if kind == "relu" else TopK(check_k(where, k, features), relu=relu, batch=kind == "batchtopk")
