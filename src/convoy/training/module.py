"""The Lightning module around an agent: its loss, its optimiser, and displacement errors at
validation."""

import json
import math
from collections import deque
from collections.abc import Mapping
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from convoy.agents.contract import TrainableAgent
from convoy.data.cache import Sample
from convoy.errors import ConvoyError
from convoy.run.layout import RunDirectory
from convoy.training.checkpoint import rescale_progress
from convoy.training.metrics import constant_velocity_trajectory, displacement_errors, ego_velocity
from convoy.training.process_group import Control
from convoy.training.speed.acceleration import Acceleration


class AgentModule(pl.LightningModule):
    """Trains any `TrainableAgent`.

    The attribute is called `agent`, and so begin the checkpoint's keys: NAVSIM's callbacks and its
    agents' `initialize` expect just that.
    """

    def __init__(
        self, agent: TrainableAgent, run: RunDirectory, control: Control, speed: Acceleration
    ) -> None:
        super().__init__()
        self.agent = agent
        self._run = run
        self._control = control
        self._speed = speed
        self._finite_check = FiniteCheck()
        self._sums: dict[str, Tensor] = {}

    def training_step(self, batch: Sample, batch_idx: int) -> Tensor:
        self._stop_if_not_finite(self._finite_check.finished())
        if self._speed.steps_itself:
            outcome = self._speed.take_step(batch, self.trainer, self._fast_loss, self._loss)
        else:
            outcome = self._fast_loss(self._speed.prepare(batch))
        loss = outcome["loss"]
        self._finite_check.begin(loss, self.current_epoch, batch_idx)
        if not loss.is_cuda:
            self._stop_if_not_finite(self._finite_check.all())
        return loss

    def _loss(self, batch: Sample) -> dict[str, Tensor]:
        features, targets = batch
        predictions = self.agent.forward(features)
        return {"loss": self.agent.compute_loss(features, targets, predictions)}

    def _fast_loss(self, batch: Sample) -> dict[str, Tensor]:
        features, targets = batch
        predictions = self._speed.forward(features)
        return {"loss": self.agent.compute_loss(features, targets, predictions)}

    # Where a step is one piece, Lightning's parts of it have nothing left to do.

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        if not self._speed.steps_itself:
            super().backward(loss, *args, **kwargs)

    def optimizer_step(
        self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None
    ) -> None:
        if self._speed.steps_itself:
            optimizer_closure()
        else:
            super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)

    def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: Any) -> None:
        if not self._speed.steps_itself:
            super().optimizer_zero_grad(epoch, batch_idx, optimizer)

    def on_train_epoch_end(self) -> None:
        self._stop_if_not_finite(self._finite_check.all())

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """No checkpoint is written after a step whose loss was not finite on any rank."""
        bad = self._finite_check.all()
        ranks = int(self._control.sum(torch.tensor([int(bad is not None)])).item())
        self._stop_if_not_finite(bad)
        if ranks:
            raise ConvoyError(
                f"No checkpoint is written: the loss is not finite on {ranks} other rank(s)."
            )

        checkpoint["accumulation"] = self.trainer.accumulate_grad_batches

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Lightning counts batches; a run that goes on with another accumulation has more or fewer
        of them a step."""
        progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
        rescale_progress(progress, checkpoint["accumulation"], self.trainer.accumulate_grad_batches)

    def on_validation_epoch_start(self) -> None:
        self._sums = {}

    def validation_step(self, batch: Sample, batch_idx: int) -> None:
        features, targets = batch
        predictions = self.agent.forward(features)
        own = self.trainer.datamodule.own_validation_samples(batch_idx)
        if own == 0:
            return
        features, targets, predictions = (
            _first(own, tensors) for tensors in (features, targets, predictions)
        )
        self._add(
            "loss", self.agent.compute_loss(features, targets, predictions).double() * own, own
        )
        if "trajectory" not in predictions or "trajectory" not in targets:
            return
        self._add_displacements("", predictions["trajectory"], targets["trajectory"])
        velocity = ego_velocity(features)
        if velocity is not None:
            guess = constant_velocity_trajectory(velocity, targets["trajectory"].shape[1])
            self._add_displacements("_constant_velocity", guess, targets["trajectory"])

    def on_validation_epoch_end(self) -> None:
        """Log means over all ranks' samples: val/loss; in metres val/ade, val/fde and the
        constant-velocity guess's."""
        for name in ("loss", "ade", "fde", "ade_constant_velocity", "fde_constant_velocity"):
            sums = self._sums.get(name, torch.zeros(2, dtype=torch.float64)).cpu()
            total, count = self._control.sum(sums).tolist()
            if count:
                self.log(f"val/{name}", total / count, rank_zero_only=False, sync_dist=False)

    def configure_optimizers(self) -> Any:
        return self.agent.get_optimizers()

    def _add_displacements(self, suffix: str, trajectory: Tensor, target: Tensor) -> None:
        ade, fde = displacement_errors(trajectory, target)
        self._add(f"ade{suffix}", ade.sum(), len(ade))
        self._add(f"fde{suffix}", fde.sum(), len(fde))

    def _add(self, name: str, total: Tensor, count: int) -> None:
        """Accumulate on the device: nothing waits for the GPU until the epoch's end."""
        entry = torch.stack([total.double(), torch.full_like(total, count, dtype=torch.float64)])
        self._sums[name] = self._sums[name] + entry if name in self._sums else entry

    def _stop_if_not_finite(self, bad: tuple[float, int, int] | None) -> None:
        if bad is None:
            return
        loss, epoch, batch_index = bad
        tokens = self.trainer.datamodule.training_tokens(epoch, batch_index)
        record = self._run.non_finite_batch(self.global_rank)
        record.write_text(
            json.dumps(
                {"loss": str(loss), "epoch": epoch, "batch": batch_index, "samples": tokens},
                indent=1,
            )
        )
        raise ConvoyError(
            f"The loss became {loss} on rank {self.global_rank} (epoch {epoch}, batch "
            f"{batch_index}); the batch's {len(tokens)} tokens are in {record}. The last "
            "checkpoint is from before: look at those samples, or lower the learning rate."
        )


class FiniteCheck:
    """Tells of a non-finite loss without making the host wait for the GPU.

    The copies to the host run behind the steps, and are read when they have arrived.
    """

    MOST_PENDING = 16  # losses on their way; so far may the host be ahead of the GPU

    def __init__(self) -> None:
        self._pending: deque[tuple[Tensor, torch.cuda.Event | None, int, int]] = deque()
        self._memory: list[Tensor] = []

    def begin(self, loss: Tensor, epoch: int, batch_index: int) -> None:
        event = None
        value = loss.detach()
        if loss.is_cuda:
            memory = self._memory.pop() if self._memory else torch.empty((), pin_memory=True)
            value = memory.copy_(value, non_blocking=True)
            event = torch.cuda.Event()
            event.record()
        self._pending.append((value, event, epoch, batch_index))

    def finished(self) -> tuple[float, int, int] | None:
        """(loss, epoch, batch index) of the first step whose loss has arrived and is not finite."""
        while self._pending:
            event = self._pending[0][1]
            if event is not None and not event.query() and len(self._pending) < self.MOST_PENDING:
                return None
            bad = self._read()
            if bad is not None:
                return bad
        return None

    def all(self) -> tuple[float, int, int] | None:
        """The same over all steps so far: waits for the GPU."""
        while self._pending:
            bad = self._read()
            if bad is not None:
                return bad
        return None

    def _read(self) -> tuple[float, int, int] | None:
        value, event, epoch, batch_index = self._pending.popleft()
        if event is not None:
            event.synchronize()
            self._memory.append(value)
        loss = value.item()
        return None if math.isfinite(loss) else (loss, epoch, batch_index)


def _first(count: int, tensors: Mapping[str, Any]) -> dict[str, Any]:
    """The first `count` samples of a batch's tensors."""
    return {
        name: value[:count] if isinstance(value, Tensor) and value.ndim else value
        for name, value in tensors.items()
    }
