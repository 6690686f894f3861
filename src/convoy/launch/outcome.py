"""How a start of a run ended, from the records that its ranks and nodes left."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from convoy.errors import ExitCode
from convoy.launch.verdict import Failure
from convoy.run.node_state import NodeState

# What a rank says of a GPU that has to be replaced or reset, not of its own program.
HARDWARE = re.compile(
    r"uncorrectable ECC|ECC error|GPU (is lost|has fallen off)|fallen off the bus|Xid",
    re.IGNORECASE,
)


class Kind(StrEnum):
    """Why a start ended before the run's end."""

    STOPPED = "stopped"  # it was asked to, and saved
    KILLED = "killed"  # a process died of a signal, or hung: a new start may go on
    LOST = "lost"  # a node went away
    UNFIT = "unfit"  # a node found itself unfit, or its hardware failed
    FAILED = "failed"  # a mistake of the user, or an error in the program


@dataclass(frozen=True)
class Outcome:
    """`nodes` are those that it is about: lost, unfit, or without their launcher; none where it is
    about a rank. `reason` says it in words."""

    kind: Kind
    reason: str
    nodes: tuple[str, ...] = ()

    @property
    def is_of_a_rank(self) -> bool:
        return self.kind in (Kind.KILLED, Kind.FAILED) and not self.nodes


def outcome(
    status: int,
    failures: Sequence[Failure],
    hosts: Sequence[str],
    states: Mapping[str, NodeState],
    answering: Sequence[str] | None = None,
    gone: Sequence[str] = (),
) -> Outcome:
    """`status` is srun's, `failures` have the cause first, `hosts` are the start's nodes, those
    `answering` took a step of SLURM's afterwards (None: nobody asked), `gone` are those that went
    away as the others see it.

    What ranks say that lost their peers counts last: it is what a node that went away looks like
    from the others.
    """
    unfit = [state for state in states.values() if state.exit_code == ExitCode.PREFLIGHT]
    if unfit:
        said = "; ".join(f"{state.host}: {state.problem}" for state in unfit)
        return Outcome(Kind.UNFIT, f"unfit for the run: {said}", _names(unfit))
    silent = tuple(host for host in hosts if host in states and states[host].is_silent)
    if answering is None:
        lost = tuple(host for host in silent if host in gone)
        reason = f"{_list(lost)} went away: it shows no sign of life any more"
    else:
        lost = tuple(host for host in hosts if answering and host not in answering)
        reason = f"{_list(lost)} went away: SLURM cannot reach it any more"
    if lost:
        return Outcome(Kind.LOST, reason, lost)
    first = failures[0] if failures else None
    absent = tuple(host for host in hosts if host not in states)
    if answering and absent and states and first is None:
        reason = f"unfit for the run: {_list(absent)} could not start the container"
        return Outcome(Kind.UNFIT, reason, absent)
    if first is not None and not first.is_consequence:
        where = f"rank {first.rank} on {first.host}"
        if HARDWARE.search(first.message) or first.exit_code == ExitCode.PREFLIGHT:
            return Outcome(Kind.UNFIT, f"{where}: {first.message}", (first.host,))
        if first.exit_code < 0 or first.exit_code == ExitCode.RESUMABLE:
            return Outcome(Kind.KILLED, f"{where}: {first.message}")
        return Outcome(Kind.FAILED, f"{where}: {first.message}")
    if silent:
        return Outcome(Kind.KILLED, f"the launcher on {_list(silent)} was killed", silent)
    if gone:  # each side of a cut sees the other one go; the rendezvous is on the first node
        cut = tuple(host for host in gone if host != hosts[0]) or tuple(gone)
        return Outcome(Kind.KILLED, f"{_list(cut)} could not be reached for a while", cut)
    if status == ExitCode.RESUMABLE:
        return Outcome(Kind.STOPPED, "the ranks saved and stopped")
    if first is not None:
        return Outcome(Kind.KILLED, f"rank {first.rank} on {first.host}: {first.message}")
    return Outcome(Kind.FAILED, f"no rank left a record, and srun ended with {status}")


def _names(states: Sequence[NodeState]) -> tuple[str, ...]:
    return tuple(state.host for state in states)


def _list(hosts: Sequence[str]) -> str:
    *others, last = hosts or ("nobody",)
    return f"{', '.join(others)} and {last}" if others else last
