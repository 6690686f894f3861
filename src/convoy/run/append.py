"""Lines that several nodes add to one file, and none is lost. Standard library only.

NFS has no atomic append: of two nodes that write at one moment, one may overwrite the other's line.
Its kernel locks need a daemon, and Lustre's a mount option; without them they fail, or hold on one
node only. A file that only one can make is enough, and is what decides here whose turn it is.
"""

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

PATIENCE = 5.0  # seconds; a turn takes milliseconds, so that whoever has it for so long is dead
_PAUSE = 0.005


def append_line(path: Path, line: str) -> None:
    """Add `line`, which has no newline, to `path`. Raises OSError where it cannot be written (a
    full disk); what was written of it then is a line of its own."""
    with _turn(path.with_name(f".{path.name}.turn")):
        # Opened now: NFS asks for a file's size when it is opened.
        descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            size = os.fstat(descriptor).st_size
            # The line before may have been cut.
            cut = size > 0 and os.pread(descriptor, 1, size - 1) != b"\n"
            before = "\n" if cut else ""
            os.write(descriptor, f"{before}{line}\n".encode())
        finally:
            os.close(descriptor)  # and NFS writes when it is closed


@contextlib.contextmanager
def _turn(marker: Path) -> Iterator[None]:
    holder, since = None, time.monotonic()
    while True:
        try:
            os.close(os.open(marker, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644))
            break
        except FileExistsError:
            seen = _identity(marker)
            if seen != holder:
                holder, since = seen, time.monotonic()
            if time.monotonic() - since > PATIENCE:  # two who find this at once may write at once
                marker.unlink(missing_ok=True)
            else:
                time.sleep(_PAUSE)
    try:
        yield
    finally:
        marker.unlink(missing_ok=True)


def _identity(marker: Path) -> tuple[int, int] | None:
    try:
        found = marker.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns
