"""A dictionary and its models as what *stock* sae_vis takes: an `AutoEncoder`, one HookedTransformer, one hook point.

Stock sae_vis applies ReLU to one hook of one model. So the features themselves become a hook point: the prepared model
runs the real model(s), encodes, and hands the activations out at a hook of its own; the encoder over it is a selection,
and the ReLU of a non-negative number is that number. The hook is called `...hook_post`, and the prepared model's
`W_out` holds the real decoder, which makes stock's logit effects right too. The user's models are only read.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

import torch
from jaxtyping import Float
from sae_vis.data_config_classes import (
    Column,
    FeatureTablesConfig,
    SaeVisConfig,
    SaeVisLayoutConfig,
)
from sae_vis.model_fns import AutoEncoder, AutoEncoderConfig
from torch import Tensor, nn
from transformer_lens import HookedTransformer
from transformer_lens.hook_points import HookPoint

from crossvis_tl.capture import Capture
from crossvis_tl.dictionary import Dictionary
from crossvis_tl.encoders import as_dictionary
from crossvis_tl.errors import feature_numbers, short_list
from crossvis_tl.logit_effects import residual_written
from crossvis_tl.models import load_models, name_of
from crossvis_tl.unembed import unembedding

if TYPE_CHECKING:
    from transformer_lens.ActivationCache import ActivationCache

LARGEST_SELECTION = 4096
USE_OURS = "crossvis_tl.SaeVisData.create(...) shows them"


def attach(
    dictionary: Dictionary | Any,
    model: "HookedTransformer | Sequence[HookedTransformer]",
    features: int | Sequence[int] | None = None,
    *,
    logits_of: int = 0,
) -> tuple["FeatureEncoder", "PreparedModel"]:
    """-> encoder and model for stock `sae_vis.SaeVisData.create(encoder=..., model=..., cfg=...)`.

    `features`: those to be shown, by number; None for all (at most 4,096: the hook hands out that many numbers a
    token). `logits_of`: the model whose logits stock shows. In `cfg`, `hook_point=encoder.hook_point` and `features`
    out of those attached; `encoder.config(...)` makes one whose tables leave out what would list a feature itself.

    Nothing is changed in the models, so there is nothing to undo. ValueError for features out of range or too many, and
    where the features do not write to that model's residual stream.
    """
    models = load_models(model)
    base = models[logits_of] if 0 <= logits_of < len(models) else models[0]
    if base.cfg.dtype != torch.float32:
        raise ValueError(f"stock sae_vis needs float32 models; {name_of(base)} is {base.cfg.dtype}. {USE_OURS}")
    capture = Capture(as_dictionary(dictionary).to(str(base.cfg.device)), models)
    chosen = _chosen(capture.dictionary, features)
    if not 0 <= logits_of < len(models):
        raise ValueError(f"logits_of is {logits_of}; there are {len(models)} models, counted from 0")
    written = residual_written(capture.dictionary, chosen, models[logits_of], logits_of)
    if written is None:
        raise ValueError(
            f"{capture.dictionary.name} does not write to the residual stream of {name_of(models[logits_of])}, and "
            f"stock sae_vis cannot show features without logit effects; {USE_OURS}"
        )
    if not written.one_direction or written.gate is not None or written.scaled is not None:
        raise ValueError(
            f"what a feature of {capture.dictionary.name} writes is not its activation times a direction, which is all "
            f"that stock sae_vis can show; {USE_OURS}"
        )
    prepared = PreparedModel(capture, chosen, written.direction, logits_of)
    return FeatureEncoder(capture.dictionary, chosen, prepared.hook_point), prepared


def _chosen(dictionary: Dictionary, features: int | Sequence[int] | None) -> Tensor:
    chosen = list(range(dictionary.n_features)) if features is None else feature_numbers(features, "features")
    dictionary.check_features(chosen)
    if len(chosen) > LARGEST_SELECTION:
        raise ValueError(
            f"stock sae_vis holds every feature attached for every token; {len(chosen)} are too many (at most "
            f"{LARGEST_SELECTION}). Pass features=[...], or use ours: {USE_OURS}"
        )
    return torch.tensor(chosen)


class _Selection:
    """Stands where stock indexes a weight by feature number: gives columns or rows of a selection matrix."""

    def __init__(self, features: Tensor, device: torch.device, *, columns: bool):
        self.device = device
        self.place = {feature: i for i, feature in enumerate(features.tolist())}
        self.columns = columns

    def __getitem__(self, key: Any) -> Tensor:
        wanted = key[1] if self.columns else key
        numbers = [wanted] if isinstance(wanted, int) else [int(f) for f in wanted]
        absent = [f for f in numbers if f not in self.place]
        if absent:
            raise ValueError(
                f"features {short_list(absent)} were not attached (attached: {short_list(self.place)}); name them in "
                "attach(dictionary, model, features=[...]) and in cfg.features"
            )
        rows = torch.zeros(len(numbers), len(self.place), device=self.device)
        rows[torch.arange(len(numbers)), torch.tensor([self.place[f] for f in numbers])] = 1.0
        return rows.T if self.columns else rows


class FeatureEncoder(AutoEncoder):
    """The stock contract over the features' own hook point: picks those asked for and leaves them as they are."""

    def __init__(self, dictionary: Dictionary, features: Tensor, hook_point: str):
        nn.Module.__init__(self)
        cfg = AutoEncoderConfig(d_in=1, d_hidden=dictionary.n_features)
        cfg.d_in = len(features)
        self.cfg = cfg
        self.dictionary, self.features, self.hook_point = dictionary, features, hook_point
        device = dictionary.device
        # plain attributes, not parameters: stock only ever indexes them by feature
        object.__setattr__(self, "W_enc", _Selection(features, device, columns=True))
        object.__setattr__(self, "W_dec", _Selection(features, device, columns=False))
        object.__setattr__(self, "b_enc", torch.zeros(dictionary.n_features, device=device))
        object.__setattr__(self, "b_dec", torch.zeros(len(features), device=device))

    def config(self, **fields: Any) -> SaeVisConfig:
        """A stock `SaeVisConfig` for this encoder: its hook point, its features, and a layout without the feature
        tables, whose "neurons" would be the features themselves."""
        layout = fields.pop("feature_centric_layout", SaeVisLayoutConfig.default_feature_centric_layout())
        columns = []
        for column in layout.columns.values():
            kept = [part for part in column if not isinstance(part, FeatureTablesConfig)]
            if kept:
                columns.append(Column(*kept, width=column.width))
        fields.setdefault("hook_point", self.hook_point)
        fields.setdefault("features", self.features.tolist())
        return SaeVisConfig(feature_centric_layout=SaeVisLayoutConfig(columns, height=layout.height), **fields)

    def forward(self, x: Tensor) -> NoReturn:
        raise NotImplementedError(
            "this encoder only selects features for sae_vis' pages; it is no autoencoder to train"
        )

    def __repr__(self) -> str:
        return f"FeatureEncoder({len(self.features)} of {self.dictionary.n_features} features at {self.hook_point})"


class PreparedModel(HookedTransformer):
    """Runs the real models and adds one hook point, whose tensor is the selected features' activations.

    `W_U`: the unembedding with the final norm's gain and centring folded in, since stock takes `direction @ W_U`.
    `W_out`: at the hook's layer, the selected features' directions in the final residual stream. Everything else is
    the wrapped model's.
    """

    def __init__(self, capture: Capture, features: Tensor, direction: Float[Tensor, "n d_model"], logits_of: int):
        nn.Module.__init__(self)
        base = capture.models[logits_of]
        layer = capture.dictionary.sources[-1].layer or 0  # stock parses a layer out of the hook's name
        self.hook_point = f"blocks.{layer}.crossvis_features.hook_post"
        point = HookPoint()
        point.name = self.hook_point
        # object.__setattr__: registering the user's models as submodules of ours would tie their lives together
        for name, value in {
            "_base": base,
            "_capture": capture,
            "_features": features,
            "_W_out": {layer: direction},
            "_W_U": unembedding(base).W,
            "cfg": base.cfg,
            "tokenizer": base.tokenizer,
            "_point": point,
        }.items():
            object.__setattr__(self, name, value)

    @property
    def hook_dict(self) -> dict[str, HookPoint]:  # type: ignore[override]
        return {**self._base.hook_dict, self.hook_point: self._point}

    @property
    def W_U(self) -> Tensor:
        return self._W_U

    @property
    def W_out(self) -> Any:
        return self._W_out

    def __getattr__(self, name: str) -> Any:
        return getattr(object.__getattribute__(self, "_base"), name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self._base(*args, **kwargs)

    def feature_acts(self, tokens: Tensor) -> Float[Tensor, "rows positions n"]:
        """ValueError when an activation is negative: stock's ReLU would lose it."""
        acts = self._capture.dictionary.encode_features(self._capture.run(tokens).sources, self._features)
        if bool((acts < 0).any()):
            raise ValueError(f"stock sae_vis cannot show the negative activations of this dictionary; {USE_OURS}")
        return acts

    def run_with_hooks(  # type: ignore[override]
        self, tokens: Tensor, *args: Any, fwd_hooks: Sequence[tuple[str | Callable, Callable]] = (), **kwargs: Any
    ) -> Any:
        ours = [hook for name, hook in fwd_hooks if name == self.hook_point]
        theirs = [(name, hook) for name, hook in fwd_hooks if name != self.hook_point]
        if ours:
            acts = self.feature_acts(tokens)
            for hook in ours:
                hook(acts, hook=self._point)
        return self._base.run_with_hooks(tokens, *args, fwd_hooks=theirs, **kwargs)

    def run_with_cache(self, *args: Any, **kwargs: Any) -> "tuple[Any, ActivationCache]":  # type: ignore[override]
        return self._base.run_with_cache(*args, **kwargs)
