"""Writes one shard: beside its name, renamed when it is whole, its entry after it."""

import hashlib
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType

import numpy as np

from convoy.data.entries import in_one_line, require_name
from convoy.data.layout import Layout
from convoy.data.packing import pack, record_parts, repack, split_record
from convoy.data.shard import RECORDS_AT, Failure, Shard, header_of, shard_name
from convoy.data.shards import shard_path, write_entry
from convoy.data.values import NotPackable, Values
from convoy.errors import ConvoyError


class WriteError(ConvoyError):
    """The shard cannot be written: no space, no permission."""


class ShardWriter:
    """Records of one log, in the order of `add`.

    A context manager: what is not finished leaves no trace.
    """

    def __init__(
        self, root: Path, log: str, part: int, layout: Layout | None, allow_non_finite: bool = False
    ) -> None:
        """`layout` is where to begin; a sample that it is too narrow for widens the whole shard."""
        self._root, self._log, self._part = root, log, part
        self._layout, self._allow_non_finite = layout, allow_non_finite
        self._path = shard_path(root, shard_name(log, part))
        self._temporary = self._path.with_name(
            f".{self._path.name}.{os.uname().nodename}.{os.getpid()}.tmp"
        )
        self._tokens: list[str] = []
        self._offsets = [RECORDS_AT]
        self._failures: list[Failure] = []
        self._written: Future[None] = Future()  # of the last sample
        self._written.set_result(None)
        self._hash = hashlib.sha256()

    def __enter__(self) -> "ShardWriter":
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self._temporary.open("w+b")
            self._file.seek(RECORDS_AT)
        except OSError as error:
            raise self._failed(error) from error
        self._background = ThreadPoolExecutor(1)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._background.shutdown()
        try:
            self._file.close()  # flushes, so a full disk is met again here
        except OSError:
            pass
        self._temporary.unlink(missing_ok=True)

    def add(self, token: str, sample: Values) -> None:
        """Append a sample. It is written while the caller makes the next one.

        Raises NotPackable when it does not fit the others; then nothing is written of it.
        """
        try:
            require_name(token, "token")
        except ValueError as error:
            raise NotPackable(str(error)) from error
        if token in self._tokens:
            raise NotPackable("its token is there twice")
        layout, packed = pack(sample, self._layout, self._allow_non_finite)
        # What is stored as it is may be memory of the builder's, for its next sample.
        kept = [
            values.copy() if entry.packed == entry.dtype else values
            for entry, values in zip(layout.fields, packed, strict=True)
        ]
        try:
            self._written.result()
            if self._layout is not None and layout != self._layout and self._tokens:
                self._rewrite(layout)
            self._layout = layout
            self._written = self._background.submit(self._append, record_parts(layout, kept))
        except OSError as error:
            raise self._failed(error) from error
        self._tokens.append(token)

    def fail(self, token: str, reason: str) -> None:
        """Note a sample that is left out."""
        self._failures.append(Failure(self._log, in_one_line(str(token)), in_one_line(reason)))

    def finish(self, seconds: Mapping[str, float]) -> Shard:
        """Make the shard and its entry visible."""
        try:
            self._written.result()
        except OSError as error:
            raise self._failed(error) from error
        layout = self._layout or Layout(())
        shard = Shard(
            log=self._log,
            part=self._part,
            layout=layout,
            tokens=tuple(self._tokens),
            bytes=self._offsets[-1] if self._tokens else 0,
            sha256=self._hash.hexdigest(),
            offsets=tuple(self._offsets) if layout.record_bytes is None and self._tokens else None,
            failures=tuple(self._failures),
            seconds=dict(seconds),
        )
        try:
            if self._tokens:
                self._file.seek(0)
                self._file.write(header_of(shard))
                self._file.flush()
                os.fsync(self._file.fileno())
                self._temporary.replace(self._path)
        except OSError as error:
            raise self._failed(error) from error
        write_entry(self._root, shard)
        return shard

    def _append(self, record: Sequence[np.ndarray]) -> None:
        self._file.writelines(part.data for part in record)
        for part in record:
            self._hash.update(part.data)
        self._offsets.append(self._offsets[-1] + sum(part.size for part in record))

    def _rewrite(self, wider: Layout) -> None:
        """Pack the records so far again. They are held in memory meanwhile: this is rare, and a
        shard is small."""
        assert self._layout is not None
        records = []
        for start, end in zip(self._offsets[:-1], self._offsets[1:], strict=True):
            self._file.seek(start)
            packed = split_record(self._layout, self._file.read(end - start))
            records.append(record_parts(wider, repack(self._layout, wider, packed)))
        self._file.seek(RECORDS_AT)
        self._file.truncate()
        self._hash, self._offsets = hashlib.sha256(), [RECORDS_AT]
        for record in records:
            self._append(record)

    def _failed(self, error: OSError) -> WriteError:
        return WriteError(
            f"The shard {self._path} could not be written: {error.strerror}. Finished shards are "
            "kept: free some space and run the same `convoy prepare` again."
        )
