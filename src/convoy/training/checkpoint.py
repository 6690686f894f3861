"""Checkpoints: `last.ckpt` by the clock and at each validation, `best.ckpt` by ADE, both written
atomically."""

import os
import time
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from lightning_fabric.plugins import TorchCheckpointIO
from pytorch_lightning.callbacks import Checkpoint, ModelCheckpoint

from convoy.errors import ConvoyError
from convoy.run.layout import RunDirectory
from convoy.training.process_group import Control


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes beside the target, then renames: whatever ends the process, the previous checkpoint
    stays whole."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        """Raises ConvoyError when the file system refuses (no space, no permission)."""
        path = Path(path)
        temporary = path.with_name(f".{path.name}.tmp")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with temporary.open("wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except (
            OSError,
            RuntimeError,
        ) as error:  # torch's zip writer reports a full disk as RuntimeError
            temporary.unlink(missing_ok=True)
            reason = error.strerror if isinstance(error, OSError) else str(error).splitlines()[0]
            kept = "The previous one is whole" if path.exists() else "There is no earlier one"
            raise ConvoyError(
                f"The checkpoint {path} could not be written: {reason}. {kept}. "
                "Free some space and start the same command again, to go on from there."
            ) from error


class LastCheckpoint(Checkpoint):
    """Writes `last.ckpt` every so many minutes (rank 0's clock decides for all) and after each
    validation."""

    def __init__(self, path: Path, every_minutes: float, control: Control) -> None:
        self._path = path
        self._interval = every_minutes * 60
        self._control = control
        self._saved_at = time.monotonic()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._saved_at = time.monotonic()

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        # Asking rank 0 makes the ranks wait for one another, so it is done as often as the reports
        # are, between steps.
        mid_accumulation = (batch_idx + 1) % trainer.accumulate_grad_batches
        if mid_accumulation or trainer.global_step % trainer.log_every_n_steps:
            return
        if self._control.rank_zero_says(time.monotonic() - self._saved_at >= self._interval):
            self._save(trainer)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._save(trainer)

    def _save(self, trainer: pl.Trainer) -> None:
        trainer.save_checkpoint(self._path, weights_only=False)
        self._saved_at = time.monotonic()


class BestCheckpoint(ModelCheckpoint):
    """A class of its own: Lightning takes two of one class that monitor the same for the same, and
    agents bring theirs."""


def checkpoint_callbacks(
    run: RunDirectory, every_minutes: float, control: Control, monitor: str
) -> list[Checkpoint]:
    """Best by `monitor` first, so that `last.ckpt` knows the best score."""
    best = BestCheckpoint(
        dirpath=run.checkpoints,
        filename=run.best_checkpoint.stem,
        monitor=monitor,
        mode="min",
        save_top_k=1,
        enable_version_counter=False,
        save_on_train_epoch_end=False,
    )
    return [best, LastCheckpoint(run.last_checkpoint, every_minutes, control)]


def rescale_progress(progress: dict[str, Any], saved: int, now: int) -> None:
    """Convert Lightning's batch counters from an accumulation of `saved` batches a step to one of
    `now`, in place.

    Checkpoints are written between optimiser steps, so the counts are whole. `completed` may be one
    behind `processed` (Lightning's sign that a checkpoint was written inside a batch's end hook)
    and stays so.
    """
    for counts in (progress["current"], progress["total"]):
        behind = counts["processed"] - counts["completed"]
        for name in ("ready", "started", "processed"):
            counts[name] = counts[name] * now // saved
        counts["completed"] = counts["processed"] - behind
