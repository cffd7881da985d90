"""From gathered activations to dashboards: fills sae_vis' data classes and our panels, feature by feature."""

import hashlib
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
from crossvis_tl.capture import Capture
from crossvis_tl.examples import Group, choose
from crossvis_tl.feature_acts import FeatureActs
from crossvis_tl.geometry import decoder_vectors, site_geometry
from crossvis_tl.logit_effects import (
    Effects,
    Written,
    effects_of,
    final_residuals,
    following_tokens,
    residual_written,
)
from crossvis_tl.models import name_of
from crossvis_tl.panels import FeaturePanels, ModelLogits
from crossvis_tl.sequences import Windows, build_sequences, windows
from crossvis_tl.unembed import Unembedding, unembedding


@dataclass
class Built:
    """What a dashboard needs: sae_vis' data by feature, its statistics over features, and our panels by feature."""

    feature_data: dict[int, FeatureData] = field(default_factory=dict)
    statistics: FeatureStatistics = field(default_factory=FeatureStatistics)
    panels: dict[int, FeaturePanels] = field(default_factory=dict)


@dataclass(frozen=True)
class Writers:
    """How the selected features write to each model that they write to: by model, its unembedding, and what they
    add to its final residual stream."""

    unembeddings: dict[int, Unembedding]
    written: dict[int, Written]

    def direct(self, model: int, index: int) -> Float[Tensor, " d_vocab"]:
        """The direct effect of one unit of a feature on the logits, before the final norm divides."""
        return self.unembeddings[model].project(self.written[model].direction[index])

    def effects(
        self,
        model: int,
        index: int,
        resid: Float[Tensor, "p d_model"],
        acts: Float[Tensor, " p"],
        tokens: Int[Tensor, "rows positions"],
        positions: Int[Tensor, " p"],
        direct: Float[Tensor, " d_vocab"],
        k: int,
    ) -> Effects:
        """Of a feature that fires with `acts` at flat `positions` of `tokens`, where the final residual is `resid`.
        `direct`: what `direct(model, index)` gave."""
        device = direct.device
        following = following_tokens(tokens, positions).to(device)
        return effects_of(
            self.unembeddings[model], resid.to(device), acts.to(device), self.written[model], index, direct,
            following, positions, min(k, len(direct)),
        )  # fmt: skip


def writers(capture: Capture, features: Tensor) -> Writers:
    """Models whose residual stream the features do not write to are left out."""
    unembeddings, written = {}, {}
    for index, model in enumerate(capture.models):
        found = residual_written(capture.dictionary, features, model, index)
        if found is not None:
            unembeddings[index] = unembedding(model)
            written[index] = found.to(unembeddings[index].W.device)
    return Writers(unembeddings, written)


@torch.inference_mode()
def build(capture: Capture, acts: FeatureActs, cfg: SaeVisConfig, acts_B: FeatureActs | None = None) -> Built:
    """Every component the feature-centric layout asks for. `acts_B`: of a second dictionary, to correlate."""
    dictionary = capture.dictionary
    names = [name_of(model) for model in capture.models]
    stats = statistics.feature_statistics(acts)
    built = Built(statistics=stats)
    geometry = site_geometry(dictionary, acts.features, names)
    tables = feature_tables(capture, acts, cfg, acts_B)
    how = writers(capture, acts.features)
    seq_cfg = cfg.feature_centric_layout.seq_cfg
    plan = [_plan(acts, i, seq_cfg, cfg.seed) for i in range(len(acts.features))] if seq_cfg else None
    resids = _Residuals(capture, acts, plan or [], how, cfg)
    indices = tqdm(range(len(acts.features)), desc="Building dashboards", unit="feature", disable=not cfg.verbose)
    for i in indices:
        feature = int(acts.features[i])
        data = FeatureData(feature_tables_data=tables[i])
        panel = FeaturePanels(dictionary.label(feature), stats.frac_nonzero[i], stats.max[i], geometry[i])
        _fill_histogram(data, acts, i, cfg)
        direct = {m: how.direct(m, i) for m in how.written}
        _fill_logits(data, panel, direct, cfg)
        if plan is not None:
            groups, shown = plan[i]
            effects = {m: resids.effects(m, i, shown, vector) for m, vector in direct.items()}
            data.sequence_data, panel.sequences = build_sequences(groups, shown, acts.tokens, effects, direct)
            panel.bounds = [_bounds(group) for group in groups]
        built.feature_data[feature] = data
        built.panels[feature] = panel
    return built


def _bounds(group: Group) -> tuple[float, float, float] | None:
    if group.low is None or group.high is None or group.share is None:
        return None
    return group.low, group.high, group.share


def _plan(acts: FeatureActs, index: int, seq_cfg: SequencesConfig, seed: int | None) -> tuple[list[Group], Windows]:
    """Which examples of a feature are shown. A feature's sample depends on the seed and itself, not on its company."""
    where, values = acts.of(index)
    generator = torch.Generator()
    if seed is None:
        generator.seed()
    else:
        # torch's generator reads 32 bits only, so seed and feature are mixed into that many
        mixed = hashlib.blake2b(f"{seed}:{int(acts.features[index])}".encode(), digest_size=4).digest()
        generator.manual_seed(int.from_bytes(mixed, "little"))
    groups = choose(where, values, acts.n_counted, seq_cfg, generator)
    return groups, windows(groups, where, values, acts.tokens.shape[1], seq_cfg)


class _Residuals:
    """Final residual streams at all positions whose effect is shown, and the effects computed from them."""

    def __init__(
        self,
        capture: Capture,
        acts: FeatureActs,
        plan: list[tuple[list[Group], Windows]],
        how: Writers,
        cfg: SaeVisConfig,
    ):
        self.acts, self.how = acts, how
        seq_cfg = cfg.feature_centric_layout.seq_cfg
        self.k = seq_cfg.top_logits_hoverdata if seq_cfg else 0
        wanted = [shown.sources for _, shown in plan] if how.written else []
        self.positions = torch.unique(torch.cat(wanted)) if wanted else torch.zeros(0, dtype=torch.long)
        if acts.final is not None:
            self.resids = [final[self.positions] for final in acts.final]
        else:
            self.resids = final_residuals(
                capture, acts.tokens, self.positions, rows_per_batch=rows_per_batch(cfg), progress=cfg.verbose
            )

    def effects(self, model: int, index: int, shown: Windows, direct: Tensor) -> Effects:
        positions = shown.sources
        where, values = self.acts.of(index)
        resids = self.resids[model]
        resid = resids[torch.searchsorted(self.positions, positions).to(resids.device)]
        strength = values[torch.searchsorted(where, positions)]
        return self.how.effects(model, index, resid, strength, self.acts.tokens, positions, direct, self.k)


def rows_per_batch(cfg: SaeVisConfig) -> int:
    return cfg.minibatch_size_tokens or 64


def _fill_histogram(data: FeatureData, acts: FeatureActs, index: int, cfg: SaeVisConfig) -> None:
    hist_cfg = cfg.feature_centric_layout.act_hist_cfg
    if hist_cfg is not None:
        _, values = acts.of(index)
        data.acts_histogram_data = statistics.acts_histogram(values, acts.n_counted, hist_cfg.n_bins)


def _fill_logits(data: FeatureData, panel: FeaturePanels, direct: dict[int, Tensor], cfg: SaeVisConfig) -> None:
    """Each model's table and histogram in the panel; sae_vis' own components show the first of them."""
    layout = cfg.feature_centric_layout
    n_rows = layout.logits_table_cfg.n_rows if layout.logits_table_cfg else 0
    n_bins = layout.logits_hist_cfg.n_bins if layout.logits_hist_cfg else 0
    for model, vector in direct.items():
        histogram = statistics.logits_histogram(vector, n_bins) if n_bins else statistics.LogitsHistogramData()
        panel.logits[model] = ModelLogits(logits_table(vector, n_rows), histogram)
    if panel.logits:
        first = next(iter(panel.logits.values()))
        data.logits_table_data, data.logits_histogram_data = first.table, first.histogram


def logits_table(vector: Float[Tensor, " d_vocab"], n_rows: int) -> LogitsTableData:
    k = min(n_rows, len(vector))
    top, bottom = vector.topk(k), vector.topk(k, largest=False)
    return LogitsTableData(
        bottom_token_ids=bottom.indices.tolist(), bottom_logits=bottom.values.tolist(),
        top_token_ids=top.indices.tolist(), top_logits=top.values.tolist(),
    )  # fmt: skip


def feature_tables(
    capture: Capture, acts: FeatureActs, cfg: SaeVisConfig, acts_B: FeatureActs | None
) -> list[FeatureTablesData]:
    """sae_vis' four tables, those the layout asks for. "Neurons" are the dimensions of the sources, side by side."""
    table_cfg = cfg.feature_centric_layout.feature_tables_cfg
    n = len(acts.features)
    columns: list[dict[str, Any]] = [{} for _ in range(n)]
    if table_cfg is None:
        return [FeatureTablesData() for _ in range(n)]
    k = table_cfg.n_rows
    if table_cfg.neuron_alignment_table:
        vectors = torch.cat(decoder_vectors(capture.dictionary, acts.features), dim=-1)
        top = vectors.topk(min(k, vectors.shape[-1]), dim=-1)
        shares = top.values.abs() / vectors.abs().sum(-1, keepdim=True).clamp_min(1e-12)
        for column, *found in zip(columns, top.indices, top.values, shares, strict=True):
            keys = ("neuron_alignment_indices", "neuron_alignment_values", "neuron_alignment_l1")
            column.update(zip(keys, (part.tolist() for part in found), strict=True))
    correlated = {}
    if table_cfg.correlated_neurons_table:
        correlated["correlated_neurons"] = statistics.correlate_sites(acts, k)
    if table_cfg.correlated_features_table:
        correlated["correlated_features"] = statistics.correlate_features(acts, acts, k, same=True)
    if acts_B is not None:
        correlated["correlated_b_features"] = statistics.correlate_features(acts, acts_B, k, same=False)
    for name, found in correlated.items():
        for i, column in enumerate(columns):
            keys = (f"{name}_indices", f"{name}_pearson", f"{name}_cossim")
            column.update(zip(keys, (found.indices[i], found.pearson[i], found.cosine[i]), strict=True))
    return [FeatureTablesData(**column) for column in columns]
