"""DDP's strategy without DistributedDataParallel: the same start, and gradients that `GradientMean`
averages."""

import itertools
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from pytorch_lightning.strategies import DDPStrategy
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from convoy.training.speed.exchange_times import ExchangeTimes
from convoy.training.speed.gradients import GradientMean


class WholeStepStrategy(DDPStrategy):
    """Every rank starts from rank 0's weights; a step that is one piece does the rest."""

    def configure_ddp(self) -> None:
        assert self.lightning_module is not None
        module = self.lightning_module
        for tensor in itertools.chain(module.parameters(), module.buffers()):
            dist.broadcast(tensor.detach(), src=0)


class MeanStrategy(WholeStepStrategy):
    """As DistributedDataParallel: a step ends with the mean of the gradients over the ranks, and
    begins with rank 0's buffers. Only the statistics of a BatchNorm that is training, which does
    not read them, wait for the validation."""

    mean: GradientMean
    times: ExchangeTimes

    def __init__(
        self, make: Callable[[list[nn.Parameter], ExchangeTimes], GradientMean], timeout: timedelta
    ) -> None:
        super().__init__(timeout=timeout)
        self._make = make

    def configure_ddp(self) -> None:
        super().configure_ddp()
        assert self.lightning_module is not None
        self.times = ExchangeTimes(on_gpu=self.root_device.type == "cuda")
        self.mean = self._make(list(self.lightning_module.parameters()), self.times)
        self._with_buffers = [entry for entry in self.lightning_module.modules() if entry._buffers]
        self._begins = True

    def training_step(self, *arguments: Any, **named: Any) -> Any:
        if self._begins:
            read = [entry for entry in self._with_buffers if not _only_writes(entry)]
            take_from_rank_zero(itertools.chain(*(entry.buffers(recurse=False) for entry in read)))
        self._begins = not self.mean.paused
        return super().training_step(*arguments, **named)

    def pre_backward(self, closure_loss: Tensor) -> None:
        """Callbacks find the mean after the backward pass: it is waited for inside, at its end."""
        if not self.mean.paused:
            engine = torch.autograd.Variable._execution_engine
            wait = self.mean.wait
            closure_loss.register_hook(lambda _: engine.queue_callback(wait))

    @contextmanager
    def block_backward_sync(self) -> Iterator[None]:
        """Around the batches of a step but its last."""
        self.mean.paused = True
        try:
            yield
        finally:
            self.mean.paused = False


def _only_writes(module: nn.Module) -> bool:
    return isinstance(module, _BatchNorm) and module.training


def take_from_rank_zero(buffers: Iterable[Tensor]) -> None:
    """One broadcast for all of a kind: an agent has hundreds."""
    kinds: dict[torch.dtype, list[Tensor]] = {}
    for buffer in buffers:
        if buffer.numel():
            kinds.setdefault(buffer.dtype, []).append(buffer.detach())
    for group in kinds.values():
        flat = torch.cat([buffer.reshape(-1) for buffer in group])
        dist.broadcast(flat, src=0)
        if dist.get_rank() != 0:
            parts = flat.split([buffer.numel() for buffer in group])
            views = [part.view(buffer.shape) for part, buffer in zip(parts, group, strict=True)]
            torch._foreach_copy_(group, views)
