"""What a builder may give, as arrays that can be stored, and back again.

That is what NAVSIM's `default_collate` makes batches of: tensors, numpy arrays and scalars, Python
numbers, strings and bytes, in dicts, lists, tuples and named tuples.
"""

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from convoy.data import nesting
from convoy.data.layout import ITEM_SIZE, Field
from convoy.data.nesting import Branch, Leaf, Node, path_of

Values = Mapping[str, Mapping[Any, Any]]  # builder -> what it gave

ROOM = 16  # bytes of the smallest text; more is the next power of two, so that few texts widen it
FILL = b"\xff"  # behind a text; never part of UTF-8

# numpy has none of these; their bits are stored.
_AS_BITS = {
    "bfloat16": "int16",
    "complex32": "int32",
    "float8_e4m3fn": "uint8",
    "float8_e4m3fnuz": "uint8",
    "float8_e5m2": "uint8",
    "float8_e5m2fnuz": "uint8",
    "float8_e8m0fnu": "uint8",
}
_NUMPY = _AS_BITS | {"str": "uint8", "bytes": "uint8"}


class NotPackable(Exception):
    """A sample that does not fit the others (it lacks a value, has another dtype, or a value that
    is not finite), or that no batch can be made of."""


@dataclass(frozen=True)
class Array:
    field: Field  # as it is stored raw
    values: np.ndarray


def numpy_dtype(dtype: str) -> np.dtype:
    """The numpy dtype that holds the bits of a field's dtype."""
    return np.dtype(_NUMPY.get(dtype, dtype))


def is_bits(dtype: str) -> bool:
    return dtype in _AS_BITS


def flatten(sample: Values) -> tuple[dict[tuple[str, str], Array], dict[str, Branch]]:
    """The values of a sample by (builder, name), and how each builder's are nested.

    Raises NotPackable for what `default_collate` does not take either.
    """
    arrays: dict[tuple[str, str], Array] = {}
    trees: dict[str, Branch] = {}
    for builder, values in sample.items():
        if not isinstance(values, Mapping):
            raise NotPackable(f"{builder} gave {_kind(values)}, not a dict")
        tree = _flatten(builder, dict(values), "", arrays, 0)
        assert isinstance(tree, Branch)
        trees[builder] = tree
    return arrays, trees


def restore(field: Field, kind: str, values: np.ndarray) -> Any:
    """What the builder gave, from its unpacked values."""
    if field.is_text:
        return text_of(field.dtype, values)
    if kind == nesting.ARRAY:
        return values
    if kind == nesting.SCALAR:
        return values[()]
    if kind == nesting.NUMBER:
        return values.item()
    tensor = torch.from_numpy(values)
    return tensor.view(getattr(torch, field.dtype)) if is_bits(field.dtype) else tensor


def text_of(dtype: str, room: np.ndarray) -> str | bytes:
    """The text in its room, uint8 (bytes,)."""
    text = room.tobytes().rstrip(FILL).decode("utf-8", "surrogatepass")
    return text if dtype == "str" else text.encode("latin-1")


def in_room(text: np.ndarray, room: int) -> np.ndarray:
    """A text's bytes, filled up to `room`."""
    filled = np.full(room, FILL[0], np.uint8)
    filled[: text.size] = text
    return filled


def _flatten(
    builder: str, value: Any, name: str, arrays: dict[tuple[str, str], Array], depth: int
) -> Node:
    if depth > nesting.MOST_DEPTH:
        raise NotPackable(f"{builder}.{name[:80]}… is nested deeper than {nesting.MOST_DEPTH}")

    def within(keys: Any, children: Any) -> tuple[Node, ...]:
        return tuple(
            _flatten(builder, child, path_of(name, key), arrays, depth + 1)
            for key, child in zip(keys, children, strict=True)
        )

    if type(value) in (dict, OrderedDict):
        for key in value:
            if not nesting.is_key(key):
                raise NotPackable(f"{_at(builder, name)} has {_kind(key)} as a key")
        kind = nesting.DICT if type(value) is dict else nesting.ORDERED
        return Branch(kind, tuple(value), within(value, value.values()))
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        names = tuple(value._fields)
        if not all(map(nesting.is_name, (type(value).__name__, *names))):
            raise NotPackable(f"{_at(builder, name)} is a named tuple without names of its own")
        return Branch(nesting.NAMED, names, within(names, value), type(value).__name__)
    if isinstance(value, (list, tuple)):
        kind = nesting.LIST if isinstance(value, list) else nesting.TUPLE
        return Branch(kind, (), within(range(len(value)), value))
    if (builder, name) in arrays:
        raise NotPackable(f"{_at(builder, name)} is the name of two values")
    if len(arrays) >= nesting.MOST_LEAVES:
        raise NotPackable(
            f"{builder} gave more than {nesting.MOST_LEAVES} values: put numbers into an array"
        )
    kind, dtype, held = _leaf(value, _at(builder, name))
    arrays[builder, name] = Array(
        Field(builder, name, dtype, dtype, 1, held.ndim, held.shape), held
    )
    return Leaf(name, kind)


def _leaf(value: Any, where: str) -> tuple[str, str, np.ndarray]:
    """Kind, dtype and numpy array of a value."""
    if isinstance(value, Tensor):
        return nesting.TENSOR, *_of_tensor(value, where)
    if isinstance(value, (str, bytes)):
        dtype = "str" if isinstance(value, str) else "bytes"
        text = value if isinstance(value, str) else value.decode("latin-1")
        stored = np.frombuffer(text.encode("utf-8", "surrogatepass"), np.uint8)
        return nesting.TEXT, dtype, in_room(stored, _room(stored.size))
    if isinstance(value, (np.ndarray, np.generic)):
        held = np.asarray(value)
        held = np.ascontiguousarray(held, held.dtype.newbyteorder("=")).reshape(held.shape)
        if held.dtype.kind not in "biufc" or held.dtype.name not in ITEM_SIZE:
            raise NotPackable(f"{where} is a numpy array of {held.dtype}, which no batch can hold")
        kind = nesting.ARRAY if isinstance(value, np.ndarray) else nesting.SCALAR
        return kind, held.dtype.name, held
    if isinstance(value, (bool, int, float)):
        dtype = "bool" if isinstance(value, bool) else "int64" if isinstance(value, int) else ""
        try:
            return nesting.NUMBER, dtype or "float64", np.array(value, dtype or "float64")
        except OverflowError as error:
            raise NotPackable(f"{where} is {value}, more than int64 can hold") from error
    raise NotPackable(
        f"{where} is {_kind(value)}, and batches are made of tensors, numpy arrays, numbers, "
        "strings, dicts, lists and tuples"
    )


def _of_tensor(tensor: Tensor, where: str) -> tuple[str, np.ndarray]:
    dtype = str(tensor.dtype).removeprefix("torch.")
    try:
        if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta:
            kind = str(tensor.layout).removeprefix("torch.")
            raise TypeError("quantized" if tensor.is_quantized else kind)
        tensor = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous()
        bits = _AS_BITS.get(dtype)
        held = (tensor if bits is None else tensor.view(getattr(torch, bits))).numpy()
        ITEM_SIZE[dtype]
    except (TypeError, RuntimeError, KeyError) as error:
        raise NotPackable(f"{where} of dtype {dtype} cannot be stored ({error})") from error
    return dtype, held


def _room(size: int) -> int:
    return max(ROOM, 1 << max(0, size - 1).bit_length())


def _at(builder: str, name: str) -> str:
    return f"{builder}.{name}" if name else builder


def _kind(value: Any) -> str:
    name = type(value).__name__
    return "None" if value is None else f"an {name}" if name[0] in "aeiouAEIOU" else f"a {name}"
