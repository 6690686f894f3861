"""How far each point of a sweep is, from its run directory and SLURM's queue."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from convoy.host.cluster_model import Job
from convoy.host.sweep import Point, Sweep, Task, tasks
from convoy.host.view import last_lines
from convoy.launch import verdict
from convoy.launch.outcome import Kind
from convoy.run import story
from convoy.run.story import Story
from convoy.run.timeline import timeline

FIGURES = ("ade", "fde", "loss")  # of the last validation, as results.json and val/… name them
LOOKED_AT = 400  # lines at the end of a log


@dataclass(frozen=True)
class Standing:
    """One point now. `state` is finished, failed, stopped, new, unknown, or SLURM's word in small
    letters; `job` is its newest task; `reason` says why a point failed or stopped."""

    point: Point
    run: Story
    state: str
    job: str | None = None
    reason: str = ""

    @property
    def is_open(self) -> bool:
        """Whether a new array must have it: it is neither finished nor in the queue."""
        return self.state in ("failed", "stopped", "new")

    @property
    def figures(self) -> dict[str, float]:
        """Of the last weights that were validated: ADE and FDE in metres, loss; and the highest
        EPDMS of its checkpoints, from 0 to 1."""
        found = {}
        for name in FIGURES:
            value = self.run.results.get(name)
            if not isinstance(value, int | float):
                points = self.run.metrics.get(f"val/{name}", ())
                value = points[-1].value if points else None
            if value is not None:
                found[name] = float(value)
        if self.run.score is not None:
            found["epdms"] = self.run.score
        return found

    @property
    def hours(self) -> float:
        """For which it ran, in all of its starts."""
        return sum(seconds for seconds, _ in self._starts()) / 3600

    @property
    def gpu_hours(self) -> float:
        return sum(seconds * ranks for seconds, ranks in self._starts()) / 3600

    @property
    def starts(self) -> int:
        return len(self.run.launches)

    def _starts(self) -> list[tuple[float, int]]:
        """Seconds and ranks of each start."""
        found = []
        for part in timeline(self.run).parts:
            if part.start is not None:
                launch = self.run.launches[part.start]
                ranks = len(launch.get("nodes") or "1") * int(launch.get("processes_per_node") or 1)
                found.append((part.end - part.begin, ranks))
        return found


def standings(sweep: Sweep, queue: Sequence[Job], problem: str) -> list[Standing]:
    """One for each point; `problem` says why SLURM did not answer, if it did not."""
    submitted = tasks(sweep)
    queued = {job.id: job for job in queue}
    return [
        _standing(sweep, point, submitted.get(point.number), queued, problem)
        for point in sweep.points
    ]


def _standing(
    sweep: Sweep, point: Point, task: Task | None, queued: dict[str, Job], problem: str
) -> Standing:
    run = story.read(sweep.directory(point))
    if run.is_finished:
        return Standing(point, run, "finished", task.id if task else None)
    if task is None:
        return Standing(point, run, "new")
    if task.id in queued:
        return Standing(point, run, queued[task.id].state.lower(), task.id)
    if problem:
        return Standing(point, run, "unknown", task.id, problem)
    state, reason = _end(run, task)
    return Standing(point, run, state, task.id, reason)


def _end(run: Story, task: Task) -> tuple[str, str]:
    """How a task ended that is neither finished nor in the queue."""
    starts = [launch for launch in run.launches if str(launch.get("job")) == task.id]
    if not starts:
        said = _last_word(task.log)
        if said:
            return "failed", said
        return "stopped", "it left the queue before it started"
    start = str(starts[-1].get("start"))
    for event in reversed(run.events):
        if event.get("start") == start and event.get("kind") in ("end", "requeue", "restart"):
            stopped = event.get("outcome") == Kind.STOPPED
            return "stopped" if stopped else "failed", str(event.get("reason", ""))
    failures = verdict.read(run.run, start)
    if failures:
        return "failed", f"rank {failures[0].rank} on {failures[0].host}: {failures[0].message}"
    return "stopped", f"it ended without a word: convoy logs {task.id}"


def _last_word(log: Path | None) -> str:
    """The last sentence that Convoy says in a job's log."""
    lines = last_lines(log, LOOKED_AT) if log is not None else []
    said = [line for line in lines if re.match(r"convoy: ", line)]
    return said[-1].removeprefix("convoy: ") if said else ""
