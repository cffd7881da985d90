"""Sizes of models, tokens and dictionaries at each scale, and how many features each workload asks for."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Scale:
    """`full` is what results are quoted at; `small` tries every line of the suite in about a minute, most of it imports
    (its workloads share measurements where they can). Costs at `small` mean nothing.

    `layer`: whose `hook_resid_post` the single model's dictionary reads. `pair_layers`, `pair_sites`: layers of each of
    W4's two models, and those that its crosscoder reads in both. `density`: share of tokens a feature fires on.
    `stock_features`: where stock is measured, for a line to be drawn through. `growing_*`: what W5 goes through, rows
    with `fixed_features` and features with `fixed_rows`.
    """

    name: str
    layers: int
    d_model: int
    heads: int
    vocabulary: int
    rows: int
    positions: int
    dictionary: int
    layer: int
    pair_layers: int
    pair_sites: tuple[int, int]
    features: int
    many_features: int
    stock_features: tuple[int, ...]
    growing_rows: tuple[int, ...]
    growing_features: tuple[int, ...]
    fixed_features: int
    fixed_rows: int
    density: float = 0.02

    @property
    def hook(self) -> str:
        return f"blocks.{self.layer}.hook_resid_post"

    @property
    def pair_hooks(self) -> list[str]:
        return [f"blocks.{layer}.hook_resid_post" for layer in self.pair_sites]


FULL = Scale(
    "full", layers=12, d_model=768, heads=12, vocabulary=50_257, rows=128, positions=128, dictionary=6_144, layer=8,
    pair_layers=6, pair_sites=(2, 4), features=256, many_features=2_048, stock_features=(16, 32, 64),
    growing_rows=(8, 32, 128), growing_features=(64, 256, 1_024), fixed_features=64, fixed_rows=64,
)  # fmt: skip
SMALL = Scale(
    "small", layers=2, d_model=64, heads=4, vocabulary=500, rows=16, positions=32, dictionary=256, layer=1,
    pair_layers=2, pair_sites=(0, 1), features=16, many_features=64, stock_features=(4, 8),
    growing_rows=(8, 16), growing_features=(16, 64), fixed_features=16, fixed_rows=16,
)  # fmt: skip
SCALES = {scale.name: scale for scale in (FULL, SMALL)}
