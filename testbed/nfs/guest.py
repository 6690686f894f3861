"""In the virtual machine: what two nodes make of one run directory on NFS, a line of JSON per NFS
version. `guest.py VERSION…`; as `guest.py --part NAME FOLDER …` it is one process on a node."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from convoy.errors import ConvoyError
from convoy.run import events, stop_request
from convoy.run.layout import RunDirectory
from convoy.run.lock import LostRun, RunLock

FIRST, SECOND = "gl001", "gl002"
RESULT = "RESULT "
RACES = 40
RECORDS = 50  # of each writer
OWNS, REFUSED, LOST = 0, 3, 4


class Part:
    """A process on a node."""

    def __init__(self, node: str, part: str, folder: str, *arguments: Any) -> None:
        names = (f"--net=/run/netns/{node}", f"--uts=/run/uts/{node}")
        seen = f"/nfs/{node}/{folder}"
        own = [sys.executable, "-u", __file__, "--part", part, seen, *map(str, arguments)]
        # nsenter becomes the program, so that a signal to it is one to the program.
        self._process = subprocess.Popen(
            ["nsenter", *names, *own], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def says(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()

    def hears(self, words: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{words}\n")
        self._process.stdin.flush()

    def send(self, number: int) -> None:
        self._process.send_signal(number)

    def ends(self) -> int:
        return self._process.wait()


def hold(run: RunDirectory, seconds: str = "inf") -> int:
    """Own the run for so long, or until told to end, asking all the time whether it still does."""
    lock = RunLock(run, os.uname().nodename)
    began = time.monotonic()
    try:
        dead = lock.acquire()
    except ConvoyError as error:
        print(f"refused: {error}")
        return REFUSED
    print(f"{time.monotonic() - began:.1f} {dead.host if dead else '-'}")
    end = time.monotonic() + float(seconds)
    while time.monotonic() < end:
        if select.select([sys.stdin], [], [], 0.1)[0]:
            break
        try:
            lock.require()
        except LostRun:
            print("lost")
            return LOST
    lock.release()
    return OWNS


def race(root: RunDirectory, name: str) -> int:
    """Try to become each run's first owner at the moment when the others do."""
    print("ready")
    begin = float(sys.stdin.readline())
    for number in range(RACES):
        run = RunDirectory(root.root / f"race-{number}")
        run.root.mkdir(parents=True, exist_ok=True)
        time.sleep(max(0.0, begin + number / 2 - time.time()))
        if RunLock(run)._take(1):
            (root.root / f"won-{number}-{name}").touch()
    return 0


def write(run: RunDirectory, name: str) -> int:
    for number in range(RECORDS):
        events.record(run, "test", writer=name, number=number, filled="x" * 200)
    return 0


def look(run: RunDirectory) -> int:
    """Say when a request to stop is seen, by a node that asks for it every second in vain."""
    print("looks")
    while not stop_request.read(run, "start", 0):
        time.sleep(1)
    print(time.time())
    return 0


PARTS: dict[str, Callable[..., int]] = {"hold": hold, "race": race, "write": write, "look": look}


def alive(version: str) -> dict[str, Any]:
    """A second start beside a living one, and one after it."""
    owner = Part(FIRST, "hold", f"{version}/alive")
    owner.says()
    second = Part(SECOND, "hold", f"{version}/alive", 1)
    words = second.says()
    refused = second.ends() == REFUSED and f"on {FIRST}, job {FIRST}" in words
    owner.hears("end")
    kept = owner.ends() == OWNS
    third = Part(SECOND, "hold", f"{version}/alive", 1)
    seconds, _ = third.says().split()
    return {"refused": refused, "kept": kept, "after_release_s": float(seconds)}


def killed(version: str) -> dict[str, Any]:
    owner = Part(FIRST, "hold", f"{version}/killed")
    owner.says()
    time.sleep(7)
    second = Part(SECOND, "hold", f"{version}/killed", 1)
    time.sleep(2)
    owner.send(signal.SIGKILL)
    began = time.monotonic()
    _, dead = second.says().split()
    return {"taken_over_s": round(time.monotonic() - began, 1), "from": dead}


def stopped(version: str) -> dict[str, Any]:
    """An owner that stood still for longer than its lifetime, and goes on."""
    owner = Part(FIRST, "hold", f"{version}/stopped")
    owner.says()
    time.sleep(7)
    owner.send(signal.SIGSTOP)
    second = Part(SECOND, "hold", f"{version}/stopped", 30)
    _, dead = second.says().split()
    time.sleep(5)
    owner.send(signal.SIGCONT)
    woken = time.monotonic()
    owner.says()
    noticed_s = round(time.monotonic() - woken, 1)
    lost = owner.ends() == LOST and second.ends() == OWNS
    return {"stopped_from": dead, "lost": lost, "noticed_s": noticed_s}


def requested(version: str) -> dict[str, Any]:
    """A request to stop, written by another node."""
    owner = Part(FIRST, "hold", f"{version}/requested")
    owner.says()
    looks = Part(FIRST, "look", f"{version}/requested")
    looks.says()
    time.sleep(12)
    asked = time.time()
    stop_request.ask(RunDirectory(Path(f"/nfs/{SECOND}/{version}/requested")), start="start")
    seen = float(looks.says())
    owner.hears("end")
    return {"request_seen_s": round(seen - asked, 1)}


def races(version: str) -> dict[str, Any]:
    names = [(node, str(number)) for node in (FIRST, SECOND) for number in (1, 2)]
    parts = [Part(node, "race", version, f"{node}-{name}") for node, name in names]
    for part in parts:  # a slow machine starts one long after another
        part.says()
    begin = time.time() + 2
    for part in parts:
        part.hears(f"{begin}")
    for part in parts:
        part.ends()
    folder = Path("/export") / version
    owners = [len(list(folder.glob(f"won-{number}-*"))) for number in range(RACES)]
    won = [len(list(folder.glob(f"won-*-{node}-*"))) for node in (FIRST, SECOND)]
    return {"owners_of_a_run": sorted(set(owners)), "won_by_node": won}


def lines(version: str) -> dict[str, Any]:
    nodes = (FIRST, SECOND, FIRST, SECOND)
    parts = [Part(node, "write", version, number) for number, node in enumerate(nodes)]
    for part in parts:
        part.ends()
    found = events.read(RunDirectory(Path("/export") / version))
    return {"events": len(found), "events_written": RECORDS * len(nodes)}


def main(versions: list[str]) -> None:
    checks = (alive, killed, stopped, requested, races, lines)
    with ThreadPoolExecutor(len(versions) * len(checks)) as pool:
        found = {}
        for version in versions:
            for check in checks:
                (Path("/export") / version / check.__name__).mkdir()
            found[version] = [pool.submit(check, version) for check in checks]
        for version, results in found.items():
            merged: dict[str, Any] = {"version": version}
            for result in results:
                merged |= result.result()
            print(RESULT + json.dumps(merged))


if __name__ == "__main__":
    if sys.argv[1] == "--part":
        part, folder, *rest = sys.argv[2:]
        sys.exit(PARTS[part](RunDirectory(Path(folder)), *rest))
    main(sys.argv[1:])
