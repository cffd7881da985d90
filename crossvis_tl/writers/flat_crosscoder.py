"""A flat crosscoder (F1): `cc_weights.pt` and `cfg.json`, input scales folded in, which the config says."""

import json
from pathlib import Path
from typing import Any

import torch

from crossvis_tl.activation_fns import ReLU
from crossvis_tl.dictionary import Affine, Dictionary
from crossvis_tl.writers.plain import check_plain, plain, plain_bias, refusal, stored_sites, top_k

LAYOUT = "a flat crosscoder"


def check(dictionary: Dictionary) -> None:
    """ValueError where the layout has no place for what the dictionary does."""
    check_plain(dictionary, LAYOUT)
    group = dictionary.groups[0]
    if len(dictionary.groups) > 1 or dictionary.sources != dictionary.targets:
        raise refusal(dictionary, LAYOUT, "its features do not read and write all of the same sites")
    n = len(dictionary.sources)
    if len({site.width for site in dictionary.sources}) > 1 or len(group.W_enc) != n or len(group.W_dec) != n:
        raise refusal(dictionary, LAYOUT, "its sites are not all alike")
    if dictionary.skip:
        raise refusal(dictionary, LAYOUT, "there is no place for its skip connection")
    ranked = top_k(group.activation)
    if not isinstance(group.activation, ReLU) and not (ranked and ranked.relu):
        raise refusal(dictionary, LAYOUT, f"that has ReLU or TopK, and no {dictionary.activation}")


def write(dictionary: Dictionary, folder: Path) -> None:
    group, n = plain(dictionary, 0), len(dictionary.sources)
    state = {
        "W_enc": torch.stack([group.W_enc[s] for s in range(n)]),
        "W_dec": torch.stack([group.W_dec[s] for s in range(n)], dim=1),
        "b_enc": group.b_enc,
        "b_dec": torch.stack([plain_bias(dictionary, s) for s in range(n)]),
    }
    torch.save({name: tensor.contiguous().cpu() for name, tensor in state.items()}, folder / "cc_weights.pt")
    hooks = [site.place for site in dictionary.sources]
    config: dict[str, Any] = {
        "d_in": dictionary.sources[0].width,
        "dict_size": dictionary.n_features,
        "hook_point": hooks[0] if len(set(hooks)) == 1 else hooks,
        "processing": dictionary.sources[0].processing,
        "input_scale": [_scale(dictionary, s) for s in range(n)],
        "input_scale_folded": True,
        "model_names": list(dictionary.model_names),
        "sources": stored_sites(dictionary.sources),
    }
    if ranked := top_k(dictionary.groups[0].activation):
        config |= {"activation_dim": config["d_in"], "k": ranked.k}
    (folder / "cfg.json").write_text(json.dumps({k: v for k, v in config.items() if v is not None}, indent=1))


def _scale(dictionary: Dictionary, source: int) -> float:
    """The one factor in which training units differ from the model's; 1 where each dimension has its own."""
    norm = dictionary.denormalize.get(source)
    scale = dictionary.targets[source].scale
    return scale * float(norm.scale) if isinstance(norm, Affine) and norm.scale.numel() == 1 else scale
