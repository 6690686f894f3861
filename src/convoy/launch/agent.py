"""torchrun's agent in this process, so that its verdict on each rank is at hand when one fails."""

import contextlib
import importlib
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from convoy.errors import ConvoyError, ExitCode
from convoy.health.memory import read_memory
from convoy.launch import error_file, verdict
from convoy.launch.fork_server import ForkServer
from convoy.launch.signals import passed_on
from convoy.launch.survivors import ended_soon
from convoy.run.layout import RunDirectory
from convoy.topology import Launch

if TYPE_CHECKING:
    from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

RESUMABLE = int(ExitCode.RESUMABLE)
# They announce each rank's end; the report says it once.
SILENCED = ("agent.server.api", "multiprocessing.api")


@dataclass(frozen=True)
class Failed:
    """A start that failed, with the records of its ranks, the cause first. Not `recorded`: the run
    directory had no room for one."""

    failures: tuple[verdict.Failure, ...]
    run: RunDirectory
    recorded: bool = True

    @property
    def exit_code(self) -> int:
        return self.failures[0].exit_code if self.failures[0].exit_code > 0 else ExitCode.FAILED

    def report(self) -> str:
        return verdict.report(list(self.failures), self.run)


def load_torchrun() -> None:
    """Import torchrun. From a cold file system that takes half a minute in which no other thread of
    this process runs, so it comes before anything that has to show signs of life."""
    importlib.import_module("torch.distributed.run")


def set_rank_environment(launch: Launch) -> None:
    """What all ranks of this node inherit."""
    # Each rank gets half of its share of the CPUs; the other half is the data loader's.
    share = len(os.sched_getaffinity(0)) // launch.processes // 2
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, min(8, share))))
    os.environ["PYTHONUNBUFFERED"] = "1"  # what a rank says is in its log when it is killed


def run_torchrun(
    arguments: Sequence[str],
    launch: Launch,
    run: RunDirectory,
    told: Callable[[signal.Signals], None],
    failed: Callable[[int], None],
    server: ForkServer | None = None,
) -> Failed | None:
    """Run this node's ranks to their end; None where all finished. `server` forks them, if given.

    Signals that ask to stop go to the ranks, and `told` hears of the first. When a rank fails,
    `failed` hears its exit code at once, and the others end soon (`survivors`). Every rank that
    failed has a record in the run directory afterwards. Raises SystemExit where the ranks saved and
    stopped, or a signal ended the agent before it had ranks; ConvoyError where the nodes could not
    meet.
    """
    set_rank_environment(launch)
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.elastic.rendezvous import RendezvousError
    from torch.distributed.run import parse_args
    from torch.distributed.run import run as torchrun

    from convoy.launch import rendezvous

    rendezvous.register()
    for name in SILENCED:
        logging.getLogger(f"torch.distributed.elastic.{name}").setLevel(logging.CRITICAL)
    host = socket.gethostname()
    witness = _Witness(run, launch.start, host)

    def ended_first(ends: Mapping[int, "ProcessFailure"]) -> bool:
        if witness.saw_a_stop(ends):
            return False
        witness.record(ends)
        failed(witness.verdict().exit_code)
        return True

    try:
        with (
            _standard_error_to(run.agent_log(host)),
            passed_on(told, () if server is None else (server.pid,)),
            ended_soon(ended_first) as cut,
            contextlib.nullcontext() if server is None else server.forks_ranks(),
        ):
            torchrun(parse_args(list(arguments)))
        return None
    except ChildFailedError as error:
        if witness.saw_a_stop(error.failures):
            raise SystemExit(RESUMABLE) from error
        witness.record({rank: end for rank, end in error.failures.items() if rank not in cut})
    except RendezvousError as error:
        # The rendezvous also goes away with a node that failed first: then that one's record tells.
        if not verdict.read(run, launch.start):
            raise ConvoyError(
                f"{host} could not meet the other nodes at {launch.endpoint}: {error}. Is the "
                "first node up, and can nodes connect to each other on that port?"
            ) from error
    except SignalException as stopped:
        raise SystemExit(RESUMABLE) from stopped
    return witness.verdict()


class _Witness:
    """Sees this node's ranks end, and leaves a record of those that failed without one."""

    def __init__(self, run: RunDirectory, start: str, host: str) -> None:
        self._run, self._start, self._host = run, start, host
        self._memory = read_memory()
        self._died: dict[int, verdict.Failure] = {}
        self._recorded = True

    def saw_a_stop(self, ends: Mapping[int, "ProcessFailure"]) -> bool:
        """Whether all of them saved and stopped: asked to, or else a watchdog left a record."""
        stopped = {end.exitcode for end in ends.values()} == {ExitCode.RESUMABLE}
        return stopped and not verdict.read(self._run, self._start)

    def record(self, ends: Mapping[int, "ProcessFailure"]) -> None:
        now = read_memory()
        starved = now.described if (now.kills or 0) > (self._memory.kills or 0) else None
        for rank, end in ends.items():
            if end.exitcode == RESUMABLE or rank in self._died:
                continue
            self._died[rank] = error_file.find(end.error_file_data.get("message")) or verdict.died(
                rank, self._host, end.exitcode, starved
            )
            try:
                verdict.write(self._run, self._start, self._died[rank])
            except OSError:  # a full disk may be what it failed of
                self._recorded = False

    def verdict(self) -> Failed:
        died = tuple(self._died.values())
        failures = verdict.read(self._run, self._start) if self._recorded else died
        return Failed(tuple(failures or died), self._run, self._recorded)


@contextlib.contextmanager
def _standard_error_to(log: Path) -> Iterator[None]:
    """Send what torchrun's agent writes to `log` meanwhile, native code's words too."""
    own = os.dup(2)
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("a") as file:
            os.dup2(file.fileno(), 2)
    except OSError as error:
        os.close(own)
        raise ConvoyError(
            f"{log} cannot be written: {error.strerror}. Give another: run_dir=/path."
        ) from error
    try:
        yield
    finally:
        sys.stderr.flush()
        os.dup2(own, 2)
        os.close(own)
