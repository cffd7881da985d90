"""A feature as SAEDashboard 0.8 writes it into `batch-N.json`: key names, nesting, types and rounding.

Read from jbloomAus/SAEDashboard, sae_dashboard/neuronpedia/ (neuronpedia_converter.py, neuronpedia_dashboard.py), and
held against files it wrote (tests/oracles/neuronpedia). "l1" of correlated neurons and features is the cosine there.

What it has wrong stands right here, under the same key, and what differs otherwise:

- an example at a row's first token has `qualifying_token_index` -1, and the token is not among those shown: the row is
  then kept whole. All other examples lack it, as there, whatever it is (BOS, mostly);
- of a feature that never fired it lists 45 examples of zeros: here there are none, and no neighbours;
- the lowest interval counts, and shows, tokens on which the feature is silent: here only those it fires on;
- `frac_nonzero` counts BOS and padding among the tokens that could have fired, and reads 0 below five in a million:
  here it is the share of counted tokens, and of a feature that fires never 0;
- correlations count BOS and padding, and a feature can be its own neighbour;
- SAEDashboard first scales each feature so that its decoder row has length 1 (never a CLT's): here activations are the
  dictionary's own, and with `unit_decoders` those;
- text is decoded: "é" and not "Ã©"; a lone byte of a character is written out ("\\xc3").
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from sae_vis.data_storing_fns import SequenceData

from crossvis_tl.export.neuronpedia_tables import Neighbours
from crossvis_tl.export.records import escaped
from crossvis_tl.panels import FeaturePanels, ShownSequence

if TYPE_CHECKING:
    from crossvis_tl.dashboards import Dashboards

OUT_OF_RANGE = "<|outofrange|>"


@dataclass(frozen=True)
class Beside:
    """What a feature's entry holds beside its dashboard. `index`: its number in its source. `neuron_shift`: taken off
    numbers of correlated neurons. `model`: whose logits. `prompts`, `length`: sequences, and their tokens. `digits`:
    after the point. `leads`: padding before each row, where there is any. `unit`: what activations are multiplied by,
    and what one unit of activation writes is divided by."""

    index: int
    aligned: Neighbours
    correlated: Neighbours
    neuron_shift: int
    model: int
    prompts: int
    length: int
    dataset: str
    digits: int
    leads: Sequence[int] | None = None
    unit: float = 1.0

    def acts(self, values: Sequence[float]) -> list[float]:
        return self.numbers(values if self.unit == 1 else np.asarray(values) * self.unit)

    def logits(self, values: Sequence[float]) -> list[float]:
        return self.numbers(values if self.unit == 1 else np.asarray(values) / self.unit)

    def numbers(self, values: Sequence[float] | np.ndarray) -> list[float]:
        """numpy's rounding, whose last bit is not always Python's."""
        return np.round(values, self.digits).tolist() if len(values) else []


def feature_entry(data: "Dashboards", feature: int, words: "Words", beside: Beside) -> dict[str, Any]:
    """One of `features` in a batch file, whose keys stand in SAEDashboard's order."""
    panel, stock = data.panels[feature], data.feature_data_dict[feature]
    tables, acts_hist = stock.feature_tables_data, stock.acts_histogram_data
    numbers = beside.numbers
    logits = panel.logits.get(beside.model)
    table, logits_hist = (logits.table, logits.histogram) if logits else (None, None)
    neurons = [index - beside.neuron_shift for index in tables.correlated_neurons_indices]
    return {
        "feature_index": beside.index,
        "neuron_alignment_indices": beside.aligned.indices,
        "neuron_alignment_values": beside.logits(beside.aligned.second),
        "neuron_alignment_l1": numbers(beside.aligned.third),
        "correlated_neurons_indices": neurons,
        "correlated_neurons_l1": numbers(tables.correlated_neurons_cossim),
        "correlated_neurons_pearson": numbers(tables.correlated_neurons_pearson),
        "correlated_features_indices": beside.correlated.indices,
        "correlated_features_l1": numbers(beside.correlated.third),
        "correlated_features_pearson": numbers(beside.correlated.second),
        "neg_str": words.of(table.bottom_token_ids) if table else [],
        "neg_values": beside.logits(table.bottom_logits) if table else [],
        "pos_str": words.of(table.top_token_ids) if table else [],
        "pos_values": beside.logits(table.top_logits) if table else [],
        "frac_nonzero": share(panel.density),
        "freq_hist_data_bar_values": beside.acts(acts_hist.bar_values),
        "freq_hist_data_bar_heights": whole(acts_hist.bar_heights),
        "logits_hist_data_bar_heights": whole(logits_hist.bar_heights) if logits_hist else [],
        "logits_hist_data_bar_values": beside.logits(logits_hist.bar_values) if logits_hist else [],
        "n_prompts_total": beside.prompts,
        "n_tokens_in_prompt": beside.length,
        "dataset": beside.dataset,
        "decoder_weights_dist": [],
        "activations": _activations(panel, stock.sequence_data.seq_group_data, words, beside),
        "vector": [],
    }


def whole(counts: Sequence[float]) -> list[int]:
    """sae_vis reads its counts from JSON as 2.0."""
    return [int(count) for count in counts]


def share(fraction: float) -> float:
    """Through percent with three digits, as SAEDashboard reads it back from a title; two that count where that is 0."""
    if not fraction:
        return 0
    percent = f"{fraction:.3%}".rstrip("%")
    return float(percent) / 100 if float(percent) else float(f"{fraction:.2g}")


class Words:
    """Texts of token ids. An id that no token of the tokenizer has reads "#59" in our vocabulary, which all do where
    there is no tokenizer. NUL is written out, which Neuronpedia's database takes in no text."""

    def __init__(self, vocabulary: Mapping[int, str]):
        known = any(text != f"#{i}" for i, text in vocabulary.items())
        self.texts = {
            i: OUT_OF_RANGE if known and text == f"#{i}" else escaped(text).replace("\0", "\\x00")
            for i, text in vocabulary.items()
        }

    def of(self, ids: Sequence[int]) -> list[str]:
        return [*map(self.texts.__getitem__, ids)]


def _activations(panel: FeaturePanels, groups: Sequence[Any], words: Words, beside: Beside) -> list[dict[str, Any]]:
    """Examples of all groups; those drawn at random from all tokens have no bin, and are left out."""
    entries = []
    for group, shown, bounds in zip(groups, panel.sequences, panel.bounds, strict=True):
        bins = _bins(group.title, panel.maximum, bounds, beside.unit)
        if bins is not None:
            entries += [
                bins | _example(sequence, origin, words, beside)
                for sequence, origin in zip(group.seq_data, shown, strict=True)
            ]
    return entries


def _bins(
    title: str, highest: float, bounds: tuple[float, float, float] | None, unit: float
) -> dict[str, float] | None:
    """The top group is marked by -1. One of the lowest activations, below zero, reaches up to 0."""
    if bounds is not None:
        low, high, inside = bounds
        return {"bin_min": _edge(low * unit), "bin_max": _edge(high * unit), "bin_contains": _percent(inside)}
    if title.startswith("TOP ACTIVATIONS"):
        return {"bin_min": -1, "bin_max": _edge(highest * unit), "bin_contains": -1}
    lowest = re.search(r"MIN = (\S+)$", title)
    return {"bin_min": _edge(float(lowest[1]) * unit), "bin_max": 0.0, "bin_contains": 0.0} if lowest else None


def _edge(value: float) -> float:
    return float(f"{value:.3f}")


def _percent(fraction: float) -> float:
    return float(f"{fraction:.3%}".rstrip("%")) / 100


def _example(sequence: SequenceData, origin: ShownSequence, words: Words, beside: Beside) -> dict[str, Any]:
    """Tokens and activations of a whole row but its first token, or of as much of it as the dashboard shows. No direct
    feature attribution is made, which is said as SAEDashboard says it."""
    lead = beside.leads[origin.row] if beside.leads is not None else 0
    begins_row = origin.position - origin.bold == lead
    drop = 1 if begins_row and origin.bold > 0 else 0
    return {
        "tokens": words.of(sequence.token_ids[drop:]),
        "values": beside.acts(sequence.feat_acts[drop:]),
        "qualifying_token_index": origin.bold - drop,
        "dfa_values": [],
        "dfa_maxValue": 0,
        "dfa_targetIndex": -1,
    }
