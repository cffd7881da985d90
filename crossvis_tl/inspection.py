"""What lies at a path, told without a model: format, sites, activation, sizes, what is missing, how to load it."""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from crossvis_tl.dictionary import Dictionary, Site
from crossvis_tl.errors import MissingFact
from crossvis_tl.formats import load_dictionary

# More than any format asks for at once.
MOST_FACTS = 8
# Layers of which the sites and groups are written out; of more, the first and the last.
WRITTEN_OUT = 6


@dataclass(frozen=True)
class SiteInfo:
    """`place`: how the site is read, None where the files do not say. `normalised`: with what, in words."""

    model: int
    place: str | None
    width: int
    processing: str | None
    normalised: str | None


@dataclass(frozen=True)
class Inspection:
    """`needed`: facts that loading asks for; the rest was looked at with stand-ins for them, so that numbers which
    depend on them are not meant. `missing`: facts that gathering asks for. `weights`: types of the stored numbers.
    `line`: the Python that loads it."""

    path: str
    format: str
    kind: str
    activation: str
    n_features: int
    groups: dict[str, int]
    sources: list[SiteInfo]
    targets: list[SiteInfo]
    models: list[str]
    weights: list[str]
    bytes: int
    needed: dict[str, str]
    missing: list[str]
    facts: dict[str, str]
    line: str
    notes: list[str] = field(default_factory=list)

    def as_json(self) -> str:
        return json.dumps(asdict(self), indent=2)


def inspect(path: str | Path, **options: Any) -> Inspection:
    """Looks at what lies at a path or under an id of the hub. `options`: as `load_dictionary` takes them.

    FileNotFoundError and ValueError as there, but not for a fact that is missing: that is what this tells.
    """
    needed: dict[str, str] = {}
    stand_ins: dict[str, Any] = {}
    for _ in range(MOST_FACTS):
        try:
            dictionary = load_dictionary(path, **(stand_ins | options))
            break
        except MissingFact as lack:
            needed[lack.fact] = str(lack)
            stand_ins[lack.fact] = lack.stand_in
    else:
        raise ValueError(f"{path} asks for one fact after the other ({', '.join(needed)}); it cannot be looked at")
    return _told(path, dictionary, options, needed)


def _told(path: str | Path, dictionary: Dictionary, options: dict[str, Any], needed: dict[str, str]) -> Inspection:
    weights = [*_weights(dictionary)]
    # of weights that several targets share, once
    bytes_ = sum({(W.data_ptr() if hasattr(W, "data_ptr") else id(W)): W.nbytes for W in weights}.values())
    asked = {**dict.fromkeys(needed, "..."), **dict.fromkeys(dictionary.missing, "...")}
    given = {name: repr(value) for name, value in options.items() if value not in (None, False)}
    arguments = ", ".join([repr(str(path)), *(f"{name}={value}" for name, value in (given | asked).items())])
    notes = []
    if dictionary.batch_dependent:
        notes.append(
            "features depend on the batch they are encoded in: dictionary = crossvis_tl.calibrate(dictionary, models, "
            "tokens) fixes a threshold"
        )
    if dictionary.skip:
        notes.append("has a skip connection: reconstructions need the inputs too")
    if dictionary.target_norm:
        notes.append("reconstructs normalised activations: effects on logits are not defined")
    if dictionary.n_models > 1:
        notes.append(f"reads {dictionary.n_models} models, in this order")
    return Inspection(
        path=str(path), format=dictionary.format, kind=dictionary.kind,
        activation="?" if "activation" in needed else dictionary.activation, n_features=dictionary.n_features,
        groups={group.name or "all": group.n_features for group in dictionary.groups},
        sources=_sites(dictionary, dictionary.sources, "read"), targets=_sites(dictionary, dictionary.targets, "write"),
        models=[str(name) for name in dictionary.model_names if name],
        weights=sorted({str(W.dtype).removeprefix("torch.") for W in weights}), bytes=bytes_, needed=needed,
        missing=[name for name in dictionary.missing if name not in needed],
        facts={name: str(value) for name, value in dictionary.facts.items() if name not in needed},
        line=f"crossvis_tl.load_dictionary({arguments})", notes=notes,
    )  # fmt: skip


def _weights(dictionary: Dictionary) -> Iterator[Any]:
    for group in dictionary.groups:
        yield from (*group.W_enc.values(), *group.W_dec.values())


def _sites(dictionary: Dictionary, sites: tuple[Site, ...], role: str) -> list[SiteInfo]:
    norms = dictionary.normalize if role == "read" else {**dictionary.denormalize, **dictionary.target_norm}
    words = {"TokenNorm": "each token", "Affine": "mean and scale"}
    return [
        SiteInfo(
            site.model, site.place, site.width, site.processing,
            words[type(norms[i]).__name__] if i in norms else None,
        )
        for i, site in enumerate(sites)
    ]  # fmt: skip


def lines(found: Inspection) -> Iterator[tuple[str, str]]:
    """Label and text of each line for people; an empty label goes on with the one before."""
    kind = "transcoder" if found.kind == "sae" and found.targets != found.sources else _KINDS[found.kind]
    yield "format", f"{found.format}, a {kind}"
    yield "features", f"{found.n_features:,} {found.activation}{_groups(found.groups)}"
    yield "weights", f"{_size(found.bytes)} of {', '.join(found.weights)}"
    if found.models:
        yield "models", ", ".join(found.models)
    for label, sites in (("reads", found.sources), ("writes", found.targets)):
        if label == "writes" and sites == found.sources:
            yield "writes", "where it reads"
            continue
        for i, text in enumerate(_shown(sites)):
            yield "" if i else label, text
    for name, value in found.facts.items():
        yield name.replace("_", " "), value
    for note in found.notes:
        yield "note", note
    for text in found.needed.values():
        yield "needed", text
    if found.missing:
        yield "missing", f"{', '.join(found.missing)}: loads without, but gathering asks for it"
    yield "load it", found.line


_KINDS = {
    "sae": "sparse autoencoder",
    "crosscoder": "crosscoder",
    "clt": "cross-layer transcoder",
    "plt": "transcoder of each layer",
}


def _groups(groups: dict[str, int]) -> str:
    if len(groups) == 1:
        return ""
    names, sizes = list(groups), sorted(set(groups.values()))
    each = f"{sizes[0]:,}" if len(sizes) == 1 else f"{sizes[0]:,} to {sizes[-1]:,}"
    return f" in {len(groups)} layers of {each} ({names[0]} to {names[-1]})"


def _shown(sites: list[SiteInfo]) -> Iterator[str]:
    for i, site in enumerate(sites):
        if len(sites) > WRITTEN_OUT and 2 <= i < len(sites) - 1:
            if i == 2:
                yield f"... {len(sites) - 3} more ..."
            continue
        several = len({one.model for one in sites}) > 1
        model = f"model {site.model}: " if several else ""
        norm = f", normalised ({site.normalised})" if site.normalised else ""
        processing = f", processing {site.processing}" if site.processing else ", processing unknown"
        yield f"{model}{site.place or '? (hook not known)'}, {site.width} wide{processing}{norm}"


def _size(n: int) -> str:
    for unit, size in (("GB", 2**30), ("MB", 2**20), ("kB", 2**10)):
        if n >= size:
            return f"{n / size:,.1f} {unit}"
    return f"{n} bytes"
