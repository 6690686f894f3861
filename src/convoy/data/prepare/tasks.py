"""The tasks of one start and their signs of life: for progress over all nodes, and so that two
starts do not mix.

Each task rewrites a small file every few seconds. Ages are differences of the file system's own
times, so that clocks of nodes need not agree.
"""

import contextlib
import json
import os
import shutil
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from convoy.data.prepare.plan import MISSING, STARTS, create_once, start_folder
from convoy.data.shards import write_json
from convoy.errors import ConvoyError
from convoy.topology import Task

BEGIN = "begin.json"
INTERVAL = 5.0  # seconds between signs of life
SILENCE = (
    180.0  # seconds after which a task counts as dead; network file systems show a file's age late
)


@dataclass(frozen=True)
class Sign:
    """What a task's file says. Counts are of samples in this start."""

    task: int
    host: str
    process: int
    process_space: str  # process numbers mean something within one only
    job: str | None
    restart: int
    done: int = 0
    failed: int = 0
    state: str = "working"  # then "finished" or "stopped"


class TaskBoard:
    """This task's sign, and what can be seen of the others'."""

    def __init__(self, root: Path, task: Task, command: str = "convoy prepare") -> None:
        """`command` is what the tasks do, as its user calls it."""
        self._root, self.task, self._command = root, task, command
        self._folder = start_folder(root, task.start)
        self._path = self._folder / f"task-{task.number}.json"
        self._sign = Sign(
            task.number, socket.gethostname(), os.getpid(), _process_space(), task.job, task.restart
        )
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="convoy-sign", daemon=True)

    def open(self) -> None:
        """Give a first sign.

        Raises ConvoyError while another start is at work in the same directory.
        """
        create_once(self._folder / BEGIN, {})
        self._write()
        try:
            self._refuse_others()
        except ConvoyError:
            shutil.rmtree(self._folder, ignore_errors=True)
            raise
        self._thread.start()

    def count(self, done: int, failed: int) -> None:
        """Note how many samples this task has done and left out so far."""
        self._sign = replace(self._sign, done=done, failed=failed)

    def close(self, state: str) -> None:
        """Give the last sign: `finished` or `stopped`."""
        self._stop.set()
        self._thread.join()
        self._sign = replace(self._sign, state=state)
        with contextlib.suppress(
            ConvoyError
        ):  # task 0 may have seen that all is there, and forgotten the start
            self._write()

    def signs(self) -> list[Sign]:
        """Of all tasks of this start that have given any."""
        return [sign for sign, _ in _signs(self._folder)]

    def silent(self) -> list[int]:
        """Tasks of this start that neither finished nor gave a sign lately."""
        now = self._now()
        seen = {
            sign.task: sign.state != "working" or now - age < SILENCE
            for sign, age in _signs(self._folder)
        }
        waited = now - (self._folder / MISSING).stat().st_mtime
        # A container may take minutes to start.
        return [
            number
            for number in range(self.task.count)
            if not seen.get(number, waited < 4 * SILENCE)
        ]

    def wait(
        self, missing: Callable[[], int], total: int, what: str, report: Callable[[], None]
    ) -> None:
        """Until nothing is missing of `total` units, `what` in the plural; calls `report` about
        once a second.

        Raises ConvoyError when those that should do it have stopped.
        """
        while left := missing():
            states = {sign.task: sign.state for sign in self.signs()}
            silent = self.silent()
            working = [
                number
                for number in range(self.task.count)
                if number not in silent and states.get(number, "working") == "working"
            ]
            if not working:
                stopped = sorted(
                    {number for number, state in states.items() if state == "stopped"} | set(silent)
                )
                who = (
                    f"task(s) {', '.join(map(str, stopped))} stopped"
                    if stopped
                    else "nobody is working on them"
                )
                raise ConvoyError(
                    f"{left} of {total} {what} are missing, and {who}. Their own messages say why; "
                    "run the same command again: it does only what is missing."
                )
            report()
            time.sleep(1.0)

    def remove(self) -> None:
        """Forget all starts; for when everything is done."""
        shutil.rmtree(self._root / STARTS, ignore_errors=True)

    def _beat(self) -> None:
        while not self._stop.wait(INTERVAL):
            with contextlib.suppress(ConvoyError):  # what writes the shards reports a full disk
                self._write()

    def _write(self) -> None:
        write_json(self._path, asdict(self._sign))

    def _now(self) -> float:
        """The file system's time."""
        self._write()
        return self._path.stat().st_mtime

    def _refuse_others(self) -> None:
        now = self._now()
        for folder in sorted((self._root / STARTS).iterdir()):
            if folder == self._folder or not folder.is_dir():
                continue
            for sign, seen in _signs(folder):
                if self._is_alive(sign, now - seen) and self._gives_way_to(folder):
                    raise ConvoyError(
                        f"Another `{self._command}` is writing {self._root}: on {sign.host}, "
                        f"process {sign.process}{f', job {sign.job}' if sign.job else ''}, last "
                        f"sign {max(0, now - seen):.0f} s ago. Wait for it, or end it; one that "
                        f"was killed on another node is forgotten after {SILENCE:.0f} s."
                    )

    def _is_alive(self, sign: Sign, age: float) -> bool:
        if sign.state != "working" or age > SILENCE:
            return False
        own = self._sign
        if sign.job is not None and (sign.job, own.restart > sign.restart) == (own.job, True):
            return False  # this job was requeued: its earlier start is over
        if (sign.host, sign.process_space) == (own.host, own.process_space):
            return Path(f"/proc/{sign.process}").exists() and sign.process != own.process
        return True

    def _gives_way_to(self, folder: Path) -> bool:
        """Of two that began at once, the later one gives way.

        Their names decide where times are equal.
        """
        mine, others = _began(self._folder), _began(folder)
        return others is not None and (
            mine is None or (others, folder.name) < (mine, self._folder.name)
        )


def _began(folder: Path) -> float | None:
    """When the first task of a start began, by the file system's time."""
    try:
        return (folder / BEGIN).stat().st_mtime
    except OSError:
        return None


def _signs(folder: Path) -> list[tuple[Sign, float]]:
    """Signs and when they were given, by the file system's time. What cannot be read at this moment
    is left out."""
    signs = []
    for path in sorted(folder.glob("task-*.json")):
        with contextlib.suppress(OSError, ValueError, TypeError):
            content: dict[str, Any] = json.loads(path.read_text())
            signs.append((Sign(**content), path.stat().st_mtime))
    return signs


def _process_space() -> str:
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""
