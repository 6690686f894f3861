"""Where the time of training steps goes: timers that are always on, at the places that Lightning
offers to profilers.

The host's clock is read at each of them. On a GPU that is when work was handed over, so now and
then (one step in `DEVICE_EVERY`, one in `DEVICE_SECONDS`) a step also leaves CUDA events, which are
read in a later step, once they have passed: nothing waits for the GPU. What the exchange of
gradients takes, and how much of it the backward pass hides, is timed in one step of a hundred: by
`ExchangeTimes`, or under DistributedDataParallel by its own timers.
"""

import time
from collections import deque
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.profilers import Profiler
from torch.nn.parallel import DistributedDataParallel

from convoy.training.speed.strategy import MeanStrategy

DEVICE_EVERY = 8  # steps; events cost more than a clock
DEVICE_SECONDS = 0.1  # between such steps: in short steps the events would be seen
MOST_PENDING = 4  # sets of events on their way
FIRST_BATCHES = 3  # of an epoch: they fill queues and caches
RANGE = "step: "  # begins the names of a trace's ranges

_FETCH, _BATCH, _SAVE = "train_dataloader_next", "run_training_batch", "save_checkpoint"
_PARTS = {_BATCH: "batch", _SAVE: "checkpoint"}
_METHODS = {"batch_to_device": "copy", "training_step": "forward", "backward": "backward"}
_LOGGING = ("on_train_batch_start", "on_train_batch_end")  # of all callbacks
_EPOCH, _VALIDATION = "run_training_epoch", ("on_validation_start", "on_validation_end")


class StepTimers(Profiler):
    """Means of the parts of a training step since `take` was last called.

    `one_piece`: forward, backward and optimizer are one call (a CUDA graph), which nothing from
    outside tells apart. With `annotate` the parts are ranges of a running torch.profiler as well.
    """

    def __init__(self, one_piece: bool = False, on_gpu: bool = False) -> None:
        super().__init__()
        self.one_piece, self.annotate = one_piece, False
        self.device = _DeviceTimers(one_piece) if on_gpu else None
        self._stages: dict[str, _Stage] = {}
        self._sums: dict[str, float] = {}
        self._steps, self._took = 0, 0.0
        self._step: dict[str, float] | None = None  # the parts of the present step, if it counts
        self._fetched = 0.0  # when its batch was asked for
        self._batch = 0  # of this epoch

    def profile(self, action_name: str) -> Any:
        """Of each place that Lightning names; cheaper than its own empty profiler's."""
        stage = self._stages.get(action_name)
        if stage is None:
            stage = self._stages[action_name] = self._make(action_name)
        return stage

    def start(self, action_name: str) -> None:
        self.profile(action_name).__enter__()

    def stop(self, action_name: str) -> None:
        self.profile(action_name).__exit__()

    def _make(self, action: str) -> "_Stage":
        where, _, method = action.rpartition(".")
        if method == _FETCH:
            return _Fetch(self, "data_wait")
        if action == _EPOCH or method in _VALIDATION:
            return _Interruption(self, at_epoch=action == _EPOCH)
        if method in _LOGGING and where.startswith("[Callback]"):
            return _Part(self, "logging")
        part = _METHODS.get(method) if where.startswith("[Strategy]") else _PARTS.get(action)
        return _Part(self, part) if part else _Stage()

    def step_begins(self, now: float) -> None:
        if self._step is not None:
            self._steps += 1
            self._took += now - self._fetched
            for part, seconds in self._step.items():
                self._sums[part] = self._sums.get(part, 0.0) + seconds
        self._batch += 1
        self._step = {} if self._batch > FIRST_BATCHES else None
        self._fetched = now
        if self.device is not None:
            self.device.step_begins(now, counts=self._step is not None)

    def interrupted(self, at_epoch: bool) -> None:
        """An epoch or a validation comes between: the end of the last step is not known."""
        self._step = None
        self._batch = 0 if at_epoch else self._batch

    def add(self, part: str, seconds: float) -> None:
        if self._step is not None:
            self._step[part] = self._step.get(part, 0.0) + seconds

    def take(self, trainer: pl.Trainer) -> dict[str, Any] | None:
        """Means of a step in seconds; None before the first step that counts.

        `step_s` is the whole step and `parts_s` its parts by the host's clock; `device_s` those of
        the GPU by CUDA events; `communication_s` the exchange of gradients, and of it
        `communication_hidden_s` beside the backward pass.
        """
        if not self._steps:
            return None
        means = {part: total / self._steps for part, total in self._sums.items()}
        step = self._took / self._steps
        batch, checkpoint = means.pop("batch", 0.0), means.pop("checkpoint", 0.0)
        forward, backward = means.pop("forward", 0.0), means.pop("backward", 0.0)
        parts = {"data_wait": means.get("data_wait", 0.0), "copy": means.get("copy", 0.0)}
        if self.one_piece:
            parts["one_piece"] = batch
        else:
            parts |= {"forward": forward, "backward": backward}
            parts["optimizer"] = batch - forward - backward
        # A checkpoint is written from a callback.
        parts |= {"logging": means.get("logging", 0.0) - checkpoint, "checkpoint": checkpoint}
        parts["other"] = step - sum(parts.values())
        found: dict[str, Any] = {"steps": self._steps, "step_s": step, "parts_s": parts}
        if self.device is not None:
            found["device_s"] = self.device.take()
        found |= _communication(trainer)
        self._sums, self._steps, self._took = {}, 0, 0.0
        return found


class _Stage:
    """A place that Lightning names and nothing is measured at."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, *reason: Any) -> None:
        pass


class _Part(_Stage):
    def __init__(self, timers: StepTimers, part: str) -> None:
        self._timers, self._part = timers, part
        device = timers.device
        self._device = device if device is not None and part in device.marked else None
        self._range: torch.profiler.record_function | None = None

    def __enter__(self) -> None:
        if self._timers.annotate:
            self._range = torch.profiler.record_function(RANGE + self._part)
            self._range.__enter__()
        if self._device is not None and self._device.samples:
            self._device.mark(self._part, "begin")
        self._began = time.perf_counter()

    def __exit__(self, *reason: Any) -> None:
        self._timers.add(self._part, time.perf_counter() - self._began)
        if self._device is not None and self._device.samples:
            self._device.mark(self._part, "end")
        if self._range is not None:
            self._range.__exit__(None, None, None)
            self._range = None


class _Fetch(_Part):
    def __enter__(self) -> None:
        self._timers.step_begins(time.perf_counter())
        super().__enter__()


class _Interruption(_Stage):
    def __init__(self, timers: StepTimers, at_epoch: bool) -> None:
        self._timers, self._at_epoch = timers, at_epoch

    def __enter__(self) -> None:
        self._timers.interrupted(self._at_epoch)


class _DeviceTimers:
    """CUDA events around the parts of some steps."""

    def __init__(self, one_piece: bool) -> None:
        # Name of a span: the part and the end of it that it begins at, the part it ends with.
        self._spans = {"copy": ("copy", "begin", "copy")}
        if one_piece:
            self._spans["one_piece"] = ("batch", "begin", "batch")
        else:
            self._spans["forward"] = ("forward", "begin", "forward")
            self._spans["backward"] = ("backward", "begin", "backward")
            self._spans["optimizer"] = ("backward", "end", "batch")
        self.marked = {part for begin, _, last in self._spans.values() for part in (begin, last)}
        self.samples = False  # whether the present step is marked
        self._steps = 0
        self._sampled = 0.0  # when the last one was
        self._marks: dict[tuple[str, str], torch.cuda.Event] = {}
        self._pending: deque[dict[tuple[str, str], torch.cuda.Event]] = deque()
        self._spare: list[torch.cuda.Event] = []
        self._sums: dict[str, float] = {}
        self._read = 0

    def step_begins(self, now: float, counts: bool) -> None:
        if self._marks:
            self._pending.append(self._marks)
            self._marks = {}
        while self._pending and self._pending[0]["batch", "end"].query():
            self._add(self._pending.popleft())
        self._steps += 1
        waits = len(self._pending) == MOST_PENDING
        is_due = self._steps % DEVICE_EVERY == 0 and now - self._sampled >= DEVICE_SECONDS
        self.samples = counts and not waits and is_due
        if self.samples:
            self._sampled = now

    def mark(self, part: str, end: str) -> None:
        event = self._spare.pop() if self._spare else torch.cuda.Event(enable_timing=True)
        event.record()
        self._marks[part, end] = event

    def _add(self, marks: dict[tuple[str, str], torch.cuda.Event]) -> None:
        for name, (part, end, last) in self._spans.items():
            took = marks[part, end].elapsed_time(marks[last, "end"]) / 1000
            self._sums[name] = self._sums.get(name, 0.0) + took
        self._read += 1
        self._spare += marks.values()

    def take(self) -> dict[str, float]:
        """Means in seconds of the steps that were read since the last call."""
        means = {name: total / self._read for name, total in self._sums.items()}
        self._sums, self._read = {}, 0
        return means


def _communication(trainer: pl.Trainer) -> dict[str, float]:
    """Of the last step whose exchange of gradients was timed, where it can be timed alone."""
    if isinstance(trainer.strategy, MeanStrategy):
        exchange = trainer.strategy.times.seconds()
        names = ("communication_s", "communication_hidden_s")
        return {} if exchange is None else dict(zip(names, exchange, strict=True))
    model = trainer.strategy.model
    if not isinstance(model, DistributedDataParallel):
        return {}
    facts = model._get_ddp_logging_data()
    took = facts.get("backward_comm_time", 0) / 1e9  # nanoseconds
    hidden = facts.get("backward_compute_comm_overlap_time", 0) / 1e9
    return {"communication_s": took, "communication_hidden_s": min(hidden, took)} if took else {}
