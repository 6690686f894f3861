"""A sweep: trainings that differ in what was varied, each a run of its own and a task of one job
array.

Its folder says what was asked for, which points came of it, and which arrays were submitted. How
far each point is, its own run directory and SLURM's queue say.
"""

import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from convoy.errors import ConvoyError
from convoy.run.atomic import write_text
from convoy.run.layout import SweepDirectory
from convoy.run.story import read_json, read_lines

LOG = "%x-%A_%a.log"  # of a task, where sbatch is given no other


@dataclass(frozen=True)
class Point:
    """One training. `number` is its task's in every array; `chosen` has the words that were
    varied, as this point has them; `overrides` are all of its arguments."""

    number: int
    name: str
    chosen: tuple[str, ...]
    overrides: tuple[str, ...]

    @property
    def values(self) -> dict[str, str]:
        """What was varied: dotted key -> value."""
        pairs = (word.partition("=") for word in self.chosen)
        return {key.lstrip("+~").partition("@")[0]: value for key, _, value in pairs}


@dataclass(frozen=True)
class Sweep:
    """`overrides` are the arguments as they were typed; `options` are sbatch's that were given
    beside them; at most `concurrency` points run at once (None: no limit)."""

    root: Path
    overrides: tuple[str, ...]
    nodes: int
    options: Mapping[str, str]
    concurrency: int | None
    points: tuple[Point, ...]

    @property
    def files(self) -> SweepDirectory:
        return SweepDirectory(self.root)

    def directory(self, point: Point) -> Path:
        """The point's run directory."""
        return self.root / point.name

    def array(self, points: Sequence[Point]) -> str:
        """sbatch's --array for these points: `0-3,7%2`."""
        limit = f"%{self.concurrency}" if self.concurrency else ""
        return ",".join(_ranges([point.number for point in points])) + limit


def default_root(experiments: Path, overrides: Sequence[str]) -> Path:
    """The same folder for the same arguments, in whatever order: so the same command finds its
    sweep again."""
    named = [word.partition("=")[2] for word in overrides if word.startswith("experiment_name=")]
    digest = sha256("\n".join(sorted(overrides)).encode()).hexdigest()[:8]
    return experiments / f"{named[-1] if named else 'sweep'}-{digest}"


def build(
    root: Path,
    overrides: Sequence[str],
    nodes: int,
    options: Mapping[str, str],
    concurrency: int | None,
    found: Sequence[Mapping[str, Any]],
) -> Sweep:
    """The sweep of the points that `convoy check --multirun` found."""
    points = tuple(
        Point(
            number,
            str(point["name"]),
            tuple(point["chosen"].values()),
            (
                *(point["chosen"].get(word, word) for word in overrides),
                f"run_dir={_quoted(root / str(point['name']))}",
            ),
        )
        for number, point in enumerate(found)
    )
    return Sweep(root, tuple(overrides), nodes, dict(options), concurrency, points)


def load(root: Path) -> Sweep:
    """Raises ConvoyError for a folder that is no sweep."""
    content = read_json(SweepDirectory(root).definition)
    try:
        points = tuple(
            Point(number, point["name"], tuple(point["chosen"]), tuple(point["overrides"]))
            for number, point in enumerate(content["points"])
        )
        return Sweep(
            root,
            tuple(content["overrides"]),
            content["nodes"],
            content["options"],
            content["concurrency"],
            points,
        )
    except (KeyError, TypeError):
        raise ConvoyError(
            f"{root} is not a sweep: it has no sweep.json that can be read. convoy submit "
            "--multirun … makes one, and says where."
        ) from None


def find(experiments: Path) -> list[Path]:
    """Sweeps below `experiments`, the newest first."""
    found = [path for path in experiments.glob("*/sweep.json")]
    return [path.parent for path in sorted(found, key=lambda path: -path.stat().st_mtime)]


def save(sweep: Sweep) -> Sweep:
    """Write the folder, or take up the sweep that it holds, with today's nodes and options.

    Raises ConvoyError where the folder holds other points, or cannot be written.
    """
    files = sweep.files
    points = sweep.points
    if files.definition.exists():
        points = load(sweep.root).points
        if {point.overrides for point in points} != {point.overrides for point in sweep.points}:
            raise ConvoyError(
                f"{sweep.root} is a sweep of other points: convoy sweep {sweep.root} shows them. "
                "Name another folder with --sweep."
            )
    content = asdict(sweep) | {
        "points": [
            {"name": point.name, "chosen": point.chosen, "overrides": point.overrides}
            for point in points
        ]
    }
    del content["root"]
    try:
        for point in points:
            write_text(files.arguments(point.number), "\n".join(point.overrides) + "\n")
        write_text(files.definition, json.dumps(content, indent=1) + "\n")
    except OSError as error:
        raise ConvoyError(
            f"The sweep's folder {sweep.root} cannot be written: {error.strerror}. Name another "
            "with --sweep."
        ) from error
    return load(sweep.root)


def record(sweep: Sweep, job: str, points: Sequence[Point], log: str) -> None:
    """Note an array that was submitted; `log` is sbatch's pattern for its output."""
    entry = {
        "time": round(time.time(), 3),
        "job": job,
        "tasks": [point.number for point in points],
        "log": os.path.abspath(log),
    }
    with sweep.files.submissions.open("a") as file:
        file.write(json.dumps(entry) + "\n")


@dataclass(frozen=True)
class Task:
    """The newest task of a point: its id as SLURM says it (`1234_2`), when its array was submitted,
    and its log, None where its name is not known."""

    id: str
    submitted: float
    log: Path | None


def tasks(sweep: Sweep) -> dict[int, Task]:
    """By the point's number."""
    found: dict[int, Task] = {}
    for entry in read_lines(sweep.files.submissions):
        for number in entry.get("tasks", ()):
            pattern = str(entry.get("log", ""))
            for mark, value in (("%A", entry["job"]), ("%a", number), ("%x", "convoy")):
                pattern = pattern.replace(mark, str(value))
            log = Path(pattern) if pattern and "%" not in pattern else None
            found[number] = Task(f"{entry['job']}_{number}", float(entry["time"]), log)
    return found


def _ranges(numbers: Sequence[int]) -> Iterator[str]:
    """`0-3`, `7` for 0, 1, 2, 3 and 7."""
    first = last = None
    for number in sorted(numbers):
        if last is not None and number == last + 1:
            last = number
            continue
        if first is not None:
            yield str(first) if first == last else f"{first}-{last}"
        first = last = number
    if first is not None:
        yield str(first) if first == last else f"{first}-{last}"


def _quoted(path: Path) -> str:
    """A value for Hydra: names of points have commas and equals signs."""
    text = str(path).replace("\\", "\\\\").replace("'", "\\'")
    return f"'{text}'"
