"""Whom a run directory belongs to: one configuration, of which only little may change."""

import os
from pathlib import Path

from omegaconf import DictConfig, OmegaConf
from yaml import YAMLError

from convoy.config import differences
from convoy.config.navsim_defaults import NO_EFFECT
from convoy.errors import ConvoyError
from convoy.run.atomic import write_text
from convoy.run.layout import RunDirectory
from convoy.topology import Topology

# What may change from one start of a run to the next: where and how fast it runs and how long, not
# what it computes.
MAY_CHANGE = (
    *NO_EFFECT,
    "train_test_split",
    "worker",
    "run_dir",
    "output_dir",
    "trainer.params.default_root_dir",
    "trainer.params.accelerator",
    "trainer.params.devices",
    "trainer.params.num_nodes",
    "trainer.params.accumulate_grad_batches",
    "trainer.params.max_epochs",
    "trainer.params.max_steps",
    "trainer.params.max_time",
    "trainer.params.log_every_n_steps",
    "dataloader.params.",
    "data.stage",
    "watchdog_minutes",
    "data.trust_cache",
    "checkpoint.",
    "score.",
    "distributed_timeout_minutes",
    "validate_first",
    "speed",
    "compile_cache",
    "tracker",
    "profile.",
)


def choose_root(config: DictConfig, topology: Topology) -> Path:
    """`run_dir`, or a folder named by the job, the same over every requeue, else by the start."""
    if config.run_dir:
        return Path(config.run_dir).absolute()
    return experiments() / config.experiment_name / (topology.job_id or topology.start)


def experiments() -> Path:
    """The folder below which runs are, one folder for each experiment."""
    return Path(os.environ.get("NAVSIM_EXP_ROOT", "exp")).absolute()


def open_run(root: Path, config: DictConfig) -> RunDirectory:
    """Create the run directory and save `config` in it, or check that it belongs to the same
    configuration.

    Raises ConvoyError, showing the difference, when it belongs to another one, or when it cannot be
    written.
    """
    run = RunDirectory(root)
    require_same_configuration(root, config)
    try:
        for folder in (run.logs, run.checkpoints):
            folder.mkdir(parents=True, exist_ok=True)
        write_text(run.config, OmegaConf.to_yaml(config))
    except OSError as error:
        raise unwritable(root, error) from error
    return run


def unwritable(root: Path, error: OSError) -> ConvoyError:
    return ConvoyError(
        f"The run directory {root} cannot be written: {error.strerror}. Give another: "
        "run_dir=/path."
    )


def require_same_configuration(root: Path, config: DictConfig) -> None:
    """Raise ConvoyError, showing the difference, where the run directory `root` belongs to another
    configuration."""
    run = RunDirectory(root)
    if not run.config.is_file():
        return
    old = _load(run.config)
    changed = {
        key: values
        for key, values in differences(old, config).items()
        if not key.startswith(MAY_CHANGE)
    }
    if changed:
        lines = [
            f"  {key}: {before} -> {after}" for key, (before, after) in list(changed.items())[:8]
        ]
        if len(changed) > 8:
            lines.append(f"  … and {len(changed) - 8} more")
        raise ConvoyError(
            f"The run directory {run.root} belongs to another configuration:\n"
            + "\n".join(lines)
            + "\nGive a new one (run_dir=/path), or the same settings to continue that run."
        )


def _load(path: Path) -> DictConfig:
    """Raises ConvoyError for a file that was cut: every start writes the same keys."""
    try:
        config = OmegaConf.load(path)
    except (OSError, ValueError, YAMLError):
        config = OmegaConf.create()
    if not isinstance(config, DictConfig) or "run_dir" not in config:
        raise ConvoyError(
            f"{path} is cut or damaged, so nobody can say whether its run had these settings. If "
            "it had, remove that file and start the same command again."
        )
    return config
