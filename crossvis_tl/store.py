"""A folder of feature activations that can be kept: written part by part, gone on with, opened again, merged.

| file | holds |
|---|---|
| manifest.json | what it was made from and how (`Manifest`) |
| tokens.safetensors | tokens, which count, padding, documents |
| part-00000.safetensors ... | activations of some rows each (`Part`) |
| vocabulary.json | the text of every token id, where there was a tokenizer |
| sums-00000.safetensors | sums over all parts up to this one; only the last is kept |
"""

import json
import os
import re
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from crossvis_tl.calibration import KEPT
from crossvis_tl.feature_acts import FeatureActs
from crossvis_tl.fidelity import Fidelity, FidelityLabels, FidelitySums
from crossvis_tl.files import read_json, write_whole
from crossvis_tl.fingerprints import mask_fingerprint, tokens_fingerprint
from crossvis_tl.losses import ReplacementLoss, merged_losses
from crossvis_tl.manifest import NAME, Manifest
from crossvis_tl.masking import Mask
from crossvis_tl.parts import Part, open_tensors, write_tensors
from crossvis_tl.store_checks import sums_problem, tokens_fit
from crossvis_tl.vocabulary import Vocabulary

if TYPE_CHECKING:
    from crossvis_tl.sums import Sums

TOKENS, VOCABULARY = "tokens.safetensors", "vocabulary.json"
DRAFT = re.compile(r"\.(manifest\.json|vocabulary\.json|(tokens|part-\d+|sums-\d+)\.safetensors)\.[0-9a-f]+\.part")


def check_folder(folder: Path) -> None:
    """FileExistsError where `folder` is a file, or holds other things than a store or the beginning of one."""
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"{folder} is a file; a store is a folder")
    if folder.is_dir() and not (folder / NAME).is_file() and set(folder.iterdir()) - set(_drafts(folder)):
        raise FileExistsError(f"{folder} holds other things and is no store; give an empty or a new folder")


def _drafts(folder: Path) -> list[Path]:
    """Files of ours that were not finished."""
    return [path for path in folder.glob(".*.part") if DRAFT.fullmatch(path.name) and path.is_file()]


class Store:
    """A folder that a gathering writes to. `calibration`: as `FeatureActs`. ValueError when it holds something else or
    was made otherwise."""

    def __init__(
        self,
        folder: Path,
        manifest: Manifest,
        tokens: Tensor,
        mask: Mask,
        features: Tensor,
        calibration: Mapping[str, Tensor] | None = None,
    ):
        self.folder, self.manifest = folder, manifest
        check_folder(folder)
        for draft in _drafts(folder):  # of a run that was stopped while it wrote
            draft.unlink(missing_ok=True)
        if (folder / NAME).is_file():
            self._go_on()
        else:
            folder.mkdir(parents=True, exist_ok=True)
            manifest.write(folder)
        if not (folder / TOKENS).is_file():
            write_tokens(folder, tokens, mask, features, calibration or {})

    def _go_on(self) -> None:
        held = Manifest.read(self.folder)
        differences = held.differences(self.manifest)
        if differences:
            raise ValueError(
                f"{self.folder} was gathered with {', '.join(differences)}; give another folder, or delete this one"
            )
        self.manifest = held

    def parts(self) -> list[Part]:
        """Those that are whole and whose sums are written."""
        last = self._last_sums()
        return [] if last is None else [Part.open(_part(self.folder, i)) for i in range(last + 1)]

    def sums(self) -> dict[str, Tensor]:
        """Over all `parts`."""
        last = self._last_sums()
        return {} if last is None else open_tensors(_sums(self.folder, last))[0]

    def _last_sums(self) -> int | None:
        return max(_numbers(self.folder, "sums"), default=None)

    def add(self, part: Part, number: int, sums: "Sums") -> Part:
        """Writes a part, then the sums with it: stopped in between, the part is made again. -> the part, mapped."""
        path = _part(self.folder, number)
        part.write(path)
        write_tensors(_sums(self.folder, number), sums.tensors(), {})
        _sums(self.folder, number - 1).unlink(missing_ok=True)
        return Part.open(path)


def _part(folder: Path, number: int) -> Path:
    return folder / f"part-{number:05}.safetensors"


def _numbers(folder: Path, kind: str) -> list[int]:
    matches = (re.fullmatch(rf"{kind}-(\d+)\.safetensors", path.name) for path in folder.iterdir())
    return [int(match[1]) for match in matches if match]


def _sums(folder: Path, number: int) -> Path:
    return folder / f"sums-{number:05}.safetensors"


def open_store(path: str | Path) -> FeatureActs:
    """Feature activations gathered before, mapped from disk.

    FileNotFoundError where there is no store; ValueError when it is damaged, of a newer version, or not complete.
    """
    folder = Path(path)
    manifest = Manifest.read(folder)
    content, _ = open_tensors(folder / TOKENS)
    try:
        tokens, features = content["tokens"].clone(), content["features"].clone()
        masked = tuple((str(what), int(n)) for what, n in manifest.masked)
        counted, *others = (content[name].clone() for name in ("counted", "lead", "tail", "documents"))
        mask = Mask(counted, masked, *others, documents_given=manifest.documents_given, how=manifest.mask_how)
    except KeyError as error:
        raise ValueError(f"{folder / TOKENS} is damaged: it has no {error}") from error
    if not tokens_fit(tokens, features, mask, manifest.n_features):
        raise ValueError(f"{folder / TOKENS} is damaged: what it holds does not fit together")
    found = (tokens_fingerprint(tokens), tokens_fingerprint(features[None]), mask_fingerprint(mask))
    if found != (manifest.tokens, manifest.features, manifest.mask):
        raise ValueError(f"{folder / TOKENS} is damaged: it is not what {NAME} says the store was made from")
    numbers = [*_numbers(folder, "sums"), *(_numbers(folder, "part") if manifest.complete else ())]
    parts = tuple(Part.open(_part(folder, number)) for number in range(max(numbers, default=-1) + 1))
    rows = sum(part.n_rows for part in parts)
    if not manifest.complete:
        raise ValueError(
            f"{folder} holds {min(rows, len(tokens)):,} of {len(tokens):,} sequences: the gathering was not finished. "
            "Say the same call or command again, and it goes on from there"
        )
    if rows != len(tokens):
        raise ValueError(f"{folder} is damaged: its parts hold {rows:,} of {len(tokens):,} sequences")
    sums, _ = open_tensors(_sums(folder, len(parts) - 1))
    problem = sums_problem(sums, len(features), manifest)
    if problem:
        raise ValueError(f"{_sums(folder, len(parts) - 1)} is damaged: {problem}")
    acts = FeatureActs(
        tokens, mask, features, torch.arange(len(features)), parts, sums, judged(sums, manifest), manifest,
        vocabulary=read_vocabulary(folder), folder=str(folder),
        calibration={name: x.clone() for name, x in content.items() if name.startswith(KEPT)},
    )  # fmt: skip
    for number, part in enumerate(parts):
        scales = (part.n_rows * tokens.shape[1], len(manifest.scaled)) if manifest.scaled else (0, 0)
        fits = tuple(part.scales.shape) == scales and part.shares.shape[1] == manifest.attributed
        if len(part.starts) != len(features) + 1 or not fits:
            raise ValueError(f"{_part(folder, number)} is damaged: it holds other features or tokens than it should")
    return acts


def write_tokens(folder: Path, tokens: Tensor, mask: Mask, features: Tensor, calibration: Mapping[str, Tensor]) -> None:
    content = dict(calibration) | {
        "tokens": tokens, "features": features, "counted": mask.counted, "lead": mask.lead, "tail": mask.tail,
        "documents": mask.documents,
    }  # fmt: skip
    write_tensors(folder / TOKENS, content, {})


def texts_of(tokens: Tensor, tokenizer: Any) -> dict[int, str]:
    """The texts of all token ids, so that pages can be made without the model; {} without a tokenizer."""
    return {} if tokenizer is None else Vocabulary(tokenizer).texts(torch.unique(tokens).tolist())


def write_vocabulary(folder: Path, texts: Mapping[int, str]) -> None:
    if texts:
        write_whole(folder / VOCABULARY, [json.dumps({str(i): text for i, text in texts.items()})])


def read_vocabulary(path: str | Path) -> dict[int, str]:
    """{} where there is none. ValueError when it is damaged."""
    file = Path(path) / VOCABULARY
    if not file.is_file():
        return {}
    content = read_json(file, "is damaged")
    try:
        return {int(i): str(text) for i, text in content.items()}
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{file} is damaged: {error}") from error


def judged(sums: Any, manifest: Manifest) -> Fidelity:
    """The verdict that sums and what was found beside them give."""
    labels = FidelityLabels(manifest.labels["sites"], [(name, size) for name, size in manifest.labels["groups"]])
    widths = [len(sums[f"fidelity.total.{t}"]) for t in range(len(labels.sites))]
    fidelity = FidelitySums(widths, manifest.n_features)
    fidelity.add_tensors({key.removeprefix("fidelity."): tensor for key, tensor in sums.items()})
    losses = [ReplacementLoss.from_dict(one) for one in manifest.losses]
    return replace(fidelity.result(labels), losses=losses).with_diagnosis(manifest.causes, manifest.notes)


def save_acts(acts: FeatureActs, path: str | Path) -> Path:
    """Writes what was gathered in memory as a store, which appears whole or not at all. FileExistsError where something
    lies at `path`; ValueError for a selection of what was gathered."""
    folder = Path(path)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"{folder} is there already; give a new folder")
    stored = len(acts.parts[0].starts) - 1
    if not torch.equal(acts.columns, torch.arange(stored)):
        raise ValueError("only some of the gathered features are selected; save the gathering they were selected from")
    folder.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".part", dir=folder.parent))
    try:
        write_tokens(draft, acts.tokens, acts.mask, acts.features, acts.calibration)
        for number, part in enumerate(acts.parts):
            part.write(_part(draft, number))
        write_tensors(_sums(draft, len(acts.parts) - 1), dict(acts.sums), {})
        write_vocabulary(draft, acts.vocabulary or texts_of(acts.tokens, acts.tokenizer))
        acts.manifest.write(draft)
        draft.chmod(0o777 & ~_umask())
        if folder.is_dir():
            folder.rmdir()
        draft.rename(folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return folder


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def merge_acts(shards: Sequence[FeatureActs]) -> FeatureActs:
    """Gatherings of the same features on different token sets as one, in this order; nothing is copied.

    ValueError when they were not made by the same dictionary and models and in the same way.
    """
    if not shards:
        raise ValueError("there is nothing to merge; give at least one gathering")
    first = shards[0]
    if len({shard.manifest.tokens for shard in shards}) < len(shards):
        raise ValueError("two of these gatherings are of the very same tokens; each may be merged once")
    for shard in shards[1:]:
        same = replace(shard.manifest, tokens=first.manifest.tokens, mask=first.manifest.mask)
        differences = first.manifest.differences(same)
        if shard.mask.how != first.mask.how:
            differences.append(f"another mask ({shard.mask.how}, not {first.mask.how})")
        if shard.mask.documents_given != first.mask.documents_given:
            differences.append("documents whose numbers were given, where the others' were not")
        if shard.manifest.attributed != first.manifest.attributed:
            differences.append("sources' shares, where the others' were not")
        if shard.tokens.shape[1] != first.tokens.shape[1]:
            differences.append(f"sequences of {shard.tokens.shape[1]} positions, not {first.tokens.shape[1]}")
        if not torch.equal(shard.features, first.features):
            differences.append("other features")
        if differences:
            raise ValueError(f"these gatherings do not belong together: one was made with {', '.join(differences)}")
    known = set.intersection(*(set(shard.sums) for shard in shards))  # products may be lacking where they were large
    sums = {name: torch.stack([shard.sums[name] for shard in shards]).sum(0) for name in first.sums if name in known}
    tokens = torch.cat([shard.tokens for shard in shards])
    mask = _merged_masks(shards)
    causes, notes = (
        list(dict.fromkeys(text for shard in shards for text in getattr(shard.manifest, name)))
        for name in ("causes", "notes")
    )
    manifest = replace(
        first.manifest, tokens=tokens_fingerprint(tokens), masked=[list(one) for one in mask.masked],
        mask=mask_fingerprint(mask), causes=causes, notes=notes, origin={**first.manifest.origin},
        losses=[asdict(one) for one in merged_losses([shard.fidelity.losses for shard in shards])],
    )  # fmt: skip
    finals = [shard.final for shard in shards]
    final = [torch.cat(one) for one in zip(*finals, strict=True)] if all(f is not None for f in finals) else None
    return FeatureActs(
        tokens, mask, first.features, first.columns, tuple(part for shard in shards for part in shard.parts), sums,
        judged(sums, manifest), manifest, final, [shard.home for shard in shards],
        {i: text for shard in shards for i, text in shard.vocabulary.items()}, first.tokenizer,
        calibration=first.calibration,
    )  # fmt: skip


def _merged_masks(shards: Sequence[FeatureActs]) -> Mask:
    """Documents are numbered on, unless the caller gave their numbers."""
    documents, following = [], 0
    for shard in shards:
        given = shard.manifest.documents_given
        documents.append(shard.mask.documents if given else shard.mask.documents + following)
        following = int(documents[-1].max()) + 1
    masked: dict[str, int] = {}
    for what, n in (one for shard in shards for one in shard.mask.masked):
        masked[what] = masked.get(what, 0) + n
    counted, lead, tail = (
        torch.cat([getattr(shard.mask, name) for shard in shards]) for name in ("counted", "lead", "tail")
    )
    given = any(shard.mask.documents_given for shard in shards)
    return Mask(counted, tuple(masked.items()), lead, tail, torch.cat(documents), given, shards[0].mask.how)
