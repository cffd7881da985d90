"""`SaeVisData`: sae_vis' class, made for every dictionary from one pass over the tokens, saved as a page that opens
anywhere."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxtyping import Int
from rich.console import Console
from sae_vis.data_config_classes import SaeVisConfig
from sae_vis.data_storing_fns import SaeVisData as StockSaeVisData
from torch import Tensor

from crossvis_tl import storage
from crossvis_tl.build import build, rows_per_batch
from crossvis_tl.capture import Capture
from crossvis_tl.dictionary import Dictionary, Site
from crossvis_tl.encoders import as_dictionary
from crossvis_tl.errors import feature_numbers, short_list
from crossvis_tl.feature_acts import FeatureActs, gather
from crossvis_tl.fidelity import site_label, warn_if_bad
from crossvis_tl.models import load_models, name_of
from crossvis_tl.notebook import show
from crossvis_tl.page import write_page
from crossvis_tl.page_data import feature_page, prompt_page
from crossvis_tl.pairs import Replacements
from crossvis_tl.panels import FeaturePanels
from crossvis_tl.prompts import gather_prompt
from crossvis_tl.tokens import Masking, checked_tokens, token_mask
from crossvis_tl.vocabulary import Vocabulary

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer


# Facts of a dictionary that change its numbers and that its files alone do not settle.
REPORTED = ("calibrated", "input_scale", "input_layer_norm", "apply_b_dec_to_input", "activation")


@dataclass
class PageFacts:
    """What a page says of its dictionary, models and tokens; enough to draw it again without them.

    `facts`: [name, text] pairs. `fidelity`: `Fidelity.as_dict()`. `vocabulary`: text of every token id shown.
    """

    kind: str = "sae"
    title: str = "Features"
    models: list[str] = field(default_factory=list)
    sources: list[dict[str, Any]] = field(default_factory=list)
    targets: list[dict[str, Any]] = field(default_factory=list)
    facts: list[list[str]] = field(default_factory=list)
    fidelity: dict[str, Any] | None = None
    vocabulary: dict[int, str] = field(default_factory=dict)


@dataclass(repr=False)
class SaeVisData(StockSaeVisData):
    """sae_vis' `SaeVisData` with our panels (`panels`, by feature) and the page's facts beside its own fields.

    `model` is the first of `models`. Make one with `create`.
    """

    panels: dict[int, FeaturePanels] = field(default_factory=dict)
    page: PageFacts = field(default_factory=PageFacts)
    models: list["HookedTransformer"] = field(default_factory=list)

    @classmethod
    def create(  # type: ignore[override]
        cls,
        encoder: Any,
        model: "HookedTransformer | Sequence[HookedTransformer]",
        tokens: Int[Tensor, "batch seq"],
        cfg: SaeVisConfig | None = None,
        encoder_B: Any = None,
        *,
        masking: Masking = "special",
        token_replacements: Replacements | None = None,
    ) -> "SaeVisData":
        """Dashboards for `cfg.features` of `encoder` on `tokens`; sae_vis' own call, with more taken.

        `encoder`: a dictionary from `load_dictionary`, a sae_vis `AutoEncoder` or a sae_lens SAE. `model`: one model or
        a list of them in the dictionary's order; whatever `load_model` takes will do. `tokens`: ids [sequences,
        positions]. `masking`: "special" leaves BOS and padding out of every statistic and example, "none" nothing.
        `token_replacements`: by model's number, ids that it reads in place of others ({0: {128006: 1432}}), as the
        producers of crosscoders do where a base model never saw a chat template's tokens.

        ValueError before any long work when something does not fit; warns when the fidelity is implausible.
        """
        cfg = cfg or SaeVisConfig()
        models = load_models(model)
        device = str(models[0].cfg.device)
        capture = Capture(as_dictionary(encoder, cfg.hook_point).to(device), models, token_replacements)
        tokens = checked_tokens(tokens, models)
        tokens = tokens if cfg.batch_size is None else tokens[: cfg.batch_size]
        mask = token_mask(tokens, models[0].tokenizer, masking)
        acts = gather(
            capture, tokens, mask, chosen_features(cfg), rows_per_batch=rows_per_batch(cfg), progress=cfg.verbose
        )
        Console(soft_wrap=True, markup=False, highlight=False).print("\n".join(acts.fidelity.lines()))
        acts_B = None
        if encoder_B is not None:
            capture_B = Capture(as_dictionary(encoder_B, cfg.hook_point).to(device), models, token_replacements)
            acts_B = gather(
                capture_B, tokens, mask, rows_per_batch=rows_per_batch(cfg), keep_final=False, progress=cfg.verbose
            )
            warn_if_bad(acts_B.fidelity)
        return cls.from_acts(capture, acts, cfg, acts_B, encoder=encoder, encoder_B=encoder_B)

    @classmethod
    def from_acts(
        cls,
        capture: Capture,
        acts: FeatureActs,
        cfg: SaeVisConfig,
        acts_B: FeatureActs | None = None,
        *,
        encoder: Any = None,
        encoder_B: Any = None,
    ) -> "SaeVisData":
        """Dashboards of activations gathered before."""
        warn_if_bad(acts.fidelity)
        built = build(capture, acts, cfg, acts_B)
        data = cls(
            feature_data_dict=built.feature_data, feature_stats=built.statistics, cfg=cfg,
            model=capture.models[0], encoder=capture.dictionary if encoder is None else encoder, encoder_B=encoder_B,  # type: ignore[arg-type]
            panels=built.panels, page=_page_facts(capture, acts), models=capture.models,
        )  # fmt: skip
        data.page.vocabulary = Vocabulary(capture.models[0].tokenizer).texts(storage.shown_ids(data))
        return data

    def save_feature_centric_vis(self, filename: str | Path, feature_idx: int | None = None) -> None:
        """Writes the page for looking through the features, opening on `feature_idx` (default the first)."""
        head, payloads = feature_page(self, feature_idx)
        write_page(filename, head, payloads)

    def __repr__(self) -> str:
        return f"<SaeVisData {self.page.title!r}: {len(self.feature_data_dict)} features>"

    def show(self, feature_idx: int | None = None, *, height: int = 900) -> None:
        """Shows the page in a Jupyter or Colab notebook's output, `height` pixels high."""
        show(self, feature_idx, height)

    def _repr_html_(self) -> str:
        """A notebook's summary of the object: never the page itself, which can be large."""
        n = len(self.feature_data_dict)
        verdict = self.page.fidelity["headline"] if self.page.fidelity else "fidelity not measured"
        return f"<b>{escape(self.page.title)}</b>: {n} features. {escape(verdict)}. Use <code>.show()</code>."

    def save_prompt_centric_vis(
        self,
        prompt: str,
        filename: str | Path,
        metric: str | None = None,
        seq_pos: int | None = None,
        num_top_features: int = 10,
    ) -> None:
        """Writes the page of one prompt: at each token the top features by `metric` ("act_quantile", "act_size" or
        "loss_effect"; default the first). `seq_pos`: the token to open on, default the last
        at which a feature fires."""
        if not self.models:
            raise ValueError("a prompt needs the model, which these dashboards lack: pass model= to load_json")
        if self.encoder is None:
            raise ValueError("a prompt needs the dictionary, which these dashboards lack: pass encoder= to load_json")
        capture = Capture(as_dictionary(self.encoder, self.cfg.hook_point), self.models)
        shown = gather_prompt(self, capture, prompt, metric, seq_pos, num_top_features)
        head, payloads = prompt_page(self, shown)
        write_page(filename, head, payloads)

    def save_json(self, filename: str | Path) -> None:
        """Everything but config, models and encoders; stock sae_vis reads its own part of the file."""
        storage.save_json(self, Path(filename))

    @classmethod
    def load_json(  # type: ignore[override]
        cls,
        filename: str | Path,
        cfg: SaeVisConfig | None = None,
        model: Any = None,
        encoder: Any = None,
        encoder_B: Any = None,
    ) -> "SaeVisData":
        """Undoes `save_json`. Model and encoder are needed for prompts only."""
        models = [] if model is None else load_models(model)
        features, stats, panels, page = storage.load_json(Path(filename))
        return cls(
            feature_data_dict=features, feature_stats=stats, cfg=cfg or SaeVisConfig(),
            model=models[0] if models else None, encoder=encoder, encoder_B=encoder_B,
            panels=panels, page=PageFacts(**page), models=models,
        )  # fmt: skip


def chosen_features(cfg: SaeVisConfig) -> list[int] | None:
    if cfg.features is None:
        return None
    return feature_numbers(cfg.features, "cfg.features")


def _page_facts(capture: Capture, acts: FeatureActs) -> PageFacts:
    dictionary = capture.dictionary
    names = [name_of(model) for model in capture.models]
    rows, positions = acts.tokens.shape
    facts = [
        [
            "dictionary",
            f"{dictionary.name}: {dictionary.n_features:,} {dictionary.activation} features, {dictionary.format}",
        ],
        ["models", ", ".join(names)],
        ["processing", _processing(dictionary)],
        ["tokens", f"{acts.n_counted:,} counted in {rows:,} sequences of {positions}"],
        ["masked", acts.mask_text.removeprefix("masked: ")],
        [
            "logit effects",
            "direct: the final residual stream minus what the feature writes, later layers left as they are",
        ],
    ]
    facts += [[name.replace("_", " "), str(dictionary.facts[name])] for name in REPORTED if name in dictionary.facts]
    for index, mapping in capture.replacements.items():
        facts.append(["replaced tokens", f"{names[index]} reads {_pairs(mapping)}"])
    if acts.fidelity.groups:
        parts = (f"{group.label} {group.l0:.1f} ({group.dead:.1%} dead)" for group in acts.fidelity.groups)
        facts.append(["L0 by layer", ", ".join(parts)])
    return PageFacts(
        kind=dictionary.kind,
        title=f"{dictionary.name} · {' × '.join(names)}",
        models=names,
        sources=[_site(site, names) for site in dictionary.sources],
        targets=[_site(site, names) for site in dictionary.targets],
        facts=facts,
        fidelity=acts.fidelity.as_dict(),
    )


def _pairs(mapping: Mapping[int, int]) -> str:
    return short_list((f"{new} for {old}" for old, new in mapping.items()), 6)


def _processing(dictionary: Dictionary) -> str:
    """On what weights the models ran in training, in words."""
    words = {"none": "none (HuggingFace's own activations)", "tl_default": "TransformerLens' default", None: "unknown"}
    kinds = {site.processing for site in (*dictionary.sources, *dictionary.targets)}
    return ", ".join(sorted(words.get(kind, str(kind)) for kind in kinds))


def _site(site: Site, names: list[str]) -> dict[str, Any]:
    return {
        "model": site.model,
        "hook": site.hook or site.hf_path,
        "label": site_label(site, names),
        "width": site.width,
    }
