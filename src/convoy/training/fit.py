"""The largest batch that fits on a GPU: real steps of the real agent with growing batches.

The batches repeat the training split's first samples. Compiler and CUDA graph are left off, since
each size would be compiled anew: the compiled step needs about as much memory or less.
"""

import gc
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from omegaconf import DictConfig
from torch import Tensor
from torch.optim import Optimizer
from torch.utils import _pytree as pytree

from convoy.agents.calls import AgentCalls
from convoy.config import Settings
from convoy.data.module import DataModule
from convoy.data.source import open_source
from convoy.data.split import choose_logs
from convoy.errors import ConvoyError
from convoy.global_batch import BatchPlan
from convoy.navsim.agents import build_agent
from convoy.run.layout import RunDirectory
from convoy.topology import Topology
from convoy.training.rehearsal import SAMPLES
from convoy.training.run import trained_builders
from convoy.training.speed.acceleration import Acceleration
from convoy.training.speed.optimizer import make_fused
from convoy.training.speed.recipe import choose
from convoy.training.trainer import device
from convoy.training.weights import load_weights

MARGIN = 0.08  # of the card's memory: fragments, the libraries' workspaces, a longer validation
SECONDS = 60.0  # after so long the largest that is known to fit is the answer
MOST = 8192  # samples
STEPS = 3  # per size: the first makes the optimizer's state, the last is timed
NOT_COMPILED = ("compile", "graph", "cudnn_benchmark")  # what takes its time for each new size


class Memory(Protocol):
    """Of the device that is tried: bytes."""

    total: int

    def clear(self) -> None:
        """Give back what nothing holds, and forget the peak."""

    def peak(self) -> int:
        """The most in use since `clear`, by anybody."""


@dataclass(frozen=True)
class Trial:
    """Steps with one size of batch. `peak` is None where they found no memory."""

    batch: int
    peak: int | None
    samples_per_s: float | None = None


@dataclass(frozen=True)
class Fit:
    """`batch` is the largest that fits with the margin, 0 if none does; `trials` in their order."""

    batch: int
    total: int
    trials: tuple[Trial, ...]
    complete: bool  # False: the time was up first, a larger one may fit

    @property
    def peak(self) -> int | None:
        return next((trial.peak for trial in self.trials if trial.batch == self.batch), None)


def search(
    steps: Callable[[int], float],
    memory: Memory,
    first: int,
    margin: float = MARGIN,
    seconds: float = SECONDS,
    most: int = MOST,
    tell: Callable[[Trial], None] = lambda trial: None,
) -> Fit:
    """Double from `first` until it no longer fits (or halve until it does), then bisect.

    `steps(batch)` takes a few steps and returns samples per second; it raises torch's
    OutOfMemoryError where they do not fit. Sizes above 16 are bisected to a sixteenth.
    """
    limit = int(memory.total * (1 - margin))
    began = time.monotonic()
    trials: list[Trial] = []

    def fits(batch: int) -> bool:
        memory.clear()
        peak, rate = None, None
        try:
            rate = steps(batch)
            peak = memory.peak()
        except RuntimeError as error:
            if not _out_of_memory(error):
                raise
        memory.clear()
        trials.append(Trial(batch, peak, rate))
        tell(trials[-1])
        return peak is not None and peak <= limit

    low, high = 0, most + 1
    candidate = max(1, min(first, most))
    while high - low > max(1, low // 16):
        if time.monotonic() - began > seconds:
            break
        if fits(candidate):
            low = candidate
        else:
            high = candidate
        if high > most:
            candidate = min(2 * low, most)
        else:
            candidate = max(1, high // 2) if low == 0 else (low + high) // 2
        if low == most:
            break
    return Fit(low, memory.total, tuple(trials), complete=low == most or _close(low, high))


def _close(low: int, high: int) -> bool:
    return high - low <= max(1, low // 16)


def _out_of_memory(error: RuntimeError) -> bool:
    """The libraries' own allocations fail with errors of their own."""
    text = str(error).lower()
    return isinstance(error, torch.OutOfMemoryError) or any(
        words in text
        for words in ("out of memory", "alloc_failed", "unable to find an engine", "cudnn_status")
    )


class CardMemory:
    """A GPU's memory; others' processes on it count as used."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.total = torch.cuda.mem_get_info(device)[1]

    def clear(self) -> None:
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(self._device)
        free, total = torch.cuda.mem_get_info(self._device)
        self._others = total - free - torch.cuda.memory_reserved(self._device)

    def peak(self) -> int:
        return self._others + torch.cuda.max_memory_reserved(self._device)


class RealSteps:
    """Forward, loss, backward and optimizer of an agent, as a training takes them."""

    def __init__(
        self,
        agent: Any,
        calls: AgentCalls,
        sample: tuple[Any, Any],
        tokens: list[str],
        speed: Acceleration,
        autocast: torch.dtype | None,
    ) -> None:
        """`sample` is a batch of a few samples on the device."""
        self._agent, self._calls, self._speed = agent, calls, speed
        self._sample, self._tokens, self._autocast = sample, tokens, autocast
        self._optimizer = _optimizer(agent.get_optimizers())
        make_fused(self._optimizer, speed.recipe["fused_optimizer"])

    def __call__(self, count: int) -> float:
        try:
            batch = pytree.tree_map(lambda value: _repeated(value, count), tuple(self._sample))
            tokens = (self._tokens * count)[:count]
            for _ in range(STEPS):
                began = time.perf_counter()
                self._step(batch, tokens)
                self._wait()
            return count / (time.perf_counter() - began)
        finally:
            self._optimizer.zero_grad(set_to_none=True)

    @property
    def device(self) -> torch.device:
        return next(self._agent.parameters()).device

    def _step(self, batch: Any, tokens: list[str]) -> None:

        def scalars_of(batch: Any, forward: Callable[..., Any] | None = None) -> dict[str, Tensor]:
            features, targets = batch
            outcome = self._calls.step(features, targets, lambda: tokens, forward)
            return {**outcome.parts, "loss": outcome.loss}

        self._optimizer.zero_grad(set_to_none=True)
        with torch.autocast(self.device.type, self._autocast, enabled=self._autocast is not None):
            loss = self._speed.step(batch, None, scalars_of)["loss"]
        loss.backward()
        self._optimizer.step()

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def _repeated(value: Any, count: int) -> Any:
    if not isinstance(value, Tensor) or value.ndim == 0:
        return value
    times = -(-count // value.shape[0])
    return value.repeat(times, *[1] * (value.ndim - 1))[:count]


def _optimizer(returned: Any) -> Optimizer:
    """The first that an agent's `get_optimizers` names, in any of Lightning's forms."""
    while not isinstance(returned, Optimizer):
        returned = returned["optimizer"] if isinstance(returned, Mapping) else returned[0]
    return returned


def require_gpu(config: DictConfig) -> None:
    """Raise ConvoyError where there is no GPU to measure."""
    if config.trainer.params.accelerator != "cpu" and torch.cuda.is_available():
        return
    build = "" if torch.version.cuda else f" (this is a CPU build, {torch.__version__})"
    raise ConvoyError(
        f"--fit measures a GPU's memory, and torch sees no GPU here{build}. Run it on a node that "
        "has the card: srun --gpus=1 … convoy check --fit …, without "
        "trainer.params.accelerator=cpu."
    )


@contextmanager
def real_steps(settings: Settings) -> Iterator[RealSteps]:
    """Of the configured agent and data, on this machine's first device of the configured kind."""
    config = settings.config.copy()
    topology = Topology()
    for name in NOT_COMPILED:
        config.speed_switches[name] = False
    where = device(config, topology)
    agent, sample, tokens = agent_with_samples(config, settings.batches, where)
    calls = AgentCalls(agent)
    speed = Acceleration(choose(config, topology.world_size), agent, topology.world_size)
    autocast = _autocast(str(config.trainer.params.precision))
    with speed.applied(Path()):
        yield RealSteps(agent, calls, sample, tokens, speed, autocast)


def agent_with_samples(
    config: DictConfig, batches: BatchPlan, where: torch.device
) -> tuple[Any, tuple[Any, Any], list[str]]:
    """The configured agent, and the training split's first samples as a batch with their tokens."""
    agent = build_agent(config.agent)
    load_weights(agent, config.agent)
    agent.to(where).train()
    builders = trained_builders(agent)
    source = open_source(config)
    chosen = choose_logs(config, source.logs())
    train = source.split("train", chosen.train, builders)
    val = source.split("validation", chosen.val, builders)
    run = RunDirectory(Path())  # nothing is written to it
    module = DataModule(train, val, builders, config, batches, Topology(), run)
    try:
        sample, tokens = module.first_samples(SAMPLES, where)
    finally:
        module.teardown("fit")
    return agent, sample, tokens


def _autocast(precision: str) -> torch.dtype | None:
    return {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16, "16": torch.float16}.get(
        precision
    )
