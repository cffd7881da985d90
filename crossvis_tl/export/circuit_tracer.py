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
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crossvis_tl.dictionary import Dictionary
from crossvis_tl.encoders import as_dictionary
from crossvis_tl.export.folders import check_names, digest, open_folder
from crossvis_tl.export.records import ABSENT, as_json, feature_record, packed, scanned
from crossvis_tl.files import clear_errors, drafted, read_json, write_whole
from crossvis_tl.fingerprints import dictionary_fingerprint

if TYPE_CHECKING:
    from crossvis_tl.dashboards import Dashboards

INDEX, OURS, WHAT = "index.json.gz", "crossvis_export.json", "an export for circuit-tracer"
FORMAT, VERSION = "crossvis_tl export for circuit-tracer", 1


@dataclass(frozen=True)
class Layer:
    """`number`: as the graphs have it. `first`: number of its first feature in the dictionary."""

    number: int
    first: int
    width: int

    @property
    def file(self) -> str:
        return f"layer_{self.number}.bin"


def export_circuit_tracer(data: "Dashboards", folder: str | Path, *, dictionary: Any = None) -> Path:
    """Writes the feature files of a CLT, or of a set of transcoders; an export that was stopped goes on at its layer.

    `data`: dashboards (`SaeVisData`), of all features or some; the others' nodes say that they were not exported.
    `dictionary`: what they are of, for dashboards that were loaded from JSON without it.

    ValueError for a dictionary without layers, and dashboards of another; FileExistsError where `folder` holds
    something else or another export; OSError where it cannot be written.
    """
    source = dictionary if dictionary is not None else data.encoder
    if source is None:
        raise ValueError("these dashboards were loaded without their dictionary; pass dictionary=")
    source = source if isinstance(source, Dictionary) else as_dictionary(source, data.cfg.hook_point)
    folder = Path(folder)
    layers = _layers(source)
    _check_fit(data, source, layers)
    files = [layer.file for layer in layers]
    names = [OURS, INDEX, *files]
    there = check_names(folder, names, WHAT)
    about = {"format": FORMAT, "version": VERSION, "layers": files, "export": _identity(data, source, layers)}
    if there and OURS not in there:
        raise FileExistsError(
            f"{folder} holds feature files that crossvis_tl did not write; give an empty or a new folder"
        )
    if OURS in there and read_json(folder / OURS, "is damaged") != about:
        raise FileExistsError(
            f"{folder} holds another export, of other dashboards or another dictionary; give another folder"
        )
    known = {layer.number: _offsets(folder, layer) for layer in layers if layer.file in there}
    open_folder(folder, names)
    if OURS not in there:
        write_whole(folder / OURS, [json.dumps(about, indent=1)])
    for layer in layers:
        if layer.number not in known:
            known[layer.number] = _write_layer(folder / layer.file, data, layer)
    _write_index(folder / INDEX, layers, known)
    return folder


def _layers(dictionary: Dictionary) -> list[Layer]:
    """ValueError where features have no layers of their own."""
    numbers = [re.fullmatch(r"L(\d+)", group.name) for group in dictionary.groups]
    kind = {"sae": "sparse autoencoder", "plt": "single transcoder"}.get(dictionary.kind, dictionary.kind)
    if dictionary.kind not in ("clt", "plt") or not all(numbers):
        raise ValueError(
            f"{dictionary.name} is a {kind}, whose features are not numbered by layer; circuit-tracer's graphs "
            "have nodes for the features of a cross-layer transcoder or of a transcoder for each layer"
        )
    return [
        Layer(int(number[1]), first, group.n_features)
        for number, first, group in zip(numbers, dictionary.offsets, dictionary.groups, strict=False)
        if number
    ]


def _check_fit(data: "Dashboards", dictionary: Dictionary, layers: list[Layer]) -> None:
    """ValueError where dashboards are of another dictionary, or there are none."""
    if not data.feature_data_dict:
        raise ValueError("there are no dashboards to export")
    n = sum(layer.width for layer in layers)
    for feature in data.feature_data_dict:
        label = data.panels[feature].label
        if not 0 <= feature < n or dictionary.label(feature) != label:
            raise ValueError(
                f"these dashboards are of another dictionary: feature {feature} is {label} there, and "
                f"{dictionary.name} {'has no such feature' if not 0 <= feature < n else 'calls it otherwise'}"
            )


def _identity(data: "Dashboards", dictionary: Dictionary, layers: list[Layer]) -> str:
    """Of all that is written, and of the dictionary."""

    def pieces() -> Iterator[bytes]:
        yield dictionary_fingerprint(dictionary).encode()
        for layer in layers:
            yield f"{layer.number} {layer.first} {layer.width}".encode()
            for feature in sorted(f for f in data.feature_data_dict if layer.first <= f < layer.first + layer.width):
                yield as_json(feature_record(data, feature, layer.number, feature - layer.first))

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


def _write_layer(path: Path, data: "Dashboards", layer: Layer) -> list[int]:
    """Record by record; the file appears whole or not at all. -> offsets"""
    offsets, absent = [0], packed(as_json(ABSENT))
    with drafted(path) as draft:
        with clear_errors(path):
            file = draft.open("xb")
        with file:
            for index in range(layer.width):
                feature = layer.first + index
                shown = feature in data.feature_data_dict
                record = packed(as_json(feature_record(data, feature, layer.number, index))) if shown else absent
                with clear_errors(path):
                    file.write(record)
                offsets.append(offsets[-1] + len(record))
            with clear_errors(path):
                file.flush()
    return offsets


def _write_index(path: Path, layers: list[Layer], offsets: dict[int, list[int]]) -> None:
    """Last, so that a front-end finds nothing before all is there."""
    content: dict[str, Any] = {"version": "1.0", "format": "variable_chunks"}
    content |= {str(layer.number): {"filename": layer.file, "offsets": offsets[layer.number]} for layer in layers}
    with drafted(path) as draft, clear_errors(path):
        draft.write_bytes(gzip.compress(json.dumps(content, separators=(",", ":")).encode(), 6, mtime=0))
