"""Features' dashboards as Neuronpedia imports them, in either of two layouts.

| layout | a source's folder | holds |
|---|---|---|
| batches | MODEL_SET_HOOK_WIDTH[_SUFFIX] | what SAEDashboard 0.8 writes: batch-0.json ... (`neuronpedia_features`), \
run_settings.json, skipped_indexes.json, tokens_ROWS.pt |
| source | MODEL/LAYER-SET[__SUFFIX] | what its later versions write: release, model, sourceset and source.jsonl, \
features/batch-0.jsonl.gz ..., activations/batch-0.jsonl.gz ... (`neuronpedia_rows`) |

Neuronpedia has a source for each layer: a CLT and a set of transcoders give a folder for each. SAEDashboard shows a
CLT's feature by its decoder to its own layer alone; here logits and aligned neurons are of all its decoders together.

Of a store, dashboards are made a batch at a time and written at once, so that memory does not grow with the number of
features. A file appears whole or not at all; an export that was stopped goes on at the first batch that is not there.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm.auto import tqdm

from crossvis_tl.build import Showing
from crossvis_tl.dashboards import Dashboards
from crossvis_tl.dictionary import Dictionary
from crossvis_tl.errors import check_word, short_list, whole_numbers
from crossvis_tl.examples import PER_DOCUMENT
from crossvis_tl.export.batches import Shown, Source, opened, sources
from crossvis_tl.export.neuronpedia_folders import BatchFolder, SourceFolder
from crossvis_tl.export.neuronpedia_parts import Asked, part_of
from crossvis_tl.export.neuronpedia_rows import NeuronpediaRelease
from crossvis_tl.export.neuronpedia_tables import Correlated
from crossvis_tl.feature_acts import FeatureActs
from crossvis_tl.layouts import (
    ActsHistogramConfig,
    Column,
    FeatureTablesConfig,
    LogitsHistogramConfig,
    LogitsTableConfig,
    SaeVisConfig,
    SaeVisLayoutConfig,
    SequencesConfig,
)
from crossvis_tl.store import open_store

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer

LAYOUTS = {"batches": BatchFolder, "source": SourceFolder}
# After the point, as SAEDashboard's version of each layout rounds.
DIGITS = {"batches": 3, "source": 5}


def export_neuronpedia(  # noqa: PLR0913 - the user's own call, with SAEDashboard's settings
    store: str | Path | FeatureActs | Dashboards,
    folder: str | Path,
    *,
    model_id: str,
    source_set: str,
    dictionary: Any = None,
    model: "HookedTransformer | Sequence[HookedTransformer] | None" = None,
    layer: int | None = None,
    sae_id_suffix: str | None = None,
    layout: str = "batches",
    release: NeuronpediaRelease | None = None,
    dataset: str = "",
    features: Sequence[int] | None = None,
    skip_dead: bool = False,
    features_per_batch: int = 128,
    start_batch: int = 0,
    end_batch: int | None = None,
    n_quantiles: int = 5,
    top_acts_group_size: int = 20,
    quantile_group_size: int = 5,
    per_document: int | None = PER_DOCUMENT,
    distinct: bool = True,
    correlated: Correlated | None = None,
    of_model: int = 0,
    unit_decoders: bool = False,
    seed: int = 0,
    settings: Mapping[str, Any] | None = None,
    progress: bool = False,
) -> Path:
    """Writes what Neuronpedia imports, a folder for each source (the module says which); -> `folder`.

    `store`: a store's folder or what `open_store` or `gather` gave, with its `dictionary`; `model`, one or a list as
    for gathering, is not run: without it there are no tokens raised and lowered. Or dashboards that were made
    (`SaeVisData`), of which the examples are as they were made.

    `model_id`, `source_set`, `sae_id_suffix`: Neuronpedia's names ("gemma-2-2b", "clt-16k"; SAEDashboard's
    `np_set_name`). `layer`: of a CLT the one to export, default all; else the number to give, needed where the
    dictionary's hooks do not say one. `features`: numbers in the dictionary, default all that were gathered; a source's
    others stand in skipped_indexes.json, and with `skip_dead` so do those that never fire. `release`: for the layout
    "source". `dataset`: where the tokens are from.

    `features_per_batch`: at most, with batches nearly alike; `start_batch`, `end_batch`: the first and the last to
    write of each source. `n_quantiles`, `top_acts_group_size`, `quantile_group_size`: of examples, whole sequences
    each. `per_document`, `distinct`: which examples a group may show (`SaeVisData.create`; SAEDashboard's own: None
    and False). `correlated`: neighbours among the "source" or the "batch" (as SAEDashboard), default the source if its
    activations fit in memory. `of_model`: whose logits and neurons, of several models. `unit_decoders`: of features
    with one decoder row each, activations are multiplied by its length and logits divided by it, as SAEDashboard does
    for SAEs and transcoders. `seed`: of samples. `settings`: of run_settings.json, in
    place of what is known; what JSON can hold. `progress`: shown.

    Several may write to one folder at a time, each its own batches (`start_batch`, `end_batch`).

    ValueError for what cannot be, before anything is written; FileExistsError where a source's folder holds something
    else or another export; OSError where it cannot be written.
    """
    check_layout(layout, release)
    asked = Asked(
        model_id=model_id, source_set=source_set, suffix=sae_id_suffix, release=release, dataset=dataset,
        features_per_batch=features_per_batch, start_batch=start_batch, end_batch=end_batch, n_quantiles=n_quantiles,
        top_acts_group_size=top_acts_group_size, quantile_group_size=quantile_group_size, correlated=correlated,
        of_model=of_model, skip_dead=skip_dead, unit_decoders=unit_decoders, digits=DIGITS[layout],
        settings=settings or {},
    )  # fmt: skip
    if isinstance(store, str | Path):
        store = open_store(store)
    cfg = _config(store, asked, seed)
    shown = opened(store, dictionary, model, cfg, Showing("none", per_document, distinct), features)
    check_dictionary(shown.dictionary, of_model, unit_decoders=unit_decoders)
    root = Path(folder)
    parts = [part for source, number in _sources(shown, layer) if (part := part_of(shown, source, number, asked))]
    if not parts:
        raise ValueError("none of the features fires, and skip_dead leaves those out")
    check_batches([len(part.batches) for part in parts], start_batch, end_batch)
    writers = [LAYOUTS[layout](root, part) for part in parts]
    missing = [writer.missing() for writer in writers]  # all of it is looked at before anything is written
    total, done = sum(map(len, missing)), 0
    with tqdm(total=total, desc="Exporting", unit="batch", disable=not progress) as bar:
        try:
            for writer, numbers in zip(writers, missing, strict=True):
                writer.begin()
                for number in numbers:
                    writer.write(number)
                    done += 1
                    bar.update()
        except KeyboardInterrupt:
            raise KeyboardInterrupt(
                f"interrupted: {root} lacks {total - done:,} of {sum(len(part.wanted) for part in parts):,} batches; "
                "the same call or command goes on from there"
            ) from None
    return root


def _config(store: FeatureActs | Dashboards, asked: Asked, seed: int) -> SaeVisConfig:
    """What SAEDashboard shows for Neuronpedia, of whole sequences. Of dashboards that were made it is not asked."""
    length = 0 if isinstance(store, Dashboards) else store.tokens.shape[1]
    sequences = SequencesConfig(
        buffer=(length, length), n_quantiles=asked.n_quantiles, top_acts_group_size=asked.top_acts_group_size,
        quantile_group_size=asked.quantile_group_size, top_logits_hoverdata=0,
    )  # fmt: skip
    tables = FeatureTablesConfig(
        n_rows=3, neuron_alignment_table=False, correlated_neurons_table=True, correlated_features_table=False,
        correlated_b_features_table=False,
    )  # fmt: skip
    parts = (tables, ActsHistogramConfig(), LogitsHistogramConfig(), LogitsTableConfig(), sequences)
    return SaeVisConfig(feature_centric_layout=SaeVisLayoutConfig([Column(*parts)]), seed=seed)


def check_layout(layout: str, release: NeuronpediaRelease | None) -> None:
    """ValueError for an unknown layout, or one that lacks its release."""
    check_word("layout", layout, tuple(LAYOUTS))
    if layout == "source" and release is None:
        raise ValueError('layout="source" needs release=NeuronpediaRelease(name=..., title=..., creator=...)')


def check_dictionary(dictionary: Dictionary, of_model: int = 0, *, unit_decoders: bool = False) -> None:
    """ValueError where the dictionary has not what is asked of it."""
    whole_numbers([of_model], "of_model", "a model's number")
    models = dictionary.n_models
    if not 0 <= of_model < models:
        raise ValueError(f"of_model={of_model}; these features are of {models} models, 0 to {models - 1}")
    if all(site.model != of_model for site in dictionary.targets):
        raise ValueError(f"of_model={of_model}: these features write nothing to that model")
    if unit_decoders and any(len(group.W_dec) > 1 for group in dictionary.groups):
        raise ValueError(
            f"unit_decoders=True, but features of {dictionary.name} have several decoder rows and no one length"
        )


def layer_number(dictionary: Dictionary, asked: int | None) -> int | None:
    """The number that Neuronpedia gets for a dictionary without layers of its own; None for one with layers.
    ValueError where it must be given."""
    found = sources(dictionary)
    if len(found) == 1:
        return _only_layer(dictionary, asked)
    if any(source.layer is None for source in found):
        raise ValueError(f"{dictionary.name} has groups of features without layers, which Neuronpedia cannot number")
    return None


def _sources(shown: Shown, layer: int | None) -> list[tuple[Source, int]]:
    """Those to export, and the layer's number that each is given."""
    found = sources(shown.dictionary)
    number = layer_number(shown.dictionary, layer)
    if number is not None:
        return [(found[0], number)]
    there = [source for source in found if source.own(shown.features)]
    chosen = [source for source in there if layer in (None, source.layer)]
    if not chosen:
        names = short_list(sorted(source.layer for source in there if source.layer is not None))
        raise ValueError(f"layer={layer!r}: there are features of layers {names}")
    return [(source, source.layer) for source in chosen if source.layer is not None]


def _only_layer(dictionary: Dictionary, asked: int | None) -> int:
    """Of a dictionary without layers: as told, or where all of its sources lie."""
    if asked is not None:
        if isinstance(asked, bool) or not isinstance(asked, int) or asked < 0:
            raise ValueError(f"layer={asked!r}; expected a layer's number")
        return asked
    group = re.fullmatch(r"L(\d+)", dictionary.groups[0].name)
    layers = {site.layer for site in dictionary.sources} if group is None else {int(group[1])}
    found = layers.pop() if len(layers) == 1 else None
    if found is None:
        sites = short_list(str(site.place) for site in dictionary.sources)
        raise ValueError(
            f"{dictionary.name} reads {sites}, which is not one layer; give the number that Neuronpedia is to have "
            "for it, layer=..."
        )
    return found


def check_batches(counts: Sequence[int], start_batch: int, end_batch: int | None) -> None:
    """ValueError where none of so many batches is asked for."""
    if start_batch >= max(counts):
        raise ValueError(f"start_batch={start_batch}; there are {max(counts)} batches, from 0 on")
    if end_batch is not None and end_batch < start_batch:
        raise ValueError(f"end_batch={end_batch} comes before start_batch={start_batch}")
