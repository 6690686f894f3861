"""Which values of a record an agent gets, and how: NAVSIM's pair of features and targets."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from convoy.data import nesting
from convoy.data.cache import Builders, Sample
from convoy.data.layout import Field, Layout
from convoy.data.nesting import Key, Leaf, Node

Part = tuple[Key, str, Node]  # key, its builder, how the value is nested


@dataclass(frozen=True)
class Form:
    features: tuple[Part, ...]
    targets: tuple[Part, ...]

    @classmethod
    def of(cls, layout: Layout, builders: Builders) -> "Form":
        """As NAVSIM merges what its builders gave: of two with one key, the later wins."""
        merged = []
        for names in (builders.features, builders.targets):
            parts: dict[Key, Part] = {}
            for name in names:
                tree = layout.trees.get(name, nesting.EMPTY)
                for key, child in zip(tree.keys, tree.children, strict=True):
                    parts[key] = (key, name, child)
            merged.append(tuple(parts.values()))
        return cls(*merged)

    def fields(self, layout: Layout) -> list[Field]:
        """Those of its values, in its order."""
        held = {(field.builder, field.name): field for field in layout.fields}
        names = [
            (builder, leaf.name)
            for _, builder, node in (*self.features, *self.targets)
            for leaf in nesting.leaves(node)
        ]
        return [held[name] for name in dict.fromkeys(names)]

    def fill(self, value: Callable[[str, Leaf, bool], Any], batch: bool) -> Sample:
        """Features and targets. `value` gets builder and leaf, and whether a dict holds it."""

        def filled(parts: tuple[Part, ...]) -> dict[Any, Any]:
            return {
                key: nesting.rebuild(node, partial(value, builder), batch)
                for key, builder, node in parts
            }

        return filled(self.features), filled(self.targets)
