"""The configuration: composed by Hydra, checked before anything expensive starts. Imports no
torch."""

import difflib
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException, MissingConfigException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from convoy.errors import ConvoyError
from convoy.global_batch import BatchPlan, plan_batches
from convoy.topology import Topology

CONF = Path(__file__).parent / "conf"

SPEED_LEVELS = ("plain", "default", "max")  # of `speed`, each with all that those before it have

# Groups that NAVSIM reads when it builds a cache; its training from a cache ignores them, and
# composing navtrain's list of tokens takes 14 s. So their names are kept, for the record, and the
# files are not read.
NOT_COMPOSED = ("train_test_split", "worker")


@dataclass(frozen=True)
class Settings:
    """A checked configuration: `config` has no open choices left except those that need the cache
    or torch."""

    config: DictConfig
    batches: BatchPlan


def load(overrides: Sequence[str], topology: Topology, navsim_groups: Path | None) -> Settings:
    """Compose `overrides` (a NAVSIM command line's arguments) and check everything that needs no
    torch.

    `navsim_groups` is NAVSIM's Hydra folder (navsim.tree.config_directory), None without a tree.

    Raises ConvoyError for each user mistake, naming what is valid.
    """
    config = compose(overrides, navsim_groups)
    return Settings(config, check(config, topology))


def compose(overrides: Sequence[str], navsim_groups: Path | None) -> DictConfig:
    """Compose the training configuration; agents come from Convoy's own folder and from
    `navsim_groups`."""
    named = {
        key: value for key, _, value in (o.partition("=") for o in overrides) if key in NOT_COMPOSED
    }
    composed = [
        override for override in overrides if override.partition("=")[0] not in NOT_COMPOSED
    ]
    search_path = [f"hydra.searchpath=[file://{navsim_groups}]"] if navsim_groups else []
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(CONF), version_base=None):
            config = hydra_compose("train", [*search_path, *composed])
        config.merge_with(named)
        OmegaConf.resolve(config)
    except MissingConfigException as error:
        raise _missing_group_option(error, navsim_groups) from error
    except HydraException as error:
        raise _bad_override(error, overrides, navsim_groups) from error
    except OmegaConfBaseException as error:
        raise ConvoyError(
            f"The configuration cannot be resolved: {str(error).splitlines()[0]}"
        ) from error
    return config


def check(config: DictConfig, topology: Topology) -> BatchPlan:
    """Check `config` against the launch; write the derived `trainer.params` and `global_batch` into
    it."""
    _check_cache_only(config)
    _check_cache_directory(config)
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


def agents_found(navsim_groups: Path | None) -> dict[str, Path]:
    """Agent names (`agent=<name>`) and the folders that they were found in."""
    return {
        path.stem: folder
        for folder in agent_folders(navsim_groups)
        for path in sorted(folder.glob("*.yaml"))
    }


def agent_folders(navsim_groups: Path | None) -> list[Path]:
    return [CONF / "agent", *([navsim_groups / "agent"] if navsim_groups else [])]


def flat_keys(config: DictConfig) -> Iterator[str]:
    """Every dotted key of `config`, leaves and nodes."""
    for key in config:
        yield str(key)
        if not OmegaConf.is_missing(config, key) and isinstance(config[key], DictConfig):
            yield from (f"{key}.{below}" for below in flat_keys(config[key]))


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


def _missing_group_option(error: MissingConfigException, navsim_groups: Path | None) -> ConvoyError:
    wanted = error.missing_cfg_file or ""
    group, _, name = wanted.rpartition("/")
    if group != "agent":
        return ConvoyError(
            f"There is no {wanted!r} among Convoy's configuration files or NAVSIM's: {error}"
        )
    looked = ", ".join(str(folder) for folder in agent_folders(navsim_groups))
    found = ", ".join(sorted(agents_found(navsim_groups)))
    hint = (
        "" if navsim_groups else " No NAVSIM tree is here: make navsim, or set NAVSIM_DEVKIT_ROOT."
    )
    return ConvoyError(f"Unknown agent {name!r}. Found: {found}. Looked in: {looked}.{hint}")


def _bad_override(
    error: HydraException, overrides: Sequence[str], navsim_groups: Path | None
) -> ConvoyError:
    """Hydra's message, with the nearest existing names for a key that does not exist."""
    text = str(error)
    unknown = re.search(r"Could not override '([^']+)'|Key '([^']+)' is not in struct", text)
    if unknown is None:
        return ConvoyError(f"An override cannot be read: {text.splitlines()[0]}")
    key = (unknown.group(1) or unknown.group(2)).lstrip("+~")
    for override in overrides:
        name = override.partition("=")[0].lstrip("+~")
        if name.endswith(key):
            key = name
    agent = [override for override in overrides if override.partition("=")[0] == "agent"]
    known = list(flat_keys(compose(agent, navsim_groups)))
    near = difflib.get_close_matches(key, known, n=3, cutoff=0.5)
    leaf = key.rpartition(".")[2]
    near += [name for name in known if name.rpartition(".")[2] == leaf and name not in near]
    nearest = f" Nearest: {', '.join(near[:4])}." if near else ""
    return ConvoyError(
        f"There is no setting {key!r}.{nearest} To add a new one on purpose, write +{key}=…."
    )


def _check_cache_only(config: DictConfig) -> None:
    if not config.use_cache_without_dataset or config.force_cache_computation:
        raise ConvoyError(
            "Convoy trains from packed shards or a cache (features computed on the fly starve the "
            "GPUs). Build them with `convoy prepare`, then leave use_cache_without_dataset and "
            "force_cache_computation out."
        )


def _check_cache_directory(config: DictConfig) -> None:
    if OmegaConf.is_missing(config, "cache_path") or not config.cache_path:
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
    both = sorted(set(train or ()) & set(val or ()))
    if both:
        raise ConvoyError(
            f"train_logs and val_logs share {len(both)} logs "
            f"({', '.join(both[:3])}{' …' if len(both) > 3 else ''}): a log belongs to one of "
            "them, or the validation measures what was trained on."
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
    if config.speed not in SPEED_LEVELS:
        raise ConvoyError(
            f"speed={config.speed} is not known. Choose one of {', '.join(SPEED_LEVELS)}."
        )
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
