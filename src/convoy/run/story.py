"""What happened in a run, read from the files that it left. Standard library only.

A file that is missing, or cut by a kill in the middle of a line, is never an error: a run that is
starting, failed early or was made by an older Convoy has a story too.
"""

import csv
import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from convoy.run.layout import RunDirectory

EPDMS = "score/epdms"  # among the metrics
_KEY = re.compile(r"( *)((?:- )*)([^\s:#][^:]*):(?: (.*))?$")


@dataclass(frozen=True)
class Point:
    """A value at an optimiser step of the start number `start` (0 is the first)."""

    step: int
    value: float
    start: int


@dataclass(frozen=True)
class Story:
    """The files of one run as plain data; empty where there is no file."""

    root: Path
    progress: Mapping[str, Any] = field(default_factory=dict)
    launches: tuple[Mapping[str, Any], ...] = ()
    events: tuple[Mapping[str, Any], ...] = ()
    results: Mapping[str, Any] = field(default_factory=dict)
    prediction: Mapping[str, Any] = field(default_factory=dict)
    config: Mapping[str, str] = field(default_factory=dict)
    metrics: Mapping[str, tuple[Point, ...]] = field(default_factory=dict)
    manifest: Mapping[str, Any] = field(default_factory=dict)
    vitals: Mapping[str, tuple[Mapping[str, Any], ...]] = field(default_factory=dict)  # by host
    paces: Mapping[int, Mapping[str, Any]] = field(default_factory=dict)  # by rank, the newest
    scorings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # by split/checkpoint

    @property
    def run(self) -> RunDirectory:
        return RunDirectory(self.root)

    @property
    def name(self) -> str:
        """Experiment and run, as their folders are called."""
        return f"{self.root.parent.name}/{self.root.name}"

    @property
    def score(self) -> float | None:
        """The highest EPDMS among the checkpoints that were scored, from 0 to 1."""
        found = [summary.get("score") for summary in self.scorings.values()]
        found += [point.value for point in self.metrics.get(EPDMS, ())]
        return max((score for score in found if isinstance(score, int | float)), default=None)

    @property
    def is_finished(self) -> bool:
        return bool(self.results)

    @property
    def data_wait(self) -> float | None:
        """Share of the time that ranks wait for data, their mean; None if not measured."""
        found = [pace["data_wait"] for pace in self.paces.values() if "data_wait" in pace]
        return sum(found) / len(found) if found else None

    @property
    def step_s(self) -> float | None:
        """Seconds of a step, the ranks' mean; None if not measured."""
        found = [pace["step_s"] for pace in self.paces.values() if pace.get("step_s")]
        return sum(found) / len(found) if found else None

    @property
    def parts(self) -> Mapping[str, float]:
        """Seconds of a step by its parts, the ranks' means: the GPU's own time where there is one.

        A step that is one CUDA graph has `one_piece` in place of forward, backward and optimizer.
        """
        found: dict[str, list[float]] = {}
        for pace in self.paces.values():
            for part, seconds in {**pace.get("parts_s", {}), **pace.get("device_s", {})}.items():
                found.setdefault(part, []).append(seconds)
        return {part: sum(values) / len(values) for part, values in found.items()}

    @property
    def communication(self) -> tuple[float, float] | None:
        """Seconds of a step's all-reduce, and of those the backward pass hides; the ranks' means,
        None where DDP did not time it."""
        pairs = [
            (pace["communication_s"], pace.get("communication_hidden_s", 0.0))
            for pace in self.paces.values()
            if pace.get("communication_s")
        ]
        if not pairs:
            return None
        took, hidden = (sum(column) / len(pairs) for column in zip(*pairs, strict=True))
        return took, hidden

    @property
    def gpu(self) -> str | None:
        """The name of its GPUs, as the driver gives it or as the plan asked for it."""
        for name in (self.manifest.get("hardware") or {}).get("gpus") or ():
            return str(name)
        for samples in self.vitals.values():
            for gpu in samples[-1].get("gpus") or ():
                if gpu.get("name"):
                    return str(gpu["name"])
        return self.prediction.get("gpu")

    @property
    def world_size(self) -> int | None:
        """Ranks of the last start."""
        last = self.launches[-1] if self.launches else {}
        nodes, each = last.get("nodes"), last.get("processes_per_node")
        if isinstance(nodes, list) and isinstance(each, int):
            return max(1, len(nodes)) * each
        return self.results.get("world_size")

    def override(self, key: str) -> str | None:
        """The last start's value of `key` on the command line."""
        for launch in reversed(self.launches):
            for word in reversed(launch.get("overrides") or ()):
                name, sign, value = str(word).partition("=")
                if sign and name.lstrip("+~") == key:
                    return value
        return None

    @property
    def agent(self) -> str:
        """`agent=…` of the command line, else the class that the configuration names."""
        target = self.config.get("agent._target_", "").rpartition(".")[2]
        return self.override("agent") or target or "unknown"


def read(root: Path) -> Story:
    """The story of the run directory `root`."""
    run = RunDirectory(root)
    return Story(
        root,
        read_json(run.progress),
        tuple(read_lines(run.launches)),
        tuple(read_lines(run.events)),
        read_json(run.results),
        read_json(run.prediction),
        read_config(run.config),
        read_metrics(run.metrics) | read_scores(run.score_history),
        read_json(run.manifest),
        {
            path.stem: samples
            for path in sorted(run.vitals.glob("*.jsonl"))
            if (samples := tuple(read_lines(path)))
        },
        {
            int(path.stem.rpartition("-")[2]): read_json(path)
            for path in sorted(run.paces.glob("rank-*.json"))
        },
        {
            f"{path.parent.parent.name}/{path.parent.name}": read_json(path)
            for path in sorted(run.scores.glob("*/*/summary.json"))
        },
    )


def find(experiments: Path) -> list[Path]:
    """Run directories below `experiments`, the newest first: <experiment>/<job or time>."""
    found = {
        path.parent
        for name in ("config.yaml", "launches.jsonl")
        for path in experiments.glob(f"*/*/{name}")
    }
    return sorted(found, key=lambda root: -root.stat().st_mtime)


def read_json(path: Path) -> Mapping[str, Any]:
    """An object, or nothing where the file is missing or damaged."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def read_lines(path: Path) -> Iterator[Mapping[str, Any]]:
    """Objects of a .jsonl file; a line that was cut is left out."""
    try:
        lines = path.read_text(errors="replace").splitlines()
    except OSError:
        return
    for line in lines:
        try:
            content = json.loads(line)
        except ValueError:
            continue
        if isinstance(content, dict):
            yield content


def last_line(path: Path, block: int = 8_192) -> Mapping[str, Any]:
    """The newest whole object of a .jsonl file, from its end alone; nothing without one."""
    try:
        with path.open("rb") as file:
            file.seek(0, 2)
            file.seek(max(0, file.tell() - block))
            lines = file.read().splitlines()
    except OSError:
        return {}
    for line in reversed(lines):
        try:
            content = json.loads(line)
        except ValueError:
            continue
        if isinstance(content, dict):
            return content
    return {}


def read_config(path: Path) -> dict[str, str]:
    """The leaves of a saved configuration as dotted key -> text, of the YAML that OmegaConf
    writes."""
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return {}
    found: dict[str, str] = {}
    parents: list[tuple[int, str]] = []
    last = ""
    for line in lines:
        match = _KEY.match(line)
        bare = line.strip()
        if match is None or match.group(2):
            if last and bare:  # an item of a list, or the rest of a long text
                joined = (
                    f"{found.get(last, '')}, {bare[2:]}"
                    if bare.startswith("- ")
                    else f"{found[last]} {bare}"
                )
                found[last] = joined.removeprefix(", ")
            continue
        indent, key, value = len(match.group(1)), match.group(3), match.group(4)
        while parents and parents[-1][0] >= indent:
            parents.pop()
        last = ".".join([*(name for _, name in parents), key])
        if value is None:
            parents.append((indent, key))
            found.setdefault(last, "")
        else:
            # A comment is our own defaults'; OmegaConf quotes a text that looks like one.
            bare = value if value[:1] in {"'", '"'} else value.partition(" #")[0]
            found[last] = bare.strip().strip("'\"")
    return {key: value for key, value in found.items() if value or not _has_children(key, found)}


def _has_children(key: str, found: Mapping[str, str]) -> bool:
    return any(other.startswith(f"{key}.") for other in found)


def read_metrics(folder: Path) -> dict[str, tuple[Point, ...]]:
    """Every column of Lightning's CSV files, one file per start, in the order of the steps.

    Where a start repeats steps of an earlier one (it went on from an older checkpoint), both stay.
    """
    found: dict[str, list[Point]] = {}
    files = sorted(folder.glob("version_*/metrics.csv"), key=lambda path: _number(path.parent.name))
    for start, path in enumerate(files):
        try:
            with path.open(newline="") as file:
                for row in csv.DictReader(file):
                    _add(found, row, start)
        except (OSError, csv.Error):
            continue
    return {name: tuple(points) for name, points in found.items()}


def read_scores(history: Path) -> dict[str, tuple[Point, ...]]:
    """EPDMS over steps, of what was scored beside the training; of several splits the last."""
    lines = [line for line in read_lines(history) if isinstance(line.get("score"), int | float)]
    points = tuple(
        Point(int(line["step"]), float(line["score"]), 0)
        for line in lines
        if (line.get("split"), line.get("tokens"))
        == (lines[-1].get("split"), lines[-1].get("tokens"))
    )
    return {EPDMS: points} if points else {}


def _number(name: str) -> int:
    digits = name.rpartition("_")[2]
    return int(digits) if digits.isdigit() else 0


def _add(found: dict[str, list[Point]], row: Mapping[str, Any], start: int) -> None:
    try:
        step = int(row["step"])
    except (KeyError, TypeError, ValueError):
        return
    for name, text in row.items():
        if name in {"step", None} or not isinstance(text, str) or not text:
            continue
        try:
            value = float(text)
        except ValueError:
            continue
        if math.isfinite(value):
            found.setdefault(name, []).append(Point(step, value, start))
