"""Builds Lightning's Trainer from the configuration; torchrun's facts come from the topology, never
from Lightning."""

from datetime import timedelta
from typing import Any

import pytorch_lightning as pl
import torch
from lightning_fabric.plugins import CheckpointIO
from lightning_fabric.plugins.environments import (
    ClusterEnvironment,
    LightningEnvironment,
    TorchElasticEnvironment,
)
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.strategies import DDPStrategy
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook

from convoy.config import Settings
from convoy.errors import ConvoyError
from convoy.run.layout import RunDirectory
from convoy.topology import Topology
from convoy.training.speed.acceleration import Acceleration
from convoy.training.stopping import leave_signals_to_us
from convoy.training.timers import StepTimers
from convoy.training.trackers import loggers


def build_trainer(
    settings: Settings,
    topology: Topology,
    run: RunDirectory,
    callbacks: list[pl.Callback],
    checkpoints: CheckpointIO,
    speed: Acceleration,
    timers: StepTimers,
) -> pl.Trainer:
    """The Trainer for `trainer.params`, which convoy.config has checked. A profiler of the user's
    takes the place of `timers`."""
    params: dict[str, Any] = OmegaConf.to_container(settings.config.trainer.params)  # type: ignore[assignment]
    params["strategy"] = _strategy(params["strategy"], settings, topology, speed)
    if params.get("profiler") is None:
        params["profiler"] = timers
    # Alone, LightningEnvironment keeps Lightning from taking a surrounding SLURM job for its own
    # launcher.
    environment: ClusterEnvironment = (
        TorchElasticEnvironment() if topology.launcher == "torchrun" else LightningEnvironment()
    )
    trainer = pl.Trainer(
        **params,
        plugins=[environment, checkpoints],
        callbacks=callbacks,
        logger=loggers(run, settings.config.tracker),
        use_distributed_sampler=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    leave_signals_to_us(trainer)
    return trainer


def require_accelerator(accelerator: str, topology: Topology) -> None:
    """Raise ConvoyError where torch does not see the GPUs that `accelerator` asks for: no fall-back
    to the CPU."""
    if accelerator not in {"gpu", "cuda"}:
        return
    seen = torch.cuda.device_count()
    if seen < topology.local_world_size:
        build = (
            "" if torch.version.cuda else f" This is a CPU build of torch ({torch.__version__})."
        )
        raise ConvoyError(
            f"{topology.local_world_size} processes on {topology.host} need a GPU each, and torch "
            f"sees {seen}.{build} Check nvidia-smi and the job's --gpus, or train on the CPU: "
            "trainer.params.accelerator=cpu trainer.params.precision=32-true."
        )


def device(config: DictConfig, topology: Topology) -> torch.device:
    """Where this rank trains."""
    if config.trainer.params.accelerator == "cpu":
        return torch.device("cpu")
    return torch.device("cuda", topology.local_rank)


def _strategy(
    asked: str | dict[str, Any], settings: Settings, topology: Topology, speed: Acceleration
) -> Any:
    """`ddp` on one process is the plain model: the mathematics are the same, the copies are not
    needed. `asked` is Lightning's name for it, or options of DistributedDataParallel."""
    if topology.world_size == 1:
        return "auto"
    timeout = timedelta(minutes=settings.config.distributed_timeout_minutes)
    without_ddp = speed.strategy(timeout)
    if without_ddp is not None:
        return without_ddp
    recipe = speed.recipe
    # DDP sorts its buckets anew after a start's first step, unless it looks for unused parameters:
    # a resumed run's first step would add its ranks' gradients in another order.
    deterministic = bool(settings.config.trainer.params.deterministic)
    options: dict[str, Any] = {
        "find_unused_parameters": deterministic or asked == "ddp_find_unused_parameters_true",
        "gradient_as_bucket_view": recipe["ddp"],
        "static_graph": recipe["ddp"],
    }
    if recipe["bf16_gradients"]:
        options["ddp_comm_hook"] = bf16_compress_hook
    return DDPStrategy(timeout=timeout, **(asked if isinstance(asked, dict) else options))
