"""The end of the ranks that are left when another one, or a node, has failed.

They cannot agree on anything any more: a collective over gloo fails at once, but one over NCCL
waits until its timeout, and the rank with it. torchrun's agent gives them 30 seconds. Here they get
a few to end by themselves, and the time to finish a file that they are writing.
"""

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convoy.run.atomic import SUFFIX

if TYPE_CHECKING:
    from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

GRACE = 3.0  # seconds that a rank has to end by itself
WRITING = 10.0  # seconds that it has in all while it is writing a file


def end(ranks: Iterable[int], grace: float, writing: float) -> set[int]:
    """Wait until these processes have ended, `grace` seconds at most, or `writing` for one that has
    a half-written file. The rest are killed, with the processes of their groups; returns them."""
    began = time.monotonic()
    while alive := {pid for pid in ranks if is_alive(pid)}:
        waited = time.monotonic() - began
        if waited >= writing or (waited >= grace and not any(map(_is_writing, alive))):
            break
        time.sleep(0.05)
    for pid in alive:
        _kill(pid)
    return alive


@contextlib.contextmanager
def ended_soon(
    failed: Callable[[Mapping[int, "ProcessFailure"]], bool],
) -> Iterator[set[int]]:
    """Let torchrun's agent `end` what is left of its ranks once one of them has failed.

    `failed` is called with the ranks that ended first and not well, and says whether that was a
    failure: those that saved and stopped leave the others the agent's 30 seconds. The set holds the
    ranks that had to be killed.
    """
    from torch.distributed.elastic import multiprocessing

    killed: set[int] = set()

    class Ranks(multiprocessing.SubprocessContext):
        _noticed = False

        def close(self, death_sig: signal.Signals | None = None, timeout: int = 30) -> None:
            ends = {self._rank(local): end for local, end in self._failures.items()}
            if ends and not self._noticed:
                self._noticed = True
                if failed(ends):
                    self._end()
            super().close(death_sig, timeout)

        def _end(self) -> None:
            processes = {
                self._rank(local): handler.proc
                for local, handler in self.subprocess_handlers.items()
            }
            left = {
                process.pid: rank for rank, process in processes.items() if process.poll() is None
            }
            killed.update(left[pid] for pid in end(left, GRACE, WRITING))
            for process in processes.values():  # what the dead had started, their loaders
                with contextlib.suppress(OSError):
                    os.killpg(process.pid, signal.SIGKILL)

        def _rank(self, local: int) -> int:
            return int(self.envs[local]["RANK"])

    before: Any = multiprocessing.SubprocessContext
    multiprocessing.SubprocessContext = Ranks  # type: ignore[misc]
    try:
        yield killed
    finally:
        multiprocessing.SubprocessContext = before  # type: ignore[misc]


def is_alive(pid: int) -> bool:
    """Whether there is such a process that has not ended."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in "ZX"


def _is_writing(pid: int) -> bool:
    """Whether one of its open files does not have its final name yet (convoy.run.atomic)."""
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            if str(entry.readlink()).endswith(SUFFIX):
                return True
    return False


def _kill(pid: int) -> None:
    """A rank is the first of its process group: its data loaders' workers are in it."""
    with contextlib.suppress(OSError):
        if os.getpgid(pid) == pid:
            os.killpg(pid, signal.SIGKILL)
        else:
            os.kill(pid, signal.SIGKILL)
