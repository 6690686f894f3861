"""The records of a small data set in memory: a batch is one gather instead of a read per sample.

A sample of EgoStatusMLP has 300 bytes. Reading it costs more than training on it, and that of all
85,109 of navtrain's needs no more memory than 30 of TransFuser's.
"""

import threading
from collections.abc import Sequence

import numpy as np

from convoy.data.shard import RECORDS_AT
from convoy.data.shard_reader import ShardReader
from convoy.data.shard_split import ShardSplit

HELD_AT_MOST = 256 << 20  # bytes of one split in one process


class HeldRecords:
    """All records of a split's shards, read when the first batch is asked for."""

    def __init__(self, split: ShardSplit, reader: ShardReader) -> None:
        """`split` must be one that `can_hold`."""
        self._split, self._reader = split, reader
        counts = [len(shard.tokens) for shard in split.shards]
        self._first = np.concatenate([[0], np.cumsum(counts)])
        self._place = self._first[split.shard_of] + split.row_of  # of a sample among the records
        self._lock = threading.Lock()
        self._records: np.ndarray | None = None

    @staticmethod
    def can_hold(split: ShardSplit) -> bool:
        """Whether the records are equally long, of one layout, and few or small enough."""
        layouts = {shard.layout for shard in split.shards}
        if len(layouts) != 1 or (length := next(iter(layouts)).record_bytes) is None:
            return False
        return sum(len(shard.tokens) for shard in split.shards) * length <= HELD_AT_MOST

    def of(self, indices: Sequence[int]) -> np.ndarray:
        """uint8 (samples, record bytes): a copy. Raises ConvoyError naming the unreadable file."""
        with self._lock:
            if self._records is None:
                self._records = self._read()
        return self._records.take(self._place.take(indices), axis=0)

    def _read(self) -> np.ndarray:
        split = self._split
        length = split.shards[0].layout.record_bytes
        assert length is not None
        records = np.empty((int(self._first[-1]), length), np.uint8)

        def fill(number: int) -> None:
            target = memoryview(records[self._first[number] : self._first[number + 1]]).cast("B")  # type: ignore[arg-type]
            self._reader.read(split.root, split.shards[number], [target], RECORDS_AT)

        used = np.unique(split.shard_of).tolist()  # not damaged ones that are left out
        executor = self._reader.executor
        list(executor.map(fill, used) if executor else map(fill, used))
        return records
