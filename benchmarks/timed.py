"""Runs a training program with one more Lightning callback, a clock; both sides get the same one.

    python benchmarks/timed.py RECORD MODULE ARGUMENT…

MODULE is NAVSIM's navsim.planning.script.run_training, unedited, or convoy.launch.rank.
"""

import json
import runpy
import sys
import time
from pathlib import Path
from typing import Any

import navsim_script

import convoy.navsim.torchvision_cpu  # noqa: F401  # before Lightning, which imports torchvision

# isort: split
import pytorch_lightning as pl
import torch

WARM = 12  # steps at the head of each epoch that do not count: queues fill, kernels are chosen


class Clock(pl.Callback):
    """Writes times of steps; it waits for the GPU twice an epoch and not in between."""

    def __init__(self, record: Path) -> None:
        self._record = record
        self._epochs: list[dict[str, Any]] = []
        self._last_end = self._waited = 0.0
        self._started = time.time()
        self._ends: list[float] = []

    def on_train_batch_start(
        self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int
    ) -> None:
        if batch_idx > WARM:
            self._waited += time.perf_counter() - self._last_end

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        steps = int(trainer.num_training_batches)
        if batch_idx in (WARM, steps - 1):
            synchronize()
        self._last_end = time.perf_counter()
        if len(self._ends) < 64:
            self._ends.append(time.time() - self._started)
        if batch_idx == WARM:
            self._since, self._waited = self._last_end, 0.0
        elif batch_idx == steps - 1 and steps > WARM + 1:
            seconds = self._last_end - self._since
            self._epochs.append(
                {"steps": steps - 1 - WARM, "seconds": seconds, "waited": self._waited}
            )

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        memory = torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else 0.0
        record = {
            "epochs": self._epochs, "first_step": self._ends[0], "first_ends": self._ends,
            "memory_gib": memory,
        }  # fmt: skip
        self._record.write_text(json.dumps(record))


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def add_clock(record: Path) -> None:
    plain = pl.Trainer.__init__

    def init(self: pl.Trainer, *arguments: Any, callbacks: Any = None, **options: Any) -> None:
        plain(self, *arguments, callbacks=[*(callbacks or []), Clock(record)], **options)

    init.__signature__ = __import__("inspect").signature(plain)  # type: ignore[attr-defined]
    pl.Trainer.__init__ = init  # type: ignore[method-assign]


if __name__ == "__main__":
    _, record, module, *arguments = sys.argv
    navsim_script.prepare_imports()
    add_clock(Path(record))
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
