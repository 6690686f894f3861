"""Images that are unpacked on a node's own disk: where they belong, and which are no longer used.

A folder per content, `convoy-<user>/image-<digest>`, which later jobs of the user share.
slurm/unpack.sh unpacks, since only the host has Apptainer; it renames the folder when it is whole.
"""

import os
import shutil
import stat
import time
from pathlib import Path

from convoy.errors import ConvoyError
from convoy.run.image import content_bytes

DAYS = 14.0  # without a start from it for so long, an unpacked image is removed
RESERVED = 1 << 30  # bytes that are left free on the node's disk


def folder_name(disk: Path, digest: str, seen_as: str) -> str:
    """Where the image with `digest` belongs below `disk`; the folder above is made.

    `seen_as` is what messages call `disk`. Raises ConvoyError where nothing that is unpacked there
    could be relied on, or run.
    """
    own = disk / f"convoy-{os.geteuid()}"
    shown = f"CONVOY_UNPACK: {seen_as}/{own.name}"
    try:
        own.mkdir(mode=0o700, exist_ok=True)
        found = own.lstat()
    except OSError as error:
        raise ConvoyError(
            f"{shown} cannot be made: {error.strerror}. Name a folder on the nodes' own disks."
        ) from error
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o022:
        raise ConvoyError(
            f"{shown} is not a folder that only you can write to, so an image there cannot be "
            "relied on. Remove it, or name another folder."
        )
    if os.statvfs(own).f_flag & os.ST_NOEXEC:
        raise ConvoyError(f"{shown}: programs there cannot be run (noexec). Name another folder.")
    return f"{own.name}/image-{digest.removeprefix('sha256:')[:16]}"


def use(folder: Path, now: float | None = None) -> None:
    """Note that a start uses `folder`, and remove those that none has used for `DAYS`."""
    now = time.time() if now is None else now
    if folder.is_dir():
        _used(folder).touch()
        os.utime(_used(folder), (now, now))
    for other in folder.parent.glob("image-????????????????"):
        last = _used(other) if _used(other).exists() else other
        if other != folder and last.stat().st_mtime < now - DAYS * 86400:
            shutil.rmtree(other, ignore_errors=True)
            _used(other).unlink(missing_ok=True)


def require_room(folder: Path, image: Path = Path("/")) -> None:
    """Raise ConvoyError unless what `image` holds finds room beside `folder`."""
    needed = content_bytes(image) + RESERVED
    free = shutil.disk_usage(folder.parent).free
    if free < needed:
        raise ConvoyError(
            f"CONVOY_UNPACK: the unpacked image needs {needed / 2**30:.1f} GiB, and "
            f"{free / 2**30:.1f} GiB are free. Name another folder, or make room."
        )


def _used(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.used")
