"""Which dictionary, model and tokens a store was made from: short texts that differ where the numbers would.

Tokens are hashed whole. Of large weights evenly spaced numbers are, so that a fingerprint costs no reading of a file of
many gigabytes; two checkpoints of one training differ in nearly all of their numbers.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Int
from torch import Tensor

from crossvis_tl.dictionary import Dictionary
from crossvis_tl.masking import Mask
from crossvis_tl.weights import Shards

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer

# Tensors of more numbers than this are not looked at whole, but at so many numbers of theirs: each may cost a page of a
# file that is mapped.
WHOLE, SAMPLED, SAMPLED_FEATURES = 2**16, 1024, 64
# What is said of a dictionary beside what makes its numbers.
WORDS = ("name", "format", "model_names", "facts", "hook", "hf_path", "sae")


def dictionary_fingerprint(dictionary: Dictionary) -> str:
    """Of weights, activation functions, sites and what comes before and after them; not of names."""
    found = hashlib.blake2b(digest_size=16)
    _feed(found, dictionary)
    for site in (*dictionary.sources, *dictionary.targets):
        _feed(found, site.place)
    sae = getattr(dictionary, "sae", None)  # sae_lens' own, whose code gives the numbers
    if sae is not None:
        _feed(found, sorted(sae.cfg.to_dict().items(), key=str))
        _feed(found, dict(sae.state_dict()))
    return found.hexdigest()


def model_fingerprint(model: "HookedTransformer") -> str:
    """Of every parameter, in the type it is in: a model in another precision has other activations."""
    found = hashlib.blake2b(digest_size=16)
    cfg = model.cfg
    _feed(found, [cfg.n_layers, cfg.d_model, cfg.d_vocab, str(cfg.normalization_type)])
    for name, parameter in sorted(model.named_parameters()):
        found.update(name.encode())
        found.update(str(parameter.dtype).encode())
        _feed_tensor(found, parameter.detach())
    return found.hexdigest()


def tokens_fingerprint(tokens: Int[Tensor, "rows positions"]) -> str:
    found = hashlib.blake2b(repr(tuple(tokens.shape)).encode(), digest_size=16)
    found.update(tokens.cpu().long().contiguous().numpy().tobytes())
    return found.hexdigest()


def mask_fingerprint(mask: Mask) -> str:
    """Of which positions count, what is padding, and which document each is of."""
    found = hashlib.blake2b(mask.how.encode(), digest_size=16)
    for part in (mask.counted, mask.lead, mask.tail, mask.documents):
        found.update(part.cpu().contiguous().numpy().tobytes())
    return found.hexdigest()


def _feed(found: Any, thing: Any) -> None:
    if isinstance(thing, Tensor):
        _feed_tensor(found, thing)
    elif isinstance(thing, Shards):
        at = torch.linspace(0, thing.shape[thing.axis] - 1, SAMPLED_FEATURES).long()
        found.update(repr(thing.shape).encode())
        _feed_tensor(found, thing.select(at))
    elif isinstance(thing, Mapping):
        for key in sorted(thing, key=repr):
            found.update(repr(key).encode())
            _feed(found, thing[key])
    elif isinstance(thing, tuple | list):
        found.update(f"[{len(thing)}".encode())
        for part in thing:
            _feed(found, part)
    elif is_dataclass(thing) and not isinstance(thing, type):
        found.update(type(thing).__name__.encode())
        for field in fields(thing):
            if field.name not in WORDS:
                found.update(field.name.encode())
                _feed(found, getattr(thing, field.name))
    else:
        found.update(repr(thing).encode())


def _feed_tensor(found: Any, tensor: Tensor) -> None:
    found.update(repr(tuple(tensor.shape)).encode())
    if tensor.numel() > WHOLE:
        at = torch.linspace(0, tensor.numel() - 1, SAMPLED, dtype=torch.float64).long().to(tensor.device)
        tensor = tensor[torch.unravel_index(at, tensor.shape)]  # never copied whole: it may be mapped from disk
    found.update(tensor.reshape(-1).cpu().to(torch.float64).contiguous().numpy().tobytes())
