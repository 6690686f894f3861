"""What faults cost: one result per fault and round, the table of them, and the file that keeps
them. Standard library only."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Result:
    """What one fault cost. `equal`: every step until the next fault began with the weights of the
    undisturbed run, the last checkpoint too where no fault follows (at another world size: losses
    within the tolerance); `away` is the largest relative difference of a loss there. `consumed`:
    what is wrong with the samples; `orphans`: processes of earlier starts; `problem`: why it did
    not come home."""

    fault: str
    at_step: int
    lost_steps: int = 0
    seconds: float = 0.0
    starts: int = 0
    equal: bool = False
    away: float | None = None
    consumed: str | None = None
    orphans: int = 0
    problem: str | None = None

    @property
    def is_good(self) -> bool:
        return self.equal and not (self.orphans or self.consumed or self.problem)


def table(results: Sequence[Result]) -> str:
    head = ("fault", "runs", "home", "steps lost", "s to next step", "equal", "orphans")
    rows = []
    for fault in dict.fromkeys(result.fault for result in results):
        own = [result for result in results if result.fault == fault]
        home = [result for result in own if not result.problem]
        rows.append(
            (
                fault,
                str(len(own)),
                str(sum(result.is_good for result in own)),
                _span([result.lost_steps for result in home]),
                _span([round(result.seconds) for result in home]),
                str(sum(result.equal for result in home)),
                str(sum(result.orphans for result in home)),
            )
        )
    widths = [max(len(row[column]) for row in (head, *rows)) for column in range(len(head))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in (head, *rows)
    ]
    return "\n".join(lines)


def _span(numbers: list[int]) -> str:
    """The least, the median and the most."""
    if not numbers:
        return "-"
    ordered = sorted(numbers)
    least, median, most = ordered[0], ordered[len(ordered) // 2], ordered[-1]
    return str(least) if least == most else f"{least} / {median} / {most}"


def circumstances(seed: int, environment: dict[str, str]) -> dict[str, Any]:
    """What a result means nothing without."""
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=ROOT, text=True, capture_output=True
    ).stdout.strip()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    machine = f"{len(os.sched_getaffinity(0))} CPUs, {memory:.0f} GiB"
    return {"seed": seed, "commit": commit, "machine": machine, "environment": environment}


def add(path: Path, result: Result, about: dict[str, Any]) -> None:
    """Add one result to a file, a line each; a break leaves the file as it was."""
    entries = json.loads(path.read_text()) if path.exists() else []
    when = f"{datetime.now(UTC):%Y-%m-%d %H:%M}"
    entries.append({"date": when, **about, **asdict(result)})
    beside = path.with_suffix(".new")
    beside.write_text("[\n" + ",\n".join(json.dumps(entry) for entry in entries) + "\n]\n")
    beside.replace(path)


def load(path: Path) -> list[Result]:
    names = {field.name for field in fields(Result)}
    return [
        Result(**{name: value for name, value in entry.items() if name in names})
        for entry in json.loads(path.read_text())
    ]
