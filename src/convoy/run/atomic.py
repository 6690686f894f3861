"""Files that are whole or not there, whatever ends the writer. Standard library only."""

import errno
import os
import socket
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

SUFFIX = ".partial"
NO_ROOM = (errno.ENOSPC, errno.EDQUOT)  # of an OSError: the disk or a quota is full


@contextmanager
def replacing(path: Path, durable: bool = True) -> Iterator[BinaryIO]:
    """Write a new `path` beside the old one; it takes its place when the block ends without error.

    The name beside it belongs to this writer alone, so two writers never meet in one file. With
    `durable` the data is on the disk before the name is: after a power failure, too, the file is
    the old one or the new one. An OSError (disk full, say) leaves the old file as it was.
    """
    beside = path.with_name(f".{path.name}.{socket.gethostname()}-{uuid.uuid4().hex[:12]}{SUFFIX}")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with beside.open("xb") as file:
            yield file
            file.flush()
            if durable:
                os.fsync(file.fileno())
        beside.replace(path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
    if durable:
        sync_folder(path.parent)


def write_text(path: Path, text: str, durable: bool = True) -> None:
    """Replace `path` by a file with `text`."""
    with replacing(path, durable) as file:
        file.write(text.encode())


def sync_folder(folder: Path) -> None:
    """Make the names in `folder` last; a file system that cannot is left alone."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError:
        pass
    finally:
        os.close(descriptor)


def leftovers(folder: Path) -> list[Path]:
    """What writers that were killed left in `folder`; only for whoever knows that none is alive."""
    return sorted(folder.glob(f".*{SUFFIX}"))
