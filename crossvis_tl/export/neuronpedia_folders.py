"""The folders of an export for Neuronpedia, one for each source: what lies there, and what is still to be written."""

import io
import json
import re
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from crossvis_tl.export.batches import Stored
from crossvis_tl.export.folders import check_names, digest_of, name_problem, open_folder
from crossvis_tl.export.neuronpedia_parts import Part
from crossvis_tl.export.neuronpedia_rows import (
    Place,
    about_rows,
    activation_rows,
    feature_row,
    lines,
    now,
)
from crossvis_tl.export.zipped import is_whole, zipped
from crossvis_tl.files import clear_errors, drafted, read_json, write_whole

OURS, WHAT = "crossvis_export.json", "an export for Neuronpedia"
FORMAT, VERSION = "crossvis_tl export for Neuronpedia", 1
SETTINGS, SKIPPED = "run_settings.json", "skipped_indexes.json"
LOG_SPARSITY = -6  # SAEDashboard writes its default down and filters by nothing


class _Folder:
    """Of one source. `names`: all files and folders that may lie in it."""

    def __init__(self, path: Path, part: Part, names: Iterable[str]):
        self.path, self.part, self.names = path, part, [OURS, *names]
        problem = name_problem(path.name)
        if problem:
            raise ValueError(f"the folder of layer {part.layer}: {problem}")
        self.there = check_names(path, self.names, WHAT)
        self.created = now()
        self._check_ours()

    def _check_ours(self) -> None:
        """FileExistsError where another export lies here."""
        if not self.there:
            return
        if OURS not in self.there:
            raise FileExistsError(
                f"{self.path} holds files that crossvis_tl did not write; give an empty or a new folder"
            )
        held = read_json(self.path / OURS, "is damaged")
        if (
            not isinstance(held, dict)
            or not isinstance(held.get("created"), str)
            or held != self._ours(held["created"])
        ):
            raise FileExistsError(
                f"{self.path} holds another export, with other features, tokens or settings; give another folder"
            )
        self.created = held["created"]

    def _ours(self, created: str) -> dict[str, Any]:
        part = self.part
        return {
            "format": FORMAT, "version": VERSION, "created": created, "export": part.identity,
            "batches": len(part.batches), "correlated_features": part.among,
        }  # fmt: skip

    def _open(self) -> None:
        open_folder(self.path, self.names)
        if OURS not in self.there:
            write_whole(self.path / OURS, [json.dumps(self._ours(self.created), indent=1)])


class BatchFolder(_Folder):
    """As SAEDashboard 0.8 leaves it. Its settings are those of this export where they mean something, else defaults;
    its tokens file is written, from which SAEDashboard reads the same tokens if it is run there."""

    def __init__(self, root: Path, part: Part):
        asked, hook = part.asked, re.sub(r"[^\w.-]", "_", part.hook)
        name = f"{asked.model_id}_{asked.source_set}_{hook}_{part.source.width}"
        self.tokens = f"tokens_{part.shown.shape[0]}.pt"
        batches = [_batch(number) for number in range(len(part.batches))]
        name += f"_{asked.suffix}" if asked.suffix else ""
        super().__init__(root / name, part, [SETTINGS, SKIPPED, self.tokens, *batches])

    def missing(self) -> list[int]:
        """Batches to be written. ValueError for one that is there and is not whole."""
        there = [number for number in self.part.wanted if _batch(number) in self.there]
        for number in there:
            self._check_whole(self.path / _batch(number))
        return [number for number in self.part.wanted if number not in there]

    def _check_whole(self, path: Path) -> None:
        """By its beginning and its end: a large export is gone on with at once."""
        begin, end = self._edges
        with path.open("rb") as file:
            head = file.read(len(begin))
            file.seek(max(0, path.stat().st_size - len(end)))
            if head != begin or file.read() != end:
                raise ValueError(
                    f"{path} is damaged: it does not begin and end as a batch; delete it, and it is made again"
                )

    @cached_property
    def _edges(self) -> tuple[bytes, bytes]:
        return json.dumps(self.part.first_keys)[:-1].encode() + b', "features": [', b"]}"

    def begin(self) -> None:
        self._open()
        _write_if_other(self.path / SETTINGS, json.dumps(self._settings(), indent=4))
        skipped = {
            "model_id": self.part.asked.model_id, "layer": str(self.part.layer), "sae_set": self.part.asked.source_set,
            "log_sparsity": LOG_SPARSITY, "skipped_indexes": self.part.skipped,
        }  # fmt: skip
        _write_if_other(self.path / SKIPPED, json.dumps(skipped))
        shown = self.part.shown
        if isinstance(shown, Stored) and self.tokens not in self.there:
            buffer = io.BytesIO()
            torch.save(shown.acts.tokens, buffer)
            with drafted(self.path / self.tokens) as draft, clear_errors(self.path / self.tokens):
                draft.write_bytes(buffer.getvalue())

    def write(self, number: int) -> None:
        begin, end = self._edges

        def chunks() -> Iterator[str]:
            yield begin.decode()
            for i, entry in enumerate(self.part.entries(number)):
                yield (", " if i else "") + json.dumps(entry)
            yield end.decode()

        write_whole(self.path / _batch(number), chunks())

    def _settings(self) -> dict[str, Any]:
        part, asked, shown = self.part, self.part.asked, self.part.shown
        manifest = shown.acts.manifest if isinstance(shown, Stored) else None
        origin = {} if manifest is None else manifest.origin
        kind = shown.dictionary.kind
        return {
            "sae_set": asked.source_set, "sae_path": str(origin.get("dictionary", shown.dictionary.name)),
            "outputs_dir": str(self.path), "np_sae_id_suffix": asked.suffix, "np_set_name": asked.source_set,
            "from_local_sae": True, "sparsity_threshold": LOG_SPARSITY, "huggingface_dataset_path": asked.dataset,
            "n_prompts_total": shown.shape[0], "n_tokens_in_prompt": shown.shape[1],
            "n_prompts_in_forward_pass": 32 if manifest is None else manifest.settings["rows_per_batch"],
            "n_features_at_a_time": asked.features_per_batch, "quantile_feature_batch_size": 64,
            "start_batch": asked.start_batch, "end_batch": asked.end_batch, "n_quantiles": asked.n_quantiles,
            "top_acts_group_size": asked.top_acts_group_size, "quantile_group_size": asked.quantile_group_size,
            "use_dfa": False, "model_dtype": str(origin.get("dtype", "float32")), "sae_dtype": "float32",
            "model_id": asked.model_id, "layer": part.layer, "sae_device": "cpu", "activation_store_device": "cpu",
            "model_device": "cpu", "model_n_devices": 1, "use_wandb": False, "shuffle_tokens": False,
            "prefix_str": None, "suffix_str": None, "ignore_positions": None, "prepend_bos": None,
            "ignore_high_activation_norm_multiple": None, "hf_model_path": None, "use_transcoder": kind == "plt",
            "use_skip_transcoder": False, "use_clt": kind == "clt",
            "clt_layer_idx": part.layer if kind == "clt" else None, "clt_dtype": "", "clt_weights_filename": "",
            "sae_converter_name": None, **asked.settings,
        }  # fmt: skip


class SourceFolder(_Folder):
    """As Neuronpedia's bulk import takes it."""

    def __init__(self, root: Path, part: Part):
        if part.asked.release is None:
            raise ValueError("this layout needs a release")
        self.release = part.asked.release
        asked = part.asked
        self.place = Place(asked.model_id, asked.source_set, asked.suffix, part.layer, part.hook, "", part.identity)
        self.gz = [f"batch-{number}.jsonl.gz" for number in range(len(part.batches))]
        files = list(about_rows(self.place, self.release, 0, 0, ""))
        super().__init__(root / asked.model_id / self.place.source, part, [*files, "features", "activations"])
        self.place = Place(
            asked.model_id, asked.source_set, asked.suffix, part.layer, part.hook, self.created, part.identity
        )
        self.kinds = [self.path / "features", self.path / "activations"]
        self.held = [check_names(folder, self.gz, WHAT) for folder in self.kinds]

    def missing(self) -> list[int]:
        """Batches to be written. ValueError for one that is there and is not whole."""
        there = [number for number in self.part.wanted if all(self.gz[number] in held for held in self.held)]
        for number in there:
            for folder in self.kinds:
                path = folder / self.gz[number]
                if not is_whole(path, self._mark(path)):
                    raise ValueError(
                        f"{path} is damaged: it is not as it was written; delete it, and the export makes it again"
                    )
        return [number for number in self.part.wanted if number not in there]

    def _mark(self, path: Path) -> bytes:
        """Of a batch's file."""
        return bytes.fromhex(digest_of({"export": self.part.identity, "file": [path.parent.name, path.name]}))

    def begin(self) -> None:
        self._open()
        for folder in self.kinds:
            open_folder(folder, self.gz)
        prompts, length = self.part.shown.shape
        for name, row in about_rows(self.place, self.release, prompts, length, self.part.asked.dataset).items():
            if name not in self.there:
                write_whole(self.path / name, (line.decode() for line in lines([row])))

    def write(self, number: int) -> None:
        """Both files of a batch; if one appears without the other, both are made again."""
        paths = [folder / self.gz[number] for folder in self.kinds]
        with ExitStack() as stack:
            drafts = [stack.enter_context(drafted(path)) for path in paths]
            with ExitStack() as opened:
                features, activations = (
                    opened.enter_context(zipped(draft, path, self._mark(path)))
                    for draft, path in zip(drafts, paths, strict=True)
                )
                for entry in self.part.entries(number):
                    features.write(b"".join(lines([feature_row(entry, self.place, self.release.creator_id)])))
                    activations.write(b"".join(lines(activation_rows(entry, self.place, self.release.creator_id))))


def _batch(number: int) -> str:
    return f"batch-{number}.json"


def _write_if_other(path: Path, text: str) -> None:
    if not path.is_file() or path.read_text(encoding="utf-8") != text:
        write_whole(path, [text])
