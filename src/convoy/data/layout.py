"""How a sample's tensors lie in a record. Standard library only."""

import math
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import accumulate
from typing import Any

ITEM_SIZE = {
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


@dataclass(frozen=True)
class Field:
    """One tensor of a record.

    The value is `packed / divisor`, computed in `dtype` (IEEE division, correctly rounded); divisor
    1 is a plain conversion. `shape` is None where it differs between samples; `ndim` then says how
    many dimensions there are.
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

    def __str__(self) -> str:
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
    """The fields of a record, in the order in which the builders gave them."""

    fields: tuple[Field, ...]

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


def layout_to_json(layout: Layout) -> list[dict[str, Any]]:
    return [asdict(entry) for entry in layout.fields]


def layout_from_json(content: list[dict[str, Any]]) -> Layout:
    fields = []
    for entry in content:
        shape = entry["shape"]
        fields.append(Field(**entry | {"shape": None if shape is None else tuple(shape)}))
        if fields[-1].dtype not in ITEM_SIZE or fields[-1].packed not in ITEM_SIZE:
            raise ValueError(f"unknown dtype of {entry['name']}")
    return Layout(tuple(fields))
