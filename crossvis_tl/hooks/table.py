"""The hook table of one architecture: every row, and the row for a TransformerLens name or a HuggingFace tensor.

What a row offers depends on the model that is to be read: a HookedTransformer has fewer hooks than a bridge, and gives
some tensors only by way of a norm's gain or scale. Without a model in hand, names are chosen that both have.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import replace

from crossvis_tl.hooks import why
from crossvis_tl.hooks.derive import BLOCK, NORM_OUT, Names
from crossvis_tl.hooks.record import Hook, Transform
from crossvis_tl.hooks.skeleton import Point, Side

# Hooks that a HookedTransformer has; every bridge has them too, where the architecture has such a tensor.
CLASSIC = re.compile(
    r"hook_embed|hook_pos_embed|ln_final\.hook_(normalized|scale)|blocks\.\d+\.(hook_resid_(pre|mid|post)|"
    r"hook_(attn|mlp)_out|hook_mlp_in|ln[12](_post)?\.hook_(normalized|scale)|attn\.hook_(q|k|v|z|pattern)|"
    r"mlp\.hook_(pre|pre_linear|post))"
)
NORMALIZED = re.compile(r"((?:blocks\.\d+\.)?ln\w+)\.hook_normalized")
POST_NORM_IN = re.compile(r"(blocks\.\d+\.ln[12]_post)\.hook_in")
FLAGS = {
    "hook_mlp_in": "use_hook_mlp_in",
    "attn.hook_result": "use_attn_result",
    "hook_attn_in": "use_attn_in",
    "attn.hook_attn_in": "use_attn_in",
}
for _part in ("hook_q_input", "hook_k_input", "hook_v_input"):
    FLAGS[_part] = FLAGS[f"attn.{_part}"] = "use_split_qkv_input"
# What the table shows for each block, whether it exists or not.
SHOWN = (
    "hook_resid_pre", "hook_resid_mid", "hook_resid_post", "hook_mlp_in", "hook_attn_out", "hook_mlp_out",
    "attn.hook_in", "attn.hook_q", "attn.hook_k", "attn.hook_v", "attn.hook_pattern", "attn.hook_z", "attn.hook_out",
    "mlp.hook_in", "mlp.hook_pre", "mlp.hook_pre_linear", "mlp.hook_post", "mlp.hook_out",
    "ln1.hook_normalized", "ln1.hook_out", "ln2.hook_normalized", "ln2.hook_out",
)  # fmt: skip
SHOWN_OUTSIDE = ("hook_embed", "hook_pos_embed", "ln_final.hook_normalized", "ln_final.hook_out", "unembed.hook_out")


def flag_of(name: str) -> str | None:
    """The setting behind a hook, None for a hook that always fires."""
    match = BLOCK.fullmatch(name)
    return FLAGS.get(match[2]) if match else None


def layer_of(name: str | None) -> int | None:
    match = BLOCK.fullmatch(name or "")
    return int(match[1]) if match else None


class HookTable:
    """Rows for one architecture. `has`: which hooks the model in hand has; None for no model in hand."""

    def __init__(self, names: Names, has: Callable[[str], bool] | None = None):
        self.names, self.has = names, has
        self.paths = set(names.skeleton.paths)

    @property
    def n_layers(self) -> int:
        return self.names.skeleton.n_layers

    def known(self, name: str) -> bool:
        """Whether `name` is a TransformerLens hook of this architecture or of the model in hand."""
        if self.has is not None and self.has(name):
            return True
        return name in self.names.points or name in self.names.unmapped or self._norm_of(name) is not None

    def row(self, name: str) -> Hook:
        """The row of a TransformerLens hook that is `known`: of the hook itself, or of one that holds the same tensor
        where the model in hand has no such hook."""
        norm = self._norm_of(name)
        if norm is not None and (self.has is None or self.has(name)):
            return self._affine(name, norm)
        point = self.names.points.get(name)
        if point is None:
            return why.noted(Hook(name, None, None, None, "none", None, "absent", layer=layer_of(name)), self.names)
        if self.has is None or self.has(name):
            return self._direct(name, point)
        return self.at(point)

    def at(self, point: Point) -> Hook:
        """The best row for a HuggingFace tensor, or one with status "absent"."""
        found = self._found(point)
        if found is None:
            found = Hook(None, point.path, point.side, point.index, "none", point.width, "absent")
        found = replace(found, hf_path=point.path, side=point.side, index=point.index, width=point.width)
        return why.noted(found, self.names)

    def point(self, path: str, side: Side, index: int | None = None) -> Point | None:
        if index and side == "output":
            return self.names.skeleton.tuples.get((path, index))
        known = self.names.skeleton.points.get((path, side))
        if known is None and not self.names.skeleton.complete and path in self.paths:
            return Point(path, side, None, None, (path, side))
        return known

    def rows(self, layer: int | None = None) -> Iterator[Hook]:
        """All rows, or those of one layer: hooks first, then HuggingFace tensors that no hook holds.

        Each once: two names of one tensor lead to the same row on a model that has only one of them.
        """
        seen = set()
        for row in self._all_rows(layer):
            key = (row.name, row.hf_name, row.status)
            if key not in seen:
                seen.add(key)
                yield row

    def _all_rows(self, layer: int | None) -> Iterator[Hook]:
        layers = range(self.n_layers) if layer is None else (layer,)
        for i in layers:
            for short in SHOWN:
                name = f"blocks.{i}.{short}"
                yield self._shown(name)
            yield from self._hookless(i)
        if layer is None:
            for name in SHOWN_OUTSIDE:
                yield self._shown(name)

    def all_names(self) -> list[str]:
        return [*self.names.points, *self.names.unmapped, *(f"{norm}.hook_normalized" for norm in self.names.norms)]

    def _shown(self, name: str) -> Hook:
        if self.known(name):
            found = self.row(name)
            if found.status != "absent" and found.name != name:
                return found.with_note(f"{name} is not a hook of this model")
            return found
        absent = Hook(name, None, None, None, "none", None, "absent", layer=layer_of(name))
        return why.noted(absent, self.names)

    def _hookless(self, layer: int) -> Iterator[Hook]:
        block = f"{self.names.skeleton.layers}.{layer}."
        seen = set()
        for (path, side), point in self.names.skeleton.points.items():
            if not path.startswith(block) or side != "output" or point.tensor in seen:
                continue
            seen.add(point.tensor)
            found = self.at(point)
            if found.status == "absent" or path in self.names.fused:
                yield replace(found, layer=layer)

    def _norm_of(self, name: str) -> str | None:
        """The norm whose `hook_normalized` this is. A HookedTransformer has a second norm where HuggingFace's parallel
        blocks have one for both halves."""
        match = NORMALIZED.fullmatch(name)
        if match is None:
            return None
        norm = match[1]
        if norm in self.names.norms:
            return norm
        twin = norm.replace(".ln2", ".ln1")
        return twin if norm.endswith(".ln2") and twin in self.names.norms and self.names.parallel else None

    def _affine(self, name: str, norm: str) -> Hook:
        point = self.names.norms[norm]
        row = Hook(
            name, point.path, point.side, point.index, "affine", point.width, "transformed", layer=layer_of(name),
            reads=(name,),
        )  # fmt: skip
        return why.noted(row, self.names)

    def _direct(self, name: str, point: Point) -> Hook:
        heads = name in self.names.heads
        transform: Transform = "flatten heads" if heads else "none"
        row = Hook(
            name, point.path, point.side, point.index, transform, point.width, "transformed" if heads else "exact",
            layer=layer_of(name), reads=(name,), flag=flag_of(name),
        )  # fmt: skip
        return why.noted(row, self.names)

    def _found(self, point: Point) -> Hook | None:
        same = self.names.by_tensor.get(point.tensor, [])
        # a model that is stopped early never gets to its unembedding: that way is the last
        early = [name for name in same if not name.startswith("unembed")]
        first = CLASSIC.fullmatch if self.has is None else self.has
        ways = (
            lambda: self._by_name(early, first, point),
            lambda: self._by_norm(same),
            lambda: self._by_name(same, self.has, point),
            lambda: self._by_scale(same),
            lambda: self._fused(point),
        )
        return next((found for way in ways if (found := way()) is not None), None)

    def _by_name(self, same: list[str], fits: Callable | None, point: Point) -> Hook | None:
        """Of the names of one tensor: hooks that always fire first, then well-known ones, then this module's own."""
        fitting = [name for name in same if fits is None or fits(name)]
        if not fitting:
            return None

        def rank(name: str) -> tuple[bool, bool, bool, int]:
            own = self.names.points[name]
            elsewhere = (own.path, own.side) != (point.path, point.side)
            return flag_of(name) is not None, not CLASSIC.fullmatch(name), elsewhere, name.count(".")

        best = min(fitting, key=rank)
        return self._direct(best, self.names.points[best])

    def _by_norm(self, same: list[str]) -> Hook | None:
        for name in same:
            if match := NORM_OUT.fullmatch(name):
                normalized = f"{match[1]}.hook_normalized"
                if self.has is None or self.has(normalized):
                    return self._affine(normalized, match[1])
        return None

    def _by_scale(self, same: list[str]) -> Hook | None:
        """What goes into a post-norm, on a model that has no hook there."""
        for name in same:
            if match := POST_NORM_IN.fullmatch(name):
                reads = (f"{match[1]}.hook_normalized", f"{match[1]}.hook_scale")
                if self.has is None or all(map(self.has, reads)):
                    return Hook(
                        reads[0], None, None, None, "rescale", None, "transformed", layer=layer_of(name), reads=reads
                    )
        return None

    def _fused(self, point: Point) -> Hook | None:
        if point.path not in self.names.fused:
            return None
        transform, reads = self.names.fused[point.path]
        if point.side != "output" or not (self.has is None or all(map(self.has, reads))):
            return None
        return Hook(
            reads[0], None, None, None, transform, None, "transformed", layer=layer_of(reads[0]), reads=reads,
            note=f"{point.path} holds {', '.join(reads)} in one tensor",
        )  # fmt: skip
