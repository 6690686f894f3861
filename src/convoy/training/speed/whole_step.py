"""A training step in one piece: forward, loss, backward, mean over the ranks, clipping, optimizer.

On a GPU the step becomes one CUDA graph after a few real steps, so the host launches it with one
call. A batch of another shape than the first runs the same code without the graph. Nothing in a
step waits for the GPU.
"""

import logging
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils import _pytree as pytree

from convoy.training.speed.gradients import GradientMean
from convoy.training.speed.host_state import HostState, reason_against_graph
from convoy.training.speed.optimizer import CapturedRates, can_be_captured

logger = logging.getLogger("convoy")

EAGER_STEPS = 3  # before the capture: libraries choose algorithms, the optimizer makes its state

# A batch's loss under "loss", and other scalars of the agent's.
Outcome = dict[str, Tensor]
Loss = Callable[[Any], Outcome]


class WholeStep:
    """Takes one optimizer step for each batch it is called with, and returns the batch's scalars,
    detached."""

    def __init__(
        self,
        loss: Loss,
        eager_loss: Loss,
        optimizer: Optimizer,
        parameters: list[nn.Parameter],
        clip: Callable[[list[nn.Parameter]], Any] | None = None,
        mean: GradientMean | None = None,
        graph: bool = True,
        channels_last: bool = False,
        agent: nn.Module | None = None,
        give_up: Callable[[str], None] = lambda reason: None,
    ) -> None:
        """`loss` of a batch may be compiled for the first batch's shape; others take `eager_loss`.
        Both are called where autocast is as it shall be. Where a graph cannot be had, `give_up` is
        told why, and the steps go on without. `agent` is watched for state on the host.
        """
        self._loss, self._eager_loss = loss, eager_loss
        self._optimizer = optimizer
        self._parameters = [entry for entry in parameters if entry.requires_grad]
        self._clip, self._mean = clip, mean
        self._wants_graph, self._channels_last = graph, channels_last
        self._agent, self._give_up = agent, give_up
        self._steps = 0
        self._inputs: list[Tensor] | None = None  # the graph reads them
        self._shape: Any = None
        self._batch: Any = None
        self._graph: torch.cuda.CUDAGraph | None = None
        self._captured: Outcome = {}
        self._rates: CapturedRates | None = None
        self._stream: torch.cuda.Stream | None = None

    def __call__(self, batch: Any) -> Outcome:
        tensors, structure = pytree.tree_flatten(batch)
        shape = (structure, [_shape(value) for value in tensors])
        if self._shape is None:
            self._keep(tensors, structure, shape)
        if shape != self._shape:
            return self._take(batch, self._eager_loss)
        if not self._wants_graph:
            return self._take(batch, self._loss)
        assert self._inputs is not None
        torch._foreach_copy_(
            self._inputs, [value for value in tensors if isinstance(value, Tensor)]
        )
        self._steps += 1
        if self._steps <= EAGER_STEPS:
            return self._warm_up()
        if self._graph is None:
            self._capture()
        return self._replay()

    def release(self) -> None:
        """Give the graph up, with what it holds of the GPU and of NCCL."""
        if self._graph is not None:
            torch.cuda.synchronize()
            self._graph.reset()
        self._graph, self._captured = None, {}

    def _keep(self, tensors: list[Any], structure: Any, shape: Any) -> None:
        self._shape = shape
        if not self._wants_graph:
            return
        held = [self._own(value) if isinstance(value, Tensor) else value for value in tensors]
        self._inputs = [value for value in held if isinstance(value, Tensor)]
        self._batch = pytree.tree_unflatten(held, structure)

    def _own(self, value: Tensor) -> Tensor:
        last = self._channels_last and value.ndim == 4 and value.is_floating_point()
        layout = torch.channels_last if last else torch.contiguous_format
        return torch.empty_like(value, memory_format=layout)

    def _take(self, batch: Any, loss_of: Loss, with_optimizer: bool = True) -> Outcome:
        for entry in self._parameters:
            entry.grad = None
        outcome = loss_of(batch)
        loss = outcome["loss"]
        with torch.autocast(loss.device.type, enabled=False):
            loss.backward()
        if self._mean is not None:
            self._mean.wait()
        if self._clip is not None:
            self._clip(self._parameters)
        if with_optimizer:
            self._optimizer.step()
        return {name: value.detach() for name, value in outcome.items()}

    def _warm_up(self) -> Outcome:
        before = HostState(self._agent) if self._agent is not None else None
        self._stream = self._stream or torch.cuda.Stream()
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            outcome = self._take(self._batch, self._loss)
        torch.cuda.current_stream().wait_stream(self._stream)
        if before is not None and self._agent is not None and self._steps > 1:
            reason = reason_against_graph(before, HostState(self._agent))
            if reason:
                self._without_graph(reason)
        return outcome

    def _capture(self) -> None:
        inside = can_be_captured(self._optimizer)
        self._rates = CapturedRates(self._optimizer) if inside else None
        self._graph = torch.cuda.CUDAGraph()
        generator = torch.cuda.default_generators[torch.cuda.current_device()]
        before = generator.clone_state()
        # Other threads (readers, NCCL's watchdog) may call CUDA meanwhile.
        capture = torch.cuda.graph(
            self._graph, stream=self._stream, capture_error_mode="thread_local"
        )
        try:
            with self._rates or nullcontext(), capture:
                self._captured = self._take(self._batch, self._loss, with_optimizer=inside)
        except RuntimeError as error:
            torch.cuda.synchronize()
            generator.graphsafe_set_state(before)  # it waits for the end of the recording
            self._without_graph(f"it cannot be recorded ({str(error).splitlines()[0]})")
            return
        self._gradients = [entry.grad for entry in self._parameters]
        logger.info(
            "the training step is one CUDA graph%s", "" if inside else ", less the optimizer's part"
        )

    def _replay(self) -> Outcome:
        if self._rates is not None and not self._rates.update():
            self._without_graph("the optimizer's settings change, more than the learning rate")
        if self._graph is None:
            return self._take(self._batch, self._loss)
        self._graph.replay()
        if self._rates is None:
            for entry, gradient in zip(self._parameters, self._gradients, strict=True):
                entry.grad = gradient
            self._optimizer.step()
        return {name: value.clone() for name, value in self._captured.items()}

    def _without_graph(self, reason: str) -> None:
        self._graph = self._rates = None
        self._wants_graph = False
        self._give_up(reason)


def _shape(value: Any) -> Any:
    return (value.shape, value.dtype) if isinstance(value, Tensor) else value
