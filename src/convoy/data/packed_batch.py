"""A batch as it lies in the shards: one block of bytes, copied to the device in one piece and
decoded there."""

import math
import weakref
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from convoy.data.cache import Sample
from convoy.data.form import Form
from convoy.data.layout import Field
from convoy.data.nesting import TEXT, Leaf
from convoy.data.values import text_of
from convoy.errors import ConvoyError

ALIGNMENT = 64  # bytes; views of any dtype need it, and vector instructions like it


@dataclass(frozen=True)
class Column:
    """One value of a batch inside the block: `shape` is that of one sample, `offset` in bytes."""

    field: Field
    dtype: torch.dtype
    packed: torch.dtype
    shape: tuple[int, ...]
    offset: int

    @property
    def sample_bytes(self) -> int:
        return math.prod(self.shape) * self.packed.itemsize


def columns_of(fields: Sequence[Field], capacity: int) -> tuple[tuple[Column, ...], int]:
    """Columns for `capacity` samples, and the block's size in bytes."""
    columns, offset = [], 0
    for entry in fields:
        assert entry.shape is not None
        dtype, packed = (
            torch.uint8 if entry.is_text else getattr(torch, name)
            for name in (entry.dtype, entry.packed)
        )
        columns.append(Column(entry, dtype, packed, entry.shape, offset))
        used = capacity * entry.bytes
        offset += -(-used // ALIGNMENT) * ALIGNMENT
    return tuple(columns), offset


@dataclass
class Block:
    """Host memory of one batch; `copied` is the CUDA event after which it may be written again."""

    memory: Tensor  # uint8 (bytes,)
    copied: Any = None


class BlockPool:
    """Blocks of host memory that are used again: page faults and page locking are paid once, and
    memory stays flat."""

    def __init__(self, pinned: bool) -> None:
        self._pinned = pinned
        # Its append and popleft are atomic: batches are freed on any thread.
        self._free: deque[Block] = deque()

    def take(self, size: int) -> Block:
        """A block of at least `size` bytes, the one that was given back longest ago if it is large
        enough."""
        while self._free:
            block = self._free.popleft()
            if len(block.memory) < size:
                continue  # dropped: batches have grown
            if block.copied is not None:
                block.copied.synchronize()
                block.copied = None
            return block
        return Block(torch.zeros(size, dtype=torch.uint8, pin_memory=self._pinned))

    def give_back(self, block: Block) -> None:
        self._free.append(block)


class PackedBatch:
    """Stands for NAVSIM's `(features, targets)`: unpacking it or indexing it decodes it where it
    lies.

    The training loop moves it to the device first, where decoding costs next to nothing.
    """

    def __init__(
        self,
        memory: Tensor,
        columns: tuple[Column, ...],
        form: Form,
        size: int,
        texts: Mapping[Column, list[str | bytes]] | None = None,
    ) -> None:
        """`memory`: uint8 (bytes,), the `size` samples of a column one after another from its
        offset. `texts` are given where `memory` is not on the host."""
        self.memory, self.columns, self.form, self.size = memory, columns, form, size
        self._texts = texts
        self._block: Block | None = None

    @classmethod
    def borrowing(
        cls, block: Block, pool: BlockPool, columns: tuple[Column, ...], form: Form, size: int
    ) -> "PackedBatch":
        """A batch in a pool's block, which goes back to the pool with the batch's end."""
        batch = cls(block.memory, columns, form, size)
        batch._block = block
        weakref.finalize(batch, pool.give_back, block).atexit = False
        return batch

    def to(self, device: torch.device, non_blocking: bool = True) -> "PackedBatch":
        """The packed bytes on `device`, in one copy; itself where it is there already."""
        if device.type == self.memory.device.type:
            return self
        memory = self.memory.to(device, non_blocking=non_blocking)
        moved = PackedBatch(memory, self.columns, self.form, self.size, self._read_texts())
        if self._block is not None and device.type == "cuda":
            self._block.copied = torch.cuda.Event()
            self._block.copied.record()
        return moved

    def decode(self) -> Sample:
        """Features and targets with exactly the values, and nested as, `default_collate` gives
        them; tensors are new memory, (size, *shape) each."""
        values: dict[tuple[str, str], Any] = {
            (column.field.builder, column.field.name): _decode(self._view(column), column)
            for column in self.columns
            if not column.field.is_text
        }
        for column, texts in self._read_texts().items():
            values[column.field.builder, column.field.name] = texts

        def value(builder: str, leaf: Leaf, in_mapping: bool) -> Any:
            held = values[builder, leaf.name]
            return held if in_mapping or leaf.kind != TEXT else tuple(held)

        return self.form.fill(value, batch=True)

    def _read_texts(self) -> Mapping[Column, list[str | bytes]]:
        """Strings are made on the host: one that is on the way to a GPU would have to be waited
        for."""
        if self._texts is not None:
            return self._texts
        return {
            column: [text_of(column.field.dtype, room) for room in self._view(column).numpy()]
            for column in self.columns
            if column.field.is_text
        }

    def _view(self, column: Column) -> Tensor:
        end = column.offset + self.size * column.sample_bytes
        return self.memory[column.offset : end].view(column.packed).view(self.size, *column.shape)

    def __iter__(self) -> Iterator[dict[Any, Any]]:
        return iter(self.decode())

    def __getitem__(self, index: int) -> dict[Any, Any]:
        return self.decode()[index]

    def __len__(self) -> int:
        """Two: features and targets."""
        return 2


def _decode(packed: Tensor, column: Column) -> Tensor:
    if column.field.divisor == 1:
        return packed.to(column.dtype, copy=True)
    # A tensor on the device, not a number: torch multiplies CUDA tensors by a number's reciprocal,
    # which rounds otherwise than the division that the builders did.
    divisor = _divisor(column, packed.device)
    # One kernel on a GPU; on the host a conversion by itself is faster than one inside the
    # division.
    return torch.div(packed, divisor) if packed.is_cuda else packed.to(column.dtype).div_(divisor)


def _divisor(column: Column, device: torch.device) -> Tensor:
    key = (column.dtype, column.packed, column.field.divisor, device)
    if key not in _divisors:
        divisor = torch.tensor(column.field.divisor, dtype=column.dtype, device=device)
        _require_exact(column, divisor)
        _divisors[key] = divisor
    return _divisors[key]


_divisors: dict[tuple[torch.dtype, torch.dtype, int, torch.device], Tensor] = {}


def _require_exact(column: Column, divisor: Tensor) -> None:
    """Decode every code that there is on the device, and compare with numpy's division bit for
    bit."""
    limits = torch.iinfo(column.packed)
    codes = torch.arange(limits.min, limits.max + 1).to(column.packed)
    exact = torch.from_numpy(codes.numpy() / divisor.cpu().numpy())
    if not torch.equal(torch.div(codes.to(divisor.device), divisor).cpu(), exact):
        raise ConvoyError(
            f"{divisor.device} does not divide exactly: {column.field.name} ({column.packed} / "
            f"{column.field.divisor}) would not be what the builders computed. Train from the gzip "
            "cache on this device, and report this."
        )
