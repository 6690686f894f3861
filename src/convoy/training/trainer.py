"""Builds Lightning's Trainer from the configuration; torchrun's facts come from the topology, never
from Lightning."""

import difflib
import inspect
from datetime import timedelta
from typing import Any

import pytorch_lightning as pl
import torch
from lightning_fabric.plugins.environments import (
    ClusterEnvironment,
    LightningEnvironment,
    TorchElasticEnvironment,
)
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger
from pytorch_lightning.strategies import DDPStrategy

from convoy.config import Settings
from convoy.errors import ConvoyError
from convoy.run.layout import RunDirectory
from convoy.topology import Topology
from convoy.training.checkpoint import AtomicCheckpointIO
from convoy.training.speed.recipe import Recipe
from convoy.training.speed.strategy import WholeStepStrategy


def build_trainer(
    settings: Settings,
    topology: Topology,
    run: RunDirectory,
    callbacks: list[pl.Callback],
    recipe: Recipe,
) -> pl.Trainer:
    """The Trainer for `trainer.params`. Raises ConvoyError for a parameter that Lightning does not
    have."""
    params: dict[str, Any] = OmegaConf.to_container(settings.config.trainer.params)  # type: ignore[assignment]
    known = inspect.signature(pl.Trainer.__init__).parameters
    for name in params:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=3)
            raise ConvoyError(
                f"Lightning's Trainer has no parameter {name!r} (trainer.params). Nearest: "
                f"{', '.join(near)}."
            )
    params["strategy"] = _strategy(params["strategy"], settings, topology, recipe)
    # TensorBoard comes first: NAVSIM's callbacks draw their pictures into `trainer.logger`.
    loggers = [
        TensorBoardLogger(run.root, name="tensorboard", version=""),
        CSVLogger(run.root, name="metrics"),
    ]
    # Alone, LightningEnvironment keeps Lightning from taking a surrounding SLURM job for its own
    # launcher.
    environment: ClusterEnvironment = (
        TorchElasticEnvironment() if topology.launcher == "torchrun" else LightningEnvironment()
    )
    return pl.Trainer(
        **params,
        plugins=[environment, AtomicCheckpointIO()],
        callbacks=callbacks,
        logger=loggers,
        use_distributed_sampler=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


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


def _strategy(name: str, settings: Settings, topology: Topology, recipe: Recipe) -> Any:
    """`ddp` on one process is the plain model: the mathematics are the same, the copies are not
    needed."""
    if not name.startswith("ddp"):
        return name
    if topology.world_size == 1:
        return "auto"
    timeout = timedelta(minutes=settings.config.distributed_timeout_minutes)
    if recipe["graph"]:
        return WholeStepStrategy(timeout=timeout)
    return DDPStrategy(
        find_unused_parameters=name == "ddp_find_unused_parameters_true",
        gradient_as_bucket_view=recipe["ddp"],
        static_graph=recipe["ddp"],
        timeout=timeout,
    )
