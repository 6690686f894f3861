"""Who writes to a run directory: one start at a time, known by a sign of life.

Works where file locks do not (NFS without lockd, Lustre without -o flock): all it needs is that a
hard link to a name that exists fails, which both give. `owner-<n>.json` is the n-th owner's file;
the highest number owns the run. The owner changes its file every few seconds. Whoever wants the run
watches that file, by a clock of their own: if it stays the same for `LIFETIME`, they make number
n+1, and only one can. An owner that finds a higher number has lost the run and writes no more.
On the owner's own machine the kernel knows at once whether it lives: it holds a socket whose name
goes away with the process, and which is seen from every container there.

Standard library only.
"""

import contextlib
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from convoy.errors import ConvoyError
from convoy.run.atomic import leftovers, write_text
from convoy.run.layout import RunDirectory

BEAT = 5.0  # seconds between signs of life
LIFETIME = 30.0  # without one for so long, an owner is dead: a file system may stall for a while


class LostRun(ConvoyError):
    """Another start has taken the run over."""


@dataclass(frozen=True)
class Owner:
    """The process that writes for all of a start. `place` is the kernel and the network namespace
    that its socket has its name in; `job` is the scheduler's id."""

    token: str
    host: str
    pid: int
    place: str
    job: str | None
    since: float
    beat: int = 0
    released: bool = False

    @property
    def is_over(self) -> bool:
        """Whether it said that it ended, or has surely died, on this very machine."""
        return self.released or (self.place == _place() and not _is_named(self.token))

    @property
    def described(self) -> str:
        job = f", job {self.job}" if self.job else ""
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(self.since))
        return f"process {self.pid} on {self.host}{job}, since {when}"


class RunLock:
    """Held from `acquire` to `release`; `require` says, cheaply, whether it still is."""

    def __init__(
        self,
        run: RunDirectory,
        job: str | None = None,
        beat: float = BEAT,
        lifetime: float = LIFETIME,
    ) -> None:
        self._run, self._job, self._beat, self._lifetime = run, job, beat, lifetime
        self._number = 0
        self._owner: Owner | None = None
        self._name: socket.socket | None = None
        self._lost: str | None = None
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def token(self) -> str:
        assert self._owner is not None
        return self._owner.token

    def acquire(self, tell: Callable[[str], None] = lambda message: None) -> Owner | None:
        """Take the run. Returns the dead owner that it was taken over from, None where it was free.

        Waits up to a lifetime for an owner that may be dead or about to end, after telling so.
        Raises ConvoyError, naming the owner, when that one is alive and stays.
        """
        patience = time.monotonic() + self._lifetime + self._beat
        seen: tuple[int, Owner | None] | None = None
        changed = time.monotonic()
        while True:
            number, owner = newest(self._run)
            if seen is None and owner is not None and not owner.is_over:
                tell(
                    f"{self._run.root} belongs to {owner.described}; waiting up to "
                    f"{self._lifetime:.0f} s for it to end, or to prove dead"
                )
            if (number, owner) != seen:
                seen, changed = (number, owner), time.monotonic()
            silence = time.monotonic() - changed
            free = number == 0 or (owner is not None and owner.is_over)
            if (free or silence >= self._lifetime) and self._take(number + 1):
                self._thread = threading.Thread(target=self._live, name="run lock", daemon=True)
                self._thread.start()
                return None if owner is None or owner.released else owner
            if owner is not None and time.monotonic() >= patience and silence < 3 * self._beat:
                raise ConvoyError(
                    f"The run directory {self._run.root} is in use by {owner.described}. Stop that "
                    "run first, or give another: run_dir=/path."
                )
            time.sleep(min(0.5, self._beat / 5))

    def require(self) -> None:
        """Raise LostRun when another start has taken the run, or it could not be read for long."""
        if self._lost is None and self._owner is not None:
            number, owner = newest(self._run)
            if number > self._number:
                self._lost = owner.described if owner is not None else "another start"
        if self._lost is not None:
            raise LostRun(
                f"The run directory {self._run.root} was taken over by {self._lost}, since this "
                f"start had shown no sign of life for {self._lifetime:.0f} s. It writes no more."
            )

    def release(self) -> None:
        """Give the run back; the next start need not wait."""
        self._ended.set()
        if self._thread is not None:
            self._thread.join(timeout=self._beat)
        if self._owner is not None and self._lost is None:
            with contextlib.suppress(OSError):
                self._write(released=True)
        self._owner = None
        if self._name is not None:
            self._name.close()

    def _take(self, number: int) -> bool:
        token = uuid.uuid4().hex
        if self._name is not None:  # of a try that came too late
            self._name.close()
        self._name = _named(token)
        self._owner = Owner(
            token, socket.gethostname(), os.getpid(), _place(), self._job, time.time()
        )
        path = self._run.owner(number)
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_name(f".{self._owner.token}.owner")
        try:
            beside.write_text(json.dumps(asdict(self._owner)) + "\n")
            try:
                os.link(beside, path)
            except FileExistsError:
                if beside.stat().st_nlink != 2:  # else NFS lost its own answer: the link is there
                    return False
        finally:
            beside.unlink(missing_ok=True)
        if newest(self._run)[0] != number:  # this one slept while others came and went
            return False
        self._number = number
        for path in leftovers(self._run.root):
            path.unlink(missing_ok=True)
        for earlier in self._run.owners():
            if earlier < number:
                self._run.owner(earlier).unlink(missing_ok=True)
        return True

    def _live(self) -> None:
        while not self._ended.wait(self._beat):
            with contextlib.suppress(ConvoyError):
                self.require()
            if self._lost is not None:
                return
            with contextlib.suppress(OSError):  # a full disk: the next beat may succeed
                self._write()

    def _write(self, released: bool = False) -> None:
        assert self._owner is not None
        self._owner = replace(self._owner, beat=self._owner.beat + 1, released=released)
        text = json.dumps(asdict(self._owner)) + "\n"
        write_text(self._run.owner(self._number), text, durable=False)


def newest(run: RunDirectory) -> tuple[int, Owner | None]:
    """The number of the newest owner and what its file says, None where it says nothing (yet)."""
    numbers = run.owners()
    if not numbers:
        return 0, None
    try:
        return numbers[-1], Owner(**json.loads(run.owner(numbers[-1]).read_text()))
    except (OSError, ValueError, TypeError):
        return numbers[-1], None


def give_back(run: RunDirectory, job: str | None, hosts: Collection[str]) -> None:
    """Release the run for an owner of `job` on one of `hosts`, whose processes have all ended, so
    that the next start need not wait for its silence. Any other owner keeps it."""
    number, owner = newest(run)
    if owner is not None and owner.job == job and owner.host in hosts:
        text = json.dumps(asdict(replace(owner, released=True))) + "\n"
        with contextlib.suppress(OSError):  # a full disk: the next start waits
            write_text(run.owner(number), text, durable=False)


def _place() -> str:
    """The running kernel and this process's network namespace, which containers of a job share."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{boot} {os.readlink('/proc/self/ns/net')}"


def _named(token: str) -> socket.socket:
    """A socket of that name, in no file system (an abstract name of Linux), while it lives."""
    named = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    named.bind(_name(token))
    return named


def _is_named(token: str) -> bool:
    """Whether the process that named a socket so is alive."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as asking:
        try:
            asking.connect(_name(token))
        except ConnectionRefusedError:
            return False
    return True


def _name(token: str) -> str:
    return f"\0convoy-{token}"
