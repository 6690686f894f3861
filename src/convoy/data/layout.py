"""How a sample's values lie in a record. Standard library only."""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import accumulate
from typing import Any

from convoy.data import nesting
from convoy.data.nesting import Branch

# Bytes of an element, by the names of torch's dtypes. The first ones are all that version 1 has.
_FIRST_SIZE = {
    "bool": 1,
    "uint8": 1,
    "int8": 1,
    "int16": 2,
    "int32": 4,
    "int64": 8,
    "float16": 2,
    "bfloat16": 2,
    "float32": 4,
    "float64": 8,
}
TEXTS = ("str", "bytes")
ITEM_SIZE = _FIRST_SIZE | {
    "uint16": 2,
    "uint32": 4,
    "uint64": 8,
    "complex32": 4,
    "complex64": 8,
    "complex128": 16,
    "float8_e4m3fn": 1,
    "float8_e4m3fnuz": 1,
    "float8_e5m2": 1,
    "float8_e5m2fnuz": 1,
    "float8_e8m0fnu": 1,
    **dict.fromkeys(TEXTS, 1),
}
MOST_DIMENSIONS = 32  # numpy's own limit was this for long


@dataclass(frozen=True)
class Field:
    """One value of a record.

    The value is `packed / divisor`, computed in `dtype` (IEEE division, correctly rounded); divisor
    1 is a plain conversion. `shape` is None where it differs between samples; `ndim` then says how
    many dimensions there are. Of a text (`str`, `bytes`), `shape` is the room for it in bytes: it
    is stored as UTF-8 and filled up with 0xFF, which UTF-8 never has; of `bytes`, each is taken for
    a character (Latin-1).
    """

    builder: str
    name: str
    dtype: str
    packed: str
    divisor: int
    ndim: int
    shape: tuple[int, ...] | None

    @property
    def bytes(self) -> int:
        """Bytes in a record; 0 for a shape that differs."""
        return 0 if self.shape is None else math.prod(self.shape) * ITEM_SIZE[self.packed]

    @property
    def is_text(self) -> bool:
        return self.dtype in TEXTS

    def __str__(self) -> str:
        if self.is_text and self.shape is not None:
            return f"{self.dtype} of at most {self.shape[0]} bytes"
        shape = (
            "x".join(map(str, self.shape))
            if self.shape is not None
            else f"{self.ndim}-d, differing"
        )
        how = (
            ""
            if self.packed == self.dtype
            else f" as {self.packed}" + (f"/{self.divisor}" * (self.divisor > 1))
        )
        return f"{self.dtype} {shape or 'scalar'}{how}"


@dataclass(frozen=True)
class Layout:
    """The fields of a record, in the order in which the builders gave them.

    `nested` says for each builder how its values are nested; None where each of them gave a dict of
    tensors, each named as its field is.
    """

    fields: tuple[Field, ...]
    nested: tuple[tuple[str, Branch], ...] | None = None

    @classmethod
    def of(cls, fields: Sequence[Field], trees: Mapping[str, Branch]) -> "Layout":
        """With `nested` only where it is needed."""
        flat = all(map(nesting.is_flat, trees.values()))
        return cls(tuple(fields), None if flat else tuple(trees.items()))

    @cached_property
    def varying(self) -> tuple[Field, ...]:
        return tuple(field for field in self.fields if field.shape is None)

    @cached_property
    def header_bytes(self) -> int:
        """Bytes of the dimensions at the head of a record."""
        return 8 * sum(field.ndim for field in self.varying)

    @cached_property
    def record_bytes(self) -> int | None:
        """Bytes of a record, or None where records differ."""
        return None if self.varying else sum(field.bytes for field in self.fields)

    @cached_property
    def offsets(self) -> dict[tuple[str, str], int]:
        """Where each field begins in a record, where records are equally long."""
        ends = accumulate(field.bytes for field in self.fields)
        return {
            (field.builder, field.name): end - field.bytes
            for field, end in zip(self.fields, ends, strict=True)
        }

    @cached_property
    def trees(self) -> Mapping[str, Branch]:
        """How each builder's values are nested."""
        if self.nested is not None:
            return dict(self.nested)
        names: dict[str, list[str]] = {}
        for field in self.fields:
            names.setdefault(field.builder, []).append(field.name)
        return {builder: nesting.flat(held) for builder, held in names.items()}

    @cached_property
    def version(self) -> int:
        """The oldest version of the shard format that has this layout."""
        plain = all({field.dtype, field.packed} <= _FIRST_SIZE.keys() for field in self.fields)
        return 1 if self.nested is None and plain else 2

    @cached_property
    def sha256(self) -> str:
        """Covers all of the layout: a shard's entry says with which one it was written."""
        return hashlib.sha256(json.dumps(layout_to_json(self), sort_keys=True).encode()).hexdigest()


def layout_to_json(layout: Layout) -> Any:
    """A list of fields, which is all of a flat layout; else these and the nesting."""
    fields = [asdict(entry) for entry in layout.fields]
    if layout.nested is None:
        return fields
    return {
        "fields": fields,
        "nested": {builder: nesting.to_json(tree) for builder, tree in layout.nested},
    }


def layout_from_json(content: Any) -> Layout:
    """Raises ValueError, TypeError or KeyError for what `layout_to_json` does not write."""
    if isinstance(content, list):
        return _require_named_once(Layout(tuple(map(_field_from_json, content))))
    fields = tuple(map(_field_from_json, content["fields"]))
    nested = []
    for builder, tree in content["nested"].items():
        node = nesting.from_json(tree)
        if not isinstance(node, Branch) or not node.is_mapping:
            raise ValueError(f"the values of builder {builder!r} are not a dict")
        nested.append((builder, node))
    layout = Layout(fields, tuple(nested))
    named = [(builder, leaf.name) for builder, tree in nested for leaf in nesting.leaves(tree)]
    if sorted(named) != sorted((field.builder, field.name) for field in fields):
        raise ValueError("the nesting of values names other fields than there are")
    return _require_named_once(layout)


def _field_from_json(content: Any) -> Field:
    shape = content["shape"]
    entry = Field(**content | {"shape": None if shape is None else tuple(shape)})
    sizes = (entry.ndim, entry.divisor, *(entry.shape or ()))
    if not all(isinstance(size, int) and not isinstance(size, bool) for size in sizes):
        raise TypeError(f"shape or divisor of {entry.name!r:.80} is not a whole number")
    if not isinstance(entry.builder, str) or not isinstance(entry.name, str):
        raise TypeError(f"{entry.name!r:.80} is not a field's name")
    if entry.dtype not in ITEM_SIZE or entry.packed not in ITEM_SIZE:
        raise ValueError(f"unknown dtype of {entry.name!r:.80}")
    if (
        min(sizes) < 0
        or entry.ndim > MOST_DIMENSIONS
        or (entry.shape is not None and len(entry.shape) != entry.ndim)
        or entry.divisor < 1
        or (entry.divisor > 1 and "int" not in entry.packed)
        or (entry.is_text and (entry.packed != entry.dtype or entry.shape is None))
    ):
        raise ValueError(f"shape, dtypes and divisor of {entry.name!r:.80} do not go together")
    return entry


def _require_named_once(layout: Layout) -> Layout:
    if len({(field.builder, field.name) for field in layout.fields}) != len(layout.fields):
        raise ValueError("two fields have one name")
    return layout
