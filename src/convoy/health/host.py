"""CPUs, shared memory and folders of this machine."""

import os
import shutil
import tempfile
from pathlib import Path

from convoy.health.finding import Status

SHM = Path("/dev/shm")
GIB = 1 << 30
MIB = 1 << 20


def examine_cpus(expected_gpus: int | None) -> tuple[Status, str]:
    usable = len(os.sched_getaffinity(0))
    if expected_gpus and usable < 2 * expected_gpus:
        return (
            Status.WARN,
            f"{usable} for {expected_gpus} GPUs: srun hands CPUs on only with --cpus-per-task",
        )
    return Status.OK, f"{usable} usable"


def examine_shared_memory() -> tuple[Status, str]:
    """DataLoader workers hand whole batches over through it, and die of SIGBUS where it is full."""
    size = shutil.disk_usage(SHM).total / GIB
    if size >= 1:
        return Status.OK, f"{size:.1f} GiB"
    return Status.WARN, (
        f"{size * 1024:.0f} MiB: too little for data loader workers. Apptainer: --bind /dev/shm; "
        "Docker: --shm-size=8g"
    )


def examine_writable(folder: Path, otherwise: Status, remedy: str) -> tuple[Status, str]:
    """The folder, or the one that it would be made in."""
    existing = next(
        path for path in (folder.absolute(), *folder.absolute().parents) if path.exists()
    )
    try:
        with tempfile.NamedTemporaryFile(dir=existing):
            pass
    except OSError as error:
        return otherwise, f"{folder}: {error.strerror}: {remedy}"
    free = shutil.disk_usage(existing).free
    return (
        Status.OK,
        f"{folder}, {f'{free / GIB:.0f} GiB' if free >= GIB else f'{free / MIB:.0f} MiB'} free",
    )
