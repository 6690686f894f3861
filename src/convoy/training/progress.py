"""What a person sees of a training run, and the training curve: samples/s, loss, ETA."""

import logging
import sys
import time
from typing import Any

import pytorch_lightning as pl
import torch
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)

from convoy.global_batch import BatchPlan
from convoy.training.process_group import Control

logger = logging.getLogger("convoy")


class ProgressReport(pl.Callback):
    """Reports loss (mean over ranks and steps) and samples/s, every `trainer.log_every_n_steps`
    optimiser steps.

    They go to the loggers and to rank 0's terminal (a bar) or log (a line).
    """

    def __init__(self, batches: BatchPlan, control: Control) -> None:
        self._batches = batches
        self._control = control
        self._losses: list[torch.Tensor] = []
        self._view: _Bar | _Lines = _Lines()
        self._windows: list[tuple[float, int]] = []  # seconds and samples of each report
        self._since: tuple[float, int] = (0.0, 0)

    @property
    def samples_per_second(self) -> float:
        """Over all ranks and all training so far, validation and checkpoints left out; NaN before
        the first report.

        The first report pays for loading code and filling queues, so it counts only where there is
        no other.
        """
        windows = self._windows[1:] or self._windows
        seconds = sum(window[0] for window in windows)
        return sum(window[1] for window in windows) / seconds if seconds else float("nan")

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.is_global_zero and sys.stdout.isatty():
            self._view = _Bar()
        self._view.start(int(trainer.estimated_stepping_batches), trainer.global_step)
        self._restart_clock(trainer)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._restart_clock(trainer)

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        self._losses.append(outputs["loss"].detach())
        step = trainer.global_step
        if step == self._since[1] or step % trainer.log_every_n_steps:
            return
        self._report(trainer, step)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.state.fn == "fit" and trainer.global_step > self._since[1]:
            self._report(trainer, trainer.global_step)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.is_global_zero and not trainer.sanity_checking:
            metrics = {
                name: float(value)
                for name, value in trainer.callback_metrics.items()
                if name.startswith("val/")
            }
            self._view.say(_validation_line(trainer, metrics))
        self._restart_clock(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._view.stop()

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        self._view.stop()

    def _restart_clock(self, trainer: pl.Trainer) -> None:
        self._since = (time.monotonic(), trainer.global_step)
        self._losses.clear()

    def _report(self, trainer: pl.Trainer, step: int) -> None:
        now = time.monotonic()
        mean = torch.stack(self._losses).double().mean().cpu()
        loss = float(self._control.sum(mean)) / trainer.world_size
        seconds, samples = (
            now - self._since[0],
            (step - self._since[1]) * self._batches.global_batch,
        )
        self._windows.append((seconds, samples))
        rate = samples / seconds
        for sink in trainer.loggers:
            sink.log_metrics(
                {"train/loss": loss, "train/samples_per_s": rate, "epoch": trainer.current_epoch},
                step,
            )
        if trainer.is_global_zero:
            self._view.advance(step, trainer.current_epoch, loss, rate, self._batches.global_batch)
        self._since = (now, step)
        self._losses.clear()


class _Lines:
    """One line per report, for log files."""

    def start(self, steps: int, step: int) -> None:
        self._steps = steps

    def advance(self, step: int, epoch: int, loss: float, rate: float, global_batch: int) -> None:
        left = (self._steps - step) * global_batch / rate
        logger.info(
            "epoch %d  step %d/%d  loss %.4f  %.1f samples/s  ETA %s",
            epoch,
            step,
            self._steps,
            loss,
            rate,
            _clock(left),
        )

    def say(self, line: str) -> None:
        logger.info(line)

    def stop(self) -> None:
        pass


class _Bar:
    """A progress bar on rank 0's terminal."""

    def start(self, steps: int, step: int) -> None:
        self._progress = Progress(
            TextColumn("epoch {task.fields[epoch]}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]:.4f}  {task.fields[rate]:.1f} samples/s  ETA"),
            TimeRemainingColumn(),
            console=Console(markup=False),
        )
        self._task: TaskID = self._progress.add_task(
            "", total=steps, completed=step, epoch=0, loss=0.0, rate=0.0
        )
        self._progress.start()

    def advance(self, step: int, epoch: int, loss: float, rate: float, global_batch: int) -> None:
        self._progress.update(self._task, completed=step, epoch=epoch, loss=loss, rate=rate)

    def say(self, line: str) -> None:
        self._progress.console.print(line)

    def stop(self) -> None:
        self._progress.stop()


def _validation_line(trainer: pl.Trainer, metrics: dict[str, float]) -> str:
    when = f"epoch {trainer.current_epoch}" if trainer.state.fn == "fit" else "before training"
    parts = [f"validation ({when})"]
    if "val/loss" in metrics:
        parts.append(f"loss {metrics['val/loss']:.4f}")
    if "val/ade" in metrics:
        parts.append(f"ADE {metrics['val/ade']:.3f} m  FDE {metrics['val/fde']:.3f} m")
    if "val/ade_constant_velocity" in metrics:
        parts.append(
            f"(constant velocity: {metrics['val/ade_constant_velocity']:.3f} m, "
            f"{metrics['val/fde_constant_velocity']:.3f} m)"
        )
    return "  ".join(parts)


def _clock(seconds: float) -> str:
    hours, rest = divmod(round(seconds), 3600)
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d}"
