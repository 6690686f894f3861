"""Earlier runs: what the speed model learns from, and how good its predictions were.

A prediction lies in the run's own directory (`prediction.json`, written at submission), beside what
then happened; nothing else is kept anywhere.
"""

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from convoy.host.plan import Row, Training
from convoy.host.speed_model import Observation, Rate, Shape, Workload
from convoy.run import story
from convoy.run.layout import RunDirectory
from convoy.run.story import Story
from convoy.run.timeline import seconds

MOST_RUNS = 200  # newest first: reading more tells little and takes long on a shared file system
ENOUGH = 3  # finished predictions before the ranges follow them


@dataclass(frozen=True)
class Check:
    """A finished or running run beside its prediction; seconds, samples per second."""

    run: str
    shape: str
    source: str
    predicted_rate: float
    spread: float
    actual_rate: float | None
    predicted_wait: float | None
    actual_wait: float | None
    predicted_total: float | None
    actual_total: float | None

    @property
    def error(self) -> float | None:
        """Natural logarithm of actual by predicted rate."""
        return math.log(self.actual_rate / self.predicted_rate) if self.actual_rate else None


def stories(experiments: Path) -> list[Story]:
    """The newest runs below `experiments`."""
    return [story.read(root) for root in story.find(experiments)[:MOST_RUNS]]


def observation(run: Story) -> Observation | None:
    """The rate of a run that measured one on a known kind of GPU, else None."""
    rate, gpu, world = rate_of(run), run.gpu, run.world_size
    if not (rate and gpu and world):
        return None
    nodes = max(1, len(run.launches[-1].get("nodes") or ()) if run.launches else 1)
    workload = Workload(
        run.agent,
        int(run.config.get("global_batch") or world),
        data_kind(run.config.get("cache_path", "")),
        int(run.config.get("dataloader.params.num_workers") or 4),
        run.config.get("speed", "plain"),
    )
    shape = Shape(gpu_name(gpu), nodes, max(1, world // nodes))
    return Observation(workload, shape, rate, run.name, all_reduce_of(run))


def all_reduce_of(run: Story) -> float | None:
    """GB/s between nodes, as the GPUs of the run's latest start measured it."""
    for event in reversed(run.events):
        if event.get("kind") == "all_reduce":
            value = event.get("gb_per_s")
            between = event.get("backend") == "nccl" and (event.get("nodes") or 1) > 1
            return float(value) if between and isinstance(value, int | float) and value else None
    return None


def rate_of(run: Story) -> float | None:
    """Samples per second of all training: the results' figure, else the median report."""
    for found in (run.results, run.progress):
        value = found.get("samples_per_s")
        if run.results and isinstance(value, int | float) and value > 0:
            return float(value)
    points = run.metrics.get("train/samples_per_s", ())
    return statistics.median(point.value for point in points[1:] or points) if points else None


def data_kind(cache_path: str) -> str:
    """`shards` where the folder holds packed shards, else NAVSIM's `cache`."""
    return "shards" if cache_path and (Path(cache_path) / "manifest.json").is_file() else "cache"


def gpu_name(name: str) -> str:
    """`NVIDIA L40S` as GRES would name it: `l40s`."""
    words = [word for word in name.lower().split() if word not in {"nvidia", "geforce", "tesla"}]
    return (words or ["gpu"])[0]


# --- predictions


def write_prediction(root: Path, row: Row, training: Training, job: str, now: float) -> None:
    """Leave the row's figures in the run directory, for `check` and for the report."""
    assert (
        row.rate is not None and row.wait is not None and row.training and row.total and row.batches
    )
    content = {
        "time": now,
        "job": job,
        "agent": training.agent,
        "data": training.data,
        "partition": row.offer.partition,
        "gpu": row.offer.gpu,
        "nodes": row.offer.nodes,
        "gpus_per_node": row.offer.gpus_per_node,
        "global_batch": row.batches.global_batch,
        "samples_per_s": row.rate.samples_per_s,
        "spread": row.rate.spread,
        "source": row.rate.source,
        "epoch_s": row.epoch,
        "wait_s": [row.wait.low, row.wait.expected, row.wait.high],
        "training_s": [row.training.low, row.training.expected, row.training.high],
        "total_s": [row.total.low, row.total.expected, row.total.high],
        "starts": row.segments,
    }
    root.mkdir(parents=True, exist_ok=True)
    path = RunDirectory(root).prediction
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(content, indent=1) + "\n")
    temporary.replace(path)


def check(run: Story) -> Check | None:
    """The run beside its prediction; None where it has none."""
    made = run.prediction
    rate = made.get("samples_per_s")
    if not isinstance(rate, int | float) or rate <= 0:
        return None
    submitted = made.get("time")
    started = seconds(run.launches[0].get("time")) if run.launches else None
    ended = seconds(run.progress.get("time")) if run.is_finished else None
    return Check(
        run.name,
        f"{made.get('nodes')} x {made.get('gpus_per_node')} {made.get('gpu')}",
        str(made.get("source", "")),
        float(rate),
        float(made.get("spread") or 0.0),
        rate_of(run) if run.is_finished else None,
        _middle(made.get("wait_s")),
        started - submitted if started and submitted else None,
        _middle(made.get("total_s")),
        ended - submitted if ended and submitted else None,
    )


def _middle(span: Any) -> float | None:
    return float(span[1]) if isinstance(span, list) and len(span) == 3 else None


@dataclass(frozen=True)
class Calibration:
    """What the errors of earlier predictions say of the next one; `runs` is how many there were."""

    bias: float = 0.0
    spread: float | None = None
    runs: int = 0

    def apply(self, rate: Rate) -> Rate:
        """The rate with the usual error taken out and the range that held."""
        if self.spread is None:
            return rate
        return replace(
            rate,
            samples_per_s=rate.samples_per_s * math.exp(self.bias),
            spread=self.spread,
            source=f"{rate.source}, calibrated on {self.runs} runs",
        )


def calibration(checks: Sequence[Check], source: str) -> Calibration:
    """From finished runs whose rate had the same kind of source (a roofline, or earlier runs)."""
    guessed = source.startswith("roofline")
    errors = [
        found.error
        for found in checks
        if found.error is not None and found.source.startswith("roofline") == guessed
    ]
    if len(errors) < ENOUGH:
        return Calibration(runs=len(errors))
    # With few runs their own scatter says too little: Student's t over the normal, at 90 %.
    wide = 1 + 2.0 / len(errors)
    return Calibration(
        statistics.median(errors), max(0.05, wide * statistics.stdev(errors)), len(errors)
    )


def observations_in(tables: Sequence[Mapping[str, Any]]) -> list[Observation]:
    """The `run` tables of a cluster file."""
    found = []
    for table in tables:
        nodes, gpus = int(table["nodes"]), int(table["gpus"])
        found.append(
            Observation(
                Workload(
                    table["agent"], int(table.get("global_batch", gpus)), table.get("data", "cache")
                ),
                Shape(table["gpu"], nodes, gpus // nodes),
                float(table["samples_per_s"]),
                table.get("note", "a run in the file"),
            )
        )
    return found
