"""An SAE or one transcoder as sae_lens saves it (F13), by sae_lens itself."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from crossvis_tl.dictionary import Dictionary
from crossvis_tl.encoders import SaeLensDictionary
from crossvis_tl.writers.plain import above, check_plain, model_name, plain, plain_bias, plain_skip, refusal, top_k

LAYOUT = "a sae_lens folder"


def check(dictionary: Dictionary) -> None:
    """ValueError where the layout has no place for what the dictionary does."""
    if isinstance(dictionary, SaeLensDictionary):
        return
    check_plain(dictionary, LAYOUT)
    if (len(dictionary.groups), len(dictionary.sources), len(dictionary.targets)) != (1, 1, 1):
        raise refusal(dictionary, LAYOUT, "that reads one site and writes one")
    activation = dictionary.groups[0].activation
    ranked = top_k(activation)
    if ranked is not None:
        if not ranked.relu or dictionary.skip or dictionary.sources != dictionary.targets:
            raise refusal(dictionary, LAYOUT, "sae_lens has TopK for SAEs alone, with ReLU")
        return
    threshold = above(activation)
    if threshold is not None and bool((threshold < 0).any()):
        raise refusal(dictionary, LAYOUT, "sae_lens' JumpReLU has no negative thresholds")


def write(dictionary: Dictionary, folder: Path) -> None:
    if isinstance(dictionary, SaeLensDictionary):
        if dictionary.sae is None:
            raise TypeError("a SaeLensDictionary needs its SAE")
        dictionary.sae.save_model(folder)
        return
    from sae_lens.registry import SAE_CLASS_REGISTRY

    group, activation, bias = plain(dictionary, 0), dictionary.groups[0].activation, plain_bias(dictionary, 0)
    state: dict[str, Tensor] = {"W_enc": group.W_enc[0], "W_dec": group.W_dec[0], "b_enc": group.b_enc}
    ranked = top_k(activation)
    threshold = None if ranked else above(activation)
    if threshold is not None:
        state["threshold"] = threshold
    if dictionary.skip:
        skip, constant = plain_skip(dictionary, 0, 0)
        state["W_skip"], bias = skip.T, bias.float() + constant
    state["b_dec"] = bias
    is_sae = dictionary.sources == dictionary.targets and not dictionary.skip
    words = ["jumprelu" if threshold is not None else "", "skip" if dictionary.skip else "", "transcoder"]
    name = "_".join(word for word in words if word)
    if is_sae:
        name = "topk" if ranked else "standard" if threshold is None else "jumprelu"
    sae_class, config_class = SAE_CLASS_REGISTRY[name][:2]
    n_features, d_out = group.W_dec[0].shape
    fields: dict[str, Any] = {"d_in": dictionary.sources[0].width, "d_sae": n_features, "apply_b_dec_to_input": False}
    fields |= {} if is_sae else {"d_out": d_out}
    fields |= {"k": ranked.k} if ranked else {}
    sae = sae_class(config_class(**fields, device="cpu", dtype="float32"))
    metadata = {"hook_name": dictionary.sources[0].place, "model_name": model_name(dictionary)}
    metadata |= {} if is_sae else {"hook_name_out": dictionary.targets[0].place}
    for key, value in metadata.items():
        setattr(sae.cfg.metadata, key, value)
    sae.load_state_dict({name: tensor.float().contiguous().cpu().clone() for name, tensor in state.items()})
    with torch.no_grad():
        sae.save_model(folder)
