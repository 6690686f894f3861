"""What follows the end of a start: nothing, another start in the same job, or a requeued job.

The batch script alone requeues, and asks here. SLURM requeues by itself as well (a preempted job, a
failed node, an administrator); then the job is no longer running, and nothing is left to decide.
"""

import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from convoy.errors import ExitCode
from convoy.launch.outcome import Kind, Outcome
from convoy.topology import expand_hosts

STALLED_STARTS = 3  # ended in a row at one step: then something has to be changed by hand
MOST_STARTS = 200
HOURS_EXCLUDED = 12.0
CONTINUED = ("restart", "requeue", "shrink")  # events of the starts that another one followed


class Action(StrEnum):
    """What the batch script does."""

    END = "end"
    AGAIN = "again"
    SHRINK = "shrink"  # again, on the nodes that are left
    REQUEUE = "requeue"


@dataclass(frozen=True)
class Job:
    """What `scontrol show job` says of the job that asks. `preempted`: SLURM has told its steps to
    end, and lets it run for the grace time of its partition."""

    state: str
    may_requeue: bool
    excluded: tuple[str, ...] = ()
    preempted: bool = False

    @classmethod
    def from_text(cls, text: str) -> "Job":
        """Unknown where `text` is empty: then nothing is requeued."""
        facts = dict(re.findall(r"(\w+)=(\S*)", text))
        listed = facts.get("ExcNodeList", "")
        excluded = () if listed in ("", "(null)") else tuple(expand_hosts(listed))
        may = facts.get("Requeue") == "1" and facts.get("BatchFlag") != "0"
        preempted = facts.get("PreemptTime", "None") not in {"None", "Unknown", "N/A", "(null)"}
        return cls(facts.get("JobState", "UNKNOWN"), may, excluded, preempted)


@dataclass(frozen=True)
class Smaller:
    """A start on the nodes that are left; `refused` says why it cannot be, or nothing."""

    nodes: int
    refused: str = ""


@dataclass(frozen=True)
class Decision:
    """`excluded` are all nodes that the next start must avoid, `fresh` those that this start
    adds."""

    action: Action
    reason: str
    exit_code: int
    excluded: tuple[str, ...] = ()
    fresh: tuple[str, ...] = ()


def decide(
    ended: Outcome,
    status: int,
    job: Job,
    asked: bool,
    step: int,
    events: Sequence[Mapping[str, Any]],
    now: float | None = None,
    smaller: Smaller | None = None,
    start: str | None = None,
) -> Decision:
    """`asked`: the batch script was told to stop. `step` is that of the newest checkpoint, `events`
    are the run's so far. `smaller`: what may be done without a lost or unfit node. `start` is the
    name of the one that ended. Pure but for the clock."""
    now = time.time() if now is None else now
    asked = asked or job.preempted
    if ended.kind is Kind.FAILED:
        # srun's status is the highest: that of a node that ended because a rank of another failed.
        code = int(ExitCode.FAILED) if status == ExitCode.RESUMABLE else status
        return Decision(Action.END, "", code)
    code = int(ExitCode.PREFLIGHT if ended.kind is Kind.UNFIT else ExitCode.RESUMABLE)
    if job.state not in ("RUNNING", "UNKNOWN"):
        return Decision(
            Action.END, f"SLURM is ending the job ({job.state}): it decides what follows", code
        )
    # By start: both sides of a cut network decide what follows.
    before = {
        entry.get("start"): entry
        for entry in events
        if entry["kind"] in CONTINUED and entry.get("start") != start
    }
    stalled = 1
    for entry in reversed(before.values()):
        if entry.get("step") != step:
            break
        stalled += 1
    if stalled >= STALLED_STARTS:
        reason = (
            f"{stalled} starts in a row ended at step {step}, so another would too. Look at the "
            "reason above and at the ranks' logs; the same command continues afterwards"
        )
        return Decision(Action.END, reason, ExitCode.FAILED)
    if len(before) >= MOST_STARTS:
        reason = f"this was start {len(before) + 1} of the run, and no run has more"
        return Decision(Action.END, reason, ExitCode.FAILED)
    if ended.kind is Kind.KILLED and not asked:
        return Decision(Action.AGAIN, "starting the ranks again in this job", code)
    fresh = ended.nodes if ended.kind in (Kind.UNFIT, Kind.LOST) else ()
    kept = still_excluded(events, job, now)
    excluded = (*kept, *(host for host in fresh if host not in kept))
    why = ""
    if fresh and smaller is not None and not asked:
        why = smaller.refused
        if not why:
            left = f"continuing on {_nodes(smaller.nodes)} without {', '.join(fresh)}"
            return Decision(Action.SHRINK, left, code, fresh, fresh)
        why = f" ({why})"
    if not job.may_requeue:
        reason = (
            f"the job may not be requeued (--requeue, and sbatch){why}; the same command continues"
        )
        return Decision(Action.END, reason, code)
    without = f", without {', '.join(excluded)}" if excluded else ""
    what = "SLURM is preempting the job: requeueing it" if job.preempted else "requeueing the job"
    return Decision(Action.REQUEUE, f"{what}{without}{why}", code, excluded, fresh)


def _nodes(count: int) -> str:
    return f"{count} node{'' if count == 1 else 's'}"


def still_excluded(events: Sequence[Mapping[str, Any]], job: Job, now: float) -> tuple[str, ...]:
    """The job's excluded nodes and those that this run excluded, but for whose time is over."""
    until: dict[str, float] = {}
    for entry in events:
        if entry["kind"] == "excluded_node":
            until[entry["node"]] = entry["until"]
    named = dict.fromkeys((*job.excluded, *until))
    return tuple(host for host in named if until.get(host, now + 1) > now)
