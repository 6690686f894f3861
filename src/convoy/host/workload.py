"""What a command line asks to be trained, as far as planning needs it: no Hydra, no torch."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from convoy.errors import ConvoyError
from convoy.host import roofline
from convoy.host.history import data_kind
from convoy.host.plan import Training
from convoy.host.speed_model import Observation
from convoy.run import cost
from convoy.run.story import Story

# navtrain: samples of NAVSIM's training and validation logs (NAVSIM's own split of its cache).
NAVTRAIN, NAVTRAIN_VAL = 85_109, 18_179
DEFAULTS = {  # of conf/settings.yaml, which NAVSIM's run_training shares
    "agent": "ego_status_mlp_agent",
    "trainer.params.max_epochs": "100",
    "dataloader.params.batch_size": "64",
    "dataloader.params.num_workers": "4",
    "global_batch": "null",
    "data.val_fraction": "0.1",
    "cache_path": "",
    "speed": "max",
}


def read(
    overrides: Sequence[str], samples: int | None = None, val_samples: int | None = None
) -> tuple[Training, str]:
    """The training, and where the number of samples comes from. Raises ConvoyError."""
    given = settings(overrides)
    found, source = _samples(given)
    training, validation = found
    if samples is not None:
        training, validation, source = samples, val_samples or 0, "as given"
    elif val_samples is not None:
        validation = val_samples
    return Training(
        given["agent"],
        training,
        validation,
        _whole(given, "trainer.params.max_epochs"),
        None if given["global_batch"] in {"null", ""} else _whole(given, "global_batch"),
        _whole(given, "dataloader.params.batch_size"),
        data_kind(given["cache_path"]) if given["cache_path"] else "shards",
        _whole(given, "dataloader.params.num_workers", least=0),
        given["speed"],
    ), source


def counted(training: Training, earlier: Sequence[Story], experiments: Path) -> Training:
    """With what its samples cost, as `convoy check --flops` or the newest run counted it."""
    found = cost.kept(experiments, training.agent)
    for run in earlier if found is None else ():
        if run.agent == training.agent and (found := cost.of_manifest(run.manifest)):
            break
    if found is None:
        return training
    return replace(training, counted=roofline.counted(found.gflop, found.parameters))


def notes(training: Training, source: str, runs: Sequence[Observation]) -> list[str]:
    """What a person should know of the workload; `source` is that of the number of samples."""
    found = [
        f"{training.agent}: {training.epochs} epochs of {training.samples:,} samples ({source}), "
        f"{len(runs)} earlier run{'' if len(runs) == 1 else 's'} to learn from"
    ]
    if training.global_batch is None:
        found.append(
            "global_batch is not set: rows with more GPUs take fewer, larger steps (NAVSIM's way)"
        )
    known = training.agent in roofline.COSTS or training.counted
    if not known and all(run.workload.agent != training.agent for run in runs):
        found.append(
            f"what a sample of {training.agent} costs is not known: run convoy check --flops with "
            "the same arguments, in the image"
        )
    return found


def settings(overrides: Sequence[str]) -> dict[str, str]:
    """The last word on each setting that planning reads."""
    found = dict(DEFAULTS)
    for override in overrides:
        key, sign, value = override.partition("=")
        if sign and key.lstrip("+~") in found:
            found[key.lstrip("+~")] = value.strip("'\"")
    return found


def _whole(given: Mapping[str, str], key: str, least: int = 1) -> int:
    text = given[key]
    if not text.isdigit() or int(text) < least:
        raise ConvoyError(f"{key}={text} must be a whole number of at least {least}.")
    return int(text)


def _samples(given: Mapping[str, str]) -> tuple[tuple[int, int], str]:
    """Training and validation samples: of packed shards, else NAVSIM's navtrain."""
    manifest = Path(given["cache_path"] or ".") / "manifest.json"
    if given["cache_path"] and manifest.is_file():
        try:
            shards = json.loads(manifest.read_text())["shards"]
            total = sum(len(shard["tokens"]) for shard in shards)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ConvoyError(
                f"{manifest} cannot be read: convoy data verify says more."
            ) from error
        logs = {shard["log"] for shard in shards}
        # NAVSIM's split holds out 17.6 % of its logs' samples; other data, data.val_fraction.
        held = (
            NAVTRAIN_VAL / (NAVTRAIN + NAVTRAIN_VAL)
            if len(logs) > 500
            else float(given["data.val_fraction"])
        )
        return (
            round(total * (1 - held)),
            round(total * held),
        ), f"{total} samples in {manifest.parent}"
    return (NAVTRAIN, NAVTRAIN_VAL), "NAVSIM's navtrain; --samples gives another number"
