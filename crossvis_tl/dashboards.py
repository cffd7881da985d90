"""Dashboards that were made: what they hold, and the ways out of them: pages, notebooks, JSON."""

from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field, replace
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self
from warnings import warn

from sae_vis.data_config_classes import SaeVisConfig as StockConfig
from sae_vis.data_storing_fns import SaeVisData as StockSaeVisData

from crossvis_tl import stock_pages, storage
from crossvis_tl.asking import check_prompt_layout, checked
from crossvis_tl.capture import Capture
from crossvis_tl.encoders import as_dictionary
from crossvis_tl.errors import CrossvisWarning, check_word
from crossvis_tl.labels import Labels
from crossvis_tl.models import load_models
from crossvis_tl.notebook import show
from crossvis_tl.page import write_page
from crossvis_tl.page_data import feature_page, prompt_page
from crossvis_tl.page_facts import PageFacts
from crossvis_tl.panels import FeaturePanels
from crossvis_tl.prompts import gather_prompts

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer

Renderer = Literal["crossvis_tl", "sae_vis"]


@dataclass(repr=False)
class Dashboards(StockSaeVisData):
    """sae_vis' `SaeVisData` with our panels (`panels`, by feature) and the page's facts beside its own fields.

    `model` is the first of `models`; `capture`: the dictionary on them, as it was gathered. `masking`: `Mask.how`.
    """

    panels: dict[int, FeaturePanels] = field(default_factory=dict)
    page: PageFacts = field(default_factory=PageFacts)
    models: list["HookedTransformer"] = field(default_factory=list)
    capture: Capture | None = field(default=None, compare=False)
    masking: str = ""

    def __repr__(self) -> str:
        return f"<SaeVisData {self.page.title!r}: {len(self.feature_data_dict)} features>"

    def _repr_html_(self) -> str:
        """A notebook's summary of the object: never the page itself, which can be large."""
        n = len(self.feature_data_dict)
        verdict = self.page.fidelity["headline"] if self.page.fidelity else "fidelity not measured"
        return f"<b>{escape(self.page.title)}</b>: {n} features. {escape(verdict)} Use <code>.show()</code>."

    def with_labels(self, labels: str | Path | Mapping[Any, str] | Labels, *, layer: int | str | None = None) -> Self:
        """The same dashboards with descriptions of their features, which their pages show behind the dictionary's own
        labels ("L3F7 · fires on dates") and find; `save_json` keeps them, sae_vis' own pages lack them.

        `labels`: {3: "dates"}, {"L3F7": "dates"}, or where they lie: Neuronpedia's exports and answers, Delphi's folder
        or a table (`crossvis_tl.labels.load_labels`, also for `layer` and errors). Features that are not shown are
        passed over; those it does not describe keep what described them before. Warns where it describes none.
        """
        texts = Labels.of(labels).on(self, layer=layer)
        made = copy(self)
        made.panels = {
            feature: replace(panel, description=texts.get(feature, panel.description), prompts=[])
            for feature, panel in self.panels.items()
        }
        if not texts.keys() & made.panels.keys():
            warn("none of the features shown is among those described", CrossvisWarning, stacklevel=2)
        return made

    def save_feature_centric_vis(
        self, filename: str | Path, feature_idx: int | None = None, *, renderer: Renderer = "crossvis_tl"
    ) -> None:
        """Writes the page for looking through the features.

        `feature_idx`: the one it opens on; without it the map, if there are many features, or the first. `renderer`:
        "sae_vis" writes sae_vis' own page, which needs the model and a network to be looked at, and shows the first
        model alone. ValueError for a feature that was not gathered, OSError where the file cannot be written.
        """
        check_word("renderer", renderer, ("crossvis_tl", "sae_vis"))
        if renderer == "sae_vis":
            stock_pages.save_features(self, Path(filename), feature_idx)
            return
        head, payloads = feature_page(self, feature_idx)
        write_page(filename, head, payloads)

    def save_prompt_centric_vis(
        self,
        prompt: str | Sequence[str],
        filename: str | Path,
        metric: str | None = None,
        seq_pos: int | None = None,
        num_top_features: int = 10,
        *,
        renderer: Renderer = "crossvis_tl",
    ) -> None:
        """Writes the page of one prompt, or of several: at each token the top features by `metric` ("act_quantile",
        "act_size" or "loss_effect"; default the first, and all can be chosen on the page), of all features and of each
        layer or source. `seq_pos`: the token to open on, default the last at which a feature fires.

        `renderer`: as `save_feature_centric_vis`, for a single prompt. ValueError for an unknown metric, an empty
        prompt, a position outside it, and dashboards without model or dictionary.
        """
        check_word("renderer", renderer, ("crossvis_tl", "sae_vis"))
        check_prompt_layout(self.cfg)
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        if renderer == "sae_vis" and len(prompts) != 1:
            raise ValueError(f"sae_vis' page shows one prompt; got {len(prompts)}")
        shown = gather_prompts(self, self.ready(), prompts, metric, seq_pos, num_top_features)
        if renderer == "sae_vis":
            stock_pages.save_prompt(self, shown, Path(filename))
            return
        head, payloads = prompt_page(self, shown)
        write_page(filename, head, payloads)

    def ready(self) -> Capture:
        """The dictionary on its models. ValueError saying what is missing, where they are not both there."""
        if not self.models:
            raise ValueError("a prompt needs the model, which these dashboards lack: pass model= when loading them")
        if self.encoder is None:
            raise ValueError(
                "a prompt needs the dictionary, which these dashboards lack: pass encoder= when loading them"
            )
        if self.capture is None and any(name == "replaced tokens" for name, _ in self.page.facts):
            raise ValueError(
                "these dashboards were made with replaced tokens, which JSON does not keep; make the prompt's page "
                "from SaeVisData.create or from_store"
            )
        if self.capture is None:
            dictionary = as_dictionary(self.encoder, self.cfg.hook_point).to(str(self.models[0].cfg.device))
            self.capture = Capture(dictionary, self.models)
        return self.capture

    def show(self, feature_idx: int | None = None, *, height: int | None = None) -> None:
        """Shows the page in a Jupyter or Colab notebook's output, `height` pixels high (default: what the layout
        needs); past 10 MiB it is saved, and said where."""
        show(self, feature_idx, height)

    def live(self, prompt: str = "", *, height: int = 700) -> Any:
        """A notebook's widget: type a prompt, see its tokens coloured by any feature and the top features at each,
        while model and dictionary stay loaded. Needs the extra `widget`. ValueError without model or dictionary."""
        from crossvis_tl.live import live

        return live(self, prompt, height=height)

    def save_json(self, filename: str | Path) -> None:
        """Everything but config, models and encoders; stock sae_vis reads its own part of the file. The layouts are
        kept."""
        storage.save_json(self, Path(filename))

    @classmethod
    def load_json(  # type: ignore[override]
        cls,
        filename: str | Path,
        cfg: StockConfig | None = None,
        model: Any = None,
        encoder: Any = None,
        encoder_B: Any = None,
    ) -> "Dashboards":
        """Undoes `save_json`. `cfg`: another layout than the one saved, of what was made. Model and encoder are needed
        for prompts only. ValueError for a file of another kind or version."""
        cfg = None if cfg is None else checked(cfg)
        saved = storage.load_json(Path(filename))
        models = [] if model is None else load_models(model)
        return cls(
            feature_data_dict=saved.features, feature_stats=saved.statistics, cfg=saved.config(cfg),
            model=models[0] if models else None, encoder=encoder, encoder_B=encoder_B,
            panels=saved.panels, page=saved.page, models=models, masking=saved.masking,
        )  # fmt: skip
