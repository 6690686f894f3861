"""Copies shards to this node's own disk or memory while the training runs: few sequential reads,
not many random ones.

One process per node copies; all of its ranks read a shard from the copy as soon as it is there. A
shard gets its name only when its checksum was right, so a copy is never half there, and the next
job on the node finds it again.
"""

import contextlib
import hashlib
import logging
import os
import shutil
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from convoy.data.shard import Shard
from convoy.data.shards import SUFFIX, shard_path
from convoy.data.verify import Checksum
from convoy.errors import ConvoyError

logger = logging.getLogger("convoy")

CHUNK = 8 << 20  # bytes per read
THREADS = 4
RESERVED = 1 << 30  # bytes that are left free on the node's disk


def staged_folder(stage: Path, shards: Sequence[Shard]) -> Path:
    """Where copies of `shards` belong below `stage`: named by their content, so no other data is
    ever taken for it."""
    digest = hashlib.sha256("".join(sorted(shard.sha256 for shard in shards)).encode())
    return stage / f"convoy-{digest.hexdigest()[:16]}"


class StagedShards:
    """Finds staged copies; what a `ShardReader` asks for the nearer copy of a shard."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._found: dict[str, Path] = {}

    def __call__(self, shard: Shard) -> Path | None:
        """The copy of `shard`, or None as long as there is none."""
        path = self._found.get(shard.name)
        if path is None:
            path = self._folder / f"{shard.name}{SUFFIX}"
            if not _is_copy(path, shard):
                return None
            self._found[shard.name] = path
        return path


class Staging:
    """Copies in the background, on one process of each node."""

    def __init__(
        self,
        root: Path,
        shards: Sequence[Shard],
        folder: Path,
        most_bytes: float | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        """`most_bytes` stages only so much, in the order of `shards`; reading the rest stays as it
        was. `progress` is called with bytes done and in all. Raises ConvoyError when there is not
        enough room."""
        self._root, self._folder = root, folder
        self._progress = progress
        self._stop = threading.Event()
        self._error: ConvoyError | None = None
        self._thread: threading.Thread | None = None
        self._done = 0
        self._lock = threading.Lock()
        chosen, total = [], 0
        for shard in shards:
            if most_bytes is None or total + shard.bytes <= most_bytes:
                chosen.append(shard)
                total += shard.bytes
        self._missing = [
            shard for shard in chosen if not _is_copy(folder / f"{shard.name}{SUFFIX}", shard)
        ]
        self.bytes = sum(shard.bytes for shard in self._missing)
        self.reused = total - self.bytes
        self._require_room()

    def start(self) -> None:
        """Begin to copy, or go on after `close`; does nothing where it is running or done."""
        if self._thread is not None and not self._stop.is_set():
            return
        self._stop.clear()
        self._thread = threading.Thread(target=self._run, name="convoy-stage", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raise here what went wrong in the background: a damaged shard must not be trained on."""
        if self._error is not None:
            raise self._error

    def wait(self) -> None:
        if self._thread is not None:
            self._thread.join()
        self.check()

    def close(self) -> None:
        """Stop copying; finished copies stay."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()

    def _require_room(self) -> None:
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            free = shutil.disk_usage(self._folder).free - RESERVED
        except OSError as error:
            raise ConvoyError(
                f"data.stage: {self._folder} cannot be made: {error.strerror}. Give a folder on "
                "this node's own disk, or leave data.stage out."
            ) from error
        for left in self._folder.glob(
            ".*.tmp"
        ):  # of a job that was killed, or of one that copies at this moment
            with contextlib.suppress(OSError):
                if time.time() - left.stat().st_mtime > 600:
                    left.unlink()
        if self.bytes > free:
            others = [
                path.name for path in self._folder.parent.glob("convoy-*") if path != self._folder
            ]
            hint = f" Other staged data there: {', '.join(others)}." if others else ""
            raise ConvoyError(
                f"data.stage: {self.bytes / 1e9:.1f} GB are to be copied to {self._folder.parent}, "
                f"which has {max(0, free) / 1e9:.1f} GB to spare. Stage a part, "
                f"data.stage_gb={int(max(0, free) / 1e9)}, or leave data.stage out.{hint}"
            )

    def _run(self) -> None:
        started = time.monotonic()
        try:
            with ThreadPoolExecutor(THREADS, thread_name_prefix="convoy-stage") as pool:
                list(pool.map(self._copy, self._missing))
        except ConvoyError as error:
            self._error = error
            self._stop.set()
            return
        if not self._stop.is_set():
            seconds = time.monotonic() - started
            logger.info(
                "staged %.1f GB to %s in %.0f s (%.1f GB were there)",
                self.bytes / 1e9,
                self._folder,
                seconds,
                self.reused / 1e9,
            )

    def _copy(self, shard: Shard) -> None:
        source, target = shard_path(self._root, shard.name), self._folder / f"{shard.name}{SUFFIX}"
        if _is_copy(target, shard):  # copied before `close`, or by another job in the meantime
            return
        temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
        checksum = Checksum(shard)
        buffer = memoryview(bytearray(min(CHUNK, max(1, shard.bytes))))
        try:
            with (
                open(source, "rb", buffering=0) as reading,
                open(temporary, "wb", buffering=0) as writing,
            ):
                os.posix_fadvise(reading.fileno(), 0, 0, os.POSIX_FADV_SEQUENTIAL)
                while not self._stop.is_set() and (count := reading.readinto(buffer)):
                    checksum.update(buffer[:count])
                    _write_all(writing.fileno(), buffer[:count])
                    self._advance(count)
            if self._stop.is_set():
                return
            if not checksum.is_right():
                raise ConvoyError(
                    f"{source} does not have the checksum that the manifest says: it is damaged. "
                    "Delete its .json and run the same `convoy prepare` again; `convoy data "
                    "verify` lists all that is damaged."
                )
            temporary.replace(target)
        except OSError as error:
            raise ConvoyError(
                f"data.stage: {source} could not be copied to {target}: {error.strerror}. Free "
                "some space there, stage a part with data.stage_gb, or leave data.stage out."
            ) from error
        finally:
            temporary.unlink(missing_ok=True)

    def _advance(self, count: int) -> None:
        if self._progress is None:
            return
        with self._lock:
            self._done += count
            self._progress(self._done, self.bytes)


def _is_copy(path: Path, shard: Shard) -> bool:
    """A file of that name was verified when it was copied; its size tells of a file system that
    lost some of it."""
    try:
        return path.stat().st_size == shard.bytes
    except OSError:
        return False


def _write_all(descriptor: int, data: memoryview) -> None:
    while data:
        data = data[os.write(descriptor, data) :]
