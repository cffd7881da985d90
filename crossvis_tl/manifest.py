"""What a store says of itself: what it was made from and how. Opened with anything else, it refuses."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from crossvis_tl.dictionary import Dictionary, Site
from crossvis_tl.errors import first_line, short_list
from crossvis_tl.files import write_whole

FORMAT, VERSION = "crossvis_tl feature activations", 1
NAME = "manifest.json"


@dataclass(frozen=True)
class Manifest:
    """`dictionary`, `tokens`, `features`, `models`: fingerprints. `dictionary_name`, `model_names`: for people.
    `hooks`: those read, and those written. `scaled`: as `Capture.scaled`. `settings`: how the tokens were taken,
    so that going on takes them the same way. `labels`: `FidelityLabels` as a dict. `origin`: where dictionary and
    models were loaded from, if known."""

    dictionary: str
    dictionary_name: str
    models: list[str]
    model_names: list[str]
    tokens: str
    features: str
    n_features: int
    masked: list[list[Any]]
    replacements: dict[str, dict[str, int]]
    latent_scaling: bool
    scaled: list[int]
    settings: dict[str, int]
    labels: dict[str, Any]
    hooks: list[list[str | None]]
    documents_given: bool = False
    origin: dict[str, Any] = field(default_factory=dict)
    complete: bool = False
    causes: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

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
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
            raise ValueError(f"{path} is damaged: {first_line(error)}") from error
        if not isinstance(content, dict) or content.pop("format", None) != FORMAT:
            raise ValueError(f"{path} is no manifest of feature activations")
        version = content.pop("version", None)
        if version != VERSION:
            raise ValueError(f"{folder} is a store of version {version}; this crossvis_tl reads version {VERSION}")
        try:
            return cls(**content)
        except TypeError as error:
            raise ValueError(f"{path} is damaged: it does not hold what version {VERSION} holds ({error})") from error

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

    def finished(self, causes: Sequence[str], notes: Sequence[str]) -> "Manifest":
        """Of a gathering that is whole, with what `diagnose` found."""
        return replace(self, complete=True, causes=list(causes), notes=list(notes))

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
            f"another mask ({short_list(what for what, _ in self.masked) or 'none'} there)": self.masked
            == other.masked,
            "other replaced tokens": self.replacements == other.replacements,
            f"latent_scaling={not self.latent_scaling}": self.latent_scaling == other.latent_scaling,
        }
        return [what for what, same in checks.items() if not same]


def replacements_as_json(replacements: Mapping[int, Mapping[int, int]]) -> dict[str, dict[str, int]]:
    return {str(m): {str(old): new for old, new in mapping.items()} for m, mapping in replacements.items()}


def replacements_from_json(data: Mapping[str, Mapping[str, int]]) -> dict[int, dict[int, int]]:
    return {int(m): {int(old): new for old, new in mapping.items()} for m, mapping in data.items()}
