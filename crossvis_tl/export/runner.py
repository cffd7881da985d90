"""A run of SAEDashboard's for Neuronpedia, from its own settings: gathered once, written a batch at a time."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from crossvis_tl.dictionary import Dictionary
from crossvis_tl.documents import Reading
from crossvis_tl.encoders import SaeLensDictionary, from_sae_lens
from crossvis_tl.errors import first_line, near_misses
from crossvis_tl.export.neuronpedia import (
    check_batches,
    check_dictionary,
    check_layout,
    export_neuronpedia,
    layer_number,
)
from crossvis_tl.export.neuronpedia_parts import check_names, check_settings
from crossvis_tl.export.runner_config import NeuronpediaRunnerConfig
from crossvis_tl.fidelity import Fidelity
from crossvis_tl.formats import load_dictionary
from crossvis_tl.manifest import NAME, Manifest
from crossvis_tl.models import load_model, name_of
from crossvis_tl.render import RenderJob, parse_dtype
from crossvis_tl.token_files import is_array

log = logging.getLogger(__name__)
# What sae_lens' records of how a model was loaded say of its weights (HookedTransformer.from_pretrained).
PROCESSED_BY = ("fold_ln", "center_writing_weights", "fold_value_biases")
# Tokens that count nowhere, wherever they stand.
IGNORED = ("bos", "eos", "pad")
# Settings that need not be said, as the dictionary says it.
KINDS = {"use_transcoder": "plt", "use_skip_transcoder": "plt", "use_clt": "clt"}


class NeuronpediaRunner:
    """As SAEDashboard's: `NeuronpediaRunner(cfg).run()`. A run that was stopped goes on where it was when it is made
    again.

    Runs that share the work by `start_batch` and `end_batch` may go at the same time once `store` is whole: let one of
    them gather it first (or `crossvis gather`, with `crossvis export neuronpedia --store` for each). Two that gather
    into it at the same time do the same work twice, and one may stop with an error; made again, it goes on."""

    def __init__(self, cfg: NeuronpediaRunnerConfig):
        """ValueError for settings that cannot be."""
        cfg.check()
        self.cfg = cfg
        for text in cfg.without_effect():
            log.warning("%s", text)

    def run(self, verdict: Callable[[Fidelity], None] | None = None, *, progress: bool = True) -> Path:
        """-> `outputs_dir`, with a folder for each layer. `verdict` hears how well the dictionary fits. Errors as
        `load_dictionary`, `load_model`, `load_token_set` and `export_neuronpedia`."""
        cfg = self.cfg
        dictionary = self._dictionary()
        model = self._model(dictionary)
        model_id = cfg.model_id or _last_name(model)
        layer = cfg.clt_layer_idx if cfg.clt_layer_idx is not None else cfg.layer
        self._check(dictionary, model_id, layer)
        dataset = self._dataset(dictionary)
        if dictionary.batch_dependent:
            log.warning("%s stored no threshold: it is found on these prompts first", dictionary.name)
        job = RenderJob(
            models=[model], dictionary=dictionary, tokens=dataset, features="all",
            layer=cfg.clt_layer_idx, device=cfg.model_device or cfg.sae_device, dtype=self._dtype(model),
            context=cfg.n_tokens_in_prompt, reading=self._reading(dataset, dictionary), facts=self._facts(),
            masked_positions=list(cfg.ignore_positions or ()), masked_special=IGNORED, origin=self._origin(),
            calibrate=dictionary.batch_dependent,
            high_norm_multiple=cfg.ignore_high_activation_norm_multiple,
            cfg_fields={
                "batch_size": cfg.n_prompts_total, "minibatch_size_tokens": cfg.n_prompts_in_forward_pass,
                "verbose": progress,
            },
        )  # fmt: skip
        store = self._store(dictionary)
        _tell_if_begun(store)
        acts, capture = job.gathered(store, verdict or (lambda _: None))
        return export_neuronpedia(
            acts, cfg.outputs_dir, dictionary=capture.dictionary, model=capture.models,
            model_id=model_id, source_set=cfg.np_set_name or cfg.sae_set,
            layer=layer, sae_id_suffix=cfg.np_sae_id_suffix, layout=cfg.layout, release=cfg.release,
            dataset=str(dataset), skip_dead=cfg.skip_dead,
            features_per_batch=cfg.n_features_at_a_time, start_batch=cfg.start_batch, end_batch=cfg.end_batch,
            n_quantiles=cfg.n_quantiles, top_acts_group_size=cfg.top_acts_group_size,
            quantile_group_size=cfg.quantile_group_size, unit_decoders=dictionary.kind == "sae", progress=progress,
            settings=self._settings(),
        )  # fmt: skip

    def _check(self, dictionary: Dictionary, model_id: str, layer: int | None) -> None:
        """What the export would find wrong, before anything is gathered for it."""
        cfg = self.cfg
        check_layout(cfg.layout, cfg.release)
        check_names(model_id, cfg.np_set_name or cfg.sae_set, cfg.np_sae_id_suffix)
        check_settings(self._settings())
        check_dictionary(dictionary)
        layer_number(dictionary, layer)
        widths = [group.n_features for group in dictionary.groups]
        check_batches([-(-width // cfg.n_features_at_a_time) for width in widths], cfg.start_batch, cfg.end_batch)

    def _origin(self) -> dict[str, Any]:
        path = Path(self.cfg.sae_path)
        return {"dictionary": str(path.resolve())} if path.exists() else {}

    def _store(self, dictionary: Dictionary) -> Path:
        """One for each set, layer and suffix, so that many runs can write into one folder."""
        cfg = self.cfg
        layers = {site.layer for site in dictionary.sources}
        layer = cfg.clt_layer_idx if cfg.clt_layer_idx is not None else cfg.layer
        layer = layers.pop() if layer is None and len(layers) == 1 else layer
        name = cfg.np_set_name or cfg.sae_set
        name += "" if layer is None else f"-L{layer}"
        name += f"__{cfg.np_sae_id_suffix}" if cfg.np_sae_id_suffix else ""
        return Path(cfg.store or Path(cfg.outputs_dir) / "gathered" / name)

    def _dataset(self, dictionary: Dictionary) -> str:
        """As given, else what an SAE says it was trained on. ValueError where neither does."""
        dataset = self.cfg.huggingface_dataset_path or str(_recorded(dictionary, "dataset_path") or "")
        if not dataset:
            raise ValueError("huggingface_dataset_path is empty; give a dataset's id, or a local file or folder")
        return dataset

    def _reading(self, dataset: str, dictionary: Dictionary) -> Reading:
        """Prompts as SAEDashboard makes them: one of each text, with BOS where an SAE was trained so. An array of ids
        is taken as it is."""
        cfg, array = self.cfg, is_array(Path(dataset))
        bos = cfg.prepend_bos
        if bos is None and not array:
            bos = _recorded(dictionary, "prepend_bos")
        return Reading(
            n_sequences=cfg.n_prompts_total, prefix=cfg.prefix_str or "", suffix=cfg.suffix_str or "",
            prepend_bos=bos, packing=None if array else "each", shuffle=cfg.shuffle_tokens,
        )  # fmt: skip

    def _facts(self) -> dict[str, Any]:
        facts = dict(self.cfg.facts)
        if self.cfg.clt_weights_filename:
            facts["weights_filename"] = self.cfg.clt_weights_filename
        if self.cfg.processing is not None:
            facts["processing"] = self.cfg.processing
        return facts

    def _dictionary(self) -> Dictionary:
        cfg = self.cfg
        dictionary = load_dictionary(cfg.sae_path, **self._facts()) if self._is_local() else self._of_release()
        self._check_kind(dictionary)
        if isinstance(dictionary, SaeLensDictionary) and self.cfg.processing is None:
            dictionary = dictionary.with_sites(processing=_trained_on(dictionary))
        dtype = cfg.clt_dtype or cfg.sae_dtype
        return dictionary if dtype in ("", "float32") else dictionary.computing_in(parse_dtype(dtype))

    def _is_local(self) -> bool:
        return self.cfg.from_local_sae or Path(self.cfg.sae_path).exists()

    def _of_release(self) -> Dictionary:
        """By sae_lens' own registry."""
        from sae_lens import SAE

        found: Any = {}
        if self.cfg.sae_converter_name:
            found["converter"] = _converter(self.cfg.sae_converter_name)
        release, sae_id = self.cfg.sae_set, self.cfg.sae_path
        try:
            sae = SAE.from_pretrained(release=release, sae_id=sae_id, device="cpu", **found)
        except (ValueError, KeyError, OSError) as error:
            raise ValueError(
                f"there is no file or folder {sae_id!r}, and sae_lens has no SAE {sae_id!r} in a release {release!r}: "
                f"{first_line(error)}"
            ) from error
        dictionary = from_sae_lens(sae[0] if isinstance(sae, tuple) else sae)
        dictionary = replace(dictionary, model_names=(_recorded(dictionary, "model_name"),))
        processing = self.cfg.processing
        return dictionary if processing is None else dictionary.with_sites(processing=processing)

    def _check_kind(self, dictionary: Dictionary) -> None:
        transcodes = dictionary.sources != dictionary.targets
        for name, kind in KINDS.items():
            if not getattr(self.cfg, name):
                continue
            fits = dictionary.kind == kind or (kind == "plt" and dictionary.kind == "sae" and transcodes)
            if not fits:
                raise ValueError(f"{name}=True, but {self.cfg.sae_path} holds a {dictionary.kind}; leave it out")

    def _model(self, dictionary: Dictionary) -> Any:
        cfg = self.cfg
        model = cfg.model or cfg.hf_model_path or next((name for name in dictionary.model_names if name), cfg.model_id)
        if model is None:
            raise ValueError(f"the files of {cfg.sae_path} do not name the model; give model= (or hf_model_path=)")
        return model

    def _dtype(self, model: Any) -> str | None:
        """None: a model in hand stays as it is."""
        return self.cfg.model_dtype or ("float32" if isinstance(model, str | Path) else None)

    def _settings(self) -> Mapping[str, Any]:
        """What the run was asked for, for run_settings.json; what was left open, the export knows."""
        names = NeuronpediaRunnerConfig.__dataclass_fields__
        ours = ("model", "processing", "facts", "layout", "release", "store", "skip_dead")
        asked = {name: _plain(getattr(self.cfg, name)) for name in names if name not in ours}
        if not any(asked[name] for name in KINDS):
            asked = {name: value for name, value in asked.items() if name not in KINDS}
        given = {name: value for name, value in asked.items() if value is not None and value != ""}
        return given | {"from_local_sae": self._is_local()}


def _recorded(dictionary: Dictionary, name: str) -> Any:
    """What sae_lens wrote down of an SAE's training; None of other dictionaries, and where it says nothing."""
    if not isinstance(dictionary, SaeLensDictionary):
        return None
    return getattr(dictionary._own().cfg.metadata, name, None)


def _plain(value: Any) -> Any:
    """As JSON has it: paths as texts, positions as a list."""
    if isinstance(value, Path | torch.device):
        return str(value)
    return list(value) if isinstance(value, Sequence) and not isinstance(value, str) else value


def _tell_if_begun(store: Path) -> None:
    if (store / NAME).is_file() and not Manifest.read(store).complete:
        log.warning(
            "%s was begun and is not whole: it is gone on with. If another run is gathering into it now, stop this one "
            "and start it when the other is through",
            store,
        )


def _trained_on(dictionary: SaeLensDictionary) -> str:
    """What SAEDashboard runs an SAE of sae_lens on: TransformerLens' default, unless its record says otherwise."""
    said = _recorded(dictionary, "model_from_pretrained_kwargs") or {}
    unprocessed = any(said.get(name) is False for name in PROCESSED_BY) or "no_processing" in str(said)
    return "none" if unprocessed else "tl_default"


def _converter(name: str) -> Any:
    """sae_lens' reader of a layout, by either of its names. ValueError with near misses."""
    from sae_lens.loading import pretrained_sae_loaders as loaders

    named = dict(getattr(loaders, "NAMED_PRETRAINED_SAE_LOADERS", {}))
    found = named.get(name) or getattr(loaders, name, None)
    if found is None:
        raise ValueError(f"sae_converter_name={name!r} is none of sae_lens'.{near_misses(name, named)}")
    return found


def _last_name(model: Any) -> str:
    """The last part of a model's name: "gemma-2-2b" of "google/gemma-2-2b"."""
    name = str(model) if isinstance(model, str | Path) else name_of(load_model(model))
    return name.rstrip("/").split("/")[-1]
