"""What Python hands to the page and the viewer reads: version 2, written down once, here.

A page holds one `Head`, read when it opens, and one `FeaturePayload` a feature, read when the feature is shown. All
is plain JSON: numbers are finite Python ints and floats (`None` where there is none), and tokens are referred to by
their place in `Head.vocabulary`. Sequences are written in columns, rounded to what the page shows (`page.pack`);
everything else is stored as it is given.

Units. Activations are in the dictionary's own units. A loss effect is in nats and negative where the feature lowers
the loss, that is, helps. Raised and lowered tokens are changes in log-probability, in nats too. Shares and densities
run from 0 to 1.
"""

from typing import Any, Literal, NotRequired, TypedDict

VERSION = 2

Kind = Literal["sae", "crosscoder", "clt", "plt"]
View = Literal["feature", "prompt", "live"]  # live: in a notebook, whose kernel answers what is typed
Verdict = Literal["plausible", "doubtful", "implausible"]
Metric = Literal["act_quantile", "act_size", "loss_effect"]
Scale = Literal["linear", "log"]
ComponentName = Literal[
    "FeatureTables",
    "ActsHistogram",
    "LogitsTable",
    "LogitsHistogram",
    "Sequences",
    "Prompt",
    "DecoderNorms",
    "DecoderCosine",
    "SiteLogits",
    "SourceAttribution",
]


class SiteLabel(TypedDict):
    """A place that is read or written: index into `Head.models`, hook name (None: not known), text shown, the part of
    it that tells it from the others, and how many dimensions it has."""

    model: int
    hook: str | None
    label: str
    short: NotRequired[str]
    width: NotRequired[int]


class SiteFvu(TypedDict):
    """Fraction of variance unexplained at one site; 0 is perfect, 1 is no better than the mean."""

    label: str
    fvu: float


class GroupCount(TypedDict):
    """Of the features that read one layer: how many are active on a token, and the share that never was."""

    label: str
    l0: float
    dead: float


class LossPutIn(TypedDict):
    """Cross-entropy, nats a token, with a reconstruction in place of what it reconstructs, and with nothing there.
    `kept`: what the reconstruction keeps of the difference, 1 for all; None where there is none."""

    label: str
    loss: float
    zeroed: float
    kept: float | None


class ReplacementLoss(TypedDict):
    """One model's: `clean` as it is, each site alone, all together. `clean` is None where `note` says why not."""

    model: str
    clean: float | None
    n_tokens: int
    note: str
    sites: list[LossPutIn]
    together: LossPutIn | None


class Fidelity(TypedDict):
    """How well the dictionary explains the activations it was run on. `dead` is a share, `l0` a mean count. `groups`:
    by layer, where features have one. `losses`: by model, where that was measured."""

    verdict: Verdict
    headline: str
    sites: list[SiteFvu]
    l0: float
    dead: float
    warnings: list[str]
    groups: NotRequired[list[GroupCount]]
    losses: NotRequired[list[ReplacementLoss]]


class Component(TypedDict):
    """One panel. `config` holds the fields of sae_vis' config class of the same name."""

    name: ComponentName
    config: dict[str, Any]


class LayoutColumn(TypedDict):
    """Panels from top to bottom; `width` in pixels, None for as wide as the panels need."""

    width: int | None
    components: list[Component]


class FeatureMap(TypedDict):
    """The first screen: a scatter of all features and a table. `x`, `y`, `color`: names of measures (`density` and
    `max` are among them), or None for what the page finds best; `color` can also be `class`."""

    x: str | None
    y: str | None
    color: str | None


class Layout(TypedDict):
    """Columns from left to right; `height` in pixels, beyond which a column scrolls. `map`: None for a page without
    one."""

    height: int
    columns: list[LayoutColumn]
    map: FeatureMap | None


_IndexClass = TypedDict("_IndexClass", {"class": list[str | None]})  # a keyword: cannot stand in a class body


class Measure(TypedDict):
    """One number of every feature, for the axes of the map and the columns of its table. `values`: [feature], None
    where a feature has none. `scale`: how it is best drawn. `help`: what it is, in a sentence."""

    name: str
    label: str
    scale: Scale
    values: list[float | None]
    help: str


class FeatureIndex(_IndexClass):
    """What map, search and header need of every feature without inflating it: lists of one length, in the order of
    previous and next.

    `density` is the share of tokens it fires on, `max` its largest activation. `tokens`: vocabulary places of the
    tokens its strongest examples fire on, the most frequent first. `measures`: more numbers; `density` and `max` are
    measures too and not repeated there.
    """

    id: list[int]
    label: list[str]
    density: list[float]
    max: list[float]
    tokens: list[list[int]]
    measures: list[Measure]


FEATURE_INDEX_COLUMNS = ("id", "label", "density", "max", "class", "tokens")


class PromptHead(TypedDict):
    """One prompt of a prompt view, and which features score highest.

    `tokens`: [position]. `position`: what is shown first. `scores`: [metric][scope][position] -> pairs of feature id
    and formatted score, best first, empty where nothing fires. A loss effect belongs to the position that is
    *predicted*: its features fire on the token before.
    """

    tokens: list[int]
    position: int
    scores: dict[Metric, list[list[list[tuple[int, str]]]]]


class Prompts(TypedDict):
    """The prompts of a prompt view. `metric`: the one shown first. `scopes`: names of the parts of the dictionary whose
    features are ranked by themselves; the first is all of it."""

    metric: Metric
    scopes: list[str]
    each: list[PromptHead]


class Head(TypedDict):
    """Everything about the page that is not one feature.

    `models`: names, the first drawn in blue and the second in vermillion. `facts`: pairs of name and text, the small
    print. `token_ids`: the model's id of each entry of `vocabulary`. `class_help`: formula and thresholds of the
    class. `first`: id of the feature that opens first, or, with `open_map`, after the map.
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
    open_map: bool
    prompts: Prompts | None


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


class SiteLogits(TypedDict):
    """Logit lens of one decoder row: what it alone raises and lowers, as (vocabulary index, value). `share`: its part
    in the effect of the whole feature, where that is the sum of its sites'; below 0 it works against the others."""

    top: list[tuple[int, float]]
    bottom: list[tuple[int, float]]
    share: NotRequired[float]


class ModelLogits(TypedDict):
    """The feature's direct effect on one model's logits: extremes as (vocabulary index, value), and all of them."""

    model: int
    name: str
    top: list[tuple[int, float]]
    bottom: list[tuple[int, float]]
    histogram: Histogram | None


_SitesClass = TypedDict("_SitesClass", {"class": str | None}, total=False)


class Sites(_SitesClass, total=False):
    """Decoder norms, cosines and logit lenses, over the targets this feature writes.

    `target_index`: which of `Head.targets` those are; absent means all, in order. `norms`: [target].
    `cosine`: [target][target]. `lens`: [target], None for a site that writes no logits.
    `note`: what is said of the norms, None for that they are in the producer's training units. `relative_norm`: the
    second model's share of the norm, 0 = only in `Head.models[0]`, 1 = only in `Head.models[1]`.
    """

    target_index: list[int]
    norms: list[float]
    relative_norm: float | None
    cosine: list[list[float]]
    lens: list[SiteLogits | None]
    note: str | None


class Effect(TypedDict):
    """What the feature does to one model's prediction of each token of a sequence: lists of its length.

    Entry i is the effect of the feature at token i-1 on predicting token i, empty or 0 where it is silent there.
    `loss`: nats. `p`: the probability that the model gives token i, None where nothing fires before it. `logit`: the
    feature's direct logit for token i, the place of the line in the logits histogram. `up`, `down`: changes in
    log-probability of the tokens it raises and lowers most, whose vocabulary places are `up_ids`, `down_ids`.
    """

    loss: list[float]
    p: NotRequired[list[float | None]]
    logit: list[float]
    up_ids: list[list[int]]
    up: list[list[float]]
    down_ids: list[list[int]]
    down: list[list[float]]


class TokenSequence(TypedDict):
    """A run of tokens: `t` vocabulary indices, `a` activations, `bold` the index in this run of the token it was
    chosen for, `row`, `pos` and `doc` that token's sequence, position and document in the data, `e` one effect a
    model. `s`: [source][token], each source's share of the pre-activation (with the bias they add up to 1), 0 where the
    feature is silent."""

    t: list[int]
    a: list[float]
    bold: int | None
    row: int | None
    pos: int | None
    doc: NotRequired[int | None]
    e: list[Effect]
    s: NotRequired[list[list[float]]]


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
    `logits_note` then says why. `prompts` are there in a prompt view: each whole prompt under this feature.
    `attribution`: each source's share of the pre-activation over the top examples."""

    tables: Tables
    acts_histogram: Histogram | None
    logits: list[ModelLogits]
    logits_note: str | None
    sites: Sites | None
    groups: list[Group]
    prompts: list[TokenSequence] | None
    attribution: NotRequired[list[float] | None]
    density_interval: NotRequired[tuple[float, float]]
    scaling: NotRequired[Scaling | None]
