"""The Lightning module around an agent: its loss, its optimiser, and displacement errors at
validation."""

import json
from collections.abc import Mapping
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from convoy.agents.contract import TrainableAgent
from convoy.data.cache import Sample
from convoy.errors import ConvoyError
from convoy.run.layout import RunDirectory
from convoy.training.metrics import constant_velocity_trajectory, displacement_errors, ego_velocity
from convoy.training.process_group import Control


class AgentModule(pl.LightningModule):
    """Trains any `TrainableAgent`.

    The attribute is called `agent`, and so begin the checkpoint's keys: NAVSIM's callbacks and its
    agents' `initialize` expect just that.
    """

    def __init__(self, agent: TrainableAgent, run: RunDirectory, control: Control) -> None:
        super().__init__()
        self.agent = agent
        self._run = run
        self._control = control
        self._finite_check = FiniteCheck()
        self._sums: dict[str, Tensor] = {}

    def training_step(self, batch: Sample, batch_idx: int) -> Tensor:
        features, targets = batch
        self._stop_if_not_finite(self._finite_check.previous())
        predictions = self.agent.forward(features)
        loss = self.agent.compute_loss(features, targets, predictions)
        self._finite_check.begin(loss, self.current_epoch, batch_idx)
        if not loss.is_cuda:
            self._stop_if_not_finite(self._finite_check.previous())
        return loss

    def on_train_epoch_end(self) -> None:
        self._stop_if_not_finite(self._finite_check.previous())

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

    The copy to the host runs beside the backward pass and is read a step later.
    """

    def __init__(self) -> None:
        self._pending: tuple[Tensor, torch.cuda.Event | None, int, int] | None = None

    def begin(self, loss: Tensor, epoch: int, batch_index: int) -> None:
        event = None
        value = loss.detach()
        if loss.is_cuda:
            value = torch.empty((), dtype=loss.dtype, pin_memory=True).copy_(
                value, non_blocking=True
            )
            event = torch.cuda.Event()
            event.record()
        self._pending = (value, event, epoch, batch_index)

    def previous(self) -> tuple[float, int, int] | None:
        """(loss, epoch, batch index) of the step begun last when its loss is not finite, else
        None."""
        if self._pending is None:
            return None
        value, event, epoch, batch_index = self._pending
        self._pending = None
        if event is not None:
            event.synchronize()
        loss = value.item()
        return None if torch.isfinite(torch.tensor(loss)) else (loss, epoch, batch_index)


def _first(count: int, tensors: Mapping[str, Any]) -> dict[str, Any]:
    """The first `count` samples of a batch's tensors."""
    return {
        name: value[:count] if isinstance(value, Tensor) and value.ndim else value
        for name, value in tensors.items()
    }
