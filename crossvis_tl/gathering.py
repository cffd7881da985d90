"""Gather once: one pass of the models over the tokens, keeping what fires.

Memory is bounded by what fires; past a budget, or where a folder is given, it lies on disk. A gathering into a folder
that is stopped goes on at the last part that is whole, and ends equal to one that was not.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor
from tqdm.auto import tqdm

from crossvis_tl.attribution import Attribution, driving_sources
from crossvis_tl.calibration import calibration_of
from crossvis_tl.capture import Capture, Captured
from crossvis_tl.devices import out_of_memory
from crossvis_tl.diagnosis import diagnose
from crossvis_tl.dictionary import Site
from crossvis_tl.feature_acts import FeatureActs
from crossvis_tl.fidelity import FidelityLabels
from crossvis_tl.fingerprints import (
    dictionary_fingerprint,
    mask_fingerprint,
    model_fingerprint,
    tokens_fingerprint,
)
from crossvis_tl.keeping import InMemory, OnDisk
from crossvis_tl.losses import ReplacementLoss
from crossvis_tl.manifest import Manifest, replacements_as_json
from crossvis_tl.masking import Mask
from crossvis_tl.models import name_of
from crossvis_tl.parts import Part, PartBuilder
from crossvis_tl.replacement import replacement_losses
from crossvis_tl.sparse import SparseActs
from crossvis_tl.store import Store, judged, texts_of, write_vocabulary
from crossvis_tl.sums import Fired, Sums

log = logging.getLogger(__name__)

# Final residual streams kept from the gathering pass, in bytes; beyond this the shown sequences are run again.
FINAL_BUDGET = 2**30
# Activations of a batch at all sites, in bytes.
SITE_BUDGET = 2**30
# The widest activations of a batch on a CPU, in bytes: small enough to stay in its cache. A forward pass of GPT-2 small
# takes a quarter less time with 5 sequences of 128 tokens than with 64.
CACHE = 2**23
# Tokens encoded at a time: many enough for the weights to be read rarely, few enough for what fires to fit in memory.
TOKENS_AT_A_TIME = 4096
# A part is written when it has so many tokens (more where there would be over 64 parts), or so many activations.
PART_TOKENS, MOST_PARTS, PART_ACTS = 2**15, 64, 2**25
# Activations held in memory, in bytes, before they go to a temporary folder.
MEMORY_BUDGET = 2**31


@torch.inference_mode()
def gather(  # noqa: PLR0913
    capture: Capture,
    tokens: Int[Tensor, "rows positions"],
    mask: Mask,
    features: Sequence[int] | None = None,
    *,
    rows_per_batch: int | None = 64,
    keep_final: bool = False,
    progress: bool = False,
    latent_scaling: bool = False,
    neurons: bool = True,
    attribution: bool = True,
    replacement: bool | None = None,
    out: str | Path | None = None,
    memory_budget: int = MEMORY_BUDGET,
    origin: Mapping[str, Any] | None = None,
) -> FeatureActs:
    """One pass over `tokens`; all features are encoded (fidelity needs them), those asked for are kept.

    `features`: numbers of the features to keep, None for all. `rows_per_batch`: sequences a forward pass, None for all
    of them; fewer where memory does not suffice. `keep_final`: run the models to the end and keep their final residual
    streams if they fit in memory, so that logit effects need no second pass. `latent_scaling`: also what it needs.
    `neurons`: also what correlates features with the sources' dimensions. `attribution`: also which source drives each
    activation of a feature that reads several.
    `replacement`: also what predictions lose with the reconstruction put in (default: of transcoders;
    `replacement_losses` says what it takes).
    `out`: a folder to keep everything in; one that holds the beginning of this gathering is gone on with. `origin`:
    where things came from, to be written down. ValueError when a feature is out of range or `out` holds another
    gathering.
    """
    chosen = list(range(capture.dictionary.n_features)) if features is None else list(features)
    capture.dictionary.check_features(chosen)
    numbers = torch.tensor(chosen, dtype=torch.long)
    sums = Sums(capture.dictionary, numbers, latent_scaling=latent_scaling, neurons=neurons)
    manifest = _manifest(capture, tokens, mask, numbers, rows_per_batch, latent_scaling, origin or {})
    if attribution:
        manifest = replace(manifest, attributed=driving_sources(capture.dictionary, len(chosen)))
    found = calibration_of(capture.dictionary)
    store = None if out is None else Store(Path(out), manifest, tokens, mask, numbers, found)
    run = _Pass(capture, tokens, mask, numbers, sums, manifest if store is None else store.manifest)
    width = sum(model.cfg.d_model for model in capture.models)
    run.keep_final = keep_final and tokens.numel() * width * 4 <= FINAL_BUDGET
    keeper = InMemory(memory_budget) if store is None else OnDisk(store)
    try:
        _keep(run, keeper, progress)
        return _finished(run, keeper, store, replacement, progress)
    except KeyboardInterrupt:
        done = sum(part.n_rows for part in keeper.parts)
        text = f"interrupted after {run.row:,} of {len(tokens):,} sequences; nothing was kept"
        if store is not None:
            text = (
                f"interrupted: {out} holds the first {done:,} of {len(tokens):,} sequences; the same call or command "
                "goes on from there"
            )
        raise KeyboardInterrupt(text) from None


def _manifest(
    capture: Capture, tokens: Tensor, mask: Mask, features: Tensor, rows_per_batch: int | None, latent_scaling: bool,
    origin: Mapping[str, Any],
) -> Manifest:  # fmt: skip
    dictionary, names = capture.dictionary, [name_of(model) for model in capture.models]
    labels = FidelityLabels.of(dictionary, names)
    rows = _fitting(rows_per_batch or len(tokens), capture, tokens.shape[1])
    part_tokens = max(PART_TOKENS, tokens.numel() // MOST_PARTS)
    return Manifest(
        dictionary=dictionary_fingerprint(dictionary), dictionary_name=dictionary.name,
        models=[model_fingerprint(model) for model in capture.models], model_names=names,
        tokens=tokens_fingerprint(tokens), features=tokens_fingerprint(features[None]),
        n_features=dictionary.n_features, mask=mask_fingerprint(mask), mask_how=mask.how,
        masked=[list(one) for one in mask.masked],
        replacements=replacements_as_json(capture.replacements), latent_scaling=latent_scaling,
        scaled=list(capture.scaled), attributed=0,
        settings={"rows_per_batch": rows, "rows_per_part": max(rows, part_tokens // tokens.shape[1])},
        labels={"sites": labels.sites, "groups": [list(group) for group in labels.groups]},
        hooks=[[site.hook for site in sites] for sites in (dictionary.sources, dictionary.targets)],
        documents_given=mask.documents_given, origin=dict(origin),
    )  # fmt: skip


def _fitting(rows: int, capture: Capture, n_positions: int) -> int:
    """Rows of a batch: no more than asked for, and than fit within the budgets."""
    sites = (*capture.dictionary.sources, *capture.dictionary.targets)
    row = 4 * n_positions * sum(site.width for site in sites)
    fitting = min(rows, SITE_BUDGET // row)
    if all(torch.device(model.cfg.device or "cpu").type == "cpu" for model in capture.models):
        widest = max(int(model.cfg.d_mlp or 4 * model.cfg.d_model) for model in capture.models)
        fitting = min(fitting, CACHE // (4 * n_positions * widest))
    return max(1, fitting)


def _keep(run: "_Pass", keeper: InMemory | OnDisk, progress: bool) -> None:
    """Goes through the rows that are not kept yet."""
    if isinstance(keeper, OnDisk) and keeper.parts:
        run.skip(sum(part.n_rows for part in keeper.parts), keeper.store.sums())
    with tqdm(total=len(run.tokens), desc="Gathering activations", unit="seq", disable=not progress) as bar:
        bar.update(run.row)
        for part in run.parts(bar):
            keeper.add(part, run.sums)


def _losses(run: "_Pass", progress: bool) -> list[ReplacementLoss]:
    return replacement_losses(run.capture, run.tokens, run.mask, progress=progress)


def _finished(
    run: "_Pass", keeper: InMemory | OnDisk, store: Store | None, replacement: bool | None, progress: bool
) -> FeatureActs:
    """`replacement`, `progress`: as `gather`."""
    measures_loss = run.capture.dictionary.kind in ("clt", "plt") if replacement is None else replacement
    tensors, manifest = run.sums.tensors(), run.manifest
    if not manifest.complete:
        causes, notes = diagnose(run.capture, run.tokens, run.mask, judged(tensors, manifest))
        manifest = manifest.finished(causes, notes, _losses(run, progress) if measures_loss else [])
        if store is not None:
            write_vocabulary(store.folder, texts_of(run.tokens, run.capture.models[0].tokenizer))
            manifest.write(store.folder)
    elif replacement and not manifest.losses:  # asked for after the store was whole
        manifest = manifest.finished(manifest.causes, manifest.notes, _losses(run, progress))
        if store is not None:
            manifest.write(store.folder)
    return FeatureActs(
        run.tokens, run.mask, run.features, torch.arange(len(run.features)), tuple(keeper.parts), tensors,
        judged(tensors, manifest), manifest, run.finals(), keeper.home, tokenizer=run.capture.models[0].tokenizer,
        calibration=calibration_of(run.capture.dictionary),
    )  # fmt: skip


class _Pass:
    """Batches of tokens in, parts out. `row`: the first that is not done."""

    def __init__(self, capture: Capture, tokens: Tensor, mask: Mask, features: Tensor, sums: Sums, manifest: Manifest):
        self.capture, self.tokens, self.mask, self.features = capture, tokens, mask, features
        self.sums, self.manifest = sums, manifest
        dictionary = capture.dictionary
        self.place = torch.full((dictionary.n_features,), -1, dtype=torch.long, device=dictionary.device)
        self.place[features.to(dictionary.device)] = torch.arange(len(features), device=dictionary.device)
        self.attribution = Attribution(dictionary, features) if manifest.attributed else None
        self.row, self.at_a_time = 0, manifest.settings["rows_per_batch"]
        self.keep_final = False
        self.final: list[list[Tensor]] = [[] for _ in capture.models]

    def skip(self, rows: int, sums: Mapping[str, Tensor]) -> None:
        """Takes up a gathering whose first `rows` are kept, with the sums over them."""
        self.row, self.keep_final = rows, False
        self.sums.add_tensors(sums)

    def parts(self, bar: Any) -> Iterator[Part]:
        while self.row < len(self.tokens):
            builder = PartBuilder(len(self.features), n_sources=self.manifest.attributed)
            end = min(self.row + self.manifest.settings["rows_per_part"], len(self.tokens))
            while self.row < end and builder.n_fired < PART_ACTS:
                done = self._batch(builder, end)
                self.row += done
                builder.n_rows += done
                bar.update(done)
            self.sums.sites.flush()
            yield builder.seal()

    def _batch(self, builder: PartBuilder, end: int) -> int:
        """-> how many rows were done; fewer at a time from now on where memory did not suffice."""
        while True:
            rows = slice(self.row, min(self.row + self.at_a_time, end))
            try:
                captured = self.capture.run(self.tokens[rows], final=self.keep_final, lead=self.mask.lead[rows])
                break
            except (RuntimeError, MemoryError) as error:
                if not out_of_memory(error) or self.at_a_time == 1:
                    raise
            self.at_a_time = max(1, self.at_a_time // 2)
            log.warning("out of memory: going on with %d sequences at a time", self.at_a_time)
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
        for kept, final in zip(self.final, captured.final, strict=False):  # captured.final is empty unless kept
            kept.append(final.flatten(0, 1).cpu())
        first = builder.n_rows * self.tokens.shape[1]
        if captured.scales:
            builder.scales.append(torch.stack([scale.flatten().cpu() for scale in captured.scales], dim=-1))
        for at in self.mask.counted[rows].flatten().nonzero().squeeze(-1).split(TOKENS_AT_A_TIME):
            self._tokens(builder, captured, at, first)
        return rows.stop - rows.start

    def _tokens(self, builder: PartBuilder, captured: Captured, at: Tensor, first: int) -> None:
        """Encodes the tokens `at` of a batch; where memory does not suffice, half of them and then the others."""
        sources = [x.flatten(0, 1)[at.to(x.device)] for x in captured.sources]
        self._check_finite(self.capture.dictionary.sources, sources)
        try:
            acts = self.capture.dictionary.encode_sparse(sources)
            fired = self._fired(acts)
            shares = self.attribution and self.attribution.shares(sources, fired.columns, fired.tokens)
            found = acts, fired, shares
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error) or len(at) == 1:
                raise
            found = acts = fired = None  # their memory is needed for the halves
        if found is None:
            log.warning("out of memory: encoding %d tokens at a time", len(at) // 2)
            for half in at.split(-(-len(at) // 2)):
                self._tokens(builder, captured, half, first)
            return
        targets = [x.flatten(0, 1)[at.to(x.device)] for x in captured.targets]
        self._check_finite(self.capture.dictionary.targets, targets)
        acts, fired, shares = found
        self.sums.add(acts, fired, sources, targets)
        builder.add(fired, at + first, shares)

    def _check_finite(self, sites: Sequence[Site], activations: Sequence[Tensor]) -> None:
        for site, x in zip(sites, activations, strict=True):
            if not bool(torch.isfinite(x).all()):
                last = min(self.row + self.at_a_time, len(self.tokens)) - 1
                raise ValueError(
                    f"{name_of(self.capture.models[site.model])} gives NaN or infinite activations at {site.place}, in "
                    f"sequences {self.row} to {last}: its numbers overflow, or its weights are damaged. float16 "
                    "overflows where bfloat16 and float32 do not"
                )

    def _fired(self, acts: SparseActs) -> Fired:
        columns = self.place[acts.features]
        wanted = columns >= 0
        columns, tokens, values = columns[wanted], acts.tokens[wanted], acts.values[wanted]
        order = torch.argsort(columns, stable=True)
        columns = columns[order]
        counts = torch.bincount(columns, minlength=len(self.features))
        return Fired(columns, tokens[order], values[order], counts, acts.n_tokens)

    def finals(self) -> list[Tensor] | None:
        return [torch.cat(parts) for parts in self.final] if self.keep_final else None
