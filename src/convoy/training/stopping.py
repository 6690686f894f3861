"""Stopping early, resumably: a signal is only remembered, the ranks agree on a step, save, and end.

Signals reach each rank at another moment, or one of them only. About once a second the ranks
compare what they were told, in the background and on the host; the outcome is read one step later,
so nobody waits and no GPU is synchronised, and every rank acts after the same step.
"""

import signal
import time
from collections.abc import Callable
from dataclasses import dataclass

import pytorch_lightning as pl
import torch

from convoy.errors import ConvoyError, ExitCode
from convoy.run.stop_request import StopRequest
from convoy.training.process_group import HostGroup, Pending


class StoppedEarly(ConvoyError):
    """The run ended before its end and continues with the same command."""

    exit_code = ExitCode.RESUMABLE


@dataclass(frozen=True)
class Decision:
    """What all ranks do after this step. `signal` is a number, 0 to continue."""

    signal: int = 0
    save: bool = False
    refused: bool = False

    @property
    def signal_name(self) -> str:
        return signal.Signals(self.signal).name


class Agreement:
    """Compares the ranks' wishes every `seconds`, counted in steps: all ranks do it together.

    Rank 0 alone wishes to save or refuses to go on; any rank may ask for a stop.
    """

    def __init__(self, host_group: HostGroup, request: StopRequest, seconds: float = 1.0) -> None:
        self._host_group, self._request = host_group, request
        self._seconds = 0.0 if host_group.topology.world_size == 1 else seconds
        self._pending: Pending | None = None
        self._steps_left = 1
        self._every = 1
        self._since = time.monotonic()

    def after_step(self, save: Callable[[], bool], refused: Callable[[], bool]) -> Decision | None:
        """To be called by every rank after each of its steps; the outcome, once there is one."""
        decision = self._outcome()
        self._steps_left -= 1
        if self._steps_left <= 0:
            # What is saved after this step is not wished for again before it is.
            saving = decision is not None and decision.save
            self._begin((lambda: False) if saving else save, refused)
            if self._host_group.topology.world_size == 1:
                decision = self._outcome()
        return decision

    def _begin(self, save: Callable[[], bool], refused: Callable[[], bool]) -> None:
        now = time.monotonic()
        pace = max(now - self._since, 1e-6) / self._every
        self._since = now
        wishes = [self._request.number, 0, 0, 0]
        if self._host_group.topology.is_rank_zero:
            steps = max(1, min(1000, round(self._seconds / pace)))
            wishes = [self._request.number, int(save()), int(refused()), steps]
        self._pending = self._host_group.begin_max(torch.tensor(wishes, dtype=torch.int64))

    def _outcome(self) -> Decision | None:
        if self._pending is None:
            return None
        number, save, refused, self._every = self._pending.result()
        self._pending = None
        self._steps_left = self._every
        return Decision(number, bool(save), bool(refused))


def leave_signals_to_us(trainer: pl.Trainer) -> None:
    """Keep Lightning from replacing the handlers, and from its broadcast before each batch.

    Its SIGTERM handler enters a collective wherever the process stands, which can hang all ranks,
    and its broadcast makes the host wait for the GPU in every step.
    """
    trainer._signal_connector.register_signal_handlers = _nothing
    trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = _nothing


def _nothing() -> None:
    pass
