"""A batch as it lies in the shards: one block of bytes, copied to the device in one piece and
decoded there."""

import math
import weakref
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from convoy.data.cache import Sample
from convoy.data.layout import ITEM_SIZE, Field
from convoy.errors import ConvoyError

ALIGNMENT = 64  # bytes; views of any dtype need it, and vector instructions like it


@dataclass(frozen=True)
class Column:
    """One tensor of a batch inside the block: `shape` is that of one sample, `offset` in bytes."""

    name: str
    is_feature: bool
    dtype: torch.dtype
    packed: torch.dtype
    divisor: int
    shape: tuple[int, ...]
    offset: int

    @property
    def sample_bytes(self) -> int:
        return math.prod(self.shape) * self.packed.itemsize


def columns_of(
    fields: Sequence[tuple[Field, bool]], capacity: int
) -> tuple[tuple[Column, ...], int]:
    """Columns for `capacity` samples of (field, is it a feature), and the block's size in bytes."""
    columns, offset = [], 0
    for entry, is_feature in fields:
        assert entry.shape is not None
        dtype, packed = getattr(torch, entry.dtype), getattr(torch, entry.packed)
        columns.append(
            Column(entry.name, is_feature, dtype, packed, entry.divisor, entry.shape, offset)
        )
        used = capacity * math.prod(entry.shape) * ITEM_SIZE[entry.packed]
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
        self._free: deque[Block] = (
            deque()
        )  # its append and popleft are atomic: batches are freed on any thread

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

    def __init__(self, memory: Tensor, columns: tuple[Column, ...], size: int) -> None:
        """`memory`: uint8 (bytes,), the `size` samples of a column one after another from its
        offset."""
        self.memory, self.columns, self.size = memory, columns, size
        self._block: Block | None = None

    @classmethod
    def borrowing(
        cls, block: Block, pool: BlockPool, columns: tuple[Column, ...], size: int
    ) -> "PackedBatch":
        """A batch in a pool's block, which goes back to the pool with the batch's end."""
        batch = cls(block.memory, columns, size)
        batch._block = block
        weakref.finalize(batch, pool.give_back, block).atexit = False
        return batch

    def to(self, device: torch.device, non_blocking: bool = True) -> "PackedBatch":
        """The packed bytes on `device`, in one copy; itself where it is there already."""
        if device.type == self.memory.device.type:
            return self
        moved = PackedBatch(
            self.memory.to(device, non_blocking=non_blocking), self.columns, self.size
        )
        if self._block is not None and device.type == "cuda":
            self._block.copied = torch.cuda.Event()
            self._block.copied.record()
        return moved

    def decode(self) -> Sample:
        """Features and targets with exactly the values that the builders computed; new memory,
        (size, *shape) each."""
        features: dict[str, Tensor] = {}
        targets: dict[str, Tensor] = {}
        for column in self.columns:
            (features if column.is_feature else targets)[column.name] = _decode(
                self._view(column), column
            )
        return features, targets

    def _view(self, column: Column) -> Tensor:
        end = column.offset + self.size * column.sample_bytes
        return self.memory[column.offset : end].view(column.packed).view(self.size, *column.shape)

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        return iter(self.decode())

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return self.decode()[index]

    def __len__(self) -> int:
        """Two: features and targets."""
        return 2


def _decode(packed: Tensor, column: Column) -> Tensor:
    if column.divisor == 1:
        return packed.to(column.dtype, copy=True)
    # A tensor on the device, not a number: torch multiplies CUDA tensors by a number's reciprocal,
    # which rounds otherwise than the division that the builders did.
    divisor = _divisor(column, packed.device)
    # One kernel on a GPU; on the host a conversion by itself is faster than one inside the
    # division.
    return torch.div(packed, divisor) if packed.is_cuda else packed.to(column.dtype).div_(divisor)


def _divisor(column: Column, device: torch.device) -> Tensor:
    key = (column.dtype, column.packed, column.divisor, device)
    if key not in _divisors:
        divisor = torch.tensor(column.divisor, dtype=column.dtype, device=device)
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
            f"{divisor.device} does not divide exactly: {column.name} ({column.packed} / "
            f"{column.divisor}) would not be what the builders computed. Train from the gzip cache "
            "on this device, and report this."
        )
