"""What a store says of itself: what it was made from and how. Opened with anything else, it refuses."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from crossvis_tl.dictionary import Dictionary, Site
from crossvis_tl.files import read_json, write_whole
from crossvis_tl.losses import ReplacementLoss

FORMAT, VERSION = "crossvis_tl feature activations", 2
NAME = "manifest.json"


@dataclass(frozen=True)
class Manifest:
    """`dictionary`, `tokens`, `features`, `models`, `mask`: fingerprints. `mask_how`, `masked`: as `Mask`.
    `dictionary_name`, `model_names`: for people. `hooks`: those read, and those written. `scaled`: as `Capture.scaled`.
    `attributed`: of how many sources each activation's shares are kept, 0 for none.
    `settings`: how the tokens were taken, so that going on takes them the same way. `labels`: `FidelityLabels` as a
    dict. `origin`: where dictionary and models were loaded from, if known. `causes`, `notes`: what `diagnose` found.
    `losses`: `fidelity.ReplacementLoss` as dicts."""

    dictionary: str
    dictionary_name: str
    models: list[str]
    model_names: list[str]
    tokens: str
    features: str
    n_features: int
    mask: str
    mask_how: str
    masked: list[list[Any]]
    replacements: dict[str, dict[str, int]]
    latent_scaling: bool
    scaled: list[int]
    attributed: int
    settings: dict[str, int]
    labels: dict[str, Any]
    hooks: list[list[str | None]]
    documents_given: bool = False
    origin: dict[str, Any] = field(default_factory=dict)
    complete: bool = False
    causes: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    losses: list[dict[str, Any]] = field(default_factory=list)

    def write(self, folder: Path) -> None:
        content = {"format": FORMAT, "version": VERSION, **asdict(self)}
        write_whole(folder / NAME, [json.dumps(content, indent=1)])

    @classmethod
    def read(cls, folder: Path) -> "Manifest":
        """FileNotFoundError or ValueError when `folder` is no store, damaged, or of a newer version."""
        path = folder / NAME
        if not folder.is_dir():
            raise FileNotFoundError(f"there is no store {folder}; make one with gather(..., out=...)")
        if not path.is_file():
            raise FileNotFoundError(f"{folder} is no store of feature activations: it has no {NAME}")
        content = read_json(path, "is damaged")
        if not isinstance(content, dict) or content.pop("format", None) != FORMAT:
            raise ValueError(f"{path} is no manifest of feature activations")
        version = content.pop("version", None)
        if version != VERSION:
            raise ValueError(f"{folder} is a store of version {version}; this crossvis_tl reads version {VERSION}")
        content.setdefault("losses", [])  # stores made before that was measured
        problem = _problem(content)
        if problem:
            raise ValueError(f"{path} is damaged: {problem}")
        return cls(**content)

    @property
    def only_hook(self) -> str | None:
        """The one hook that is read and written, None where there are several."""
        hooks = {hook for side in self.hooks for hook in side}
        return hooks.pop() if len(hooks) == 1 else None

    def placed(self, dictionary: Dictionary) -> Dictionary:
        """The dictionary with the hooks it was gathered at wherever its files say none."""

        def known(sites: Sequence[Site], hooks: Sequence[str | None]) -> tuple[Site, ...]:
            return tuple(
                site if site.place else replace(site, hook=hook) for site, hook in zip(sites, hooks, strict=False)
            )

        return replace(
            dictionary,
            sources=known(dictionary.sources, self.hooks[0]),
            targets=known(dictionary.targets, self.hooks[1]),
        )

    def finished(
        self, causes: Sequence[str], notes: Sequence[str], losses: Sequence[ReplacementLoss] = ()
    ) -> "Manifest":
        """Of a gathering that is whole, with what `diagnose` found and what replacing sites costs."""
        found = [asdict(one) for one in losses]
        return replace(self, complete=True, causes=list(causes), notes=list(notes), losses=found)

    def differences(self, other: "Manifest") -> list[str]:
        """In words, what of `other` is not what this store was made from and how."""
        same_models = self.models == other.models
        swapped = not same_models and sorted(self.models) == sorted(other.models)
        checks = {
            f"another dictionary than {self.dictionary_name}": self.dictionary == other.dictionary,
            "the models in another order": not swapped,
            f"other models than {' and '.join(self.model_names)}, or in another precision": same_models or swapped,
            "other tokens": self.tokens == other.tokens,
            "other features": self.features == other.features,
            f"another mask or other documents (there: {self.mask_how})": self.mask == other.mask,
            "other replaced tokens": self.replacements == other.replacements,
            f"latent_scaling={not self.latent_scaling}": self.latent_scaling == other.latent_scaling,
        }
        return [what for what, same in checks.items() if not same]


def replacements_as_json(replacements: Mapping[int, Mapping[int, int]]) -> dict[str, dict[str, int]]:
    return {str(m): {str(old): new for old, new in mapping.items()} for m, mapping in replacements.items()}


def replacements_from_json(data: Mapping[str, Mapping[str, int]]) -> dict[int, dict[int, int]]:
    return {int(m): {int(old): new for old, new in mapping.items()} for m, mapping in data.items()}


def _texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(text, str) for text in value)


def _counts(value: Any) -> bool:
    return isinstance(value, dict) and all(type(number) is int for number in value.values())


def _pairs(value: Any) -> bool:
    """[["BOS", 12], ...]"""
    return isinstance(value, list) and all(
        isinstance(pair, list) and len(pair) == 2 and isinstance(pair[0], str) and type(pair[1]) is int
        for pair in value
    )


def _hooks(value: Any) -> bool:
    return (
        isinstance(value, list) and len(value) == 2 and all(isinstance(side, list) for side in value)
        and all(hook is None or isinstance(hook, str) for side in value for hook in side)
    )  # fmt: skip


def _labels(value: Any) -> bool:
    good = isinstance(value, dict) and _texts(value.get("sites")) and _pairs(value.get("groups"))
    return good and bool(value["sites"]) and all(size > 0 for _, size in value["groups"])


def _replaced(value: Any) -> bool:
    """{"0": {"128006": 1432}}"""
    return isinstance(value, dict) and all(
        str(model).isdecimal() and _counts(mapping) and all(str(old).isdecimal() for old in mapping)
        for model, mapping in value.items()
    )


def _settings(value: Any) -> bool:
    return _counts(value) and all(value.get(name, 0) > 0 for name in ("rows_per_batch", "rows_per_part"))


def _losses(value: Any) -> bool:
    """`ReplacementLoss` as dicts, whose numbers are finite."""
    try:
        found = [ReplacementLoss.from_dict(one) for one in value]
    except (TypeError, KeyError, AttributeError, ValueError):
        return False
    return all(one.is_plain for one in found)


def _origin(value: Any) -> bool:
    kinds = {"dictionary": str, "dtype": str, "facts": dict, "calibrated": str}
    return (
        isinstance(value, dict)
        and set(value) <= {*kinds, "models"}
        and all(isinstance(value[name], kind) for name, kind in kinds.items() if name in value)
        and ("models" not in value or _texts(value["models"]))
    )


# What each field must be, where its type does not say it.
CHECKS: dict[str, Callable[[Any], bool]] = {
    "models": _texts, "model_names": _texts, "causes": _texts, "notes": _texts, "settings": _settings, "masked": _pairs,
    "hooks": _hooks, "labels": _labels, "replacements": _replaced, "losses": _losses, "origin": _origin,
    "scaled": lambda value: isinstance(value, list) and all(type(t) is int for t in value),
}  # fmt: skip


def _problem(content: Mapping[str, Any]) -> str | None:
    """What of a manifest's fields is lacking, too much or of another kind; None where all is well."""
    plain = {"str": str, "int": int, "bool": bool}
    for field_ in fields(Manifest):
        name = field_.name
        if name not in content:
            return f"it does not say {name!r}"
        kind = plain.get(str(getattr(field_.type, "__name__", field_.type)))
        good = type(content[name]) is kind if kind else CHECKS[name](content[name])
        if not good:
            return f"{name!r} is {content[name]!r}"
    if not content["models"] or len(content["models"]) != len(content["model_names"]):
        return "it names no models, or not each of them"
    if any(int(m) >= len(content["models"]) for m in content["replacements"]):
        return f"'replacements' is {content['replacements']!r}"
    if not set(content["scaled"]) <= set(range(len(content["labels"]["sites"]))):
        return f"'scaled' is {content['scaled']!r}"
    if not 0 <= content["attributed"] <= len(content["hooks"][0]):
        return f"'attributed' is {content['attributed']!r}"
    if sum(size for _, size in content["labels"]["groups"]) != content["n_features"]:
        return "its groups do not hold as many features as it says"
    unknown = set(content) - {field_.name for field_ in fields(Manifest)}
    return f"it says {sorted(unknown)[0]!r}, which version {VERSION} does not" if unknown else None
