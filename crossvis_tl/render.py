"""What `crossvis render` and `gather` do: from names of files to dashboards and stores. All that can be wrong is looked
at before the models are loaded, as far as it can be."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from sae_vis.data_config_classes import SaeVisConfig as StockConfig
from torch import Tensor

from crossvis_tl.asking import checked, for_dictionary, worth_keeping
from crossvis_tl.calibration import KEPT, calibrated_as, calibrated_on
from crossvis_tl.capture import Capture
from crossvis_tl.dictionary import Dictionary
from crossvis_tl.documents import Reading
from crossvis_tl.effects import Effect, check_effect
from crossvis_tl.errors import near_misses
from crossvis_tl.feature_acts import FeatureActs
from crossvis_tl.fidelity import Fidelity
from crossvis_tl.fingerprints import mask_fingerprint, tokens_fingerprint
from crossvis_tl.formats import load_dictionary
from crossvis_tl.gathering import gather
from crossvis_tl.high_norm import check_multiple, without_high_norms
from crossvis_tl.layouts import SaeVisConfig
from crossvis_tl.manifest import NAME, Manifest
from crossvis_tl.masking import Mask, Masking, check_masking, set_mask
from crossvis_tl.models import load_models
from crossvis_tl.pairs import Replacements
from crossvis_tl.parts import open_tensors
from crossvis_tl.selection import parse_features, strongest, top_count
from crossvis_tl.store import TOKENS, check_folder, open_store
from crossvis_tl.tokens import open_tokens, token_set
from crossvis_tl.vis_data import SaeVisData, Showing

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
Verdict = Callable[[Fidelity], None]
# What is said to `load_dictionary` beside facts; a store's word is not taken for it.
NOT_FACTS = ("path", "trust_pickle", "cache_dir", "offline")
log = logging.getLogger(__name__)


def parse_dtype(name: str) -> torch.dtype:
    """ValueError with near misses for a name that is none of `DTYPES`."""
    if name not in DTYPES:
        raise ValueError(f"dtype {name!r}: expected one of {', '.join(DTYPES)}.{near_misses(name, DTYPES)}")
    return DTYPES[name]


@dataclass(frozen=True)
class _Prepared:
    capture: Capture
    tokens: Tensor
    mask: Mask
    chosen: list[int] | None
    cfg: StockConfig


@dataclass
class RenderJob:
    """`models`, `dictionary`, `tokens`: as `load_model`, `load_dictionary` and `load_token_set` take them; `reading`:
    how tokens are read, of which no more are than `cfg_fields["batch_size"]` sequences. `features`: as in `selection`.
    `facts`: for `load_dictionary`. `cfg_fields`: for `SaeVisConfig`. `choose`: picks, by index, among the features
    gathered; default all of them, or for "top:N" the strongest. `layer`: only features that read it. `masked_special`:
    of "bos", "eos" and "pad", the tokenizer's tokens that do not count anywhere. `calibrate`: a ranking over the batch
    is replaced by a threshold found on these tokens (`crossvis_tl.calibrate`). `masking` ..., `effect`,
    `latent_scaling`: as `SaeVisData.create`. Models and dictionary may also be in hand; `origin` then says where they
    are from, for those who open the store. `dtype`: of the models; None leaves a model in hand as it is."""

    models: Sequence[Any]
    dictionary: str | Path | Dictionary
    tokens: str | Path
    features: str = "top:50"
    layer: int | None = None
    device: str | None = None
    dtype: str | None = "float32"
    context: int = 128
    reading: Reading = field(default_factory=Reading)
    facts: dict[str, Any] = field(default_factory=dict)
    cfg_fields: dict[str, Any] = field(default_factory=dict)
    choose: Callable[[Dictionary, FeatureActs], list[int]] | None = None
    token_replacements: Replacements = field(default_factory=dict)
    masking: Masking = "special"
    masked_tokens: Sequence[int | str] = ()
    masked_positions: Sequence[int] = ()
    masked_special: Sequence[str] = ()
    high_norm_multiple: float | None = None
    calibrate: bool = False
    effect: Effect = "direct"
    latent_scaling: bool = False
    replacement: bool | None = None
    origin: dict[str, Any] = field(default_factory=dict)

    def run(self, verdict: Verdict) -> SaeVisData:
        """-> dashboards; `verdict` hears how well the dictionary fits before they are built."""
        check_effect(self.effect)
        made = self._prepared()
        dictionary, top = made.capture.dictionary, top_count(self.features)
        n_features = top or (dictionary.n_features if made.chosen is None else len(made.chosen))
        keep_final = self.effect == "direct" and worth_keeping(made.capture, made.cfg, len(made.tokens), n_features)
        acts = self._gathered(made, keep_final=keep_final)
        verdict(acts.fidelity)
        if self.choose is not None:
            acts = acts.select(self.choose(dictionary, acts))
        elif top is not None:
            acts = _strongest(acts, top, str(self.tokens))
        return SaeVisData.from_acts(acts, dictionary, made.cfg, Showing(self.effect), capture=made.capture)

    def gather(self, out: Path, verdict: Verdict) -> FeatureActs:
        """-> what was gathered into the folder `out`. ValueError for "top:N", which only what is gathered can tell."""
        return self.gathered(out, verdict)[0]

    def gathered(self, out: Path, verdict: Verdict) -> tuple[FeatureActs, Capture]:
        """As `gather`, with the dictionary on its models."""
        if top_count(self.features) is not None:
            raise ValueError(
                f'--features {self.features!r}: the strongest are known afterwards; gather "all" or numbers'
            )
        check_folder(out)
        made = self._prepared(out)
        acts = self._gathered(made, out=out)
        verdict(acts.fidelity)
        return acts, made.capture

    def _prepared(self, out: Path | None = None) -> _Prepared:
        dtype = None if self.dtype is None else parse_dtype(self.dtype)
        check_masking(self.masking)
        check_multiple(self.high_norm_multiple)
        dictionary = self.dictionary
        if not isinstance(dictionary, Dictionary):
            dictionary = load_dictionary(dictionary, **self.facts)
        chosen = parse_features(self.features, dictionary, self.layer)
        reading = replace(self.reading, n_sequences=self.cfg_fields.get("batch_size") or self.reading.n_sequences)
        opened = open_tokens(self.tokens, reading)
        models = load_models(list(self.models), self.device, dtype)
        dictionary = dictionary.to(str(models[0].cfg.device))
        calibrating = self.calibrate and dictionary.batch_dependent
        capture = Capture(dictionary, models, self.token_replacements, calibrating=calibrating)
        tokenizer, context = models[0].tokenizer, min(self.context, models[0].cfg.n_ctx)
        given = token_set(
            opened, tokenizer, context, reading, str(self.tokens), progress=bool(self.cfg_fields.get("verbose"))
        )
        cfg = for_dictionary(checked(SaeVisConfig(**self.cfg_fields)), dictionary)
        given = given.checked(models, cfg.batch_size)
        special = (getattr(tokenizer, f"{name}_token_id", None) for name in self.masked_special)
        masked = [*self.masked_tokens, *dict.fromkeys(token for token in special if token is not None)]
        mask = set_mask(given, tokenizer, self.masking, masked_tokens=masked, masked_positions=self.masked_positions)
        mask = without_high_norms(
            capture, given.tokens, mask, self.high_norm_multiple, out=out, progress=bool(cfg.verbose)
        )
        if calibrating:
            kept = None if out is None else _kept(out, given.tokens, mask)
            if kept:
                dictionary = calibrated_as(dictionary, *kept)
            else:
                dictionary = calibrated_on(
                    dictionary, models, given.tokens, mask, self.token_replacements, progress=bool(cfg.verbose)
                )
            capture = Capture(dictionary, models, self.token_replacements)
        return _Prepared(capture, given.tokens, mask, chosen, cfg)

    def _gathered(self, made: _Prepared, *, keep_final: bool = False, out: Path | None = None) -> FeatureActs:
        origin: dict[str, Any] = {"facts": plain_facts(self.facts)}
        origin["dtype"] = self.dtype or _dtype_of(made.capture.models[0])
        if "calibrated" in made.capture.dictionary.facts:
            origin["calibrated"] = str(made.capture.dictionary.facts["calibrated"])
        if not isinstance(self.dictionary, Dictionary):
            origin["dictionary"] = _absolute(str(self.dictionary))
        if all(isinstance(model, str | Path) for model in self.models):
            origin["models"] = [_absolute(str(model)) for model in self.models]
        return gather(
            made.capture, made.tokens, made.mask, made.chosen, rows_per_batch=made.cfg.minibatch_size_tokens,
            progress=made.cfg.verbose, keep_final=keep_final, latent_scaling=self.latent_scaling,
            replacement=self.replacement, out=out, origin=origin | self.origin,
        )  # fmt: skip


@dataclass(frozen=True)
class Opened:
    """A store with what was found for it. `chosen`: features, None for all that are there."""

    acts: FeatureActs
    dictionary: Dictionary
    models: "list[HookedTransformer] | None"
    chosen: list[int] | None


@dataclass
class StoredJob:
    """Dashboards of what `crossvis gather` left in the folder `store`. `dictionary`, `facts`, `models`: default those
    it was gathered with, if it says where they are. `without_model`: no effects on logits, and nothing is run."""

    store: Path
    features: str = "top:50"
    layer: int | None = None
    dictionary: str | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
    models: Sequence[str] = ()
    without_model: bool = False
    device: str | None = None
    dtype: str | None = None
    effect: Effect = "direct"
    cfg_fields: dict[str, Any] = field(default_factory=dict)

    def run(self, verdict: Verdict) -> SaeVisData:
        """-> dashboards; `verdict` hears what the gathering found."""
        check_effect(self.effect)
        if self.without_model and self.effect == "full":
            raise ValueError("effect full runs the model; leave --no-model out")
        found = self._opened()
        verdict(found.acts.fidelity)
        cfg = checked(SaeVisConfig(**self.cfg_fields, features=found.chosen))
        return SaeVisData.from_store(found.acts, found.dictionary, cfg, model=found.models, effect=self.effect)

    def _opened(self) -> Opened:
        acts = open_store(self.store)
        origin = acts.manifest.origin
        where = self.dictionary or self._here(origin.get("dictionary"), "--dictionary")
        names = list(self.models)
        if not names and not self.without_model:
            names = [self._here(name, "--model (or --no-model)") for name in origin.get("models") or [None]]
        facts = {**({} if self.dictionary else plain_facts(origin.get("facts", {}))), **self.facts}
        dictionary = load_dictionary(where, **facts)
        chosen = self._chosen(acts, dictionary)
        # of a model in hand it may have been any other
        dtype = parse_dtype(self.dtype) if self.dtype else DTYPES.get(str(origin.get("dtype")), torch.float32)
        models = load_models(names, self.device, dtype) if names else None
        kept = acts.calibration
        if dictionary.batch_dependent and kept:
            said = str(origin.get("calibrated", "as it was when it was gathered"))
            dictionary = calibrated_as(dictionary, kept, said)
        elif dictionary.batch_dependent:
            raise ValueError(
                f"{dictionary.name} ranks over the batch and {self.store} keeps no threshold of it; gather it again"
            )
        return Opened(acts, dictionary, models, chosen)

    def _chosen(self, acts: FeatureActs, dictionary: Dictionary) -> list[int] | None:
        """ValueError for features that were not gathered: before the models are loaded."""
        top = top_count(self.features)
        chosen = parse_features(self.features, dictionary, self.layer, acts.features.tolist())
        found = acts if chosen is None else acts.select_features(chosen)
        return chosen if top is None else _strongest(found, top, str(self.store)).features.tolist()

    def _here(self, name: str | None, option: str) -> str:
        """What a store says it was made from, if it lies here: nothing is fetched because a store says so."""
        if name is None:
            raise ValueError(f"{self.store} does not say what it was gathered with; give {option}")
        if not Path(name).exists():
            raise ValueError(f"{self.store} was gathered with {name}, which is not here; give {option}")
        log.info("%s was gathered with %s", self.store, name)
        return name


def _kept(folder: Path, tokens: Tensor, mask: Mask) -> tuple[dict[str, Tensor], str] | None:
    """What a store of these tokens keeps of a calibration, and what is said of it."""
    if not (folder / NAME).is_file() or not (folder / TOKENS).is_file():
        return None
    held = Manifest.read(folder)
    if (held.tokens, held.mask) != (tokens_fingerprint(tokens), mask_fingerprint(mask)):
        return None
    found = {n: x.clone() for n, x in open_tensors(folder / TOKENS)[0].items() if n.startswith(KEPT)}
    return (found, str(held.origin.get("calibrated", "as it was gathered with"))) if found else None


def plain_facts(facts: Mapping[str, Any]) -> dict[str, Any]:
    """What a store may say of a dictionary's files: no trust, and nothing of where they are."""
    kinds = (str, int, float)
    plain = {
        name: value
        for name, value in facts.items()
        if isinstance(value, kinds) or (isinstance(value, list) and all(isinstance(one, kinds) for one in value))
    }
    return {name: value for name, value in plain.items() if name not in NOT_FACTS}


def _strongest(acts: FeatureActs, count: int, where: str) -> FeatureActs:
    chosen = acts.select(strongest(acts, count))
    if not len(chosen.features):
        raise ValueError(f"no feature fires on {where}; there is nothing to rank by maximum activation")
    return chosen


def _dtype_of(model: "HookedTransformer") -> str:
    """A model's own: "bfloat16"."""
    return str(next(model.parameters()).dtype).removeprefix("torch.")


def _absolute(name: str) -> str:
    """A path that still means the same elsewhere; an id of the hub as it is."""
    path = Path(name)
    return str(path.resolve()) if path.exists() else name
