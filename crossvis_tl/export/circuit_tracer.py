"""Dashboards as circuit-tracer's feature files, so that the nodes of its attribution graphs show our examples.

The front-end (safety-research/circuit-tracer, circuit_tracer/frontend/: local_server.py and
assets/feature_examples/init-feature-examples.js) asks for

| file | holds |
|---|---|
| index.json.gz | {"0": {"filename": "layer_0.bin", "offsets": [...]}, ...}: by layer, where features' records begin |
| layer_0.bin ... | for each feature of the layer: 4 bytes of length, little-endian, then gzip of JSON (`records`) |

The last offset is the file's size. Graphs whose transcoders were loaded from a local path find the folder by
`circuit-tracer start-server --features_dir` (its repository's; release 0.5.0 asks the hub alone), others in `features/`
of their repository on the hub. Every feature has a record, as the front-end has no other way to be told that there is
nothing to show.
"""

import gzip
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm.auto import tqdm

from crossvis_tl.build import Showing
from crossvis_tl.dashboards import Dashboards
from crossvis_tl.dictionary import Dictionary
from crossvis_tl.export.batches import Made, Shown, Source, Stored, opened, sources
from crossvis_tl.export.folders import check_names, digest, open_folder
from crossvis_tl.export.records import ABSENT, as_json, feature_record, packed, scanned
from crossvis_tl.feature_acts import FeatureActs
from crossvis_tl.files import clear_errors, drafted, read_json, write_whole
from crossvis_tl.fingerprints import dictionary_fingerprint
from crossvis_tl.layouts import Column, LogitsTableConfig, SaeVisConfig, SaeVisLayoutConfig, default_layout

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer

INDEX, OURS, WHAT = "index.json.gz", "crossvis_export.json", "an export for circuit-tracer"
FORMAT, VERSION = "crossvis_tl export for circuit-tracer", 1
# Features of a store whose dashboards are in memory together.
AT_A_TIME = 128


@dataclass(frozen=True)
class Layer(Source):
    """`layer`: its number, as the graphs have it."""

    layer: int

    @property
    def file(self) -> str:
        return f"layer_{self.layer}.bin"


def export_circuit_tracer(
    data: str | Path | FeatureActs | Dashboards,
    folder: str | Path,
    *,
    dictionary: Any = None,
    model: "HookedTransformer | Sequence[HookedTransformer] | None" = None,
    features: Sequence[int] | None = None,
    progress: bool = False,
) -> Path:
    """Writes the feature files of a CLT, or of a set of transcoders; an export that was stopped goes on at its layer.

    `data`: dashboards (`SaeVisData`), or a store's folder or what `open_store` gave, of which dashboards are made a few
    at a time and written at once. `features`: some of them, by number; the others' nodes say that they were not
    exported. `dictionary`: what they are of, for a store, and for dashboards that were loaded from JSON without it.
    `model`: for a store; it is not run, and without it there are no tokens raised and lowered.

    ValueError for a dictionary without layers, and dashboards of another; FileExistsError where `folder` holds
    something else or another export; OSError where it cannot be written.
    """
    shown = opened(data, dictionary, model, _config(), Showing("none"), features)
    folder, layers = Path(folder), _layers(shown.dictionary)
    files = [layer.file for layer in layers]
    names = [OURS, INDEX, *files]
    there = check_names(folder, names, WHAT)
    about = {"format": FORMAT, "version": VERSION, "layers": files, "export": _identity_of(shown, layers)}
    if there and OURS not in there:
        raise FileExistsError(
            f"{folder} holds feature files that crossvis_tl did not write; give an empty or a new folder"
        )
    if OURS in there and read_json(folder / OURS, "is damaged") != about:
        raise FileExistsError(
            f"{folder} holds another export, of other dashboards or another dictionary; give another folder"
        )
    known = {layer.layer: _offsets(folder, layer) for layer in layers if layer.file in there}
    open_folder(folder, names)
    if OURS not in there:
        write_whole(folder / OURS, [json.dumps(about, indent=1)])
    missing = [layer for layer in layers if layer.layer not in known]
    with _told(folder, len(layers), known):
        total = sum(len(layer.own(shown.features)) for layer in missing)
        with tqdm(total=total, desc="Exporting", unit="feature", disable=not progress) as bar:
            for layer in missing:
                known[layer.layer] = _write_layer(folder / layer.file, shown, layer, bar)
    _write_index(folder / INDEX, layers, known)
    return folder


@contextmanager
def _told(folder: Path, n_layers: int, done: dict[int, list[int]]) -> Iterator[None]:
    """An interrupt says how to go on."""
    try:
        yield
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            f"interrupted: {folder} holds {len(done)} of {n_layers} layers; the same call or command goes on from there"
        ) from None


def _config() -> SaeVisConfig:
    """The examples that pages show by default, and nothing that records do not hold."""
    sequences = default_layout("clt", 1, 1, 1).seq_cfg
    return SaeVisConfig(feature_centric_layout=SaeVisLayoutConfig([Column(LogitsTableConfig(), sequences)]))  # type: ignore[arg-type]


def _layers(dictionary: Dictionary) -> list[Layer]:
    """ValueError where features have no layers of their own."""
    found = sources(dictionary)
    kind = {"sae": "sparse autoencoder", "plt": "single transcoder"}.get(dictionary.kind, dictionary.kind)
    if dictionary.kind not in ("clt", "plt") or any(source.layer is None for source in found):
        raise ValueError(
            f"{dictionary.name} is a {kind}, whose features are not numbered by layer; circuit-tracer's graphs "
            "have nodes for the features of a cross-layer transcoder or of a transcoder for each layer"
        )
    return [Layer(source.layer, source.first, source.width) for source in found if source.layer is not None]


def _identity_of(shown: Shown, layers: list[Layer]) -> str:
    """Of all that is written, and of the dictionary: known for a store without making a dashboard."""
    if isinstance(shown, Stored):
        return shown.identity(shown.features, lambda *_: b"")
    data = shown.data
    if len(shown.features) < len(data.feature_data_dict):
        kept = {feature: data.feature_data_dict[feature] for feature in shown.features}
        data = replace(data, feature_data_dict=kept)
    return _identity(data, shown.dictionary, layers)


def _identity(data: Dashboards, dictionary: Dictionary, layers: list[Layer]) -> str:
    def pieces() -> Iterator[bytes]:
        yield dictionary_fingerprint(dictionary).encode()
        for layer in layers:
            yield f"{layer.layer} {layer.first} {layer.width}".encode()
            for feature in layer.own(list(data.feature_data_dict)):
                yield as_json(feature_record(data, feature, layer.layer, feature - layer.first))

    return digest(pieces())


def _offsets(folder: Path, layer: Layer) -> list[int]:
    """Of a layer that was written before. ValueError where its file is damaged."""
    offsets = list(scanned(folder / layer.file))
    if len(offsets) != layer.width + 1:
        raise ValueError(
            f"{folder / layer.file} is damaged: it holds {len(offsets) - 1:,} features of {layer.width:,}; delete it, "
            "and it is made again"
        )
    return offsets


def _write_layer(path: Path, shown: Shown, layer: Layer, bar: "tqdm[Any]") -> list[int]:
    """Record by record; the file appears whole or not at all. -> offsets"""
    offsets, absent = [0], packed(as_json(ABSENT))
    made = _records(shown, layer)
    following = next(made, None)
    with drafted(path) as draft:
        with clear_errors(path):
            file = draft.open("xb")
        with file:
            for index in range(layer.width):
                record = absent
                if following is not None and following[0] == index:
                    record = packed(following[1])
                    bar.update()
                    following = next(made, None)
                with clear_errors(path):
                    file.write(record)
                offsets.append(offsets[-1] + len(record))
            with clear_errors(path):
                file.flush()
    return offsets


def _records(shown: Shown, layer: Layer) -> Iterator[tuple[int, bytes]]:
    """-> index in the layer and record, ascending; dashboards of a store are made, and gone, some at a time."""
    own = layer.own(shown.features)
    size = len(own) if isinstance(shown, Made) else AT_A_TIME
    for begin in range(0, len(own), max(size, 1)):
        yield from _some_records(shown, own[begin : begin + size], layer)


def _some_records(shown: Shown, features: list[int], layer: Layer) -> Iterator[tuple[int, bytes]]:
    data = shown.batch(features)
    for feature in features:
        index = feature - layer.first
        yield index, as_json(feature_record(data, feature, layer.layer, index))


def _write_index(path: Path, layers: list[Layer], offsets: dict[int, list[int]]) -> None:
    """Last, so that a front-end finds nothing before all is there."""
    content: dict[str, Any] = {"version": "1.0", "format": "variable_chunks"}
    content |= {str(layer.layer): {"filename": layer.file, "offsets": offsets[layer.layer]} for layer in layers}
    with drafted(path) as draft, clear_errors(path):
        draft.write_bytes(gzip.compress(json.dumps(content, separators=(",", ":")).encode(), 6, mtime=0))
