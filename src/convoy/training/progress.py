"""What a person sees of a training run, and the training curve: samples/s, loss, ETA."""

import logging
import sys
import time
from dataclasses import dataclass
from typing import Any

import pytorch_lightning as pl
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
from convoy.run.progress import ProgressFile, RunProgress
from convoy.training.means import Means, Sums
from convoy.training.module import AgentModule
from convoy.training.process_group import HostGroup
from convoy.training.stopping import StoppedEarly

logger = logging.getLogger("convoy")

# Steps between the end of a window and its report on a GPU: who reads a step's scalars while no
# other step has been handed over leaves the GPU without work.
LATER = 4


@dataclass(frozen=True)
class _Window:
    """The steps between two reports."""

    step: int  # the last one
    epoch: int
    seconds: float
    samples: int
    sums: Sums


class ProgressReport(pl.Callback):
    """Reports the agent's scalars (means over ranks and steps) and samples/s, every
    `trainer.log_every_n_steps` optimiser steps; on a GPU a few steps later.

    They go to the loggers and to rank 0's terminal (a bar) or log (a line).
    """

    def __init__(self, batches: BatchPlan, host_group: HostGroup, file: ProgressFile) -> None:
        self._batches = batches
        self._host_group = host_group
        self._file = file
        self._means = Means(())
        self._view: _Bar | _Lines = _Lines()
        self._windows: list[tuple[float, int]] = []  # seconds and samples of each report
        self._ended: _Window | None = None  # and not reported yet
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

    @property
    def steps(self) -> int:
        """Optimiser steps of this start that were reported."""
        return sum(samples for _, samples in self._windows) // self._batches.global_batch

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.is_global_zero and sys.stdout.isatty():
            self._view = _Bar()
        self._view.start(int(trainer.estimated_stepping_batches), trainer.global_step)
        self._restart_clock(trainer, pl_module)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._restart_clock(trainer, pl_module)

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        self._means.add({name: value.detach() for name, value in outputs.items()})
        step = trainer.global_step
        if self._ended is not None and step >= self._ended.step + LATER:
            self._report(trainer)
        if step > self._since[1] and step % trainer.log_every_n_steps == 0:
            self._end_window(trainer, pl_module)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._report(trainer)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.state.fn == "fit" and trainer.global_step > self._since[1]:
            self._end_window(trainer, pl_module)
        self._report(trainer)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.is_global_zero and not trainer.sanity_checking:
            metrics = {
                name: float(value)
                for name, value in trainer.callback_metrics.items()
                if name.startswith("val/")
            }
            self._view.say(_validation_line(trainer, metrics))
        self._restart_clock(trainer, pl_module)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._report(trainer)
        self._view.stop()

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        if isinstance(exception, StoppedEarly):  # all ranks end after the same step
            self._report(trainer)
        self._view.stop()

    def _restart_clock(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, AgentModule)
        self._since = (time.monotonic(), trainer.global_step)
        self._means = Means(pl_module.rehearsal.train)

    def _end_window(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, AgentModule)
        self._report(trainer)
        now, step = time.monotonic(), trainer.global_step
        samples = (step - self._since[1]) * self._batches.global_batch
        seconds = now - self._since[0]
        self._ended = _Window(step, trainer.current_epoch, seconds, samples, self._means.send())
        self._since = (now, step)
        self._means = Means(pl_module.rehearsal.train)
        if not self._ended.sums.on_their_way:
            self._report(trainer)

    def _report(self, trainer: pl.Trainer) -> None:
        """Of the window that has ended, if there is one; all ranks call it after the same step."""
        if self._ended is None:
            return
        window, self._ended = self._ended, None
        means = window.sums.over_ranks(self._host_group)
        self._windows.append((window.seconds, window.samples))
        rate = window.samples / window.seconds
        for sink in trainer.loggers:
            sink.log_metrics(
                {f"train/{name}": mean for name, mean in means.items()}
                | {"train/samples_per_s": rate, "epoch": window.epoch},
                window.step,
            )
        if trainer.is_global_zero:
            loss = means["loss"]
            step, steps = window.step, int(trainer.estimated_stepping_batches)
            left = (steps - step) * self._batches.global_batch / rate
            self._view.advance(step, steps, window.epoch, loss, rate, left)
            start = self._host_group.topology.start
            report = RunProgress(start, step, steps, window.epoch, loss, rate, left, time.time())
            self._file.write(report, at_once=step == steps)


class _Lines:
    """One line per report, for log files."""

    def start(self, steps: int, step: int) -> None:
        pass

    def advance(
        self, step: int, steps: int, epoch: int, loss: float, rate: float, left: float
    ) -> None:
        logger.info(
            "epoch %d  step %d/%d  loss %.4f  %.1f samples/s  ETA %s",
            epoch,
            step,
            steps,
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

    def advance(
        self, step: int, steps: int, epoch: int, loss: float, rate: float, left: float
    ) -> None:
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
