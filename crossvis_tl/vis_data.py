"""`SaeVisData`: sae_vis' class, made for every dictionary from one pass over the tokens."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import EllipsisType
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Int
from rich.console import Console
from sae_vis.data_config_classes import SaeVisConfig as StockConfig
from torch import Tensor

from crossvis_tl import storage
from crossvis_tl.asking import (
    asked,
    checked,
    chosen_features,
    for_dictionary,
    one_of,
    reopened,
    worth_keeping,
)
from crossvis_tl.build import Built, Showing, build
from crossvis_tl.capture import Capture
from crossvis_tl.dashboards import Dashboards
from crossvis_tl.dictionary import Dictionary
from crossvis_tl.effects import Effect
from crossvis_tl.encoders import as_dictionary
from crossvis_tl.feature_acts import FeatureActs
from crossvis_tl.fidelity import warn_if_bad
from crossvis_tl.gathering import gather
from crossvis_tl.high_norm import without_high_norms
from crossvis_tl.layouts import SaeVisConfig
from crossvis_tl.masking import Masking, set_mask
from crossvis_tl.models import load_models
from crossvis_tl.page_facts import page_facts
from crossvis_tl.pairs import Replacements
from crossvis_tl.tokens import TokenSet
from crossvis_tl.vocabulary import Vocabulary

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer


@dataclass(repr=False)
class SaeVisData(Dashboards):
    """sae_vis' `SaeVisData` for every dictionary; see `Dashboards` for what it holds and writes. Make one with
    `create`, `from_store` or `load_json`."""

    @classmethod
    def create(  # type: ignore[override]  # noqa: PLR0913 - sae_vis' own call, with what its users ask for beside it
        cls,
        encoder: Any = None,
        model: "HookedTransformer | Sequence[HookedTransformer] | None" = None,
        tokens: Int[Tensor, "batch seq"] | TokenSet | None = None,
        cfg: StockConfig | None = None,
        encoder_B: Any = None,
        *,
        sae: Any = None,
        sae_B: Any = None,
        masking: Masking | None = None,
        masked_tokens: Sequence[int | str] | None = None,
        masked_positions: Sequence[int] | None = None,
        high_norm_multiple: float | None = None,
        documents: Int[Tensor, "batch *seq"] | None = None,
        token_replacements: Replacements | None = None,
        effect: Effect | None = None,
        latent_scaling: bool | None = None,
        per_document: int | EllipsisType | None = ...,
        distinct: bool | None = None,
        replacement: bool | None = None,
        store: str | Path | None = None,
    ) -> "SaeVisData":
        """Dashboards for `cfg.features` of `encoder` on `tokens`; sae_vis' own call, with more taken.

        `encoder` (sae_vis 0.3: `sae`): a dictionary from `load_dictionary`, a sae_vis `AutoEncoder` or a sae_lens SAE.
        `model`: one model or a list of them in the dictionary's order; whatever `load_model` takes will do. `tokens`:
        ids [sequences, positions], or what `crossvis_tl.tokens.load_token_set` gave. `encoder_B` (`sae_B`): a second
        one on the same models, whose features most correlated with each shown one are listed.

        `masking`, `masked_tokens`, `masked_positions`: what is left out of every statistic and example, by default BOS
        and padding (`crossvis_tl.masking.token_mask`). `high_norm_multiple`: tokens at which the norm of any activation
        read is more than so many times the median there are left out as well; one more pass finds them. `documents`: a
        number for each row or token; an example group shows at most `per_document` tokens of one, and with `distinct`
        none whose surroundings it shows already. `token_replacements`: by model's number, ids that it reads in place of
        others ({0: {128006: 1432}}), as the producers of crosscoders do where a base model never saw a chat template's
        tokens.

        `effect`: of a feature on the logits at the tokens shown. "direct": the final residual stream less what the
        feature writes, later layers left as they are; "full": taken away where it is written, and the model run on;
        "none": not computed. `latent_scaling`: for two models, beta and nu (arXiv 2504.02922). `replacement`: what
        predictions lose with the reconstruction put in, site by site; default: of transcoders. `store`: a folder to
        keep what was gathered in; if it holds the beginning of this, the gathering goes on from there, and if all, no
        model is run over the tokens again.

        What is not given is as `cfg` says, if it is a `crossvis_tl.SaeVisConfig`.

        ValueError before any long work when something does not fit; warns when the fidelity is implausible.
        """
        encoder, encoder_B = one_of("encoder", encoder, "sae", sae), one_of("encoder_B", encoder_B, "sae_B", sae_B)
        if encoder is None or model is None or tokens is None:
            raise TypeError("SaeVisData.create needs an encoder (or sae), a model and tokens")
        cfg = checked(cfg or SaeVisConfig())
        how = asked(
            cfg, masking=masking, masked_tokens=masked_tokens, masked_positions=masked_positions,
            high_norm_multiple=high_norm_multiple, effect=effect, latent_scaling=latent_scaling,
            per_document=per_document, distinct=distinct,
        )  # fmt: skip
        models = load_models(model)
        device = str(models[0].cfg.device)
        capture = Capture(as_dictionary(encoder, cfg.hook_point).to(device), models, token_replacements)
        capture_B = None
        if encoder_B is not None:
            capture_B = Capture(as_dictionary(encoder_B, cfg.hook_point).to(device), models, token_replacements)
        cfg, features = for_dictionary(cfg, capture.dictionary), chosen_features(cfg, capture.dictionary)
        given = TokenSet.of(tokens).checked(models, cfg.batch_size)
        tokens = given.tokens
        mask = set_mask(
            given, models[0].tokenizer, how.masking, masked_tokens=how.masked_tokens,
            masked_positions=how.masked_positions,
            documents=None if documents is None else torch.as_tensor(documents)[: cfg.batch_size],
        )  # fmt: skip
        mask = without_high_norms(capture, tokens, mask, how.high_norm_multiple, out=store, progress=bool(cfg.verbose))
        n_features = capture.dictionary.n_features if features is None else len(features)
        acts = gather(
            capture, tokens, mask, features, rows_per_batch=cfg.minibatch_size_tokens, progress=cfg.verbose,
            keep_final=how.effect == "direct" and worth_keeping(capture, cfg, len(tokens), n_features),
            latent_scaling=how.latent_scaling, replacement=replacement, out=store,
        )  # fmt: skip
        if cfg.verbose:
            Console(soft_wrap=True, markup=False, highlight=False).print("\n".join(acts.fidelity.lines()))
        acts_B = None
        if capture_B is not None:
            acts_B = gather(
                capture_B,
                tokens,
                mask,
                rows_per_batch=cfg.minibatch_size_tokens,
                progress=cfg.verbose,
                neurons=False,
                replacement=False,
            )
            warn_if_bad(acts_B.fidelity)
        return cls.from_acts(
            acts, capture.dictionary, cfg, how.showing, capture=capture, acts_B=acts_B, encoder=encoder,
            encoder_B=encoder_B,
        )  # fmt: skip

    @classmethod
    def from_store(
        cls,
        store: str | Path | FeatureActs,
        encoder: Any,
        cfg: StockConfig | None = None,
        *,
        model: "HookedTransformer | Sequence[HookedTransformer] | None" = None,
        tokens: Int[Tensor, "batch seq"] | TokenSet | None = None,
        effect: Effect | None = None,
        per_document: int | EllipsisType | None = ...,
        distinct: bool | None = None,
    ) -> "SaeVisData":
        """Dashboards of what was gathered into a folder before, of other features or in another layout.

        `store`: the folder, or what `open_store` gave. `encoder`: the dictionary it was gathered with. `model`: only
        the sequences shown are run; without it, effects on logits read "not gathered". `tokens`: need not be given.
        ValueError where any of them is another than was gathered with, and for features that were not gathered.
        """
        cfg = checked(cfg or SaeVisConfig())
        how = asked(cfg, effect=effect, per_document=per_document, distinct=distinct)
        acts, dictionary, capture = reopened(store, encoder, cfg, model, tokens)
        features = chosen_features(cfg, dictionary)
        acts = acts if features is None else acts.select_features(features)
        return cls.from_acts(
            acts, dictionary, cfg, how.showing, capture=capture, encoder=encoder, vocabulary=acts.vocabulary
        )  # fmt: skip

    @classmethod
    def from_acts(
        cls,
        acts: FeatureActs,
        dictionary: Dictionary,
        cfg: StockConfig,
        showing: Showing | None = None,
        *,
        capture: Capture | None = None,
        acts_B: FeatureActs | None = None,
        encoder: Any = None,
        encoder_B: Any = None,
        vocabulary: Mapping[int, str] | None = None,
    ) -> "SaeVisData":
        """Dashboards of activations gathered before. `capture`: the dictionary on its models, for what needs them.
        `vocabulary`: texts of token ids, where there is no model to say them."""
        warn_if_bad(acts.fidelity)
        showing = showing or Showing()
        dictionary = dictionary if capture is None else capture.dictionary
        cfg = for_dictionary(checked(cfg), dictionary)
        built = build(dictionary, acts, cfg, showing, capture, acts_B)
        models = [] if capture is None else capture.models
        data = cls(
            feature_data_dict=built.feature_data, feature_stats=built.statistics, cfg=cfg,
            model=models[0] if models else None, encoder=dictionary if encoder is None else encoder,  # type: ignore[arg-type]
            encoder_B=encoder_B, panels=built.panels, models=models, capture=capture, masking=acts.mask.how,
            page=page_facts(dictionary, acts, _shown_effect(showing, capture, built)),
        )  # fmt: skip
        ids, known = storage.shown_ids(data), vocabulary or {}
        texts = Vocabulary(models[0].tokenizer if models else None).texts(ids)
        data.page.vocabulary = {i: known.get(i, text) if not models else text for i, text in texts.items()}
        return data


def _shown_effect(showing: Showing, capture: Capture | None, built: Built) -> str:
    """Which effects on logits these dashboards show, as `page_facts` names them."""
    if capture is None:
        return "no model"
    return showing.effect if any(panel.logits for panel in built.panels.values()) else "nowhere"
