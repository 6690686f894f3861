"""What the mean of the gradients adds to a step, by the sizes of its buckets.

The step of a training is recorded anew with each plan, and with no exchange at all, and each
recording is replayed by all ranks. A plan is FIRST:USUAL:LAST in MiB, the sizes of
convoy.training.speed.gradients.Buckets, for NCCL, or behind `copies:` for copies between the GPUs.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
import torch.distributed as dist
from torch import nn

from convoy.training.speed.gradients import Buckets, GradientMean
from convoy.training.speed.whole_step import WholeStep

AFTER = 20  # steps of the training
WARM, REPLAYS = 4, 30
ALONE = "no exchange"


class BucketPlans(pl.Callback):
    """Writes {plan: {"ms": of each replay, "buckets": how many}}, then ends the process."""

    def __init__(self, record: Path, plans: list[str]) -> None:
        self._record, self._plans = record, plans
        self._hooks: list[Any] = []
        register = nn.Parameter.register_post_accumulate_grad_hook

        def registered(entry: nn.Parameter, hook: Any) -> Any:
            self._hooks.append(register(entry, hook))
            return self._hooks[-1]

        nn.Parameter.register_post_accumulate_grad_hook = registered  # type: ignore[assignment, method-assign]

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step < AFTER:
            return
        step = pl_module._speed._step
        if step is None or step._graph is None:
            sys.exit("The step is not one CUDA graph here; the log says why.")
        with torch.autocast("cuda", torch.bfloat16, cache_enabled=False):
            found = {plan: self._time(step, plan) for plan in [ALONE, *self._plans]}
        if trainer.is_global_zero:
            self._record.write_text(json.dumps(found))
        dist.barrier()
        os._exit(0)  # the graph that is left holds the ranks' communicator

    def _time(self, step: WholeStep, plan: str) -> dict[str, Any]:
        while self._hooks:
            self._hooks.pop().remove()
        step.release()
        step._mean = None
        if plan != ALONE:
            *copies, first, usual, last = plan.split(":")
            sizes = Buckets(*(int(size) << 20 for size in (first, usual, last)))
            step._mean = GradientMean(
                step._parameters, dist.get_world_size(), sizes=sizes, copies=bool(copies)
            )
        for _ in range(2):
            step._warm_up()
        step._capture()
        for _ in range(WARM):
            self._replay(step)
        torch.cuda.synchronize()
        dist.barrier()
        marks = [self._replay(step) for _ in range(REPLAYS)]
        torch.cuda.synchronize()
        buckets = 0 if step._mean is None else len(step._mean._buckets or ())
        return {"ms": [begin.elapsed_time(end) for begin, end in marks], "buckets": buckets}

    @staticmethod
    def _replay(step: WholeStep) -> tuple[torch.cuda.Event, torch.cuda.Event]:
        assert step._graph is not None
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        step._graph.replay()
        end.record()
        return begin, end
