"""Features by number and by label: (layer, index in it) <-> number <-> "L3F120"."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from crossvis_tl.errors import short_list
from crossvis_tl.groups import Group
from crossvis_tl.sites import Kind


@dataclass
class Numbered:
    """What a dictionary knows of its features' numbers, which run through its groups in order."""

    kind: Kind
    groups: tuple[Group, ...]

    @property
    def n_features(self) -> int:
        return sum(group.n_features for group in self.groups)

    @property
    def offsets(self) -> list[int]:
        """First feature of each group, and the number of all features last."""
        sizes = [0]
        for group in self.groups:
            sizes.append(sizes[-1] + group.n_features)
        return sizes

    def label(self, feature: int) -> str:
        """-> "L3F120" for a CLT, else the number."""
        if len(self.groups) == 1:
            return str(feature)
        group, index = self.locate(feature)
        return f"{self.groups[group].name}F{index}"

    def layer(self, feature: int) -> int | None:
        """The layer that a transcoder's feature reads, None where features have none."""
        if len(self.groups) == 1:
            return None
        name = self.groups[self.locate(feature)[0]].name
        return int(name[1:]) if re.fullmatch(r"L\d+", name) else None

    def of_layer(self, layer: int) -> range:
        """Numbers of the features that read a layer. ValueError where features have no layers, or not this one."""
        layers = {int(group.name[1:]): g for g, group in enumerate(self.groups) if re.fullmatch(r"L\d+", group.name)}
        if not layers:
            raise ValueError(f"layer {layer}: the features of this {self.kind} have no layers of their own")
        if layer not in layers:
            raise ValueError(f"there is no layer {layer}; this {self.kind} has layers {short_list(sorted(layers))}")
        first = self.offsets[layers[layer]]
        return range(first, first + self.groups[layers[layer]].n_features)

    def locate(self, feature: int) -> tuple[int, int]:
        """Feature number -> (group, index in it). A CLT's groups are its layers. ValueError when out of range."""
        self.check_features([feature])
        offsets = self.offsets
        group = next(g for g in range(len(self.groups)) if feature < offsets[g + 1])
        return group, feature - offsets[group]

    def flat(self, group: int, index: int) -> int:
        """(group or layer, index in it) -> feature number."""
        if not 0 <= group < len(self.groups):
            raise ValueError(f"there is no group or layer {group}; there are 0 to {len(self.groups) - 1}")
        if not 0 <= index < self.groups[group].n_features:
            name, last = self.groups[group].name or "this group", self.groups[group].n_features - 1
            raise ValueError(f"there is no feature {index} in {name}; it has features 0 to {last}")
        return self.offsets[group] + index

    def find(self, label: str) -> int:
        """Feature number from "120" or "L3F120". ValueError with near misses otherwise."""
        label = str(label)
        if label.isdecimal():
            feature = int(label)
            self.check_features([feature])
            return feature
        name, _, index = label.upper().rpartition("F")
        names = [group.name for group in self.groups]
        if len(self.groups) == 1 or not re.fullmatch(r"L\d+", name) or not index.isdecimal():
            example = self.label(0)
            raise ValueError(f"{label!r} names no feature; write a number or a label such as {example!r}")
        if name not in names:
            raise ValueError(f"{label!r}: there is no layer {name[1:]}; this {self.kind} has {names[0]} to {names[-1]}")
        return self.flat(names.index(name), int(index))

    def check_features(self, features: Sequence[int]) -> None:
        """ValueError when a feature is outside 0 .. n_features - 1."""
        last = self.n_features - 1
        bad = [feature for feature in features if not 0 <= feature <= last]
        if bad:
            raise ValueError(f"feature {bad[0]} is out of range: this {self.kind} has features 0 to {last}")

    def writes(self, feature: int) -> list[int]:
        """The targets a feature writes to: all of a crosscoder's; a CLT feature's own layer and the later ones."""
        return sorted(self.groups[self.locate(feature)[0]].W_dec)
