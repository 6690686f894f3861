"""Runs a training program with one more Lightning callback, a clock; both sides get the same one.

    python benchmarks/timed.py [--resident] [--profile TABLE] RECORD MODULE ARGUMENT…
    python benchmarks/timed.py --plans PLANS RECORD MODULE ARGUMENT…

MODULE is NAVSIM's navsim.planning.script.run_training, unedited, or convoy.launch.rank. With
--resident Convoy trains on one batch again and again, which stays on the GPU; with --profile ten
steps of the last epoch are profiled, and their kernels listed. With --plans the record has what
bucket_plans.py finds instead.
"""

import argparse
import inspect
import json
import runpy
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import navsim_script

import convoy.navsim.torchvision_cpu  # noqa: F401  # before Lightning, which imports torchvision

# isort: split
import pytorch_lightning as pl
import torch
from bucket_plans import BucketPlans

WARM = 12  # steps at the head of each epoch that do not count: queues fill, kernels are chosen


class Clock(pl.Callback):
    """Writes times of steps; it waits for the GPU twice an epoch and not in between."""

    def __init__(self, record: Path, table: Path | None = None) -> None:
        self._record, self._table = record, table
        self._profiler: torch.profiler.profile | None = None
        self._epochs: list[dict[str, Any]] = []
        self._last_end = self._waited = 0.0
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
        if self._table is not None and trainer.current_epoch == trainer.max_epochs - 1:
            self._profile(self._table, batch_idx)
            return
        if batch_idx in (WARM, steps - 1):
            synchronize()
        self._last_end = time.perf_counter()
        if len(self._ends) < 64:
            self._ends.append(time.time())
        if batch_idx == WARM:
            self._since, self._waited = self._last_end, 0.0
        elif batch_idx == steps - 1 and steps > WARM + 1:
            seconds = self._last_end - self._since
            self._epochs.append(
                {"steps": steps - 1 - WARM, "seconds": seconds, "waited": self._waited}
            )
            if trainer.is_global_zero:
                self._write()  # what comes after an epoch can end a run

    def _profile(self, table: Path, batch_idx: int) -> None:
        if batch_idx == WARM:
            synchronize()
            activity = torch.profiler.ProfilerActivity
            self._profiler = torch.profiler.profile(activities=[activity.CPU, activity.CUDA])
            self._profiler.start()
        elif batch_idx == WARM + 10 and self._profiler is not None:
            synchronize()
            self._profiler.stop()
            averages = self._profiler.key_averages()
            table.write_text(averages.table(sort_by="self_cuda_time_total", row_limit=60))

    def _write(self) -> None:
        memory = torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else 0.0
        record = {
            "epochs": self._epochs,
            "step_ends": self._ends,
            "memory_gib": memory,
        }
        self._record.write_text(json.dumps(record))


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def add_callback(callback: pl.Callback) -> None:
    plain = pl.Trainer.__init__

    def init(self: pl.Trainer, *arguments: Any, callbacks: Any = None, **options: Any) -> None:
        plain(self, *arguments, callbacks=[*(callbacks or []), callback], **options)

    init.__signature__ = inspect.signature(plain)  # type: ignore[attr-defined]
    pl.Trainer.__init__ = init


def keep_resident() -> None:
    """Let Convoy's loop get its first batch each time, where it lies on the GPU."""
    from convoy.data.prefetch import DevicePrefetcher

    plain = DevicePrefetcher.__iter__

    def iterate(self: DevicePrefetcher) -> Iterator[Any]:
        batch = next(plain(self))
        for _ in range(len(self)):
            yield batch

    DevicePrefetcher.__iter__ = iterate  # type: ignore[method-assign]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--resident", action="store_true")
    parser.add_argument("--profile", type=Path)
    parser.add_argument("--plans", default="")
    parser.add_argument("record", type=Path)
    parser.add_argument("module")
    parser.add_argument("arguments", nargs=argparse.REMAINDER)
    args = parser.parse_args()
    navsim_script.prepare_imports()
    if args.resident:
        keep_resident()
    if args.plans:
        add_callback(BucketPlans(args.record, args.plans.split(",")))
    else:
        add_callback(Clock(args.record, args.profile))
    sys.argv = [args.module, *args.arguments]
    runpy.run_module(args.module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
