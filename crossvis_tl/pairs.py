"""Two models that read the same token ids: do the ids mean the same to both?"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from jaxtyping import Int
from torch import Tensor

from crossvis_tl.errors import short_list
from crossvis_tl.models import name_of

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer

Replacements = Mapping[int, Mapping[int, int]]
SPECIAL = ("bos_token_id", "eos_token_id", "pad_token_id")


def tokenizer_differences(
    models: Sequence["HookedTransformer"], tokens: Int[Tensor, "rows positions"], replacements: Replacements
) -> list[str]:
    """What the tokenizers of the second and later models make of these ids that the first one's does not, in words.

    Ids that a model gets others in place of are left out: that difference has been seen to.
    """
    used = tokens.unique().tolist()
    notes = []
    for i, model in enumerate(models[1:], start=1):
        one, other = models[0].tokenizer, model.tokenizer
        if one is None or other is None:
            continue
        names = f"{name_of(models[0])} and {name_of(model)}"
        seen_to = set(replacements.get(0, ())) | set(replacements.get(i, ()))
        ids = [token for token in used if token not in seen_to]
        texts = zip(ids, _texts(one, ids), _texts(other, ids), strict=True)
        differ = [f"{token} is {a!r} and {b!r}" for token, a, b in texts if a != b]
        if differ:
            notes.append(
                f"{len(differ):,} of the {len(ids):,} token ids used mean other tokens to {names}: "
                f"{short_list(differ, 3)}; token_replacements={{model: {{id: other id}}}} gives one of them others"
            )
        unlike = [name for name in SPECIAL if getattr(one, name) != getattr(other, name)]
        if unlike:
            parts = (f"{name.split('_')[0]} {getattr(one, name)} and {getattr(other, name)}" for name in unlike)
            notes.append(f"{names} have other special tokens: {short_list(parts)}; the first's are masked")
    return notes


def _texts(tokenizer: Any, ids: list[int]) -> list[str]:
    return [str(text) for text in tokenizer.convert_ids_to_tokens(ids)]


def check_replacements(models: Sequence["HookedTransformer"], replacements: Replacements) -> None:
    """ValueError for a model or an id that is not there."""
    for index, mapping in replacements.items():
        if not 0 <= index < len(models):
            raise ValueError(f"token_replacements name model {index}; there are models 0 to {len(models) - 1}")
        d_vocab = models[index].cfg.d_vocab
        bad = [new for new in mapping.values() if not 0 <= new < d_vocab]
        if bad:
            raise ValueError(
                f"token_replacements give {name_of(models[index])} the id {bad[0]}, outside its vocabulary of {d_vocab}"
            )


def parse_replacements(texts: Sequence[str]) -> dict[int, dict[int, int]]:
    """["0:128006=1432"] -> {0: {128006: 1432}}. ValueError for anything else."""
    found: dict[int, dict[int, int]] = {}
    for text in texts:
        model, _, rest = text.partition(":")
        old, _, new = rest.partition("=")
        if not (model.strip().isdecimal() and old.strip().isdecimal() and new.strip().isdecimal()):
            raise ValueError(f"--replace-token {text!r}: expected MODEL:ID=ID, such as 0:128006=1432")
        found.setdefault(int(model), {})[int(old)] = int(new)
    return found
