"""Applies a recipe to an agent and to Lightning's step. The one object that the training room asks.

`AgentModule` takes its steps through `step`, and leaves Lightning's parts of a step out where it
`steps_itself`.
"""

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.strategies import DDPStrategy
from pytorch_lightning.utilities.model_helpers import is_overridden
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from convoy.training.speed import assignment, attention, matching, operators, regions
from convoy.training.speed.exchange_times import ExchangeTimes
from convoy.training.speed.gradients import COPIED, GradientMean, buckets_over
from convoy.training.speed.optimizer import make_fused
from convoy.training.speed.recipe import NO_GRAPH, Recipe
from convoy.training.speed.strategy import MeanStrategy, WholeStepStrategy, take_from_rank_zero
from convoy.training.speed.whole_step import Loss, Outcome, WholeStep
from convoy.training.stopping import StoppedEarly

logger = logging.getLogger("convoy")

# Callbacks with one of these want to act inside a step, which is one piece when it is a graph.
INSIDE_A_STEP = (
    "on_before_backward",
    "on_after_backward",
    "on_before_optimizer_step",
    "on_before_zero_grad",
)


class Acceleration(pl.Callback):
    """A run's speed switches at work."""

    def __init__(
        self,
        recipe: Recipe,
        agent: nn.Module,
        world_size: int,
        wants_tokens: bool = False,
        link_gb_per_s: float | None = None,
    ) -> None:
        """`link_gb_per_s` is what the slowest link between the ranks carries, where it is known;
        the same on all of them."""
        self.recipe = recipe
        self._agent = agent
        self._world_size = world_size
        self._buckets = buckets_over(link_gb_per_s)
        self._step: WholeStep | None = None
        self._steps_itself = False
        self._compiled: Callable[..., Any] = agent.forward
        self._matchers, changed = matching.find(agent)
        if not self._matchers:
            reason = f"{changed[0]} is not NAVSIM's own" if changed else "the agent matches nothing"
            recipe.turn_off("matching", reason)
        elif not assignment.available():
            recipe.turn_off("matching", "Triton is not installed")
        if changed:
            recipe.turn_off("graph", f"{changed[0]} may match on the host")
        self._attention = attention.find(agent)
        if not self._attention:
            recipe.turn_off("attention", "the agent has no attention of TransFuser's")
        if wants_tokens:
            recipe.turn_off("graph", "the agent asks for the batch's tokens")

    @contextmanager
    def applied(self, compile_cache: Path) -> Iterator[None]:
        """Everything that holds for the process, while the run trains."""
        recipe = self.recipe
        recipe.log()
        # Kernels of our own as well. Not setdefault: the image sets folders of this node's, and so
        # does importing torch's compiler.
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(compile_cache)
        os.environ["TRITON_CACHE_DIR"] = str(compile_cache / "triton")
        with ExitStack() as stack:
            if recipe["operators"]:
                stack.enter_context(operators.replaced(recipe["channels_last"]))
            if recipe["matching"]:
                stack.enter_context(matching.replaced(self._matchers))
            if recipe["attention"]:
                stack.enter_context(attention.replaced(self._attention))
            if recipe["tf32"]:
                torch.set_float32_matmul_precision("high")
                torch.backends.cudnn.allow_tf32 = True
            if recipe["cudnn_benchmark"]:
                torch.backends.cudnn.benchmark = True
            if recipe["channels_last"]:
                self._agent.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            if recipe["compile"]:
                self._compile(compile_cache)
            stack.push(self._release)
            yield

    def _release(self, _: object, error: BaseException | None, __: object) -> None:
        """The graph holds the ranks' communicator, which could not be left while it does. After a
        failure its last replay may wait for other ranks for ever, and nobody leaves in order."""
        if self._step is not None and (error is None or isinstance(error, StoppedEarly)):
            self._step.release()

    @property
    def steps_itself(self) -> bool:
        """Whether `step` does what Lightning would: backward pass, clipping, optimizer."""
        return self._steps_itself

    def step(self, batch: Any, trainer: pl.Trainer, scalars_of: Callable[..., Outcome]) -> Outcome:
        """The scalars of `batch`, its loss among them: `scalars_of(batch, forward)`.

        Where `steps_itself`, the optimizer's step is done too.
        """
        if not self._steps_itself:
            return scalars_of(self._laid_out(batch), self._forward)
        if self._step is None:
            self._step = self._whole_step(
                trainer, lambda batch: scalars_of(batch, self._forward), scalars_of
            )
        enabled, dtype = torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda")
        # A cache of cast weights would outlive the step that a graph holds.
        with torch.autocast("cuda", enabled=enabled, dtype=dtype, cache_enabled=False):
            return self._step(tuple(batch))

    def _forward(self, *arguments: Any, **named: Any) -> Any:
        """The agent's forward pass in training, compiled where that is on."""
        if not self.recipe["compile"]:
            return self._agent.forward(*arguments, **named)
        try:
            return self._compiled(*arguments, **named)
        except Exception as error:  # an agent's own fault shows again without the compiler
            self._give_up("compile", f"{type(error).__name__}: {str(error).splitlines()[0]}")
            return self._agent.forward(*arguments, **named)

    def _laid_out(self, batch: Any) -> Any:
        if not self.recipe["channels_last"]:
            return batch
        return pytree.tree_map(_channels_last, tuple(batch))

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """After a checkpoint was loaded, which sets the optimizer's groups as they were saved."""
        for optimizer in trainer.optimizers:
            refused = make_fused(optimizer, self.recipe["fused_optimizer"])
            if refused:
                self.recipe.turn_off("fused_optimizer", refused)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Rank 0's running statistics are those that are validated, as under DDP."""
        if self.recipe["gradient_mean"]:
            take_from_rank_zero(pl_module.buffers())

    def look_at(self, callbacks: list[pl.Callback]) -> None:
        """Let a callback that acts inside a step have Lightning's own; call before the Trainer."""
        for callback in callbacks:
            for hook in INSIDE_A_STEP:
                if is_overridden(hook, callback, pl.Callback):
                    self.recipe.turn_off("graph", f"{type(callback).__name__} has {hook}")
        if not self.recipe["graph"]:
            self.recipe.turn_off("peer_copies", NO_GRAPH)
        self._steps_itself = self.recipe["graph"]

    def strategy(self, timeout: timedelta) -> DDPStrategy | None:
        """In DistributedDataParallel's place, where it is not needed."""
        if not self.recipe["gradient_mean"]:
            return None
        if self.recipe["graph"]:
            return WholeStepStrategy(timeout=timeout)
        return MeanStrategy(self._gradient_mean, timeout)

    def _compile(self, cache: Path) -> None:
        logger.info(
            "speed: the first step waits for the compiler, up to 3 minutes where %s does not hold "
            "this agent, batch size and card",
            cache,
        )
        allow_autocast_in_cache()
        forward = self._agent.forward
        # A graph of one rank too: what is in the cache serves any number of them.
        if self._steps_itself or self.recipe["gradient_mean"]:
            self._compiled = regions.compiled(forward)
        else:  # under DistributedDataParallel torch cuts the graph itself
            self._compiled = torch.compile(forward, dynamic=False)

    def _whole_step(self, trainer: pl.Trainer, loss: Loss, eager_loss: Loss) -> WholeStep:
        parameters = list(self._agent.parameters())
        return WholeStep(
            loss,
            eager_loss,
            trainer.optimizers[0],
            parameters,
            _clipping(trainer),
            self._gradient_mean(parameters) if self._world_size > 1 else None,
            graph=next(iter(parameters)).is_cuda,
            channels_last=self.recipe["channels_last"],
            agent=self._agent,
            give_up=lambda reason: self._give_up("graph", reason),
        )

    def _gradient_mean(
        self, parameters: list[nn.Parameter], times: ExchangeTimes | None = None
    ) -> GradientMean:
        compressed, copies = self.recipe["bf16_gradients"], self.recipe["peer_copies"]
        sizes = COPIED if copies else self._buckets
        return GradientMean(parameters, self._world_size, compressed, sizes, copies, times)

    def _give_up(self, name: str, reason: str) -> None:
        """In the middle of training. Without a graph the steps stay in one piece all the same."""
        self.recipe.turn_off(name, reason)
        logger.info("speed: %s is off: %s", name, reason)


def allow_autocast_in_cache() -> None:
    """torch keeps nothing of a function that enters autocast, as the fast operators do and forks,
    and traces it anew at each start: it does not list these two among those that it knows."""
    import torch._inductor.config as inductor

    inductor.unsafe_marked_cacheable_functions = inductor.unsafe_marked_cacheable_functions | {
        f"torch.amp.autocast_mode.{name}": torch.__version__
        for name in ("_enter_autocast", "_exit_autocast")
    }


def _clipping(trainer: pl.Trainer) -> Callable[[list[nn.Parameter]], Any] | None:
    """Lightning's clipping, by work on the device alone."""
    limit = trainer.gradient_clip_val
    if not limit:
        return None
    if str(trainer.gradient_clip_algorithm or "norm").endswith("value"):
        return lambda parameters: nn.utils.clip_grad_value_(parameters, limit)
    return lambda parameters: nn.utils.clip_grad_norm_(parameters, limit)


def _channels_last(value: Any) -> Any:
    if isinstance(value, Tensor) and value.ndim == 4 and value.is_floating_point():
        return value.contiguous(memory_format=torch.channels_last)
    return value
