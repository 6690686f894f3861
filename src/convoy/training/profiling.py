"""Traces a few warm steps of a training, and ends it."""

import logging
from typing import Any

import pytorch_lightning as pl
import torch
from torch.profiler import ProfilerActivity, profile

from convoy.run.layout import RunDirectory
from convoy.training.timers import StepTimers

logger = logging.getLogger("convoy")


class StepTrace(pl.Callback):
    """After `warm` batches the next `steps` are traced, by rank 0 into `trace.json.gz`; the run
    ends with the last of them, on every rank."""

    def __init__(self, run: RunDirectory, timers: StepTimers, warm: int, steps: int) -> None:
        self._run, self._timers = run, timers
        self._warm, self._steps = warm, steps
        self._batches = 0
        self._profile: profile | None = None

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        self._batches += 1
        if self._batches == self._warm and trainer.is_global_zero:
            self._begin()
        # One more than asked for: a step ends where the next begins.
        if self._batches == self._warm + self._steps + 1:
            self._end()
            trainer.should_stop = True

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._profile is not None:  # the data ended before
            self._end()

    def _begin(self) -> None:
        activities = [ProfilerActivity.CPU]
        if torch.cuda.is_available():
            torch.cuda.synchronize()
            activities.append(ProfilerActivity.CUDA)
        logger.info("profile: tracing %d steps", self._steps)
        self._profile = profile(activities=activities)
        self._profile.start()
        self._timers.annotate = True

    def _end(self) -> None:
        if self._profile is None:
            return
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self._timers.annotate = False
        self._profile.stop()
        self._run.trace.parent.mkdir(parents=True, exist_ok=True)
        self._profile.export_chrome_trace(str(self._run.trace))
        self._profile = None
