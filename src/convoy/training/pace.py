"""How long each rank's steps take, and how long it waits for data: a small file per rank.

Ranks wait for each other in the gradients' all-reduce, so a slow one shows only in the time before
it, from a batch's arrival to the start of backward, which is a rank's own.
"""

import json
import time
from typing import Any

import pytorch_lightning as pl
import torch

from convoy.run.layout import RunDirectory
from convoy.topology import Topology

SECONDS_BETWEEN_WRITES = 15.0
FIRST_BATCHES = 3  # they fill queues and caches


class Pace(pl.Callback):
    """Writes `paces/rank-<rank>.json`; rank 0 also logs its share of waiting, train/data_wait."""

    def __init__(self, run: RunDirectory, topology: Topology) -> None:
        self._path, self._topology = run.rank_pace(topology.rank), topology
        self._marks: tuple[torch.cuda.Event, torch.cuda.Event] | None = None
        self._marked: int | None = None  # the batch between the two
        self._written = time.monotonic()
        self._forget()

    def _forget(self) -> None:
        self._batches, self._waited, self._took = 0, 0.0, 0.0
        self._own: list[float] = []
        self._ended: float | None = None

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._ended = None  # what was between epochs is not waiting for data

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._ended = None

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._ended = None

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._began = time.monotonic()
        if self._ended is not None and batch_idx >= FIRST_BATCHES:
            self._waited += self._began - self._ended
            self._took += self._began - self._ended
        if pl_module.device.type == "cuda" and self._marks is None:
            self._marks = (torch.cuda.Event(True), torch.cuda.Event(True))
            self._marks[0].record()
            self._marked = batch_idx

    def on_before_backward(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: torch.Tensor
    ) -> None:
        if self._marks is None:
            self._own.append(time.monotonic() - self._began)
        elif self._marked is not None:
            self._marks[1].record()
            self._marked = None

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        self._ended = time.monotonic()
        if batch_idx >= FIRST_BATCHES:
            self._batches += 1
            self._took += self._ended - self._began
        if self._batches and self._ended - self._written > SECONDS_BETWEEN_WRITES:
            self._write(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._batches:
            self._write(trainer)

    def _write(self, trainer: pl.Trainer) -> None:
        if self._marks is not None and self._marked is None and self._marks[1].query():
            self._own.append(self._marks[0].elapsed_time(self._marks[1]) / 1000)
        self._marks = None
        content = {
            "host": self._topology.host,
            "time": time.time(),
            "step": trainer.global_step,
            "batch_s": self._took / self._batches,
            "own_s": sum(self._own) / len(self._own) if self._own else None,
            "data_wait": self._waited / self._took if self._took else 0.0,
        }
        for sink in trainer.loggers if trainer.is_global_zero else ():
            sink.log_metrics({"train/data_wait": content["data_wait"]}, trainer.global_step)
        temporary = self._path.with_suffix(".tmp")
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_text(json.dumps(content) + "\n")
            temporary.replace(self._path)
        except OSError:  # a full disk ends no training here
            pass
        ended = self._ended
        self._forget()
        self._ended, self._written = ended, time.monotonic()
