"""Reads records of shards: the threads, open files and memory that a process's loaders share."""

import os
import resource
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from io import FileIO
from pathlib import Path

from convoy.data.packed_batch import BlockPool
from convoy.data.shard import Shard
from convoy.data.shards import shard_path
from convoy.errors import ConvoyError

MOST_TARGETS = os.sysconf("SC_IOV_MAX")  # of one call
OPEN_FILES_RESERVED = 256  # descriptors that are left to the rest of the process


class ShardReader:
    """The threads, open files and blocks of memory that all loaders of a process share."""

    def __init__(
        self, threads: int, pinned: bool, staged: Callable[[Shard], Path | None] | None = None
    ) -> None:
        """`threads` 0 reads in the calling thread.

        `staged` names a nearer copy of a shard, or None.
        """
        self.threads = threads
        self.pool = BlockPool(pinned)
        self._staged = staged
        self._executor: ThreadPoolExecutor | None = None
        self._files: OrderedDict[tuple[Path, str], FileIO] = OrderedDict()
        self._lock = threading.Lock()
        self._most_files = _raise_open_files() - OPEN_FILES_RESERVED

    @property
    def executor(self) -> ThreadPoolExecutor | None:
        if self._executor is None and self.threads:
            self._executor = ThreadPoolExecutor(self.threads, thread_name_prefix="convoy-read")
        return self._executor

    def close(self) -> None:
        """End the threads and close the files; both come back with the next read."""
        if self._executor is not None:
            self._executor.shutdown(cancel_futures=True)
            self._executor = None
        with self._lock:
            self._files.clear()

    def read(self, root: Path, shard: Shard, targets: Sequence[memoryview], offset: int) -> None:
        """Fill `targets`, one after another, from `offset` of the shard. Raises ConvoyError naming
        the file."""
        left = sum(map(len, targets))
        # A path is put together only where it is needed: that takes longer than a small read.
        staged = self._staged(shard) if self._staged else None
        place = (root, shard.name) if staged is None else (staged, "")

        def path() -> Path:
            return staged or shard_path(root, shard.name)

        try:
            file = self._file(place, path)
            while left:
                got = os.preadv(file.fileno(), targets[:MOST_TARGETS], offset)
                if got == 0:
                    raise _unreadable(
                        path(), f"it ends at byte {offset}, the manifest says {shard.bytes}"
                    )
                left, offset = left - got, offset + got
                if left:  # many targets, a network file system, or a signal
                    targets = _without(targets, got)
        except OSError as error:
            raise _unreadable(path(), error.strerror or str(error)) from error

    def _file(self, place: tuple[Path, str], path: Callable[[], Path]) -> FileIO:
        """An open file. One that is dropped from the table is closed when its last reader lets go
        of it."""
        with self._lock:
            file = self._files.get(place)
            if file is not None:
                self._files.move_to_end(place)
                return file
        file = open(path(), "rb", buffering=0)  # noqa: SIM115
        # No reading ahead into other records.
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
        with self._lock:
            self._files[place] = file
            if len(self._files) > self._most_files:
                self._files.popitem(last=False)
        return file


def _without(targets: Sequence[memoryview], done: int) -> list[memoryview]:
    """What of `targets` is left after their first `done` bytes."""
    left = []
    for target in targets:
        if done < len(target):
            left.append(target[done:])
        done = max(0, done - len(target))
    return left


def _unreadable(path: Path, reason: str) -> ConvoyError:
    return ConvoyError(
        f"{path} cannot be read: {reason}. `convoy data verify` lists what is damaged; delete "
        "those files' .json and run the same `convoy prepare` again."
    )


def _raise_open_files() -> int:
    """Allow as many open files as the system lets this process have (a file per shard is kept
    open)."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
            soft = hard
        except (ValueError, OSError):  # some systems set a hard limit above what they grant
            pass
    return max(soft, 2 * OPEN_FILES_RESERVED) if soft != resource.RLIM_INFINITY else 1 << 20
