"""How a node fares while it trains: host memory and GPUs, sampled into the run directory.

`convoy watch` and the report read it; on a login node neither nvidia-smi nor the job's cgroup can
be asked. A thread of the node's launcher samples, so a rank that hangs does not stop it.
"""

import contextlib
import json
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

INTERVAL = 15.0  # seconds; a line is about 300 bytes, so a day leaves under 2 MB a node
GPU_QUERY = "index,utilization.gpu,memory.used,memory.total,power.draw,name"
CGROUP = Path("/sys/fs/cgroup")


@contextlib.contextmanager
def sampled(path: Path | None, interval: float = INTERVAL) -> Iterator[None]:
    """Append a sample to `path` every `interval` seconds meanwhile; None samples nothing."""
    if path is None:
        yield
        return
    stop = threading.Event()
    thread = threading.Thread(target=_loop, args=(path, interval, stop), name="vitals", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(timeout=5)


def _loop(path: Path, interval: float, stop: threading.Event) -> None:
    while True:
        # A full disk or a driver that hangs must not end a training.
        with contextlib.suppress(OSError, subprocess.SubprocessError, ValueError):
            line = json.dumps(sample())
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("a") as file:
                file.write(line + "\n")
        if stop.wait(interval):
            return


def sample() -> dict[str, Any]:
    """Now: `time`, `memory` and `memory_limit` of the host in bytes, `gpus` with %, MiB, W."""
    used, limit = host_memory()
    return {"time": round(time.time(), 1), "memory": used, "memory_limit": limit, "gpus": gpus()}


def host_memory(proc: Path = Path("/proc"), cgroup: Path = CGROUP) -> tuple[int, int]:
    """Bytes in use that cannot be given back, and the limit: the job's cgroup, else the machine.

    Page cache counts in a cgroup's usage and is given back under pressure: it is left out.
    """
    folder = _own_cgroup(proc, cgroup)
    if folder is not None:
        for usage, limit, cache in (
            ("memory.current", "memory.max", "inactive_file"),
            ("memory.usage_in_bytes", "memory.limit_in_bytes", "total_inactive_file"),
        ):
            with contextlib.suppress(OSError, ValueError):
                most = int((folder / limit).read_text())
                if most < 2**60:
                    facts = dict(
                        line.split() for line in (folder / "memory.stat").read_text().splitlines()
                    )
                    return int((folder / usage).read_text()) - int(facts.get(cache, 0)), most
    kib = {}
    for line in (proc / "meminfo").read_text().splitlines():
        name, _, rest = line.partition(":")
        kib[name] = int(rest.split()[0])
    total = kib["MemTotal"] * 1024
    return total - kib["MemAvailable"] * 1024, total


def _own_cgroup(proc: Path, cgroup: Path) -> Path | None:
    """The nearest cgroup above this process that limits memory."""
    with contextlib.suppress(OSError):
        for line in (proc / "self/cgroup").read_text().splitlines():
            _, controllers, name = line.split(":", 2)
            if controllers not in {"", "memory"}:
                continue
            root = cgroup / "memory" if controllers else cgroup
            folder = root / name.lstrip("/")
            while folder != root and root in folder.parents:
                for limit in ("memory.max", "memory.limit_in_bytes"):
                    with contextlib.suppress(OSError, ValueError):
                        if int((folder / limit).read_text()) < 2**60:
                            return folder
                folder = folder.parent
    return None


def gpus() -> list[Mapping[str, Any]]:
    """Of each GPU of this node: index, % busy, memory and memory_total in MiB, power in W, name."""
    command = ("nvidia-smi", f"--query-gpu={GPU_QUERY}", "--format=csv,noheader,nounits")
    try:
        done = subprocess.run(command, text=True, capture_output=True, timeout=10)
    except FileNotFoundError:
        return []
    return parse_gpus(done.stdout)


def parse_gpus(text: str) -> list[Mapping[str, Any]]:
    """Lines of nvidia-smi; a figure that a card does not give (`[N/A]`) leaves the card out, but
    for its power."""
    found: list[Mapping[str, Any]] = []
    for line in text.splitlines():
        *words, name = (word.strip() for word in line.split(",", 5))
        if len(words) == 5 and all(word.isdigit() for word in words[:4]):
            names = ("index", "busy", "memory", "memory_total")
            figures: dict[str, Any] = dict(zip(names, map(int, words), strict=False))
            with contextlib.suppress(ValueError):
                figures["power"] = float(words[4])
            found.append({**figures, "name": name})
    return found
