"""Signals to a node's launcher, and requests in its run directory, reach its ranks."""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from types import FrameType
from typing import NoReturn

from convoy.errors import ExitCode
from convoy.launch import survivors

# Those that ask a run to save and stop. torchrun's agent would die of SIGUSR1 and leave its ranks
# alone; of the others it gives them 30 seconds.
ASKING = (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT)


@contextlib.contextmanager
def passed_on(
    told: Callable[[signal.Signals], None], helpers: Collection[int] = ()
) -> Iterator[None]:
    """Send ASKING signals on to this process's children meanwhile, but for `helpers`; `told` is
    called at the first.

    Without children there is nobody to wait for, and a second SIGINT means at once: then the
    signal is torchrun's, which ends the children.
    """
    seen: list[signal.Signals] = []

    def handle(number: int, frame: FrameType | None) -> None:
        from torch.distributed.elastic.multiprocessing.api import SignalException

        name = signal.Signals(number)
        again = number == signal.SIGINT and signal.SIGINT in seen
        if not seen:
            told(name)
        seen.append(name)
        ranks = [child for child in children(os.getpid()) if child not in helpers]
        if again or not ranks:
            raise SignalException(f"got {name.name}", sigval=name)
        for rank in ranks:
            with contextlib.suppress(ProcessLookupError):
                os.kill(rank, number)

    before = {number: signal.signal(number, handle) for number in ASKING}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def looked_for(request: Callable[[], int], every: float = 1.0) -> Iterator[None]:
    """Ask `request` for a signal's number now and then, and send that signal to this process."""
    over = threading.Event()

    def look() -> None:
        while not over.wait(every):
            if number := request():
                os.kill(os.getpid(), number)
                return

    threading.Thread(target=look, name="stop request", daemon=True).start()
    try:
        yield
    finally:
        over.set()


def end_ranks(grace: float, writing: float) -> NoReturn:
    """End this node's ranks (`survivors.end`) and this process, whose agent may wait for a store
    that is gone.

    Ranks that end by themselves leave it a second to follow in the ordinary way.
    """
    if not survivors.end(children(os.getpid()), grace, writing):
        time.sleep(1.0)
    os._exit(ExitCode.RESUMABLE)


def children(pid: int) -> list[int]:
    """Processes that `pid` has started and that have not ended."""
    found = []
    for listed in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            found += [int(child) for child in listed.read_text().split()]
    return found
