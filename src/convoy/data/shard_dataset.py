"""Samples of packed shards one at a time, and batches of samples that do not lie alike."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch.utils.data import Dataset

from convoy.data.cache import Builders, Sample
from convoy.data.form import Form
from convoy.data.layout import Field
from convoy.data.nesting import Leaf
from convoy.data.packed_batch import PackedBatch, columns_of
from convoy.data.packing import split_record, unpack
from convoy.data.shard import Shard
from convoy.data.shard_reader import ShardReader
from convoy.data.shard_split import ShardSplit
from convoy.data.values import in_room, restore
from convoy.errors import ConvoyError


class ShardDataset(Dataset[Sample]):
    """Samples of a split by index, as their builders gave them: what a DataLoader's `dataset` is to
    callbacks."""

    def __init__(self, split: ShardSplit, builders: Builders, reader: ShardReader) -> None:
        self.split, self.builders, self._reader = split, builders, reader

    @property
    def tokens(self) -> list[str]:
        """Without the logs' names, as NAVSIM's datasets have them."""
        return [sample.rpartition("/")[2] for sample in self.split.samples]

    def __len__(self) -> int:
        return len(self.split.samples)

    def __getitem__(self, index: int) -> Sample:
        """Raises ConvoyError when the shard cannot be read, IndexError past the end."""
        index = range(len(self))[index]
        shard = self.split.shards[int(self.split.shard_of[index])]
        row = int(self.split.row_of[index])
        held = {
            (entry.builder, entry.name): (entry, unpack(entry, values))
            for entry, values in _read(self.split, shard, row, self._reader)
        }

        def value(builder: str, leaf: Leaf, in_mapping: bool) -> object:
            entry, values = held[builder, leaf.name]
            return restore(entry, leaf.kind, values)

        return Form.of(shard.layout, self.builders).fill(value, batch=False)


def read_one_by_one(
    split: ShardSplit,
    builders: Builders,
    shards: Sequence[int],
    rows: Sequence[int],
    reader: ShardReader,
) -> PackedBatch:
    """A batch of samples whose layouts or shapes differ: packed where all agree, else as the
    builders made it.

    Raises ConvoyError where samples of different shape would have to be stacked; NAVSIM's loader
    does not either.
    """
    form = Form.of(split.shards[shards[0]].layout, builders)
    names = [(entry.builder, entry.name) for entry in form.fields(split.shards[shards[0]].layout)]
    samples = [
        {
            (entry.builder, entry.name): (entry, values)
            for entry, values in _read(split, split.shards[shard], row, reader)
        }
        for shard, row in zip(shards, rows, strict=True)
    ]
    fields: list[Field] = []
    stacked: list[np.ndarray] = []
    for name in names:
        entry, values = _stack([sample[name] for sample in samples])
        fields.append(entry)
        stacked.append(values)
    columns, size = columns_of(fields, len(samples))
    block = reader.pool.take(size)
    for column, values in zip(columns, stacked, strict=True):
        content = np.ascontiguousarray(values).reshape(-1).view(np.uint8)
        block.memory[column.offset : column.offset + content.size] = torch.from_numpy(content)
    return PackedBatch.borrowing(block, reader.pool, columns, form, len(samples))


def _stack(held: Sequence[tuple[Field, np.ndarray]]) -> tuple[Field, np.ndarray]:
    """One field's values of all samples, and the field as it is then stored."""
    entries, arrays = zip(*held, strict=True)
    first = entries[0]
    if first.is_text:
        room = max(array.size for array in arrays)
        arrays = [in_room(array, room) for array in arrays]
    if len({array.shape for array in arrays}) > 1:
        shapes = sorted({"x".join(map(str, array.shape)) for array in arrays})
        raise ConvoyError(
            f"Samples of one batch differ in the shape of {first.builder}.{first.name} "
            f"({', '.join(shapes)}) and cannot be stacked. Pad them in the builder, or train "
            "with dataloader.params.batch_size=1."
        )
    if len({(entry.packed, entry.divisor) for entry in entries}) > 1:
        arrays = [unpack(entry, array) for entry, array in zip(entries, arrays, strict=True)]
        first = replace(first, packed=first.dtype, divisor=1)
    return replace(first, shape=arrays[0].shape), np.stack(arrays)


def _read(
    split: ShardSplit, shard: Shard, row: int, reader: ShardReader
) -> list[tuple[Field, np.ndarray]]:
    """The packed values of one sample."""
    start, end = shard.span(row)
    record = bytearray(end - start)
    reader.read(split.root, shard, [memoryview(record)], start)
    arrays = split_record(shard.layout, record)
    return list(zip(shard.layout.fields, arrays, strict=True))
