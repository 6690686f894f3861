"""Requests to end a run early: a signal to a process of it, or a file in its directory.

A signal is only remembered. The file crosses nodes where no signal does, and needs no process of
the launch: `ask` leaves it for one start, and the node that holds the rendezvous looks for it and
signals its ranks (`convoy.launch.signals`). Either way the ranks save a checkpoint and end with
exit code 75 (`convoy.training.stopping`). Standard library only.
"""

import ctypes
import json
import os
import signal
import time
from types import FrameType

from convoy.run.atomic import write_text
from convoy.run.layout import RunDirectory

_PR_SET_PDEATHSIG = 1
SIGNALS = (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT)


class StopRequest:
    """Whether somebody asked this process to stop; `number` is the first signal's, 0 for none."""

    def __init__(self) -> None:
        self.number = 0
        self._process = os.getpid()

    def install(self) -> "StopRequest":
        """Take over SIGUSR1, SIGTERM and SIGINT in this process (from its main thread).

        A process forked from it, a data loader's worker, dies of them as any process does. One that
        was blocked until now, as in a rank just forked, is heard.
        """
        for number in SIGNALS:
            signal.signal(number, self._remember)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        return self

    def ask(self, number: int) -> None:
        """Ask from another thread: `number` is that of the signal it stands for."""
        self.number = self.number or number

    def _remember(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        self.ask(number)


def follow_parent() -> None:
    """Let the kernel send this process SIGTERM when its parent has gone: no rank outlives its
    launcher, whatever ended that one."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)


def ask(run: RunDirectory, number: int = signal.SIGUSR1, start: str | None = None) -> None:
    """Ask the ranks of `start`, or of whichever runs now, to save and stop. Raises OSError where
    that cannot be written."""
    request = {"start": start, "signal": int(number), "time": time.time()}
    write_text(run.stop_request, json.dumps(request) + "\n")


def read(run: RunDirectory, start: str, since: float) -> int:
    """The signal's number, 0 where nobody asked `start`, which began at the time `since`."""
    try:
        request = json.loads(run.stop_request.read_text())
        named, asked, number = request["start"], float(request["time"]), int(request["signal"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0
    return number if named == start or (named is None and asked >= since) else 0
