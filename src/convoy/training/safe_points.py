"""Where a run may be left: after steps and around validations a checkpoint is written when one is
due, and the run ends there when it was asked to."""

import logging
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Checkpoint

from convoy.errors import ConvoyError
from convoy.run.stop_request import StopRequest
from convoy.training import position
from convoy.training.checkpoint import CheckpointFolder, CheckpointWriter
from convoy.training.position import Moment
from convoy.training.process_group import HostGroup
from convoy.training.stopping import Agreement, Decision, StoppedEarly

logger = logging.getLogger("convoy")


class SafePoints(Checkpoint):
    """Writes `step-<step>.ckpt` every so many minutes (rank 0's clock decides for all), before and
    after each validation and at the end; ends the run, resumably, when any rank was asked to."""

    def __init__(
        self,
        folder: CheckpointFolder,
        writer: CheckpointWriter,
        host_group: HostGroup,
        request: StopRequest,
        record: Callable[..., None],
        monitor: str,
        every_minutes: float,
        keep: int,
        score_every: int | None = None,
    ) -> None:
        """`record` takes an event's name and facts; `monitor` is the metric that the best
        checkpoint has the least of; `keep` is how many stay beside the best; the one after the
        validation of every `score_every`-th epoch is offered to be scored."""
        self._folder, self._writer, self._host_group, self._request = (
            folder,
            writer,
            host_group,
            request,
        )
        self._record, self._interval, self._keep = record, every_minutes * 60, keep
        self._monitor, self._score_every = monitor, score_every
        self._agreement = Agreement(host_group, request, min(1.0, self._interval))
        self._stop: Decision | None = None
        self._saved_at = math.inf  # by the clock; the interval begins with the first step's end
        self._saved_step = -1
        self._moment: Moment | None = None  # of the checkpoint being written
        self._resumed: dict[str, Any] | None = None  # what the checkpoint that it began from said
        self._best: float | None = None

    # --- the state beside Lightning's

    def state_dict(self) -> dict[str, Any]:
        return {"best": self._best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._best = state_dict["best"]

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        # None: an agent's own callback writes a checkpoint of its own.
        checkpoint["validation"] = pl_module.validation
        checkpoint["convoy"] = position.describe(trainer, self._moment or Moment.VALIDATION)

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        self._resumed = checkpoint["convoy"]
        position.resume(trainer, checkpoint["loops"], self._resumed)
        pl_module.validation = checkpoint["validation"]
        self._saved_step = checkpoint["global_step"]

    # --- the moments

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        trained = (name for name, _ in pl_module.named_parameters())
        self._writer.parameters = frozenset(trained)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._resumed is not None:
            position.began(trainer, self._resumed)

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        position.went_on(trainer)
        if (batch_idx + 1) % trainer.accumulate_grad_batches:
            return
        if math.isinf(self._saved_at):  # a first step can take minutes, of a compiler's
            self._saved_at = time.monotonic()
        decision = self._compare()
        if trainer.is_last_batch:
            return  # what follows in the epoch decides where it may be left
        if self._stop or (decision and decision.save) or trainer.global_step == trainer.max_steps:
            self._save(trainer, Moment.STEP)
        self._end_if_asked(trainer)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """What a validation needs can end a run (its memory, say): the steps before are saved."""
        if self._between_steps(trainer):
            if trainer.global_step != self._saved_step:
                self._save(trainer, Moment.BEFORE_VALIDATION)
            self._end_if_asked(trainer)

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if self._between_steps(trainer):
            self._compare()
            self._end_if_asked(trainer)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._between_steps(trainer):
            value = trainer.callback_metrics.get(self._monitor)
            score = None if value is None else float(value)
            improved = score is not None and (self._best is None or score < self._best)
            self._best = score if improved else self._best
            self._save(trainer, Moment.VALIDATION, improved)
            self._end_if_asked(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        position.went_on(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.global_step != self._saved_step:
            self._save(trainer, Moment.END)
        self._writer.wait()
        self._host_group.on_rank_zero(self._require_written)

    # --- what is done there

    def _between_steps(self, trainer: pl.Trainer) -> bool:
        """False outside of the training, and inside of an accumulation, whose gradients no
        checkpoint holds."""
        if trainer.state.fn != "fit" or trainer.sanity_checking:
            return False
        batches = trainer.fit_loop.epoch_loop.batch_progress.current.ready
        return bool(batches % trainer.accumulate_grad_batches == 0)

    def _compare(self) -> Decision | None:
        decision = self._agreement.after_step(self._due, self._is_refused)
        if decision is not None and decision.refused:
            self._host_group.on_rank_zero(self._raise_refusal)
        if decision is not None and decision.signal and self._stop is None:
            self._stop = decision
            logger.info("asked to stop by %s: saving a checkpoint", decision.signal_name)
            self._record("signal", signal=decision.signal_name)
        return decision

    def _due(self) -> bool:
        return time.monotonic() - self._saved_at >= self._interval and not self._writer.busy

    def _is_refused(self) -> bool:
        return self._writer.refusal is not None

    def _raise_refusal(self) -> None:
        if self._writer.refusal is not None:
            raise self._writer.refusal

    def _save(self, trainer: pl.Trainer, moment: Moment, is_best: bool = False) -> None:
        step = trainer.global_step
        began = time.monotonic()
        ended = moment is Moment.VALIDATION and trainer.is_last_batch
        every = self._score_every
        for_score = every is not None and ended and (trainer.current_epoch + 1) % every == 0

        def written(path: Path) -> None:
            self._folder.point(self._folder.run.last_checkpoint, path)
            if is_best:
                self._folder.point(self._folder.run.best_checkpoint, path)
            if for_score:
                self._folder.offer_for_score(path, step)
            self._folder.rotate(self._keep)
            seconds = round(time.monotonic() - began, 3)
            self._record(
                "checkpoint", step=step, moment=str(moment), file=path.name, seconds=seconds
            )

        self._moment = moment
        self._writer.then(written)
        trainer.save_checkpoint(self._folder.run.step_checkpoint(step), weights_only=False)
        self._moment = None
        self._saved_at, self._saved_step = time.monotonic(), step

    def _end_if_asked(self, trainer: pl.Trainer) -> None:
        if self._stop is None:
            return
        self._writer.wait()
        self._host_group.on_rank_zero(self._raise_refusal)
        failure = self._host_group.on_rank_zero(lambda: self._writer.failure)
        if failure is None:
            kept = f"its checkpoint is {self._folder.run.step_checkpoint(trainer.global_step)}"
        else:
            kept = f"{failure} The same command continues from the previous checkpoint"
        raise StoppedEarly(
            f"Stopped by {self._stop.signal_name} after step {trainer.global_step}; {kept}. "
            "The same command continues from there."
        )

    def _require_written(self) -> None:
        self._raise_refusal()
        if self._writer.failure is not None:
            raise ConvoyError(
                f"The training is done, but its last state is lost. {self._writer.failure} Free "
                "some space and start the same command again: it continues from the previous one."
            )
