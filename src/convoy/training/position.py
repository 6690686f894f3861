"""Where a run stands, in Lightning's counters, so that a resumed run does what an uninterrupted one
would have done next.

Lightning's own counters resume exactly from most of the moments at which a checkpoint is written
here. From one they do not, and are completed: before a validation, which Lightning would skip.
"""

from enum import StrEnum
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.loops.loop import _Loop


class Moment(StrEnum):
    """What a checkpoint was written after."""

    STEP = "step"
    BEFORE_VALIDATION = "before validation"
    VALIDATION = "validation"
    END = "end"


def describe(trainer: pl.Trainer, moment: Moment) -> dict[str, Any]:
    """What a checkpoint must say beside Lightning's counters."""
    return {
        "moment": str(moment),
        "accumulation": trainer.accumulate_grad_batches,
        # A plateau scheduler and the results of a finished run read them; Lightning forgets them.
        "metrics": {name: float(value) for name, value in trainer.callback_metrics.items()},
    }


def resume(trainer: pl.Trainer, loops: dict[str, Any], said: dict[str, Any]) -> None:
    """Complete the counters of a loaded checkpoint, in place, before Lightning takes them."""
    fit = loops["fit_loop"]
    rescale(fit["epoch_loop.batch_progress"], said["accumulation"], trainer.accumulate_grad_batches)
    if said["moment"] == Moment.BEFORE_VALIDATION:
        # A validation that has started and got nowhere: Lightning starts it from the beginning.
        validation = fit["epoch_loop.val_loop.batch_progress"]
        done = validation["total"]["completed"]
        validation["total"].update(ready=done + 1, started=done + 1, processed=done, completed=done)
        validation["current"] = dict.fromkeys(validation["current"], 0)


def began(trainer: pl.Trainer, said: dict[str, Any]) -> None:
    """To be called when the training begins, with what the checkpoint said."""
    trainer._logger_connector._callback_metrics.update(
        {name: torch.tensor(value) for name, value in said["metrics"].items()}
    )


def went_on(trainer: pl.Trainer) -> None:
    """To be called after each step or validation. Lightning counts the whole first epoch as
    restarting, and then leaves out the plateau schedulers at its end."""
    if trainer.fit_loop.restarting:
        # Not the fit loop's own setter: with max_steps it makes True of False, and the epoch after
        # a resumed one would then end after one batch.
        _Loop.restarting.fset(trainer.fit_loop, False)


def rescale(progress: dict[str, Any], saved: int, now: int) -> None:
    """Convert batch counters from an accumulation of `saved` batches a step to one of `now`, in
    place.

    Checkpoints are written between optimiser steps, so the counts are whole steps. `completed` may
    be one behind `processed` (a checkpoint written in a batch's end hook) and stays so.
    """
    for counts in (progress["current"], progress["total"]):
        behind = counts["processed"] - counts["completed"]
        for name in ("ready", "started", "processed"):
            if counts[name] % saved:
                raise ValueError(f"{name}={counts[name]} is not a whole number of steps of {saved}")
            counts[name] = counts[name] // saved * now
        counts["completed"] = counts["processed"] - behind
