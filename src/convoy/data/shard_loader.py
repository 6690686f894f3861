"""Reads whole batches from packed shards with a few threads: no worker processes, no pickling, no
copy on the host.

Each record is read by one vectored read that scatters its tensors to their places in the batch's
block. Reading holds no interpreter lock, so threads are enough; the same threads serve training and
validation. Splits of at most 256 MiB are held in memory instead (`held_records.py`).
"""

from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
from torch.utils.data import BatchSampler, Sampler

from convoy.data.cache import Builders, collate
from convoy.data.form import Form
from convoy.data.held_records import HeldRecords
from convoy.data.layout import Layout
from convoy.data.packed_batch import Column, PackedBatch, columns_of
from convoy.data.shard_dataset import ShardDataset, read_one_by_one
from convoy.data.shard_reader import ShardReader
from convoy.data.shard_split import ShardSplit


class ShardLoader:
    """Batches of a split in its sampler's order, for Lightning and for whoever else iterates.

    It looks like a DataLoader where callbacks use one: `dataset`, `batch_size`, `sampler`,
    `batch_sampler`, `collate_fn`, its length, and iterating. Iterating again begins again. Whoever
    takes one batch and goes costs little more than that batch: reading ahead begins with the first
    one that is taken, and ends at once with the iterator.
    """

    def __init__(
        self,
        split: ShardSplit,
        builders: Builders,
        sampler: Sampler[int] | Sequence[int],
        batch_size: int,
        reader: ShardReader,
        prefetch: int,
        check: Callable[[], None] | None = None,
    ) -> None:
        """`prefetch`: batches that are read ahead.

        `check` is called before each batch and may raise.
        """
        # As a DataLoader calls them: Lightning tells the sampler each epoch's number.
        self.sampler, self.batch_sampler = (
            sampler,
            BatchSampler(sampler, batch_size, drop_last=False),
        )
        self.split = split
        self.batch_size, self.drop_last, self.collate_fn = batch_size, False, collate
        self.dataset = ShardDataset(split, builders, reader)
        self._builders, self._reader, self._prefetch, self._check = (
            builders,
            reader,
            max(1, prefetch),
            check,
        )
        layouts = list(dict.fromkeys(shard.layout for shard in split.shards))
        self._layout_of = np.array([layouts.index(shard.layout) for shard in split.shards])
        self._plans = [_Plan.of(layout, builders, batch_size) for layout in layouts]
        self._held = HeldRecords(split, reader) if HeldRecords.can_hold(split) else None

    def read(self, indices: Sequence[int]) -> PackedBatch:
        """The samples of those indices as a batch, at most `batch_size` of them."""
        return self._begin(list(indices)).result()

    def __len__(self) -> int:
        return len(self.batch_sampler)

    def __iter__(self) -> Iterator[PackedBatch]:
        batches = iter(self.batch_sampler)
        pending = deque(self._begin(batch) for batch in islice(batches, 1))
        try:
            while pending:
                if self._check:
                    self._check()
                batch = pending[0].result()
                pending.popleft()
                pending.extend(
                    self._begin(batch) for batch in islice(batches, self._prefetch - len(pending))
                )
                yield batch
        finally:
            _abandon(pending)

    def _begin(self, indices: Sequence[int]) -> "_Reading":
        if self._held is not None:
            return self._gather(self._held, indices)
        shards, rows = self.split.shard_of[indices].tolist(), self.split.row_of[indices].tolist()
        layouts = set(self._layout_of[shards].tolist())
        plan = self._plans[next(iter(layouts))]
        if len(layouts) > 1 or plan is None:

            def read_any() -> PackedBatch:
                return read_one_by_one(self.split, self._builders, shards, rows, self._reader)

            return _Reading(self._reader.executor, [read_any], lambda results: results[0])

        pool, size = self._reader.pool, len(indices)
        block = pool.take(plan.bytes)
        memory = memoryview(block.memory.numpy())  # type: ignore[arg-type]

        def read(positions: range) -> None:
            for position in positions:
                shard = self.split.shards[shards[position]]
                for start, columns in plan.runs:
                    targets = [
                        memory[c.offset + position * b : c.offset + (position + 1) * b]
                        for c, b in columns
                    ]
                    self._reader.read(
                        self.split.root, shard, targets, shard.span(rows[position])[0] + start
                    )

        share = -(-size // max(1, self._reader.threads))
        parts = [range(start, min(start + share, size)) for start in range(0, size, share)]
        jobs = [lambda part=part: read(part) for part in parts]
        return _Reading(
            self._reader.executor,
            jobs,
            lambda _: PackedBatch.borrowing(block, pool, plan.columns, plan.form, size),
            lambda: pool.give_back(block),
        )

    def _gather(self, held: HeldRecords, indices: Sequence[int]) -> "_Reading":
        pool, plan = self._reader.pool, self._plans[0]
        assert plan is not None

        def gather() -> PackedBatch:
            records = held.of(indices)
            block = pool.take(plan.bytes)
            plan.place(records, block.memory.numpy())
            return PackedBatch.borrowing(block, pool, plan.columns, plan.form, len(indices))

        return _Reading(None, [gather], lambda results: results[0])


@dataclass(frozen=True)
class _Plan:
    """How records of one layout are read into a batch: runs of neighbouring fields."""

    columns: tuple[Column, ...]
    form: Form
    bytes: int  # of the batch's block
    # Offset in the record; columns and bytes of a sample.
    runs: tuple[tuple[int, tuple[tuple[Column, int], ...]], ...]

    @classmethod
    def of(cls, layout: Layout, builders: Builders, batch_size: int) -> "_Plan | None":
        """None for a layout whose records differ in length."""
        if layout.record_bytes is None:
            return None
        form = Form.of(layout, builders)
        columns, size = columns_of(form.fields(layout), batch_size)
        placed = [
            (layout.offsets[column.field.builder, column.field.name], column, column.sample_bytes)
            for column in columns
            if column.sample_bytes
        ]
        runs: list[tuple[int, list[tuple[Column, int]]]] = []
        end = -1
        for offset, column, length in sorted(placed, key=lambda place: place[0]):
            if offset != end:
                runs.append((offset, []))
            runs[-1][1].append((column, length))
            end = offset + length
        return cls(columns, form, size, tuple((start, tuple(run)) for start, run in runs))

    def place(self, records: np.ndarray, memory: np.ndarray) -> None:
        """Write `records` (samples, record bytes) into a batch's block, column by column."""
        size = len(records)
        for start, columns in self.runs:
            for column, length in columns:
                room = memory[column.offset : column.offset + size * length]
                room.reshape(size, length)[:] = records[:, start : start + length]
                start += length


class _Reading:
    """A batch that is being read: by the executor, or when its result is asked for."""

    def __init__(
        self,
        executor: ThreadPoolExecutor | None,
        jobs: Sequence[Callable[[], Any]],
        finish: Callable[[list[Any]], PackedBatch],
        give_up: Callable[[], None] = lambda: None,
    ) -> None:
        self._jobs, self._finish, self.give_up = jobs, finish, give_up
        self.futures: list[Future[Any]] = [executor.submit(job) for job in jobs] if executor else []

    def result(self) -> PackedBatch:
        if not self.futures:
            return self._finish([job() for job in self._jobs])
        return self._finish([future.result() for future in self.futures])


def _abandon(readings: Collection[_Reading]) -> None:
    """Let go of the batches; returns when nobody writes to their memory any more."""
    # All are cancelled before the first wait: what it waits for would make way for the next in
    # line.
    wait([future for reading in readings for future in reading.futures if not future.cancel()])
    for reading in readings:
        reading.give_up()
