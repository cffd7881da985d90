"""From gathered activations to dashboards: fills sae_vis' data classes and our panels, feature by feature."""

import gc
import hashlib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Int
from sae_vis.data_config_classes import SaeVisConfig, SequencesConfig
from sae_vis.data_storing_fns import FeatureData, FeatureTablesData, LogitsTableData
from sae_vis.utils_fns import FeatureStatistics
from torch import Tensor
from tqdm.auto import tqdm

from crossvis_tl import statistics
from crossvis_tl.ablation import extremes
from crossvis_tl.capture import Capture
from crossvis_tl.dictionary import Dictionary
from crossvis_tl.effects import Effect, Writers, check_effect, direct_effects, features_at_a_time, writers
from crossvis_tl.examples import PER_DOCUMENT, Group, Picker, choose
from crossvis_tl.feature_acts import FeatureActs
from crossvis_tl.full_effects import full_effects
from crossvis_tl.geometry import decoder_vectors, site_geometry
from crossvis_tl.latent_scaling import LatentScaling, latent_scaling
from crossvis_tl.lens import site_lenses
from crossvis_tl.panels import FeaturePanels, ModelLogits, ShownSequence, SiteLens
from crossvis_tl.sequences import Effects, Windows, build_sequences, windows

NOT_WRITTEN = (
    "The sites this feature writes to do not add to the residual stream, so it has no direct effect on logits."
)
NOT_GATHERED = "Not gathered: these dashboards were made without the model, which effects on logits need."


# Tokens by which a feature is found on a page.
FIRED_TOKENS = 5


@dataclass
class Built:
    """What a dashboard needs: sae_vis' data by feature, its statistics over features, and our panels by feature."""

    feature_data: dict[int, FeatureData] = field(default_factory=dict)
    statistics: FeatureStatistics = field(default_factory=FeatureStatistics)
    panels: dict[int, FeaturePanels] = field(default_factory=dict)


@dataclass(frozen=True)
class Showing:
    """What is shown of each feature, beside what sae_vis' config says. `effect`: as `SaeVisData.create`.
    `per_document`, `distinct`: as `Picker`."""

    effect: Effect = "direct"
    per_document: int | None = PER_DOCUMENT
    distinct: bool = True


@torch.inference_mode()
def build(
    dictionary: Dictionary,
    acts: FeatureActs,
    cfg: SaeVisConfig,
    showing: Showing,
    capture: Capture | None,
    acts_B: FeatureActs | None = None,
) -> Built:
    """Every component the feature-centric layout asks for. `capture`: the dictionary on its models; without it what
    needs them is not made. `acts_B`: of a second dictionary, to correlate."""
    check_effect(showing.effect)
    stats = statistics.feature_statistics(acts)
    built = Built(statistics=stats)
    geometry = site_geometry(dictionary, acts.features, acts.manifest.model_names)
    tables = feature_tables(dictionary, acts, cfg, acts_B)
    scaling = _scaling(acts)
    n = len(acts.features)
    size = n if capture is None else features_at_a_time(capture, n)
    with no_collector(), tqdm(total=n, desc="Building dashboards", unit="feature", disable=not cfg.verbose) as bar:
        for begin in range(0, n, size):
            some = acts.select(range(begin, min(begin + size, n)))
            for i, made in enumerate(_some(some, cfg, showing, capture), begin):
                feature = int(acts.features[i])
                made.data.feature_tables_data = tables[i]
                counts = int(acts.starts[i + 1] - acts.starts[i])
                built.feature_data[feature] = made.data
                built.panels[feature] = FeaturePanels(
                    dictionary.label(feature), stats.frac_nonzero[i], stats.max[i],
                    statistics.density_interval(counts, acts.n_counted), made.logits_note,
                    scaling[i] if scaling else None, geometry[i], made.logits, made.sequences, made.bounds, made.lens,
                    made.attribution, made.tokens, dictionary.layer(feature),
                )  # fmt: skip
                bar.update()
    return built


@contextmanager
def no_collector() -> Iterator[None]:
    """Inside, Python does not look for garbage: a page's data are millions of small lists, none of them garbage, which
    it would go through again and again."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


@dataclass
class _Made:
    """One feature's part of the layout."""

    data: FeatureData = field(default_factory=FeatureData)
    logits: dict[int, ModelLogits] = field(default_factory=dict)
    logits_note: str | None = None
    sequences: list[list[ShownSequence]] = field(default_factory=list)
    bounds: list[tuple[float, float, float] | None] = field(default_factory=list)
    lens: list[SiteLens | None] = field(default_factory=list)
    attribution: list[float] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)


def _some(acts: FeatureActs, cfg: SaeVisConfig, showing: Showing, capture: Capture | None) -> Iterator[_Made]:
    """As many features as fit in memory with their logit vectors."""
    layout = cfg.feature_centric_layout
    seq_cfg = layout.seq_cfg
    how = Writers({}, {}) if capture is None else writers(capture, acts.features)
    direct = {m: how.direct(m, cfg.minibatch_size_features or len(acts.features)) for m in how.written}
    plan = _plan(acts, seq_cfg, cfg.seed, showing) if seq_cfg else None
    driven = bool(acts.manifest.attributed) and getattr(layout, "attribution_cfg", None) is not None
    effects: list[dict[int, list[Effects]]] = [{} for _ in acts.features]
    if plan is not None and seq_cfg is not None and capture is not None and showing.effect != "none" and direct:
        arguments = (capture, acts, how, direct, [shown for _, shown in plan], seq_cfg.top_logits_hoverdata)
        made = direct_effects if showing.effect == "direct" else full_effects
        effects = made(*arguments, rows_per_batch=cfg.minibatch_size_tokens, progress=cfg.verbose)
    lenses = _lenses(acts, cfg, capture, direct)
    note = NOT_GATHERED if capture is None else None if direct else NOT_WRITTEN
    for block in acts.blocks():
        for i, where, values in block.each():
            one = _Made(logits_note=note, lens=lenses[i])
            vectors = {m: part[i] for m, part in direct.items()}
            if layout.act_hist_cfg is not None:
                one.data.acts_histogram_data = statistics.acts_histogram(
                    values, acts.n_counted, layout.act_hist_cfg.n_bins
                )
            _fill_logits(one, vectors, cfg)
            if plan is not None:
                groups, shown = plan[i]
                shares = shown.along(where, acts.shares(i)) if driven else None
                one.data.sequence_data, one.sequences = build_sequences(
                    groups, shown, acts.tokens, acts.mask, effects[i], vectors, shares
                )
                one.bounds = [_bounds(group) for group in groups]
                one.attribution = _attribution(groups, shown, shares)
                one.tokens = fired_tokens(acts.tokens, groups)
            yield one


def _lenses(
    acts: FeatureActs, cfg: SaeVisConfig, capture: Capture | None, direct: dict[int, Tensor]
) -> list[list[SiteLens | None]]:
    asked = getattr(cfg.feature_centric_layout, "site_logits_cfg", None)
    if asked is None or capture is None:
        return [[] for _ in acts.features]
    at_a_time = cfg.minibatch_size_features or len(acts.features)
    return site_lenses(capture, acts.features, asked.n_rows, at_a_time, direct)


def _attribution(groups: list[Group], shown: Windows, shares: Tensor | None) -> list[float]:
    """Of the top examples' own tokens together."""
    n_top = len(groups[0].positions) if groups else 0
    if shares is None or not n_top:
        return []
    weights = shown.acts[:n_top, shown.bold].abs()
    mean = (shares[:n_top, shown.bold] * weights[:, None]).sum(0) / weights.sum()
    return [round(share, 3) for share in mean.tolist()]


def fired_tokens(tokens: Int[Tensor, "rows positions"], groups: list[Group]) -> list[int]:
    """Ids of the tokens that the strongest examples fire on, the most frequent first: what a feature is found by."""
    if not groups:
        return []
    return [token for token, _ in Counter(tokens.flatten()[groups[0].positions].tolist()).most_common(FIRED_TOKENS)]


def _scaling(acts: FeatureActs) -> list[LatentScaling] | None:
    if "latent.moments" not in acts.sums:
        return None
    sums = {name.removeprefix("latent."): tensor for name, tensor in acts.sums.items() if name.startswith("latent.")}
    return latent_scaling({name: tensor[acts.columns] for name, tensor in sums.items()})


def _bounds(group: Group) -> tuple[float, float, float] | None:
    if group.low is None or group.high is None or group.share is None:
        return None
    return group.low, group.high, group.share


def _plan(
    acts: FeatureActs, seq_cfg: SequencesConfig, seed: int | None, showing: Showing
) -> list[tuple[list[Group], Windows]]:
    """Which examples of each feature are shown. A feature's sample depends on the seed and itself, not on its
    company."""
    picker = Picker(acts.tokens, acts.mask, seq_cfg.buffer, showing.per_document, showing.distinct)
    plan, generator = [], torch.Generator()
    for block in acts.blocks():
        for i, where, values in block.each():
            if seed is None:
                generator.seed()
            else:
                # torch's generator reads 32 bits only, so seed and feature are mixed into that many
                mixed = hashlib.blake2b(f"{seed}:{int(acts.features[i])}".encode(), digest_size=4).digest()
                generator.manual_seed(int.from_bytes(mixed, "little"))
            groups = choose(where, values, acts.n_counted, seq_cfg, generator, picker)
            plan.append((groups, windows(groups, where, values, acts.mask, seq_cfg)))
    return plan


def _fill_logits(one: _Made, direct: dict[int, Tensor], cfg: SaeVisConfig) -> None:
    """Each model's table and histogram in the panel; sae_vis' own components show the first of them."""
    layout = cfg.feature_centric_layout
    n_rows = layout.logits_table_cfg.n_rows if layout.logits_table_cfg else 0
    n_bins = layout.logits_hist_cfg.n_bins if layout.logits_hist_cfg else 0
    for model, vector in direct.items():
        histogram = statistics.logits_histogram(vector, n_bins) if n_bins else statistics.LogitsHistogramData()
        one.logits[model] = ModelLogits(logits_table(vector, n_rows), histogram)
    if one.logits:
        first = next(iter(one.logits.values()))
        one.data.logits_table_data, one.data.logits_histogram_data = first.table, first.histogram


def logits_table(vector: Float[Tensor, " d_vocab"], n_rows: int) -> LogitsTableData:
    k = min(n_rows, len(vector))
    (top_ids, top), (bottom_ids, bottom) = (extremes(vector[None], k, largest=largest) for largest in (True, False))
    return LogitsTableData(
        bottom_token_ids=bottom_ids[0].tolist(), bottom_logits=bottom[0].tolist(),
        top_token_ids=top_ids[0].tolist(), top_logits=top[0].tolist(),
    )  # fmt: skip


def feature_tables(
    dictionary: Dictionary, acts: FeatureActs, cfg: SaeVisConfig, acts_B: FeatureActs | None
) -> list[FeatureTablesData]:
    """sae_vis' four tables, those the layout asks for. "Neurons" are the dimensions of the sources, side by side."""
    table_cfg = cfg.feature_centric_layout.feature_tables_cfg
    n = len(acts.features)
    columns: list[dict[str, Any]] = [{} for _ in range(n)]
    if table_cfg is None:
        return [FeatureTablesData() for _ in range(n)]
    k = table_cfg.n_rows
    if table_cfg.neuron_alignment_table:
        vectors = torch.cat(decoder_vectors(dictionary, acts.features), dim=-1)
        top = vectors.topk(min(k, vectors.shape[-1]), dim=-1)
        shares = top.values.abs() / vectors.abs().sum(-1, keepdim=True).clamp_min(1e-12)
        for column, *found in zip(columns, top.indices, top.values, shares, strict=True):
            keys = ("neuron_alignment_indices", "neuron_alignment_values", "neuron_alignment_l1")
            column.update(zip(keys, (part.tolist() for part in found), strict=True))
    correlated = {}
    if table_cfg.correlated_neurons_table:
        correlated["correlated_neurons"] = statistics.correlate_sites(acts, dictionary, k)
    if table_cfg.correlated_features_table:
        correlated["correlated_features"] = statistics.correlate_features(acts, acts, k, same=True)
    if acts_B is not None:
        correlated["correlated_b_features"] = statistics.correlate_features(acts, acts_B, k, same=False)
    for name, found in correlated.items():
        if found is None:
            continue
        for i, column in enumerate(columns):
            keys = (f"{name}_indices", f"{name}_pearson", f"{name}_cossim")
            column.update(zip(keys, (found.indices[i], found.pearson[i], found.cosine[i]), strict=True))
    return [FeatureTablesData(**column) for column in columns]
