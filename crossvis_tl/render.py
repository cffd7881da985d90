"""What `crossvis render` does: from names of files to dashboards. All that can be wrong is looked at before the models
are loaded, as far as it can be."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from sae_vis.data_config_classes import SaeVisConfig

from crossvis_tl.capture import Capture
from crossvis_tl.dictionary import Dictionary
from crossvis_tl.errors import near_misses
from crossvis_tl.feature_acts import FeatureActs
from crossvis_tl.fidelity import Fidelity
from crossvis_tl.formats import load_dictionary
from crossvis_tl.gathering import gather
from crossvis_tl.masking import token_mask
from crossvis_tl.models import load_models
from crossvis_tl.pairs import Replacements
from crossvis_tl.selection import parse_features, strongest, top_count
from crossvis_tl.tokens import check_token_file, checked_tokens, load_tokens
from crossvis_tl.vis_data import SaeVisData, checked, worth_keeping

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def parse_dtype(name: str) -> torch.dtype:
    """ValueError with near misses for a name that is none of `DTYPES`."""
    if name not in DTYPES:
        raise ValueError(f"dtype {name!r}: expected one of {', '.join(DTYPES)}.{near_misses(name, DTYPES)}")
    return DTYPES[name]


@dataclass
class RenderJob:
    """`models`, `dictionary`, `tokens`: as `load_model`, `load_dictionary` and `load_tokens` take them. `features`: as
    in `selection`. `facts`: for `load_dictionary`. `cfg_fields`: for `SaeVisConfig`. `choose`: picks, by index, among
    the features gathered; default all of them, or for "top:N" the strongest."""

    models: Sequence[str]
    dictionary: str | Path
    tokens: Path
    features: str = "top:50"
    device: str | None = None
    dtype: str = "float32"
    context: int = 128
    facts: dict[str, Any] = field(default_factory=dict)
    cfg_fields: dict[str, Any] = field(default_factory=dict)
    choose: Callable[[Dictionary, FeatureActs], list[int]] | None = None
    token_replacements: Replacements = field(default_factory=dict)

    def run(self, verdict: Callable[[Fidelity], None]) -> SaeVisData:
        """-> dashboards; `verdict` hears how well the dictionary fits before they are built."""
        dtype = parse_dtype(self.dtype)
        dictionary = load_dictionary(self.dictionary, **self.facts)
        top = top_count(self.features)
        chosen = parse_features(self.features, dictionary)
        check_token_file(self.tokens)
        models = load_models(list(self.models), self.device, dtype)
        capture = Capture(dictionary.to(str(models[0].cfg.device)), models, self.token_replacements)
        tokens = load_tokens(self.tokens, models[0].tokenizer, min(self.context, models[0].cfg.n_ctx))
        cfg = checked(SaeVisConfig(**self.cfg_fields))
        tokens = checked_tokens(tokens, models, str(self.tokens))[: cfg.batch_size]
        mask = token_mask(tokens, models[0].tokenizer)
        n_features = len(chosen) if chosen is not None else top or dictionary.n_features
        keep_final = worth_keeping(capture, cfg, len(tokens), n_features)
        acts = gather(
            capture, tokens, mask, chosen, rows_per_batch=cfg.minibatch_size_tokens, progress=cfg.verbose,
            keep_final=keep_final,
        )  # fmt: skip
        verdict(acts.fidelity)
        if self.choose is not None:
            acts = acts.select(self.choose(dictionary, acts))
        elif top is not None:
            acts = acts.select(strongest(acts, top))
            if not len(acts.features):
                raise ValueError(f"no feature fires on {self.tokens}; there is nothing to rank by maximum activation")
        return SaeVisData.from_acts(acts, dictionary, cfg, capture=capture)
