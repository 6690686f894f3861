"""The Lightning module around an agent: its loss, its optimiser, and displacement errors at
validation."""

import contextlib
import json
import math
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from convoy.agents.calls import AgentCalls
from convoy.agents.contract import TrainableAgent
from convoy.data.batch import first
from convoy.data.cache import Sample
from convoy.errors import ConvoyError
from convoy.run.layout import RunDirectory
from convoy.training.means import Means
from convoy.training.metrics import (
    TrajectoryKeys,
    constant_velocity_trajectory,
    displacement_errors,
    ego_velocity,
)
from convoy.training.process_group import HostGroup
from convoy.training.rehearsal import Rehearsal
from convoy.training.report import DrawnSamples
from convoy.training.speed.acceleration import Acceleration

DISPLACEMENTS = ("ade", "fde", "ade_constant_velocity", "fde_constant_velocity")


class AgentModule(pl.LightningModule):
    """Trains any `TrainableAgent`.

    The attribute is called `agent`, and so begin the checkpoint's keys: NAVSIM's callbacks and its
    agents' `initialize` expect just that. NAVSIM's metric names are in `trainer.callback_metrics`
    for schedulers, checkpoints and early stopping: `train/loss` and every other scalar of
    `compute_loss`, with `_step` for this rank's last step and `_epoch` for the mean over the epoch
    and all ranks; likewise for `val/`.
    """

    def __init__(
        self,
        agent: TrainableAgent,
        calls: AgentCalls,
        rehearsal: Rehearsal,
        keys: TrajectoryKeys,
        run: RunDirectory,
        host_group: HostGroup,
        speed: Acceleration,
    ) -> None:
        super().__init__()
        self.agent = agent
        self.rehearsal = rehearsal
        self.validation: dict[str, float] = {}  # the last validation's means, without prefix
        self.validated_step: int | None = None  # of the training's steps, where that was in it
        self._calls = calls
        self.drawn: DrawnSamples | None = None  # of the last validation, for the report
        self._keys = keys
        self._run = run
        self._host_group = host_group
        self._speed = speed
        self._finite_check = FiniteCheck()
        self._training_means = Means(rehearsal.train)
        self._validation_means = Means(())

    def training_step(self, batch: Sample, batch_idx: int) -> dict[str, Tensor]:
        """The loss under "loss", as Lightning takes it, and the agent's other scalars, detached."""
        self._stop_if_not_finite(self._finite_check.finished())

        def scalars_of(
            batch: Sample, forward: Callable[..., Any] | None = None
        ) -> dict[str, Tensor]:
            features, targets = batch
            tokens = lambda: self._training_tokens(batch_idx)  # noqa: E731
            outcome = self._calls.step(features, targets, tokens, forward)
            return {**outcome.parts, "loss": outcome.loss}

        returned = self._speed.step(batch, self.trainer, scalars_of)
        loss = returned["loss"]
        self._finite_check.begin(loss, self.current_epoch, batch_idx)
        if not loss.is_cuda:
            self._stop_if_not_finite(self._finite_check.all())
        scalars = {**returned, "loss": loss.detach()}
        self._training_means.add(scalars)
        self._show("train", scalars, "step")
        return returned

    def on_train_epoch_start(self) -> None:
        self._training_means = Means(self.rehearsal.train)

    def show_training_means(self) -> None:
        """Put the epoch's means where callbacks and schedulers look; all ranks call it."""
        means = self._training_means.over_ranks(self._host_group)
        self._show("train", {name: torch.tensor(mean) for name, mean in means.items()}, "epoch")

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
        if self._speed.steps_itself:
            return
        if type(optimizer).zero_grad is not torch.optim.Optimizer.zero_grad:
            super().optimizer_zero_grad(epoch, batch_idx, optimizer)
            return
        for group in optimizer.param_groups:  # what `zero_grad` does after a compiler's checks
            for entry in group["params"]:
                entry.grad = None

    def on_train_epoch_end(self) -> None:
        self._stop_if_not_finite(self._finite_check.all())

    def on_validation_epoch_start(self) -> None:
        self._validation_means = Means((*self.rehearsal.val, *DISPLACEMENTS))

    def validation_step(self, batch: Sample, batch_idx: int) -> None:
        """Every sample counts once: a rank leaves out of its last batch what repeats other ranks'
        samples, before the agent sees it. With nothing of its own left the agent sees the batch
        for nothing, for the sake of what its `forward` may exchange with other ranks."""
        features, targets = batch
        own = self.trainer.datamodule.own_validation_samples(batch_idx)
        if own:
            features, targets = first(own, features), first(own, targets)
        tokens = self.trainer.datamodule.validation_tokens
        outcome = self._calls.step(features, targets, lambda: tokens(batch_idx, own))
        if own == 0:
            return
        scalars = {"loss": outcome.loss.detach(), **outcome.parts}
        self._show("val", scalars, "step")
        pair = self._keys.pair(outcome.predictions, targets)
        if pair is not None:
            if batch_idx == 0 and self.trainer.is_global_zero:
                self.drawn = DrawnSamples.of(features, *pair)
            scalars |= _displacements("", *pair)
            velocity = ego_velocity(features)
            if velocity is not None:
                guess = constant_velocity_trajectory(velocity, pair[1].shape[1])
                scalars |= _displacements("_constant_velocity", guess, pair[1])
        self._validation_means.add(scalars, own)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["last_validation"] = {"step": self.validated_step, "means": self.validation}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """A run that ends without another validation has the figures of the one before."""
        last = checkpoint.get("last_validation")
        if last is not None:
            self.validated_step, self.validation = last["step"], last["means"]

    def log_validation_means(self) -> None:
        """Log means over all ranks' samples: val/loss and the agent's other scalars; in metres
        val/ade, val/fde and the constant-velocity guess's. All ranks call it."""
        self.validation = self._validation_means.over_ranks(self._host_group)
        self.validated_step = self.trainer.global_step if self.trainer.state.fn == "fit" else None
        for name, mean in self.validation.items():
            self.log(f"val/{name}", mean, rank_zero_only=False, sync_dist=False)
            self.trainer.callback_metrics[f"val/{name}_epoch"] = torch.tensor(mean)

    def configure_optimizers(self) -> Any:
        return self.agent.get_optimizers()

    def _show(self, prefix: str, scalars: Mapping[str, Tensor], when: str) -> None:
        """Names as those of Lightning's `log(…, on_step=True, on_epoch=True)`, which NAVSIM calls;
        its way makes the ranks wait for one another at every step."""
        for name, value in scalars.items():
            self.trainer.callback_metrics[f"{prefix}/{name}"] = value
            self.trainer.callback_metrics[f"{prefix}/{name}_{when}"] = value

    def _training_tokens(self, batch_index: int) -> list[str]:
        samples = self.trainer.datamodule.training_samples(self.current_epoch, batch_index)
        return [sample.rpartition("/")[2] for sample in samples]

    def _stop_if_not_finite(self, bad: tuple[float, int, int] | None) -> None:
        if bad is None:
            return
        loss, epoch, batch_index = bad
        samples = self.trainer.datamodule.training_samples(epoch, batch_index)
        record = self._run.non_finite_batch(self.global_rank)
        facts = {"loss": str(loss), "epoch": epoch, "batch": batch_index, "samples": samples}
        with contextlib.suppress(OSError):  # a full disk must not hide the reason
            record.write_text(json.dumps(facts, indent=1))
        raise ConvoyError(
            f"The loss became {loss} on rank {self.global_rank} (epoch {epoch}, batch "
            f"{batch_index}); the batch's {len(samples)} tokens are in {record}. The last "
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


class NavsimMetricNames(pl.Callback):
    """Comes first among the callbacks, so that the others find the means of the epoch that ends."""

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Refuse a scheduler that would leave each rank with a learning rate of its own."""
        for scheduler in trainer.lr_scheduler_configs if trainer.world_size > 1 else ():
            of_a_step = scheduler.interval == "step" and scheduler.reduce_on_plateau
            monitor = str(scheduler.monitor)
            if of_a_step and monitor.startswith("train/") and not monitor.endswith("_epoch"):
                raise ConvoyError(
                    f"The agent's scheduler follows {scheduler.monitor} at every step, which is "
                    "each rank's own: their learning rates would differ. Let it follow "
                    "train/loss_epoch with interval=epoch, or val/loss."
                )

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, AgentModule)
        pl_module.show_training_means()

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, AgentModule)
        pl_module.log_validation_means()


def _displacements(suffix: str, trajectory: Tensor, target: Tensor) -> dict[str, Tensor]:
    ade, fde = displacement_errors(trajectory, target)
    return {f"ade{suffix}": ade.mean(), f"fde{suffix}": fde.mean()}
