"""What an image holds, as one digest: the same for two builds of one commit, whenever and wherever
they ran.

Standard library only: the image's build computes it before anything else could be imported.
"""

import hashlib
import json
import os
import stat
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

MANIFEST = Path("/opt/convoy/image.json")

# From this size on, threads read and hash at once; for smaller files, Python's lock makes them
# slower than one.
LARGE_BYTES = 1 << 20

# What the container runtime brings or replaces when a container starts, and the manifest, which
# holds the digest.
NOT_CONTENT = frozenset(
    (
        "dev proc sys run tmp var/tmp home root mnt media srv environment singularity "
        "etc/group etc/gshadow etc/hostname etc/hosts etc/localtime etc/mtab etc/nsswitch.conf "
        "etc/passwd etc/resolv.conf etc/shadow etc/subgid etc/subuid "
        ".dockerenv .exec .post.script .run .shell .singularity.d .test "
        f"{str(MANIFEST).lstrip('/')}"
    ).split()
)


def entries(root: Path) -> Iterator[tuple[str, str, str]]:
    """(path, mode in octal, SHA-256 of the content or a link's target) of all that is below `root`,
    sorted by path.

    Owners and times are left out: an unprivileged build drops the first, and the second are no
    content. What is mounted below `root` is left out too. PermissionError for what cannot be read.
    """
    found = sorted(_walk(root))
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        large = {
            path: pool.submit(_file_digest, root / path)
            for path, status in found
            if stat.S_ISREG(status.st_mode) and status.st_size >= LARGE_BYTES
        }
        for path, status in found:
            if path in large:
                content = large[path].result()
            elif stat.S_ISREG(status.st_mode):
                content = _file_digest(root / path)
            else:
                content = os.readlink(root / path) if stat.S_ISLNK(status.st_mode) else ""
            yield path, f"{status.st_mode:o}", content


def content_bytes(root: Path) -> int:
    """How much room all that is below `root` takes on a disk with blocks of 4 KiB."""
    return sum(-(-status.st_size // 4096) * 4096 + 4096 for _, status in _walk(root))


def _walk(root: Path) -> Iterator[tuple[str, os.stat_result]]:
    """(path below `root`, status) of what belongs to an image, in any order."""
    mounts = {line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()}
    folders = [""]
    while folders:
        folder = folders.pop()
        with os.scandir(root / folder) as listing:
            for entry in listing:
                path = f"{folder}/{entry.name}" if folder else entry.name
                if path in NOT_CONTENT or str(root / path) in mounts:
                    continue
                status = entry.stat(follow_symlinks=False)
                yield path, status
                if stat.S_ISDIR(status.st_mode):
                    folders.append(path)


def content_digest(root: Path) -> str:
    """`sha256:` and the digest over all `entries` of `root`."""
    total = hashlib.sha256()
    for entry in entries(root):
        total.update(("\0".join(entry) + "\n").encode(errors="surrogateescape"))
    return f"sha256:{total.hexdigest()}"


def read_manifest() -> dict[str, Any] | None:
    """What the image's build wrote of itself: variant, commit, lock, sources, digest, python and
    debian packages. None outside of an image."""
    return json.loads(MANIFEST.read_text()) if MANIFEST.exists() else None


def lock_digest(path: Path) -> str:
    """`sha256:` and the digest of a lock file."""
    return f"sha256:{_file_digest(path)}"


def _file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
