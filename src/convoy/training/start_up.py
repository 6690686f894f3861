"""Where the time from a rank's start to its first steps goes: a line in the log, and an event.

A run that is preempted often pays it again each time. The parts follow one another: what is not
named is in the part that comes next.
"""

import logging
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytorch_lightning as pl

from convoy.run import garbage

logger = logging.getLogger("convoy")


class StartUp(pl.Callback):
    """`reached(part)` ends a part; this start's step number `last_step` ends the last one."""

    def __init__(self) -> None:
        self._record: Callable[..., None] = lambda kind, **facts: None
        self._last_step = 1
        self._since = time.monotonic() - _age()
        self._parts: dict[str, float] = {}
        self._batches = 0

    def reached(self, part: str) -> None:
        self._parts[part] = time.monotonic() - self._since - sum(self._parts.values())

    def tell(self, record: Callable[..., None], last_step: int) -> None:
        """Where to, and with a step into which everything that is done once has gone."""
        self._record, self._last_step = record, last_step

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.reached("trainer")

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        self._batches += 1
        if self._batches == 1:
            self.reached("first step")
        if self._batches == self._last_step:
            if self._last_step > 1:
                self.reached(f"steps 2 to {self._last_step}")
            self._tell()
            garbage.look_as_usual()

    def _tell(self) -> None:
        whole = sum(self._parts.values())
        parts = ", ".join(f"{part} {seconds:.1f}" for part, seconds in self._parts.items())
        logger.info("step %d after %.1f s: %s", self._last_step, whole, parts)
        self._record(
            "first_step",
            step=self._last_step,
            seconds=round(whole, 2),
            parts={part: round(seconds, 2) for part, seconds in self._parts.items()},
        )


def _age() -> float:
    """Seconds since this process was started; a forked one, since it was forked."""
    started = Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19]
    return time.clock_gettime(time.CLOCK_BOOTTIME) - int(started) / os.sysconf("SC_CLK_TCK")
