"""Lossless packing: the smallest dtype that gives a value back bit for bit, found by trying.

NAVSIM's builders store images as float32 (uint8 / 255), counts as float32 (k / 5), class ids as
float32: a quarter of the bytes hold all of it. Nothing is known here of cameras or LiDAR; a packing
is taken only where decoding gives the same bits, and every sample is checked.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache

import numpy as np
import torch

from convoy.data import nesting
from convoy.data.layout import Field, Layout
from convoy.data.nesting import Branch
from convoy.data.values import (
    FILL,
    Array,
    NotPackable,
    Values,
    flatten,
    in_room,
    is_bits,
    numpy_dtype,
)

# Bytes; below that there is nothing to gain, and few samples' values say little of the others'.
SMALL = 1024
BLOCK = 1 << 18  # elements that are packed at once: they stay in the processor's cache
_INTEGERS = ("uint8", "int8", "int16", "int32")
_MOST_DIVISOR = 1000


def pack(
    sample: Values, layout: Layout | None, allow_non_finite: bool = False
) -> tuple[Layout, list[np.ndarray]]:
    """The sample's packed arrays in the layout's order, and the layout: a wider one where the given
    one is too narrow.

    Raises NotPackable when the sample does not have the layout's values, or has some that are not
    finite.
    """
    arrays, trees = flatten(sample)
    if layout is None:
        layout = Layout.of([_narrowest(array) for array in arrays.values()], trees)
    _require_same_values(arrays, trees, layout)
    fields, packed = [], []
    for entry in layout.fields:
        array = arrays[entry.builder, entry.name]
        values = _encode(array.values, entry)
        # What packs into integers needs no look: they hold no NaN.
        if not allow_non_finite and (
            values is None or values.dtype.kind in "fc" or is_bits(entry.dtype)
        ):
            _require_finite(array)
        if values is None or entry.shape not in (None, values.shape):
            entry = widen(entry, array)
            values = _encode(array.values, entry)
            assert values is not None, "at worst the value is stored as it is"
        fields.append(entry)
        packed.append(values)
    wider = Layout(tuple(fields), layout.nested)
    return (layout if wider == layout else wider), packed


def unpack(entry: Field, packed: np.ndarray) -> np.ndarray:
    """The original values of a packed array, bit for bit. What numpy has no dtype for comes as
    bits, a text as the bytes in its room."""
    if entry.packed == entry.dtype:
        return packed
    dtype = numpy_dtype(entry.dtype)
    return (
        packed.astype(dtype)
        if entry.divisor == 1
        else np.divide(packed, dtype.type(entry.divisor), dtype=dtype)
    )


def split_record(layout: Layout, record: bytes | bytearray | memoryview) -> list[np.ndarray]:
    """A record's packed arrays in the layout's order; they share its memory."""
    dimensions = np.frombuffer(record, np.int64, layout.header_bytes // 8).tolist()
    arrays, offset = [], layout.header_bytes
    for entry in layout.fields:
        shape = entry.shape
        if shape is None:
            shape, dimensions = tuple(dimensions[: entry.ndim]), dimensions[entry.ndim :]
        dtype = numpy_dtype(entry.packed)
        values = np.frombuffer(record, dtype, math.prod(shape), offset).reshape(shape)
        arrays.append(values)
        offset += values.nbytes
    return arrays


def record_parts(layout: Layout, packed: Sequence[np.ndarray]) -> list[np.ndarray]:
    """A record in pieces to be written one after another, each uint8 in one dimension.

    None is a copy.
    """
    varying = [
        values for entry, values in zip(layout.fields, packed, strict=True) if entry.shape is None
    ]
    dimensions = np.array([size for values in varying for size in values.shape], np.int64)
    return [part.reshape(-1).view(np.uint8) for part in (dimensions, *packed) if part.size]


def probe(samples: Iterable[Values], allow_non_finite: bool = False) -> Layout:
    """The narrowest layout that fits all of `samples`."""
    layout: Layout | None = None
    for sample in samples:
        layout, _ = pack(sample, layout, allow_non_finite)
    if layout is None:
        raise NotPackable("there is no sample")
    return layout


def repack(layout: Layout, wider: Layout, packed: Sequence[np.ndarray]) -> list[np.ndarray]:
    """A record's arrays in a wider layout."""
    old = {
        (entry.builder, entry.name): (entry, values)
        for entry, values in zip(layout.fields, packed, strict=True)
    }
    result = []
    for entry in wider.fields:
        values = _encode(unpack(*old[entry.builder, entry.name]), entry)
        assert values is not None, "a wider layout holds what the narrower one held"
        result.append(values)
    return result


def widen(entry: Field, array: Array) -> Field:
    """The narrowest packing that holds both what `entry` can hold and `array`; at worst the tensor
    as it is."""
    if entry.is_text:
        assert entry.shape is not None
        return entry if entry.shape > array.values.shape else array.field
    shape = entry.shape if entry.shape == array.values.shape else None
    raw = replace(array.field, shape=shape)
    small = entry.packed == entry.dtype
    candidates = () if small else _candidates(array.values, entry.dtype)
    for packed, divisor in candidates:
        wider = replace(raw, packed=packed, divisor=divisor)
        if _covers(wider, entry) and _encode(array.values, wider) is not None:
            return wider
    return raw


def _require_same_values(
    arrays: Mapping[tuple[str, str], Array], trees: Mapping[str, Branch], layout: Layout
) -> None:
    fields = {(entry.builder, entry.name): entry for entry in layout.fields}
    if fields.keys() != arrays.keys():
        _require_even_lists(trees, layout)
    for key in sorted(fields.keys() ^ arrays.keys()):
        what = "lacks" if key in fields else "has, unlike the other samples,"
        raise NotPackable(f"it {what} the value {'.'.join(key)}")
    for key, entry in fields.items():
        found = arrays[key].field
        if (found.dtype, found.ndim) != (entry.dtype, entry.ndim):
            raise NotPackable(
                f"{'.'.join(key)} is {found.dtype} with {found.ndim} dimension(s), in other "
                f"samples {entry.dtype} with {entry.ndim}"
            )
    if layout.nested is None and all(map(nesting.is_flat, trees.values())):
        return
    for builder in trees.keys() | layout.trees.keys():
        ours, theirs = trees.get(builder, nesting.EMPTY), layout.trees.get(builder, nesting.EMPTY)
        if not nesting.same(ours, theirs):
            raise NotPackable(
                f"the values of {builder} are of other kinds, or nested in another way, than those "
                "of the other samples"
            )


def _require_even_lists(trees: Mapping[str, Branch], layout: Layout) -> None:
    """`default_collate` takes no others either."""
    for builder in trees.keys() & layout.trees.keys():
        found = nesting.uneven(trees[builder], layout.trees[builder], builder)
        if found is not None:
            name, size, usual = found
            raise NotPackable(
                f"{name} has {size} values, in other samples {usual}, and no batch can be made of "
                "lists of differing length: let the builder pad them, or stack them into a tensor"
            )


def _narrowest(array: Array) -> Field:
    if array.values.nbytes < SMALL or array.field.is_text:
        return array.field
    for packed, divisor in _candidates(array.values, array.field.dtype):
        entry = replace(array.field, packed=packed, divisor=divisor)
        if _encode(array.values, entry) is not None:
            return entry
    return array.field


def _candidates(values: np.ndarray, dtype: str) -> Iterator[tuple[str, int]]:
    """Packings of `dtype` that are smaller than it, the smallest first."""
    kind, size = numpy_dtype(dtype).kind, values.itemsize
    if kind == "c" or dtype == "bool" or is_bits(dtype):
        return
    for packed in _INTEGERS:
        if np.dtype(packed).itemsize >= size:
            return
        yield packed, 1
        if kind == "f" and size >= 4 and packed != "int32":
            divisor = _divisor(values, packed)
            if divisor is not None:
                yield packed, divisor
        if packed == "int8" and dtype in ("float32", "float64"):
            yield "float16", 1
        if packed == "int32" and dtype == "float64":
            yield "float32", 1


def _divisor(values: np.ndarray, packed: str) -> int | None:
    """The smallest d with all values = k / d and k in the range of `packed`, as far as some of the
    values tell."""
    limits = np.iinfo(packed)
    distinct = np.unique(values.ravel()[:: max(1, values.size // 65536)])
    if distinct.size > limits.max - limits.min + 1 or not np.isfinite(distinct).all():
        return None
    few = distinct[:: max(1, distinct.size // 64)]
    for divisor in range(2, _MOST_DIVISOR + 1):
        if _is_divisor(divisor, few, limits) and _is_divisor(divisor, distinct, limits):
            return divisor
    return None


def _is_divisor(divisor: int, values: np.ndarray, limits: np.iinfo) -> bool:
    scale = values.dtype.type(divisor)
    whole = np.rint(values * scale)
    return bool(
        whole.min() >= limits.min
        and whole.max() <= limits.max
        and np.array_equal(whole / scale, values)
    )


def _covers(wider: Field, entry: Field) -> bool:
    """Whether every value that `entry` can hold fits `wider`. Values of one divisor need not fit
    another's range."""
    if np.dtype(wider.packed).kind == "f":
        return entry.divisor == 1 and np.can_cast(entry.packed, wider.packed)
    if np.dtype(entry.packed).kind == "f":
        return False
    if not np.can_cast(entry.packed, wider.packed) or wider.divisor % entry.divisor:
        return False
    limits, held = np.iinfo(wider.packed), np.iinfo(entry.packed)
    factor = wider.divisor // entry.divisor
    return held.min * factor >= limits.min and held.max * factor <= limits.max


def _encode(values: np.ndarray, entry: Field) -> np.ndarray | None:
    """`values` packed, or None where decoding would not give the same bits."""
    if entry.is_text:
        assert entry.shape is not None
        text, room = values.tobytes().rstrip(FILL), entry.shape[0]
        return in_room(np.frombuffer(text, np.uint8), room) if len(text) <= room else None
    if entry.packed == entry.dtype:
        return values
    flat = values.reshape(-1)
    packed = np.empty(flat.shape, entry.packed)
    decoded = bytearray(min(BLOCK, flat.size) * flat.itemsize)
    for start in range(0, flat.size, BLOCK):
        block = flat[start : start + BLOCK]
        if not _encode_block(block, packed[start : start + BLOCK], entry, decoded):
            return None
    return packed.reshape(values.shape)


def _encode_block(block: np.ndarray, packed: np.ndarray, entry: Field, decoded: bytearray) -> bool:
    """Whether `packed` then gives `block` back bit for bit: -0.0 is not 0.0. `decoded` is memory
    for at least as much. This is most of the time of writing pictures."""
    scratch = np.frombuffer(decoded, block.dtype, block.size)
    scale = block.dtype.type(entry.divisor)
    # Values out of range convert to something else, NaN too; the comparison of bits finds them.
    with np.errstate(invalid="ignore", over="ignore"):
        if block.dtype.kind == "f" and packed.dtype.kind != "f":
            np.multiply(block, scale, out=scratch)
            if not _gives_counts(entry):
                np.rint(scratch, out=scratch)
            np.copyto(packed, scratch, casting="unsafe")
        else:
            np.copyto(packed, block, casting="unsafe")
        np.copyto(scratch, packed)
        if entry.divisor > 1:
            np.divide(scratch, scale, out=scratch)
    # A bytearray compares itself with memory in one go, numpy notes each comparison first.
    size = scratch.nbytes
    return (decoded if size == len(decoded) else decoded[:size]) == block.view(np.uint8).data


@cache
def _gives_counts(entry: Field) -> bool:
    """Whether k / divisor, times the divisor, is k again for every k of a byte, without rounding:
    true of 255, not of 7."""
    counts = np.arange(256, dtype=numpy_dtype(entry.dtype))
    divisor = counts.dtype.type(entry.divisor)
    return entry.packed == "uint8" and np.array_equal(counts / divisor * divisor, counts)


def _require_finite(array: Array) -> None:
    if is_bits(array.field.dtype):
        values = torch.from_numpy(array.values).view(getattr(torch, array.field.dtype))
        # complex32 has no test of its own, and float8 converts without loss.
        wide = torch.complex64 if values.is_complex() else torch.float32
        finite = bool(values.to(wide).isfinite().all())
    else:
        finite = bool(np.isfinite(array.values).all())
    if not finite:
        raise NotPackable(
            f"{array.field.builder}.{array.field.name} has values that are not finite"
        )
