"""What a page shows and where: sae_vis' layout config, with panels of ours beside its own, and a default for each kind
of dictionary.

sae_vis' `Column` takes any component; its `SaeVisLayoutConfig` refuses those that it does not know, so ours is a
subclass, as is `SaeVisConfig`. A stock layout is honoured as it is; what a page needs to show several sites, and the
map, come to it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.tree import Tree
from sae_vis.data_config_classes import (
    ActsHistogramConfig,
    BaseComponentConfig,
    FeatureTablesConfig,
    LogitsHistogramConfig,
    LogitsTableConfig,
    PromptConfig,
)
from sae_vis.data_config_classes import Column as StockColumn
from sae_vis.data_config_classes import SaeVisConfig as StockConfig
from sae_vis.data_config_classes import SaeVisLayoutConfig as StockLayout
from sae_vis.data_config_classes import SequencesConfig as StockSequences

from crossvis_tl.effects import Effect
from crossvis_tl.errors import near_misses, short_list
from crossvis_tl.examples import PER_DOCUMENT
from crossvis_tl.masking import Masking
from crossvis_tl.sites import Kind


class Column(StockColumn):
    """sae_vis' `Column`, of any components. `width` in pixels, None for as wide as they need."""

    def __init__(self, *components: BaseComponentConfig, width: int | None = None):
        self.components: list[Any] = list(components)
        self.width = width


@dataclass
class SequencesConfig(StockSequences):
    """sae_vis' `SequencesConfig`, and `random_group_size`: how many of all tokens that the feature fires on are drawn,
    whatever its activation there."""

    random_group_size: int = 0

    def data_is_contained_in(self, other: Any) -> bool:
        plain = _stock_sequences(self)
        return plain.data_is_contained_in(other) and self.random_group_size <= getattr(other, "random_group_size", 0)

    @property
    def help_dict(self) -> dict[str, str]:
        return super().help_dict | {"random_group_size": "Number of sequences drawn from all tokens it fires on."}


@dataclass
class DecoderNormsConfig(BaseComponentConfig):
    """Decoder norm at every site, and for two models the relative norm and its class."""


@dataclass
class DecoderCosineConfig(BaseComponentConfig):
    """Cosine between each two sites' decoder rows, a heat map for more than two."""


@dataclass
class SiteLogitsConfig(BaseComponentConfig):
    """Logit lens of each site's decoder row by itself. `n_rows`: tokens on each side."""

    n_rows: int = 5

    def data_is_contained_in(self, other: Any) -> bool:
        return self.n_rows <= other.n_rows

    @property
    def help_dict(self) -> dict[str, str]:
        return {"n_rows": "Number of raised / lowered tokens to show for each site."}


@dataclass
class SourceAttributionConfig(BaseComponentConfig):
    """Which source drives a feature that reads several, over its top examples and at every token."""


@dataclass
class FeatureMapConfig(BaseComponentConfig):
    """The first screen of a page with many features: a scatter and a table of all. `x`, `y`, `color`: names of measures
    ("density", "max", "relative_norm", "cosine", "layer" ...; `color` also "class"), None for what fits the kind.
    `least`: with fewer features a page opens on a feature, and the map is one key away."""

    x: str | None = None
    y: str | None = None
    color: str | None = None
    least: int = 20

    @property
    def help_dict(self) -> dict[str, str]:
        return {
            "x": "Measure across (density, max, relative_norm, cosine, layer ...); None for the kind's own.",
            "y": "Measure upwards.",
            "color": "Measure that dots are coloured by, or class.",
            "least": "With fewer features a page opens on a feature.",
        }


CONFIG_HELP = {
    "masking": "What is left out of statistics and examples: special (BOS, padding), all special, or none.",
    "masked_tokens": "Tokens, or their ids, that are left out too.",
    "masked_positions": "Positions that are left out too; 0 is the first, -1 the last.",
    "effect": "On logits, at the tokens shown: direct, full (the model run on without the feature), or none.",
    "high_norm_multiple": "Tokens whose activation norm is over so many times the median are left out; None: none are.",
    "latent_scaling": "Also beta and nu of two models (arXiv 2504.02922).",
    "per_document": "Most examples of a group from one document; None for any number.",
    "distinct": "No two examples of a group show the same tokens.",
}
COMPONENTS: dict[type, str] = {
    StockSequences: "seq_cfg",
    ActsHistogramConfig: "act_hist_cfg",
    LogitsHistogramConfig: "logits_hist_cfg",
    LogitsTableConfig: "logits_table_cfg",
    FeatureTablesConfig: "feature_tables_cfg",
    PromptConfig: "prompt_cfg",
    DecoderNormsConfig: "norms_cfg",
    DecoderCosineConfig: "cosine_cfg",
    SiteLogitsConfig: "site_logits_cfg",
    SourceAttributionConfig: "attribution_cfg",
    FeatureMapConfig: "map_cfg",
}


def _stock_sequences(ours: SequencesConfig) -> StockSequences:
    return StockSequences(**{f.name: getattr(ours, f.name) for f in fields(StockSequences)})


# By type, the component that sae_vis' own page is made with; it knows no others.
STOCK: dict[type, Callable[[Any], Any]] = {
    known: lambda part: part
    for known in (
        StockSequences, ActsHistogramConfig, LogitsHistogramConfig, LogitsTableConfig, FeatureTablesConfig, PromptConfig
    )
} | {SequencesConfig: _stock_sequences}  # fmt: skip


class SaeVisLayoutConfig(StockLayout):
    """sae_vis' `SaeVisLayoutConfig` that also takes this package's components. Each component once; `height` in pixels.

    TypeError for what is no column or component, ValueError for one that is there twice, or sizes that cannot be meant.
    """

    norms_cfg: DecoderNormsConfig | None = None
    cosine_cfg: DecoderCosineConfig | None = None
    site_logits_cfg: SiteLogitsConfig | None = None
    attribution_cfg: SourceAttributionConfig | None = None
    map_cfg: FeatureMapConfig | None = None

    def __init__(self, columns: Sequence[StockColumn], height: int = 750):
        for column in columns:
            if not isinstance(column, StockColumn):
                raise TypeError(
                    f"a layout is a list of Columns; got {column!r}. Write Column({type(column).__name__}(...))"
                )
        self.columns = dict(enumerate(columns))
        self.height = height
        check_sizes(self)
        self.components = {}
        for component in (part for column in columns for part in column):
            name = component_name(component)
            if name in self.components:
                raise ValueError(f"{name}Config is in the layout twice; a page shows each component once")
            self.components[name] = component
            setattr(self, _attribute(component), component)

    @classmethod
    def of(cls, layout: StockLayout) -> "SaeVisLayoutConfig":
        """The same layout as one of ours."""
        return layout if isinstance(layout, cls) else cls(list(layout.columns.values()), layout.height)

    def __eq__(self, other: object) -> bool:
        same = isinstance(other, StockLayout) and as_plain(self) == as_plain(other)
        return same and type(other) is type(self)

    def help(self, title: str = "SaeVisLayoutConfig", key: bool = True) -> None:
        """Prints the layout as a tree: columns, components, and what each of their fields means."""
        tree = Tree(escape(f"{title}: columns from left to right, components from top to bottom" if key else title))
        for number, column in self.columns.items():
            branch = tree.add(f"Column {number}")
            for component in column:
                part = branch.add(component_name(component))
                for name, value in _fields(component).items():
                    part.add(escape(f"{name}: {value!r}  {component.help_dict.get(name, '')}"))
        Console().print(tree)

    __hash__ = None  # type: ignore[assignment]


@dataclass
class SaeVisConfig(StockConfig):
    """sae_vis' `SaeVisConfig`, and what is left out of statistics and examples (`masking` ...), which effect on logits
    is shown, and how examples are chosen: see `crossvis_tl.SaeVisData.create`, whose own arguments go before these.

    Layouts that are None are the kind's own (`default_layout`).
    """

    feature_centric_layout: StockLayout | None = None  # type: ignore[assignment]
    prompt_centric_layout: StockLayout | None = None  # type: ignore[assignment]
    masking: Masking = "special"
    masked_tokens: Sequence[int | str] = ()
    masked_positions: Sequence[int] = ()
    high_norm_multiple: float | None = None
    effect: Effect = "direct"
    latent_scaling: bool = False
    per_document: int | None = PER_DOCUMENT
    distinct: bool = True

    def help(self, title: str = "SaeVisConfig") -> None:
        """sae_vis' own help, of the layouts of an SAE where none is given."""
        StockConfig.help(resolved(self, "sae", 1, 1, 1), title)
        table = Table("Param", "Value", "Description", title="Beside sae_vis' own", show_lines=True)
        for name, what in CONFIG_HELP.items():
            table.add_row(name, escape(repr(getattr(self, name))), escape(what))
        Console().print(table)


def check_sizes(layout: StockLayout) -> None:
    """ValueError for a height or a width that is no number of pixels."""
    widths = [("a Column's width", column.width) for column in layout.columns.values() if column.width is not None]
    for name, size in [("a layout's height", layout.height), *widths]:
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise ValueError(f"{name} is {size!r}; expected pixels, at least 1")


def component_name(component: object) -> str:
    """ "DecoderNorms" of a `DecoderNormsConfig`, the name that pages know it by. TypeError for anything else."""
    name = type(component).__name__
    found = next((known.__name__ for known in COMPONENTS if isinstance(component, known)), None)
    if found is None:
        names = [known.__name__ for known in COMPONENTS]
        said = component.__name__ if isinstance(component, type) else name
        hint = f" Write {said}() for one." if isinstance(component, type) else near_misses(name, names)
        raise TypeError(f"a layout's columns hold component configs ({short_list(names, 12)}), not {said}.{hint}")
    return found.removesuffix("Config")


def _attribute(component: object) -> str:
    return next(attribute for known, attribute in COMPONENTS.items() if isinstance(component, known))


def default_layout(kind: Kind, n_models: int, n_sources: int, n_targets: int) -> SaeVisLayoutConfig:
    """-> what pages of features show unless told otherwise.

    All kinds: sae_vis' components, a random sample beside its intervals, the map. Several targets: norms and cosines.
    Several sites of one model: each site's logit lens. A feature that reads several sources: which of them drives it.
    """
    sites = [DecoderNormsConfig(), DecoderCosineConfig()] if n_targets > 1 else []
    one_reads_many = kind not in ("clt", "plt") and n_sources > 1
    driven = [SourceAttributionConfig()] if one_reads_many else []
    lens = [SiteLogitsConfig()] if n_targets > n_models else []
    sequences = SequencesConfig(
        n_quantiles=5,
        random_group_size=10,
        stack_mode="stack-none",
        top_logits_hoverdata=3,  # of each model: half of a page's size
    )
    return SaeVisLayoutConfig([
        Column(*sites, *driven, FeatureTablesConfig()),
        Column(ActsHistogramConfig(), LogitsTableConfig(), LogitsHistogramConfig(), *lens),
        Column(sequences, FeatureMapConfig()),
    ])  # fmt: skip


def default_prompt_layout(feature: SaeVisLayoutConfig) -> SaeVisLayoutConfig:
    """-> what pages of prompts show unless told otherwise, out of what is made for the features: sae_vis' own
    components, and norms."""
    parts: list[Any] = [PromptConfig()]
    if feature.norms_cfg:
        parts.append(feature.norms_cfg)
    if feature.act_hist_cfg:
        parts.append(feature.act_hist_cfg)
    if feature.logits_table_cfg:
        parts.append(LogitsTableConfig(n_rows=min(5, feature.logits_table_cfg.n_rows)))
    if feature.seq_cfg:
        few = {"top_acts_group_size": min(10, feature.seq_cfg.top_acts_group_size), "n_quantiles": 0}
        parts.append(replace(feature.seq_cfg, **few, stack_mode="stack-all", **_no_random(feature.seq_cfg)))
    return SaeVisLayoutConfig([Column(*parts, width=450)], height=1000)


def _no_random(sequences: StockSequences) -> dict[str, int]:
    return {"random_group_size": 0} if isinstance(sequences, SequencesConfig) else {}


def completed(layout: StockLayout, n_targets: int) -> SaeVisLayoutConfig:
    """A layout made with sae_vis' own class, which cannot name our panels: several targets bring norms and cosines, and
    every page has its map. One of ours stays as it is."""
    if isinstance(layout, SaeVisLayoutConfig):
        return layout
    columns = [Column(*column, width=column.width) for column in layout.columns.values()]
    if n_targets > 1 and columns:
        columns[0].components[:0] = [DecoderNormsConfig(), DecoderCosineConfig()]
    if columns:
        columns[-1].components.append(FeatureMapConfig())
    return SaeVisLayoutConfig(columns, layout.height)


def resolved(cfg: StockConfig, kind: Kind, n_models: int, n_sources: int, n_targets: int) -> StockConfig:
    """The same config with the layouts that pages of such a dictionary are made by."""
    feature, prompt = cfg.feature_centric_layout, cfg.prompt_centric_layout
    feature = default_layout(kind, n_models, n_sources, n_targets) if feature is None else completed(feature, n_targets)
    unasked = prompt is None or as_plain(prompt) == as_plain(StockLayout.default_prompt_centric_layout())
    prompt = default_prompt_layout(feature) if unasked else SaeVisLayoutConfig.of(prompt)
    return replace(cfg, feature_centric_layout=feature, prompt_centric_layout=prompt)


def as_plain(layout: StockLayout) -> dict[str, Any]:
    """-> JSON of a layout, for `from_plain`."""
    columns = [
        {"width": column.width, "components": [[component_name(part), _fields(part)] for part in column]}
        for column in layout.columns.values()
    ]
    return {"height": layout.height, "columns": columns}


def from_plain(plain: dict[str, Any]) -> SaeVisLayoutConfig:
    """Undoes `as_plain`. ValueError, KeyError or TypeError for anything else."""
    classes = {known.__name__.removesuffix("Config"): known for known in COMPONENTS}
    columns = []
    for column in plain["columns"]:
        parts = []
        for name, values in column["components"]:
            made = SequencesConfig if "random_group_size" in values else classes[name]
            parts.append(made(**_tuples(values)))
        columns.append(Column(*parts, width=column["width"]))
    return SaeVisLayoutConfig(columns, plain["height"])


def _fields(component: Any) -> dict[str, Any]:
    return {f.name: getattr(component, f.name) for f in fields(component)} if is_dataclass(component) else {}


def _tuples(values: dict[str, Any]) -> dict[str, Any]:
    """JSON knows no tuples."""
    return {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
