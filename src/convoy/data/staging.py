"""Copies shards to this node's own disk or memory while the training runs: few sequential reads,
not many random ones.

One process per node copies; all of its ranks read a shard from the copy as soon as it is there. The
copies lie in a folder that only this user can enter: the disk of a node is everybody's. A note
beside each says which file it is whose checksum was right, so contents are checked once: the next
job on the node finds the same file and reads it, and one that was changed, or that a crash of the
node left half written, is checked again.
"""

import contextlib
import hashlib
import logging
import os
import shutil
import stat
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
BOOT = Path("/proc/sys/kernel/random/boot_id")


def staged_folder(stage: Path, shards: Sequence[Shard]) -> Path:
    """Where copies of `shards` belong below `stage`: in this user's own folder, named by their
    content, so no other data is ever taken for it."""
    digest = hashlib.sha256("".join(sorted(shard.sha256 for shard in shards)).encode())
    return stage / f"convoy-{os.geteuid()}" / digest.hexdigest()[:16]


def make_private(folder: Path) -> None:
    """Make `folder` and the one above it, this user's own, or see that nobody else can enter them:
    anybody could have made folders of those names, or links. Raises ConvoyError where not."""
    try:
        folder.parent.parent.mkdir(parents=True, exist_ok=True)
        for each in (folder.parent, folder):
            with contextlib.suppress(FileExistsError):
                each.mkdir(mode=0o700)
            _require_private(each)
    except OSError as error:
        raise ConvoyError(
            f"data.stage: {folder} cannot be made: {error.strerror}. Give a folder on this node's "
            "own disk, or leave data.stage out."
        ) from error


def _require_private(folder: Path) -> None:
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode):
        problem = "is a link or a file"
    elif found.st_uid != os.geteuid():
        problem = f"belongs to user {found.st_uid}, and you are {os.geteuid()}"
    elif found.st_mode & 0o077:
        problem = f"can be entered by others (mode {stat.S_IMODE(found.st_mode):04o})"
    else:
        return
    raise ConvoyError(
        f"data.stage: {folder} {problem}: copies there cannot be relied on. Remove it, or let its "
        "owner do so, or give another folder."
    )


class StagedShards:
    """Finds staged copies; what a `ShardReader` asks for the nearer copy of a shard."""

    def __init__(self, folder: Path) -> None:
        """Raises ConvoyError where others can write to `folder`."""
        make_private(folder)
        self._folder = folder
        self._found: dict[str, Path] = {}

    def __call__(self, shard: Shard) -> Path | None:
        """The copy of `shard`, or None as long as there is none."""
        path = self._found.get(shard.name)
        if path is None:
            path = self._folder / f"{shard.name}{SUFFIX}"
            if not _is_checked(path, shard):
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
        make_private(folder)
        self._remove_leftovers()
        self._missing = [shard for shard in chosen if not _is_checked(self._copy_of(shard), shard)]
        self.bytes = sum(shard.bytes for shard in self._missing)
        self.reused = total - self.bytes
        there = [shard for shard in self._missing if _size(self._copy_of(shard)) == shard.bytes]
        self._require_room(self.bytes - sum(shard.bytes for shard in there))

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

    def _copy_of(self, shard: Shard) -> Path:
        return self._folder / f"{shard.name}{SUFFIX}"

    def _remove_leftovers(self) -> None:
        for left in self._folder.glob(".*.tmp"):  # of a job that was killed, or that copies now
            with contextlib.suppress(OSError):
                if time.time() - left.stat().st_mtime > 600:
                    left.unlink()

    def _require_room(self, needed: int) -> None:
        free = shutil.disk_usage(self._folder).free - RESERVED
        if needed > free:
            others = [path.name for path in self._folder.parent.iterdir() if path != self._folder]
            where = self._folder.parent
            hint = f" Other staged data of yours in {where}: {', '.join(others)}." if others else ""
            raise ConvoyError(
                f"data.stage: {needed / 1e9:.1f} GB are to be copied to {where}, which has "
                f"{max(0, free) / 1e9:.1f} GB to spare. Stage a part, "
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
        source, target = shard_path(self._root, shard.name), self._copy_of(shard)
        if _is_checked(target, shard):  # before `close`, or by another job in the meantime
            return
        # Two jobs' containers can have equal process numbers.
        temporary = target.with_name(f".{target.name}.{os.getpid()}.{time.monotonic_ns()}.tmp")
        checksum = Checksum(shard)
        buffer = memoryview(bytearray(min(CHUNK, max(1, shard.bytes))))
        try:
            if _is_right(target, shard):
                _note(target)
                return
            with (
                open(source, "rb", buffering=0) as reading,
                open(temporary, "xb", buffering=0) as writing,
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
            _note(target)
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


def _is_checked(path: Path, shard: Shard) -> bool:
    """Whether this very file was checked. A change of its contents changes what identifies it, and
    nobody can set that."""
    try:
        return _size(path) == shard.bytes and _note_of(path).read_text() == _identity(path)
    except (OSError, UnicodeDecodeError):
        return False


def _is_right(path: Path, shard: Shard) -> bool:
    """Whether a file that is already there has the shard's checksum; reads all of it."""
    if _size(path) != shard.bytes:
        return False
    checksum = Checksum(shard)
    buffer = memoryview(bytearray(min(CHUNK, max(1, shard.bytes))))
    with open(path, "rb", buffering=0) as file:
        while count := file.readinto(buffer):
            checksum.update(buffer[:count])
    return checksum.is_right()


def _size(path: Path) -> int | None:
    """Of a file, not of what a link leads to."""
    try:
        found = path.lstat()
    except OSError:
        return None
    return found.st_size if stat.S_ISREG(found.st_mode) else None


def _note(path: Path) -> None:
    temporary = _note_of(path).with_suffix(f".{os.getpid()}.{threading.get_ident()}.tmp")
    temporary.write_text(_identity(path))
    temporary.replace(_note_of(path))


def _note_of(path: Path) -> Path:
    return path.with_name(f".{path.name}.checked")


def _identity(path: Path) -> str:
    """After a crash of the node a file can have its size and other contents: hence the boot."""
    found = path.lstat()
    boot = BOOT.read_text().strip() if BOOT.exists() else ""
    return f"{found.st_ino} {found.st_size} {found.st_mtime_ns} {found.st_ctime_ns} {boot}\n"


def _write_all(descriptor: int, data: memoryview) -> None:
    while data:
        data = data[os.write(descriptor, data) :]
