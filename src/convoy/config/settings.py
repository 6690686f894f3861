"""What each setting may be: types and ranges of ours, of NAVSIM's, and of Lightning's Trainer.

What the checks here pass does not end a training for its configuration later, after the queue."""

import difflib
from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf

from convoy.config.kinds import (
    ANY,
    NULL,
    SWITCH,
    TEXT,
    TEXTS,
    Kind,
    fraction,
    matching,
    number,
    one_of,
    whole,
)
from convoy.config.navsim_defaults import NO_EFFECT
from convoy.errors import ConvoyError

SPEED_LEVELS = ("plain", "default", "max")  # of `speed`, each with all that those before it have

# Of `speed_switches`, and the lowest level that has each; convoy.training.speed.recipe knows more.
SPEED_SWITCHES: dict[str, str | None] = {
    "bf16": "default",
    "channels_last": "default",
    "tf32": "default",
    "cudnn_benchmark": "default",
    "fused_optimizer": "default",
    "operators": "default",
    "matching": "default",
    "attention": "default",
    "prefetch": "default",
    "gradient_mean": "plain",
    "ddp": "default",
    "compile": "max",
    "graph": "max",
    "peer_copies": "max",
    "bf16_gradients": None,  # only where it is asked for
}

SETTINGS: dict[str, Kind] = {
    "experiment_name": TEXT,
    "cache_path": TEXT | NULL,
    "train_logs": TEXTS | NULL,
    "val_logs": TEXTS | NULL,
    "seed": whole(0, 2**32 - 1),
    "use_cache_without_dataset": SWITCH,
    "force_cache_computation": SWITCH,
    "output_dir": TEXT | NULL,
    "run_dir": TEXT | NULL,
    "global_batch": whole(1) | NULL,
    "validate_first": SWITCH,
    "distributed_timeout_minutes": number(above=0),
    "watchdog_minutes": number(least=0),
    "data.val_fraction": number(above=0, below=1),
    "data.skip_bad": SWITCH,
    "data.trust_cache": SWITCH,
    "data.stage": TEXT | NULL,
    "data.stage_gb": number(above=0) | NULL,
    "tracker": one_of("wandb", "mlflow") | NULL,
    "checkpoint.every_minutes": number(least=0),
    "checkpoint.keep": whole(1),
    "score.every_epochs": whole(1) | NULL,
    "score.split": TEXT,
    "score.arguments": TEXTS,
    "profile.steps": whole(0),
    "profile.warm": whole(1),
    "speed": one_of(*SPEED_LEVELS),
    **{f"speed_switches.{name}": SWITCH | NULL for name in SPEED_SWITCHES},
    "compile_cache": TEXT | NULL,
    "metrics.prediction": TEXT,
    "metrics.target": TEXT,
    **dict.fromkeys(("train_test_split", "worker", *NO_EFFECT), ANY),
}

LOADER: dict[str, Kind] = {
    "batch_size": whole(1),
    "num_workers": whole(0),
    "pin_memory": SWITCH,
    "prefetch_factor": whole(1) | NULL,
    "persistent_workers": SWITCH,
}

_LIMIT = whole(0) | fraction() | NULL
_TIME = matching(r"\d{2}:\d{2}:\d{2}:\d{2}", "a time as DD:HH:MM:SS")
_TIME |= Kind(
    "a node of days, hours, minutes, seconds",
    lambda value: (
        isinstance(value, dict)
        and bool(value)
        and value.keys() <= {"weeks", "days", "hours", "minutes", "seconds"}
        and all(isinstance(count, (int, float)) for count in value.values())
    ),
)

# Arguments of DistributedDataParallel that a node of `trainer.params.strategy` may hold.
DDP: dict[str, Kind] = {
    "static_graph": SWITCH,
    "find_unused_parameters": SWITCH,
    "gradient_as_bucket_view": SWITCH,
    "broadcast_buffers": SWITCH,
    "bucket_cap_mb": number(above=0),
}

TRAINER: dict[str, Kind] = {
    "accelerator": one_of("gpu", "cuda", "cpu"),
    "strategy": one_of(
        "ddp", "ddp_find_unused_parameters_true", "ddp_find_unused_parameters_false", "auto"
    )
    | Kind(f"a node of {', '.join(DDP)}", lambda value: isinstance(value, dict)),
    "devices": whole(1) | one_of(-1, "-1", "auto", None),
    "num_nodes": whole(1) | NULL,
    "precision": one_of(
        16,
        32,
        64,
        "16",
        "32",
        "64",
        "bf16",
        "16-true",
        "16-mixed",
        "bf16-true",
        "bf16-mixed",
        "32-true",
        "64-true",
        "transformer-engine",
        "transformer-engine-float16",
        None,
    ),
    "fast_dev_run": SWITCH | whole(0),
    "max_epochs": whole(-1) | NULL,
    "min_epochs": whole(0) | NULL,
    "max_steps": whole(-1),
    "min_steps": whole(0) | NULL,
    "max_time": _TIME | NULL,
    "limit_train_batches": whole(1) | fraction() | NULL,
    "limit_val_batches": _LIMIT,
    "limit_test_batches": _LIMIT,
    "limit_predict_batches": _LIMIT,
    "val_check_interval": whole(1) | fraction() | _TIME | NULL,
    "check_val_every_n_epoch": whole(1) | NULL,
    "num_sanity_val_steps": whole(-1) | NULL,
    "log_every_n_steps": whole(1),
    "accumulate_grad_batches": whole(1) | NULL,
    "gradient_clip_val": number(least=0) | NULL,
    "gradient_clip_algorithm": one_of("norm", "value", None),
    "deterministic": SWITCH | one_of("warn", None),
    "benchmark": SWITCH | NULL,
    "inference_mode": SWITCH,
    "profiler": one_of("simple", "advanced", "pytorch", None),
    "detect_anomaly": SWITCH,
    "sync_batchnorm": SWITCH,
    "default_root_dir": TEXT | NULL,
    "enable_autolog_hparams": SWITCH,
}

# Arguments of Lightning's that Convoy gives itself: the values that change nothing, and the reason.
OURS: dict[str, tuple[tuple[Any, ...], str]] = {
    "logger": ((True, None), "Convoy writes TensorBoard and CSV files into the run directory"),
    "callbacks": ((None,), "an agent names its own in get_training_callbacks"),
    "plugins": ((None,), "Convoy gives torchrun's environment and its own checkpoint writer"),
    "enable_progress_bar": ((True, False, None), "Convoy shows its own progress"),
    "enable_model_summary": ((False, None), "there is none"),
    "enable_checkpointing": ((True, None), "a run without checkpoints could not go on"),
    "use_distributed_sampler": ((True, False), "Convoy's order of samples is per rank already"),
    "barebones": ((False,), "it would switch off checkpoints and logs"),
    "overfit_batches": ((0, 0.0), "name few logs instead: train_logs=[…] val_logs=[…]"),
    "reload_dataloaders_every_n_epochs": ((0,), "the loaders stay open over all epochs"),
    "model_registry": ((None,), "checkpoints stay in the run directory"),
}

_LOADER_REFUSED = {
    "drop_last": (
        (True,),
        "an epoch is whole global batches already; what is left over comes in another epoch",
    ),
    "shuffle": ((True,), "the training order is always shuffled, by seed and epoch"),
}


def check_values(config: DictConfig) -> None:
    """Raise ConvoyError, one line per argument, for values that a training would end for; drop the
    arguments of Lightning's that change nothing."""
    params, loader = config.trainer.params, config.dataloader.params
    wrong = _drop("trainer.params", params, OURS, TRAINER, "Lightning's Trainer")
    wrong += _drop("dataloader.params", loader, _LOADER_REFUSED, LOADER, "Convoy's loader")
    wrong += _wrong("", config, SETTINGS)
    wrong += _wrong("dataloader.params.", loader, LOADER)
    wrong += _wrong("trainer.params.", params, TRAINER)
    strategy = params.get("strategy")
    if isinstance(strategy, DictConfig):
        prefix = "trainer.params.strategy"
        wrong += _drop(prefix, strategy, {}, DDP, "DistributedDataParallel")
        wrong += _wrong(f"{prefix}.", strategy, DDP)
    if wrong:
        raise ConvoyError("\n".join(wrong))


def _drop(
    prefix: str,
    node: DictConfig,
    handled: Mapping[str, tuple[tuple[Any, ...], str]],
    known: Mapping[str, Kind],
    whose: str,
) -> list[str]:
    """Remove from `node` what is handled and harmless; a line for each other unknown argument."""
    wrong = []
    for name in [str(name) for name in node if name not in known]:
        if name not in handled:
            near = difflib.get_close_matches(name, known, n=3)
            nearest = f" Nearest: {', '.join(near)}." if near else f" It has: {', '.join(known)}."
            wrong.append(f"{whose} has no parameter {name!r} ({prefix}.{name}).{nearest}")
            continue
        harmless, reason = handled[name]
        if any(type(node[name]) is type(value) and node[name] == value for value in harmless):
            del node[name]
        else:
            wrong.append(f"{prefix}.{name}={node[name]} is not possible: {reason}. Leave it out.")
    return wrong


def _wrong(prefix: str, node: DictConfig, kinds: Mapping[str, Kind]) -> list[str]:
    lines = []
    for name, kind in kinds.items():
        value = OmegaConf.select(node, name, default=_ABSENT, throw_on_missing=False)
        if value is _ABSENT:
            continue
        plain = OmegaConf.to_container(value) if OmegaConf.is_config(value) else value
        if not kind.holds(plain):
            shown = "null" if plain is None else plain
            lines.append(f"{prefix}{name}={shown} is not {kind.words}.")
    return lines


_ABSENT = object()
