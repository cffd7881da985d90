"""What Python hands to the page and the viewer reads: version 1, written down once, here.

A page holds one `Head`, read when it opens, and one `FeaturePayload` a feature, read when the feature is shown. All
is plain JSON: numbers are finite Python ints and floats (`None` where there is none), and tokens are referred to by
their place in `Head.vocabulary`. Numbers are stored as they are given; rounding them to about five significant digits
beforehand makes a page several times smaller and changes nothing that it shows.

Units. Activations are in the dictionary's own units. A loss effect is in nats and negative where the feature lowers
the loss, that is, helps. Raised and lowered tokens are changes in log-probability, in nats too. Shares and densities
run from 0 to 1.
"""

from typing import Any, Literal, NotRequired, TypedDict

VERSION = 1

Kind = Literal["sae", "crosscoder", "clt", "plt"]
View = Literal["feature", "prompt"]
Verdict = Literal["plausible", "doubtful", "implausible"]
Metric = Literal["act_quantile", "act_size", "loss_effect"]
ComponentName = Literal[
    "FeatureTables",
    "ActsHistogram",
    "LogitsTable",
    "LogitsHistogram",
    "Sequences",
    "Prompt",
    "DecoderNorms",
    "DecoderCosine",
]


class SiteLabel(TypedDict):
    """A place that is read or written: index into `Head.models`, hook name (None: not known), text shown, and how
    many dimensions it has."""

    model: int
    hook: str | None
    label: str
    width: NotRequired[int]


class SiteFvu(TypedDict):
    """Fraction of variance unexplained at one site; 0 is perfect, 1 is no better than the mean."""

    label: str
    fvu: float


class Fidelity(TypedDict):
    """How well the dictionary explains the activations it was run on. `dead` is a share, `l0` a mean count."""

    verdict: Verdict
    headline: str
    sites: list[SiteFvu]
    l0: float
    dead: float
    warnings: list[str]


class Component(TypedDict):
    """One panel. `config` holds the fields of sae_vis' config class of the same name."""

    name: ComponentName
    config: dict[str, Any]


class LayoutColumn(TypedDict):
    """Panels from top to bottom; `width` in pixels, None for as wide as the panels need."""

    width: int | None
    components: list[Component]


class Layout(TypedDict):
    """Columns from left to right; `height` in pixels, beyond which a column scrolls."""

    height: int
    columns: list[LayoutColumn]


_IndexClass = TypedDict("_IndexClass", {"class": list[str | None]})  # a keyword: cannot stand in a class body


class FeatureIndex(_IndexClass):
    """What search and the header need of every feature: five lists of one length, in the order of previous and next.

    `density` is the share of tokens it fires on, `max` its largest activation.
    """

    id: list[int]
    label: list[str]
    density: list[float]
    max: list[float]


FEATURE_INDEX_COLUMNS = ("id", "label", "density", "max", "class")


class PromptHead(TypedDict):
    """The prompt of a prompt view, and which features score highest.

    `tokens`: [position]. `position`, `metric`: what is shown first. `scores`: [metric][position] -> pairs of feature
    id and formatted score, best first, empty where nothing fires. A loss effect belongs to the position that is
    *predicted*: its features fire on the token before.
    """

    tokens: list[int]
    position: int
    metric: Metric
    scores: dict[Metric, list[list[tuple[int, str]]]]


class Head(TypedDict):
    """Everything about the page that is not one feature.

    `models`: names, the first drawn in blue and the second in vermillion. `facts`: pairs of name and text, the small
    print. `token_ids`: the model's id of each entry of `vocabulary`. `class_help`: formula and thresholds of the
    class. `first`: id of the feature that opens first.
    """

    version: int
    title: str
    kind: Kind
    view: View
    models: list[str]
    sources: list[SiteLabel]
    targets: list[SiteLabel]
    facts: list[tuple[str, str]]
    fidelity: Fidelity | None
    vocabulary: list[str]
    token_ids: list[int]
    layout: Layout
    class_help: str | None
    features: FeatureIndex
    first: int
    prompt: PromptHead | None


class Histogram(TypedDict):
    """Counts in equal bins from `low` to `high`."""

    heights: list[int]
    low: float
    high: float


class Tables(TypedDict, total=False):
    """Rows of the small tables. Features of encoder B are of another dictionary, so the page never links them."""

    neuron_alignment: list[tuple[int | str, float, float]]  # neuron, value, share of the decoder's L1 norm
    correlated_neurons: list[tuple[int | str, float, float]]  # neuron, Pearson, cosine
    correlated_features: list[tuple[int, str, float, float]]  # feature id, label, Pearson, cosine
    correlated_b_features: list[tuple[int, str, float, float]]


class ModelLogits(TypedDict):
    """The feature's direct effect on one model's logits: extremes as (vocabulary index, value), and all of them."""

    model: int
    name: str
    top: list[tuple[int, float]]
    bottom: list[tuple[int, float]]
    histogram: Histogram | None


_SitesClass = TypedDict("_SitesClass", {"class": str | None}, total=False)


class Sites(_SitesClass, total=False):
    """Decoder norms and cosines, over the targets this feature writes.

    `target_index`: which of `Head.targets` those are; absent means all, in order. `norms`, `shares`: [target].
    `cosine`: [target][target]. `relative_norm`: the second model's share of the norm, 0 = only in `Head.models[0]`,
    1 = only in `Head.models[1]`.
    """

    target_index: list[int]
    norms: list[float]
    shares: list[float] | None
    relative_norm: float | None
    cosine: list[list[float]]
    note: str | None


class Effect(TypedDict):
    """What the feature does to one model's prediction of each token of a sequence: four lists of its length.

    Entry i is the effect of the feature at token i-1 on predicting token i. `loss`: nats. `logit`: the feature's
    direct logit for token i, the place of the line in the logits histogram. `up`, `down`: the tokens it raises and
    lowers most, as (vocabulary index, change in log-probability).
    """

    loss: list[float]
    logit: list[float | None]
    up: list[list[tuple[int, float]] | None]
    down: list[list[tuple[int, float]] | None]


class TokenSequence(TypedDict):
    """A run of tokens: `t` vocabulary indices, `a` activations, `bold` the index in this run of the token it was
    chosen for, `row`, `pos` and `doc` that token's sequence, position and document in the data, `e` one effect a
    model."""

    t: list[int]
    a: list[float]
    bold: int | None
    row: int | None
    pos: int | None
    doc: NotRequired[int | None]
    e: list[Effect]


class Group(TypedDict):
    """Sequences chosen in one way. `title` is words only ("Top activations", "Interval" ...): the page prints the
    interval from `low` to `high` and the `share` of all tokens that lie in it itself."""

    title: str
    low: float | None
    high: float | None
    share: float | None
    sequences: list[TokenSequence]


class Scaling(TypedDict):
    """Latent scaling, each on errors and on reconstructions; None where it is not known. `nu`: the first model's share
    over the second's; `nu_low`, `nu_high`: its 95 % interval."""

    beta_first: list[float | None]
    beta_second: list[float | None]
    nu: list[float | None]
    nu_low: list[float | None]
    nu_high: list[float | None]


class FeaturePayload(TypedDict):
    """One feature. Dead ones have no groups and a null `acts_histogram`. `logits` is empty where there are none, and
    `logits_note` then says why. `prompt` is there in a prompt view: the whole prompt under this feature."""

    tables: Tables
    acts_histogram: Histogram | None
    logits: list[ModelLogits]
    logits_note: str | None
    sites: Sites | None
    groups: list[Group]
    prompt: TokenSequence | None
    density_interval: NotRequired[tuple[float, float]]
    scaling: NotRequired[Scaling | None]
