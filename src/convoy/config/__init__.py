"""The configuration: composed by Hydra, checked before anything expensive starts.

Imports no torch.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict

from convoy.config import arguments
from convoy.config.composition import (
    CONF,
    DEFAULT_AGENT,
    agent_folders,
    agents_found,
    chosen_agent,
    compose,
    flat_keys,
)
from convoy.config.navsim_defaults import NO_EFFECT
from convoy.config.settings import check_values
from convoy.errors import ConvoyError
from convoy.global_batch import BatchPlan, plan_batches
from convoy.topology import Topology

__all__ = [
    "CONF",
    "DEFAULT_AGENT",
    "Settings",
    "agent_folders",
    "agents_found",
    "check",
    "chosen_agent",
    "compose",
    "differences",
    "flat_keys",
    "load",
]


@dataclass(frozen=True)
class Settings:
    """A checked configuration: `config` has no open choices left except those that need the cache
    or torch."""

    config: DictConfig
    batches: BatchPlan
    notes: tuple[str, ...] = ()  # what a person should know of the arguments, a sentence each


def load(overrides: Sequence[str], topology: Topology, navsim_groups: Path | None) -> Settings:
    """Compose `overrides` (a NAVSIM command line's arguments) and check everything that needs no
    torch.

    `navsim_groups` is NAVSIM's Hydra folder (navsim.tree.config_directory), None without a tree.

    Raises ConvoyError for each user mistake, naming what is valid.
    """
    config = compose(overrides, navsim_groups)
    asked = arguments.read(overrides)
    batches = check(config, topology)
    return Settings(config, batches, (*_shared_logs(config, asked), *_without_effect(asked)))


def check(config: DictConfig, topology: Topology) -> BatchPlan:
    """Check `config` against the launch.

    Write the derived `trainer.params` and `global_batch` into it.
    """
    with open_dict(config):
        _restore_defaults(config.trainer.params)
        check_values(config)
    _check_cache_only(config)
    _check_cache_directory(config)
    _check_agent(config)
    _check_split(config)
    _check_node_count(config, topology)
    _choose_precision(config)
    params = config.trainer.params
    batches = plan_batches(
        topology.world_size,
        config.dataloader.params.batch_size,
        config.global_batch,
        params.accumulate_grad_batches,
    )
    params.num_nodes, params.devices = topology.num_nodes, topology.local_world_size
    params.accumulate_grad_batches = batches.accumulation
    config.global_batch = batches.global_batch
    return batches


def differences(old: DictConfig, new: DictConfig) -> dict[str, tuple[Any, Any]]:
    """Leaves in which two configurations differ, as key -> (old, new); None stands for absent."""
    before, after = _leaves(old), _leaves(new)
    return {
        key: (before.get(key), after.get(key))
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key)
    }


def _leaves(config: DictConfig) -> dict[str, Any]:
    return {
        key: value
        for key in flat_keys(config)
        if not isinstance(
            value := OmegaConf.select(config, key, throw_on_missing=False), DictConfig
        )
    }


def _without_effect(asked: arguments.Arguments) -> tuple[str, ...]:
    """One sentence that names the arguments which no training changes by."""
    typed = sorted({name.split(".")[0] for name in asked.keys} & set(NO_EFFECT))
    named = [*sorted(asked.groups), *typed]
    if not named:
        return ()
    return (
        f"NAVSIM reads these for its cache or its scores, not in a training: {', '.join(named)}.",
    )


def _restore_defaults(params: DictConfig) -> None:
    """What a command line took away (`~trainer.params.strategy`) and Convoy needs: the default."""
    for name, value in (
        ("strategy", "ddp"),
        ("num_nodes", None),
        ("devices", None),
        ("accumulate_grad_batches", None),
        ("accelerator", "gpu"),
        ("precision", "32-true"),
        ("log_every_n_steps", 10),
        ("default_root_dir", None),
    ):
        if name not in params:
            params[name] = value
    if params.devices in (-1, "-1", "auto"):
        params.devices = None  # all of the launch


def _check_agent(config: DictConfig) -> None:
    if "agent" not in config:
        raise ConvoyError(
            f"No agent is named, and NAVSIM's default, {DEFAULT_AGENT}, needs a NAVSIM tree: "
            "agent=<name>. Convoy's own is agent=bev_fusion_agent; for NAVSIM's, make navsim or "
            "set NAVSIM_DEVKIT_ROOT."
        )
    if OmegaConf.select(config, "agent._target_") is None:
        raise ConvoyError("agent has no _target_: its YAML must name the agent's class.")
    weights = OmegaConf.select(config, "agent.checkpoint_path")
    if weights is not None and not Path(str(weights)).is_file():
        raise ConvoyError(f"agent.checkpoint_path={weights} is not a file on this machine.")


def _check_cache_only(config: DictConfig) -> None:
    if not config.use_cache_without_dataset or config.force_cache_computation:
        raise ConvoyError(
            "Convoy trains from packed shards or a cache (features computed on the fly starve the "
            "GPUs). Build them with `convoy prepare`, then leave use_cache_without_dataset and "
            "force_cache_computation out."
        )


def _check_cache_directory(config: DictConfig) -> None:
    if not config.cache_path:
        raise ConvoyError(
            "cache_path is not set: give a folder of packed shards or a NAVSIM feature cache, "
            "cache_path=/path. `convoy synth DIR --samples 64 --logs 8` makes one to try."
        )
    path = Path(config.cache_path)
    if not path.is_dir():
        raise ConvoyError(
            f"cache_path={path} is not a directory on this machine. Is the file system bound or "
            "mounted?"
        )
    with os.scandir(path) as entries:
        if not any(entry.is_dir() for entry in entries):
            raise ConvoyError(
                f"cache_path={path} is empty: expected packed shards (manifest.json), or "
                "<log>/<token>/<builder>.gz."
            )


def _check_split(config: DictConfig) -> None:
    train, val = config.train_logs, config.val_logs
    if (train is None) != (val is None):
        given, lacking = ("train_logs", "val_logs") if val is None else ("val_logs", "train_logs")
        raise ConvoyError(
            f"{given} is given and {lacking} is not: give both, or neither for NAVSIM's own split."
        )
    for name, logs in (("train_logs", train), ("val_logs", val)):
        if logs is not None and len(logs) == 0:
            raise ConvoyError(
                f"{name} is an empty list: name at least one log of {config.cache_path}."
            )


def _shared_logs(config: DictConfig, asked: arguments.Arguments) -> tuple[str, ...]:
    """Logs of both splits are a mistake, unless a named configuration was published with them."""
    both = sorted(set(config.train_logs or ()) & set(config.val_logs or ()))
    if not both:
        return ()
    if asked.config_name is None or {"train_logs", "val_logs"} & asked.keys:
        raise ConvoyError(
            f"train_logs and val_logs share {len(both)} logs "
            f"({', '.join(both[:3])}{' …' if len(both) > 3 else ''}): a log belongs to one of "
            "them, or the validation measures what was trained on."
        )
    return (
        f"{asked.config_name} names {len(both)} logs that are trained on and validated on: "
        "its validation does not measure what is new.",
    )


def _check_node_count(config: DictConfig, topology: Topology) -> None:
    params = config.trainer.params
    for key, derived, flag in (
        ("num_nodes", topology.num_nodes, "--nodes"),
        ("devices", topology.local_world_size, "processes per node"),
    ):
        if params[key] is not None and params[key] != derived:
            raise ConvoyError(
                f"trainer.params.{key}={params[key]} contradicts the launch, which has {derived} "
                f"(world size {topology.world_size}). Leave trainer.params.{key} out: {flag} "
                "decides."
            )


def _choose_precision(config: DictConfig) -> None:
    params = config.trainer.params
    if params.precision is None:
        asked = config.speed_switches.bf16
        bf16 = config.speed != "plain" if asked is None else asked
        on_gpu = "bf16-mixed" if bf16 else "16-mixed"
        params.precision = "32-true" if params.accelerator == "cpu" else on_gpu
    if params.accelerator == "cpu" and str(params.precision).startswith("16"):
        raise ConvoyError(
            f"trainer.params.precision={params.precision} needs a GPU. On the CPU leave it out, or "
            "add trainer.params.precision=32-true."
        )
