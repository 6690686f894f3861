"""How long the ranks exchange gradients in a step, and how much of that the backward pass hides."""

import time
from typing import Any, Protocol

import torch

EVERY = 100  # steps, as in DistributedDataParallel's own timers
SECOND = 2  # the first step finds out, after its backward pass, what there is to exchange


class ExchangeTimes:
    """Of one step in `EVERY`. On a GPU by CUDA events, which nothing waits for."""

    def __init__(self, on_gpu: bool) -> None:
        self._now = _event if on_gpu else _Moment
        self._steps = 0
        self._marks: list[Mark] = []
        self._last: list[Mark] = []

    def began(self) -> None:
        """The first gradients set out."""
        self._steps += 1
        self._marks = [self._now()] if self._steps % EVERY == SECOND else []

    def backward_ended(self) -> None:
        """What was queued until now is the backward pass."""
        if self._marks:
            self._marks.append(self._now())

    def ended(self) -> None:
        """What is queued from now on comes after the exchange."""
        if len(self._marks) == 2:
            self._last = [*self._marks, self._now()]
        self._marks = []

    def seconds(self) -> tuple[float, float] | None:
        """(exchange, the part of it beside the backward pass) of the last step that was timed and
        is over; None before there is one."""
        if not self._last or not self._last[-1].query():
            return None
        begin, backward, end = self._last
        return begin.elapsed_time(end) / 1e3, begin.elapsed_time(backward) / 1e3


class Mark(Protocol):
    """torch.cuda.Event, or what stands for it on the CPU."""

    def query(self) -> bool: ...

    def elapsed_time(self, other: Any, /) -> float: ...


class _Moment:
    def __init__(self) -> None:
        self._at = time.perf_counter()

    def query(self) -> bool:
        return True

    def elapsed_time(self, later: "_Moment", /) -> float:
        return (later._at - self._at) * 1e3


def _event() -> torch.cuda.Event:
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event
