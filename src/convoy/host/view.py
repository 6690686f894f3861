"""What there is to see of a job now, from SLURM and from the run's files."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from convoy.host import words
from convoy.host.locate import Found
from convoy.launch import verdict
from convoy.run import story
from convoy.run.hints import hints
from convoy.run.story import Story

STALE = 180.0  # seconds without a report after which a running job is said to be silent
TAIL = 6  # lines of a failing rank


@dataclass(frozen=True)
class View:
    """One moment. `state` is one word, `standing` says in a sentence where the job is."""

    title: str
    state: str
    standing: str
    run: Story | None
    left: float | None  # of the time limit, seconds
    hints: Sequence[str]
    tail: Sequence[str]
    slurm: str  # why SLURM did not answer

    @property
    def progress(self) -> Mapping[str, Any]:
        return self.run.progress if self.run else {}


def view(found: Found, now: float | None = None) -> View:
    """Read everything once."""
    now = time.time() if now is None else now
    run = story.read(found.root) if found.root else None
    left = float(found.job.left) if found.job and found.job.left is not None else None
    if found.job and found.job.state == "PENDING":
        left = None
    state, standing = _standing(found, run, now)
    name = run.name if run else f"job {found.id}"
    return View(
        _title(name, found, run),
        state,
        standing,
        run,
        left,
        hints(run, left) if run and state != "PENDING" else [],
        _tail(run) if run and state not in {"FINISHED", "PENDING"} else [],
        found.slurm,
    )


def _title(name: str, found: Found, run: Story | None) -> str:
    parts = [name]
    if run and run.agent != "unknown":
        parts.append(run.agent)
    job = found.job
    if job:
        gpus = f", {job.gpus} GPUs" if job.gpus else ""
        parts.append(
            f"{job.nodes} node{'s' if job.nodes != 1 else ''}{gpus} in {', '.join(job.partitions)}"
        )
    elif found.id and run:
        parts.append(f"job {found.id}")
    return " | ".join(parts)


def _standing(found: Found, run: Story | None, now: float) -> tuple[str, str]:
    job = found.job
    if job and job.state == "PENDING":
        start = (
            f"expected to start {_when(job.start, now)}"
            if job.start
            else "SLURM has no estimate of its start yet"
        )
        again = " again" if run and run.launches else ""
        return "PENDING", f"waits{again}: {words.reason(job.reason)}; {start}"
    if run and run.is_finished:
        return "FINISHED", f"finished {_ago(run.progress.get('time'), now)}".rstrip()
    if job:
        hosts = f" on {job.hosts}" if job.hosts else ""
        heard = run.progress.get("time") if run else None
        silent = isinstance(heard, int | float) and now - heard > STALE
        note = f", no report for {_span(now - heard)}" if silent and heard else ""
        if run is None or not run.progress:
            note = ", no report yet: the image starts and the data are opened"
        return job.state, f"{job.state.lower()}{hosts}{note}"
    if found.slurm:
        heard = run.progress.get("time") if run else None
        return (
            "UNKNOWN",
            f"SLURM does not answer; last report {_ago(heard, now)}"
            if heard
            else "SLURM does not answer",
        )
    last = run.events[-1] if run and run.events else {}
    how = f" ({last['kind']})" if last.get("kind") else ""
    return (
        "ENDED",
        f"not in the queue, and not finished{how}: the same command continues from its last "
        "checkpoint",
    )


def _tail(run: Story) -> list[str]:
    """Of the rank that failed first in the newest start that failed: its message, its last lines.

    A failure that training has gone on after is history.
    """
    starts = [str(launch["start"]) for launch in run.launches if launch.get("start")]
    failures = verdict.read(run.run, starts[-1]) if starts else []
    if not failures or failures[0].time < (run.progress.get("time") or 0.0):
        return []
    first = failures[0]
    message = (first.message.splitlines() or ["no message"])[0]
    lines = last_lines(run.run.rank_log(first.rank), TAIL)
    return [f"Rank {first.rank} on {first.host} failed first: {message}", *lines]


def last_lines(path: Path, count: int, block: int = 65_536) -> list[str]:
    """The last lines of a text file, reading its end only; none if it cannot be read."""
    try:
        with path.open("rb") as file:
            file.seek(0, 2)
            file.seek(max(0, file.tell() - block))
            return file.read().decode(errors="replace").splitlines()[-count:]
    except OSError:
        return []


def _when(moment: datetime, now: float) -> str:
    seconds = moment.timestamp() - now
    return f"in {_span(seconds)} (at {moment:%a %H:%M})" if seconds > 60 else "any moment"


def _ago(moment: Any, now: float) -> str:
    return f"{_span(now - moment)} ago" if isinstance(moment, int | float) else ""


def _span(seconds: float) -> str:
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{max(0, round(seconds))} s"
    return f"{minutes // 60} h {minutes % 60:02d} min" if minutes >= 60 else f"{minutes} min"
