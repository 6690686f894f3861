"""What the nodes of a job's start must show before their ranks start: one that cannot is named, and
the job continues without it. All look at themselves at once, then compare what they found.

`python -m convoy.launch.preflight GPUS` looks at the GPUs, in a process of its own: a broken one
can hang whoever asks it, and what torch takes of its memory goes back.
"""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from convoy.health import compat, gpu, gpu_errors, host
from convoy.health.finding import Finding, Status, examine
from convoy.launch.comparison import CLOCK, compare, word
from convoy.launch.peers import Gathering, LostNode, Peers
from convoy.run import events
from convoy.run.atomic import NO_ROOM
from convoy.run.image import read_manifest
from convoy.run.layout import RunDirectory
from convoy.topology import Launch, gpus_of_node

if TYPE_CHECKING:
    import torch

PATIENCE = 20.0  # seconds for the GPUs
LEAST_FREE = 1 << 30  # bytes: room for a few checkpoints and logs
LEAST_SPEED = 5e6  # bytes/s into the run directory
PROBE = 16 << 20  # bytes that are written to measure that


def preflight(
    run: RunDirectory, launch: Launch, data: Path, peers: Peers | None
) -> dict[str, list[str]]:
    """The problems of each node that cannot take part, by host; the same on every node.

    This node's findings are recorded as an event either way. Raises LostNode where a node did not
    come.
    """
    began = time.monotonic()
    with ThreadPoolExecutor() as pool:
        looking = [pool.submit(lambda: list(_gpu_errors())), pool.submit(lambda: list(_gpus()))]
        here = {
            "run directory": lambda: _run_directory(run.root),
            "/dev/shm": host.examine_shared_memory,
        }
        findings = [*examine(here), *(finding for found in looking for finding in found.result())]
        own = [f"{f.name}: {f.found}" for f in findings if f.status is Status.FAIL]
        manifest = read_manifest()
        said = word(launch.hosts, data, manifest["digest"] if manifest else None, own)
    seconds = time.monotonic() - began
    if peers is None:
        gathering = Gathering({launch.host: said}, (), {})
    else:
        gathering = peers.gather(said)
    problems, notes = compare(gathering)
    events.record(
        run,
        "preflight",
        start=launch.start,
        seconds=round(seconds, 2),
        with_the_others=round(time.monotonic() - began, 2),
        problems=problems.get(launch.host, []),
        notes=notes,
        found={finding.name: finding.found for finding in findings},
    )
    if launch.is_host:
        for note in notes:
            print(f"launch: {note}", flush=True)
    if gathering.missing:
        raise LostNode(*gathering.missing)
    return problems


def _run_directory(root: Path) -> tuple[Status, str]:
    """Room, speed, and the file server's clock against this node's."""
    described = host.examine_writable(root, Status.FAIL, "it is not the shared one, or is full")
    if described[0] is Status.FAIL:
        return described
    probe = root / f".preflight-{os.uname().nodename}-{os.getpid()}"
    try:
        began, before = time.monotonic(), time.time()
        with probe.open("wb") as file:
            file.write(os.urandom(1 << 20) * (PROBE >> 20))
            os.fsync(file.fileno())
        speed = PROBE / (time.monotonic() - began)
        stamped = probe.stat().st_mtime
        away = max(before - stamped, stamped - time.time(), 0.0)
        status = os.statvfs(root)
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        # The same on every node, so none is unfit: the training says what it cannot write.
        return Status.WARN, f"no room for {PROBE >> 20} MiB: too little for checkpoints, free some"
    finally:
        probe.unlink(missing_ok=True)
    return judge_run_directory(status.f_bavail * status.f_frsize, speed, away)


def judge_run_directory(free: float, speed: float, away: float) -> tuple[Status, str]:
    """`free` bytes, `speed` in bytes/s, `away` in seconds between the clocks."""
    found = f"{free / (1 << 30):.1f} GiB free, {speed / 1e6:.0f} MB/s, clock {away:.0f} s away"
    if free < LEAST_FREE:
        # The same on every node: another one would not help.
        return Status.WARN, f"{found}: too little for checkpoints, free some"
    if speed < LEAST_SPEED:
        return Status.WARN, f"{found}: each checkpoint will take long"
    if away > CLOCK:
        return Status.FAIL, f"{found}: this node's clock is wrong"
    return Status.OK, found


def _gpu_errors() -> Iterator[Finding]:
    """What driver and kernel have noted of the GPUs; nothing where there is no driver."""
    if gpus_of_node(os.environ) and compat.DRIVER.exists():
        yield from examine({"memory errors": gpu_errors.examine_errors})


def _gpus() -> Iterator[Finding]:
    """The findings of the process that looks at the GPUs; none where there is no driver."""
    expected = gpus_of_node(os.environ)
    if not expected or not compat.DRIVER.exists():
        return
    command = [sys.executable, "-m", "convoy.launch.preflight", str(expected)]
    try:
        done = subprocess.run(command, text=True, capture_output=True, timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        yield Finding("GPUs", Status.FAIL, f"they did not answer within {PATIENCE:.0f} s")
        return
    said = (done.stdout.strip() or done.stderr.strip() or "no word").splitlines()[-1]
    yield Finding("GPUs", Status.OK if done.returncode == 0 else Status.FAIL, said)


def main(expected: int) -> int:
    """Say what the GPUs are; 1 where one is missing, computes wrongly or has lost memory."""
    checks = {
        "driver": lambda: gpu.examine_driver(expected),
        "GPUs": lambda: gpu.examine_gpus(expected),
        "memory": examine_memory,
    }
    findings = list(examine(checks))
    failed = [finding for finding in findings if finding.status is Status.FAIL]
    print("; ".join(f"{finding.name}: {finding.found}" for finding in failed or findings))
    return 1 if failed else 0


def examine_memory() -> tuple[Status, str]:
    """Write and read most of each GPU's free memory: what is broken or taken shows now."""
    import torch

    found = []
    for index in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(index)
        if free < 0.8 * total:
            taken = (total - free) / host.GIB
            return Status.FAIL, f"GPU {index}: another process holds {taken:.0f} GiB of its memory"
        if not _keeps(torch.device("cuda", index), int(free * 0.8)):
            return Status.FAIL, f"GPU {index} does not keep what is written to its memory"
        found.append(f"{free / host.GIB:.0f}")
    return Status.OK, f"{', '.join(found)} GiB free, written and read"


def _keeps(device: "torch.device", size: int, piece: int = 1 << 30) -> bool:
    """Whether `size` bytes, held at once, read as they were written; `piece` bytes at a time."""
    import torch

    pieces = [
        torch.full((piece // 4,), number, dtype=torch.int32, device=device)
        for number in range(1, size // piece + 1)
    ]
    return all(bool((words == number).all()) for number, words in enumerate(pieces, 1))


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1])))
