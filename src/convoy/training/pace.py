"""How long each rank's steps take, and their parts: a small file per rank, and rank 0's in the
metrics, with what the nodes' GPUs do meanwhile.

Ranks wait for each other in the gradients' all-reduce, so a slow one shows only in the time before
it, the forward pass, which is a rank's own.
"""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytorch_lightning as pl

from convoy.run.layout import RunDirectory
from convoy.run.story import last_line
from convoy.topology import Topology
from convoy.training.timers import StepTimers

SECONDS_BETWEEN_WRITES = 15.0


class Pace(pl.Callback):
    """Writes `paces/rank-<rank>.json`; rank 0 also logs its own as `time/<part>_ms` and
    `train/data_wait`, and each node's as `node/<host>/…`."""

    def __init__(self, run: RunDirectory, topology: Topology, timers: StepTimers) -> None:
        self._run, self._topology, self._timers = run, topology, timers
        self._path = run.rank_pace(topology.rank)
        self._written = time.monotonic()

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        if time.monotonic() - self._written > SECONDS_BETWEEN_WRITES:
            self._write(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._write(trainer)

    def _write(self, trainer: pl.Trainer) -> None:
        times = self._timers.take(trainer)
        if times is None:
            return
        self._written = time.monotonic()
        parts = times["parts_s"]
        wait = parts["data_wait"] / times["step_s"]
        content = {
            "host": self._topology.host,
            "time": time.time(),
            "step": trainer.global_step,
            "batch_s": times["step_s"],
            "own_s": (times.get("device_s") or parts).get("forward"),
            "data_wait": wait,
            **times,
        }
        if trainer.is_global_zero:
            shown = dict(_milliseconds(times)) | {"train/data_wait": wait}
            shown |= dict(_of_nodes(self._run.vitals))
            for sink in trainer.loggers:
                sink.log_metrics(shown, trainer.global_step)
        temporary = self._path.with_suffix(".tmp")
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_text(json.dumps(content) + "\n")
            temporary.replace(self._path)
        except OSError:  # a full disk ends no training here
            pass


def _milliseconds(times: dict[str, Any]) -> Iterator[tuple[str, float]]:
    """The GPU's own time where there is one: the host's clock says when work was handed over."""
    yield "time/step_ms", times["step_s"] * 1000
    for part, seconds in (times["parts_s"] | times.get("device_s", {})).items():
        yield f"time/{part}_ms", seconds * 1000
    for name in ("communication", "communication_hidden"):
        if f"{name}_s" in times:
            yield f"time/{name}_ms", times[f"{name}_s"] * 1000


def _of_nodes(folder: Path) -> Iterator[tuple[str, float]]:
    """Means over the GPUs of each node, of its newest sample."""
    for path in sorted(folder.glob("*.jsonl")):
        sample = last_line(path)
        if "memory" in sample:
            yield f"node/{path.stem}/memory_gib", sample["memory"] / 2**30
        gpus = sample.get("gpus") or ()
        for key, name, unit in (
            ("busy", "gpu_busy_percent", 1),
            ("memory", "gpu_memory_gib", 1024),
            ("power", "gpu_power_w", 1),
        ):
            values = [gpu[key] for gpu in gpus if gpu.get(key) is not None]
            if values:
                yield f"node/{path.stem}/{name}", sum(values) / len(values) / unit
