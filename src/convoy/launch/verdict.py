"""Which rank failed first, and with what: every failed rank leaves a record, and one report is made
of them all."""

import contextlib
import json
import re
import signal
import time
from dataclasses import asdict, dataclass

from convoy.run.atomic import write_text
from convoy.run.layout import RunDirectory

# What a rank says that died of another one's death. Its record counts only where no other kind is
# there.
CONSEQUENCE = re.compile(
    r"Connection (closed|reset) by peer|Broken pipe|Connection refused|"
    r"NCCL.*(remote|abort)|failed to recv|"
    r"DistNetworkError|RendezvousClosedError|SIGTERM"
)
SHOWN_LINES = 15


@dataclass(frozen=True)
class Failure:
    """One failed rank. `fixable` by the user: the message is all that they need."""

    rank: int
    host: str
    time: float
    exit_code: int
    message: str
    fixable: bool = False

    @property
    def is_consequence(self) -> bool:
        return not self.fixable and CONSEQUENCE.search(self.message) is not None


def write(run: RunDirectory, start: str, failure: Failure) -> None:
    """Leave the record, unless this rank has left one. Raises OSError (a full disk)."""
    path = run.failure(start, failure.rank)
    if not path.exists():
        write_text(path, json.dumps(asdict(failure)) + "\n", durable=False)


def read(run: RunDirectory, start: str) -> list[Failure]:
    """All whole records of a start, the cause first: consequences come after what they may have
    come of, then time decides."""
    found = []
    for path in run.failures(start).glob("rank-*.json"):
        with contextlib.suppress(OSError, ValueError, TypeError):  # a full disk leaves empty ones
            found.append(Failure(**json.loads(path.read_text())))
    return sorted(found, key=lambda failure: (failure.is_consequence, failure.time))


def died(rank: int, host: str, exit_code: int, starved: str | None = None) -> Failure:
    """The record of a rank that left none: it was killed, or ended in native code.

    `starved` is the node's use of memory, where the kernel has killed for lack of it meanwhile.
    """
    if exit_code >= 0:
        return Failure(
            rank,
            host,
            time.time(),
            exit_code,
            f"it ended with exit code {exit_code} and no message",
        )
    name = signal.Signals(-exit_code).name
    if name == "SIGBUS":
        hint = " (SLURM ended what kept the mounted image in place, or /dev/shm is full)"
    elif name != "SIGKILL":
        hint = ""
    elif starved is not None:
        hint = (
            f" for lack of host memory ({starved} in use now): lower dataloader.params.num_workers "
            "or prefetch_factor, or ask for more memory (--mem)"
        )
    else:
        hint = " (the kernel does so when memory runs out: sacct -j JOB -o MaxRSS,State)"
    return Failure(rank, host, time.time(), exit_code, f"it was killed by {name}{hint}")


def report(failures: list[Failure], run: RunDirectory) -> str:
    """What a person reads at the end of the job's log: the first failing rank, its host, its last
    lines."""
    first, others = failures[0], failures[1:]
    lines = [f"convoy: rank {first.rank} on {first.host} failed first: {first.message}"]
    written = [
        log for log in (run.rank_log(first.rank), run.agent_log(first.host)) if log.is_file()
    ]
    if not first.fixable and written:
        log = written[0]
        lines.append(f"  its last lines ({log}):")
        lines += [
            f"  | {line}" for line in log.read_text(errors="replace").splitlines()[-SHOWN_LINES:]
        ]
    if others:
        said = first.message.replace(first.host, "")
        same = [failure for failure in others if failure.message.replace(failure.host, "") == said]
        ranks = ", ".join(str(rank) for rank in sorted(failure.rank for failure in others))
        lines.append(f"  {'the same on' if len(same) == len(others) else 'then'} rank {ranks}")
    return "\n".join(lines)
