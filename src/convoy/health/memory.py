"""Host memory against the limit that the kernel holds this process to. Standard library only."""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")
OWN_CGROUP = Path("/proc/self/cgroup")
MEMINFO = Path("/proc/meminfo")
GIB = 1 << 30
_UNLIMITED = 1 << 60  # cgroup v1 writes a number near 2^63 for "no limit"


@dataclass(frozen=True)
class Memory:
    """Bytes in use that the kernel cannot drop (its page cache is left out), and the limit.

    `kills` counts the processes that were killed at that limit so far, None where no cgroup says.
    """

    used: int
    limit: int
    kills: int | None

    @property
    def described(self) -> str:
        return f"{self.used / GIB:.1f} of {self.limit / GIB:.1f} GiB"


def read_memory(cgroups: Path = CGROUPS, own: Path = OWN_CGROUP, meminfo: Path = MEMINFO) -> Memory:
    """The tightest limit that holds for this process: of its cgroup, of one above, or the
    machine's own memory."""
    machine = _machine(meminfo)
    with contextlib.suppress(OSError, ValueError):
        lines = [line.split(":", 2) for line in own.read_text().splitlines()]
        for number, controllers, path in lines:
            if number == "0" and (cgroups / "cgroup.controllers").exists():
                found = _tightest(cgroups, path, _version_2)
            elif "memory" in controllers.split(","):
                found = _tightest(cgroups / "memory", path, _version_1)
            else:
                continue
            if found is not None and found.limit < machine.limit:
                return found
    return machine


def _tightest(root: Path, path: str, read: Callable[[Path], Memory]) -> Memory | None:
    """In a container the path may be that of the host's view: then the root is the own cgroup."""
    folder = root / path.lstrip("/")
    if not folder.is_dir():
        folder = root
    found: Memory | None = None
    while True:
        with contextlib.suppress(OSError, ValueError, KeyError):
            here = read(folder)
            if found is None or here.limit < found.limit:
                found = here
        if folder == root:
            return found
        folder = folder.parent


def _version_2(folder: Path) -> Memory:
    limit = (folder / "memory.max").read_text().strip()
    counts = _table(folder / "memory.stat")
    used = int((folder / "memory.current").read_text()) - counts["file"] + counts["shmem"]
    kills = _table(folder / "memory.events").get("oom_kill")
    return Memory(used, _UNLIMITED if limit == "max" else int(limit), kills)


def _version_1(folder: Path) -> Memory:
    limit = int((folder / "memory.limit_in_bytes").read_text())
    counts = _table(folder / "memory.stat")
    usage = int((folder / "memory.usage_in_bytes").read_text())
    used = usage - counts["total_cache"] + counts.get("total_shmem", 0)
    kills = _table(folder / "memory.oom_control").get("oom_kill")
    return Memory(used, min(limit, _UNLIMITED), kills)


def _machine(meminfo: Path) -> Memory:
    fields = (line.split() for line in meminfo.read_text().splitlines())
    kilobytes = {line[0].rstrip(":"): int(line[1]) for line in fields}
    total, free = kilobytes["MemTotal"] * 1024, kilobytes["MemAvailable"] * 1024
    return Memory(total - free, total, None)


def _table(path: Path) -> dict[str, int]:
    """Lines of a name and a number."""
    return {
        name: int(value)
        for name, _, value in (line.partition(" ") for line in path.read_text().splitlines())
        if value.strip().isdigit()
    }


def private_bytes(pid: int) -> int:
    """Memory that would be free if the process ended; 0 where it has ended already."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    sizes = (line.split() for line in lines if line.startswith("Private_"))
    return sum(int(fields[1]) * 1024 for fields in sizes)
