"""Notices that a run makes no progress: no step for so many minutes, or nobody left to start it.

Each rank counts its steps in `ranks/rank-<rank>.json`, with a sign of life. When no step has come
for too long, every rank that still can writes the stacks of its threads to its log, looks at the
others' files, names the one that is behind, and ends. The launch then starts the run again.
"""

import contextlib
import faulthandler
import json
import logging
import os
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

import pytorch_lightning as pl

from convoy.errors import ExitCode
from convoy.run.atomic import write_text
from convoy.run.layout import RunDirectory
from convoy.run.stop_request import StopRequest
from convoy.topology import Topology

logger = logging.getLogger("convoy")

STANDARD_ERROR = 2  # the descriptor, whatever Python has in its place
BEAT = 5.0  # seconds between a rank's signs of life
ORPHAN_GRACE = 60.0  # seconds that a rank without its launcher has to save and end


@dataclass(frozen=True)
class RankState:
    """What one rank is doing. `progress` counts batches, the same on all ranks; `beat` counts signs
    of life; `phase` is starting, training, validating or saving."""

    rank: int
    host: str
    pid: int
    phase: str = "starting"
    epoch: int = 0
    step: int = 0
    progress: int = 0
    beat: int = 0
    time: float = 0.0

    @property
    def described(self) -> str:
        return f"rank {self.rank} on {self.host} ({self.phase}, step {self.step})"


class Watchdog(pl.Callback):
    """`limit` is in minutes, 0 for none. `failed` leaves a failure record with a message."""

    def __init__(
        self,
        run: RunDirectory,
        topology: Topology,
        request: StopRequest,
        limit: float,
        record: Callable[..., None],
        failed: Callable[[str], None],
    ) -> None:
        self._run, self._topology, self._request = run, topology, request
        self._limit = limit * 60
        self._record, self._failed = record, failed
        self._beat = min(BEAT, self._limit / 6) if limit else BEAT
        self._state = RankState(topology.rank, topology.host, os.getpid())
        self._moved = time.monotonic()
        self._armed = False
        self._parent = os.getppid()
        self._orphan_since: float | None = None
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    # --- Lightning's hooks: where this rank is

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if not self._thread.is_alive():
            self._thread.start()

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._move(trainer, "training")

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        self._armed = self._limit > 0
        self._move(trainer, "training")

    def on_validation_batch_start(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self._move(trainer, "validating")

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._move(trainer, "saving")

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        self._armed = False
        faulthandler.cancel_dump_traceback_later()

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self._armed = False
        if stage == "fit":
            self._ended.set()
            faulthandler.cancel_dump_traceback_later()

    def _move(self, trainer: pl.Trainer, phase: str) -> None:
        self._state = replace(
            self._state,
            phase=phase,
            epoch=trainer.current_epoch,
            step=trainer.global_step,
            progress=self._state.progress + 1,
        )
        self._moved = time.monotonic()

    # --- the thread

    def _watch(self) -> None:
        self._sign_of_life()
        while not self._ended.wait(self._beat):
            self._sign_of_life()
            self._look_for_requests()
            silence = time.monotonic() - self._moved
            if self._armed and silence >= self._limit:
                self._end(silence)
            if self._armed:
                # For a rank that holds Python's lock, so that this thread cannot run any more.
                patience = self._limit * 1.5 + 60
                faulthandler.dump_traceback_later(patience, exit=True, file=STANDARD_ERROR)

    def _sign_of_life(self) -> None:
        state = replace(self._state, beat=self._state.beat + 1, time=round(time.time(), 3))
        # The other thread may have moved on meanwhile: only the count of beats is this one's.
        self._state = replace(self._state, beat=state.beat)
        with contextlib.suppress(OSError):
            text = json.dumps(asdict(state)) + "\n"
            write_text(self._run.rank_state(self._topology.rank), text, durable=False)

    def _look_for_requests(self) -> None:
        if self._topology.launcher != "torchrun" or os.getppid() == self._parent:
            return
        if self._orphan_since is None:
            self._orphan_since = time.monotonic()
            logger.warning("torchrun's agent has gone: saving a checkpoint and ending")
            self._request.ask(15)
        elif time.monotonic() - self._orphan_since > ORPHAN_GRACE:
            os._exit(ExitCode.RESUMABLE)

    def _end(self, silence: float) -> None:
        """Stacks first, while the others write theirs; then who it was; then the end."""
        logger.error("no step for %.0f s: the stacks of this rank's threads follow", silence)
        for handler in logging.getLogger().handlers:
            handler.flush()
        faulthandler.dump_traceback(file=STANDARD_ERROR, all_threads=True)
        before = read_states(self._run, self._topology.world_size)
        for _ in range(3):
            time.sleep(self._beat)
            self._sign_of_life()
        after = read_states(self._run, self._topology.world_size)
        message = verdict(before, after, self._limit, self._topology.world_size)
        logger.error("%s", message)
        alive = [state.rank for state in after if state not in before]
        if self._topology.rank == min(alive, default=self._topology.rank):
            self._record("stuck", message=message)
        self._failed(message)
        os._exit(ExitCode.RESUMABLE)


def read_states(run: RunDirectory, world_size: int) -> list[RankState]:
    """The ranks' files, in order of rank; those that cannot be read are left out."""
    states = []
    for rank in range(world_size):
        with contextlib.suppress(OSError, ValueError, TypeError):
            states.append(RankState(**json.loads(run.rank_state(rank).read_text())))
    return states


def verdict(before: list[RankState], after: list[RankState], limit: float, world_size: int) -> str:
    """Which rank holds the others up: one without a sign of life, else the one that is behind."""
    beats = {state.rank: state.beat for state in before}
    dead = [state.described for state in after if beats.get(state.rank) == state.beat]
    dead += [f"rank {rank}" for rank in sorted(set(range(world_size)) - beats.keys())]
    said = f"No step for {limit / 60:g} minutes: "
    if dead:
        return said + ", ".join(f"{name} shows no sign of life" for name in dead) + "."
    least = min((state.progress for state in after), default=0)
    behind = [state for state in after if state.progress == least]
    if len(behind) < len(after):
        names = ", ".join(state.described for state in behind)
        return f"{said}{names} is behind the others; its stacks are in its log."
    where = f" at step {after[0].step} ({after[0].phase})" if after else ""
    return (
        f"{said}all ranks wait{where}, in a collective or for the file system; their stacks are in "
        "their logs."
    )
