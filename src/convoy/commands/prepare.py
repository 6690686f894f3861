"""`convoy prepare`: arguments, progress and summary. The work is imported when it runs."""

import argparse
import json
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convoy.commands.console import console, progress
from convoy.errors import ConvoyError, ExitCode
from convoy.topology import Task

if TYPE_CHECKING:
    from convoy.data.prepare.inputs import Input
    from convoy.data.prepare.run import Outcome, Progress
    from convoy.data.shards import Manifest

DESCRIPTION = """\
Pack features and targets of a split into shards that a training reads many times faster than
NAVSIM's gzip cache. From a cache: --from-cache DIR. Otherwise from raw logs and sensor data,
through the builders of agent=…, with NAVSIM's own names (train_test_split=navtrain; navsim_log_path
and original_sensor_path are found below OPENSCENE_DATA_ROOT). The same command completes a run that
was killed. Under srun each task does its share: slurm/prepare.slurm."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = DESCRIPTION
    parser.add_argument(
        "out",
        metavar="OUT",
        type=Path,
        help="directory of the shards, on a file system of all nodes",
    )
    parser.add_argument(
        "overrides", nargs="*", metavar="KEY=VALUE", help="as for a training: agent=…, …"
    )
    parser.add_argument("--from-cache", metavar="DIR", type=Path, help="pack NAVSIM's gzip cache")
    parser.add_argument(
        "--workers", metavar="W", type=int, help="processes (default: one per available CPU)"
    )
    parser.add_argument(
        "--samples-per-shard",
        metavar="N",
        type=int,
        default=256,
        help="at most (default: %(default)s)",
    )
    parser.add_argument(
        "--allow-non-finite", action="store_true", help="keep samples with NaN or infinite values"
    )
    parser.add_argument(
        "--retry-failed", action="store_true", help="prepare shards again that left samples out"
    )
    parser.add_argument(
        "--no-verify",
        action="store_true",
        help="do not read everything again for the check at the end",
    )
    parser.add_argument("--json", action="store_true", help="print the summary as JSON")


def run(args: argparse.Namespace) -> int:
    if args.samples_per_shard < 1:
        raise ConvoyError(f"--samples-per-shard must be at least 1, got {args.samples_per_shard}.")
    task = Task.from_environment(os.environ)
    os.environ["TQDM_DISABLE"] = "1"  # NAVSIM draws a bar for each log that it opens
    from convoy.data.prepare.run import Options, prepare

    source = _open(args)
    options = Options(
        args.samples_per_shard, args.workers, args.allow_non_finite, args.retry_failed
    )
    with _progress(task) as show:
        outcome = prepare(source, args.out.absolute(), options, task, show)
    record = _task_record(task, outcome)
    if outcome.manifest is not None:
        record |= _summary(args.out, outcome.manifest)
        if not args.no_verify:
            record["damaged"] = _verify(args.out, outcome.manifest)
    _print(args, record, outcome)
    return ExitCode.FAILED if record.get("damaged") else ExitCode.FINISHED


def _open(args: argparse.Namespace) -> "Input":
    """The input that the arguments name. Raises ConvoyError for the user's mistakes."""
    from convoy import config
    from convoy.data.prepare.inputs import CacheInput, RawInput
    from convoy.navsim import tree
    from convoy.navsim.builders import builders_of
    from convoy.navsim.scenes import scene_split

    of_split = [override for override in args.overrides if override.startswith("train_test_split.")]
    settings = config.compose(
        [override for override in args.overrides if override not in of_split],
        tree.config_directory(),
    )
    if args.from_cache is not None:
        return CacheInput.open(args.from_cache.absolute(), settings.data.trust_cache)
    if (
        not any(override.startswith("agent=") for override in args.overrides)
        or settings.train_test_split is None
    ):
        raise ConvoyError(
            "From raw data, name the agent whose builders are to be used and the split: convoy "
            "prepare OUT agent=transfuser_agent train_test_split=navtrain. From a gzip cache: "
            "convoy prepare OUT --from-cache DIR."
        )
    split = scene_split(settings.train_test_split, of_split)
    if settings.original_sensor_path is not None and settings.sensor_blobs_path is not None:
        raise ConvoyError(
            "original_sensor_path and sensor_blobs_path are two names of one folder (NAVSIM 2, "
            "NAVSIM 1): give one of them."
        )
    agent = builders_of(settings.agent)
    if agent.unbuilt is not None:
        print(
            f"the agent itself cannot be built here ({agent.unbuilt}); its builders can, and they "
            "are all that is needed",
            file=sys.stderr,
        )
    return RawInput(
        logs=_data_path(
            settings.navsim_log_path, "navsim_log_path", f"navsim_logs/{split['data_split']}"
        ),
        sensors=_data_path(
            settings.original_sensor_path or settings.sensor_blobs_path,
            "original_sensor_path",
            f"sensor_blobs/{split['data_split']}",
        ),
        split=settings.train_test_split,
        scene_filter=split["scene_filter"],
        feature_builders=agent.features,
        target_builders=agent.targets,
        sensor_config=agent.sensor_config,
    )


def _data_path(configured: str | None, name: str, below: str) -> Path:
    root = os.environ.get("OPENSCENE_DATA_ROOT")
    if configured is None and not root:
        raise ConvoyError(
            f"Neither {name}=… nor OPENSCENE_DATA_ROOT is set: where is the raw data?"
        )
    return Path(configured).absolute() if configured is not None else Path(root or "") / below


def _task_record(task: Task, outcome: "Outcome") -> dict[str, Any]:
    """What this task did in this start."""
    seconds: Counter[str] = Counter()
    for shard in outcome.shards:
        seconds.update(shard.seconds)
    samples = sum(len(shard.tokens) for shard in outcome.shards)
    return {
        "task": task.number,
        "tasks": task.count,
        "task_shards": len(outcome.shards),
        "task_samples": samples,
        "seconds": round(outcome.seconds, 2),
        "process_seconds": {kind: round(value, 3) for kind, value in sorted(seconds.items())},
    }


def _summary(out: Path, manifest: "Manifest") -> dict[str, Any]:
    return {
        "path": str(out),
        "samples": manifest.samples,
        "logs": len(manifest.logs),
        "shards": sum(bool(shard.tokens) for shard in manifest.shards),
        "bytes": manifest.bytes,
        "bytes_per_sample": round(manifest.bytes / manifest.samples),
        "failed": [{"log": f.log, "token": f.token, "reason": f.reason} for f in manifest.failures],
    }


def _verify(out: Path, manifest: "Manifest") -> list[str]:
    from convoy.data.verify import verify

    return [f"{damage.path}: {damage.problem}" for damage in verify(out, manifest)]


def _print(args: argparse.Namespace, record: dict[str, Any], outcome: "Outcome") -> None:
    if args.json:
        print(json.dumps(record, indent=1))
        return
    rate = record["task_samples"] / record["seconds"] if record["seconds"] else 0.0
    print(
        f"task {record['task']} of {record['tasks']}: {record['task_samples']} samples in "
        f"{record['task_shards']} shards, {record['seconds']:.1f} s, {rate:.1f} samples/s"
    )
    if outcome.manifest is None:
        return
    print(
        f"{record['path']}: {record['samples']} samples of {record['logs']} logs in "
        f"{record['shards']} shards, {record['bytes'] / 1e9:.2f} GB, "
        f"{record['bytes_per_sample'] / 1e3:.0f} kB a sample"
    )
    print_failures(outcome.manifest)
    for line in record.get("damaged", []):
        print(f"damaged: {line}", file=sys.stderr)
    if record.get("damaged") == []:
        print("verified: every shard has its checksum")


def print_failures(manifest: "Manifest", most: int = 10) -> None:
    """Samples that were left out: a line for each reason, with its first token."""
    from rich.table import Table

    if not manifest.failures:
        return
    reasons: dict[tuple[str, str], list[str]] = {}
    for failure in manifest.failures:
        reasons.setdefault((failure.log, failure.reason.split(":")[0]), []).append(
            f"{failure.token}: {failure.reason}"
        )
    table = Table(
        "log", "left out", "the first", title=f"{len(manifest.failures)} samples were left out"
    )
    for (log, _), lines in list(reasons.items())[:most]:
        table.add_row(log, str(len(lines)), lines[0])
    if len(reasons) > most:
        table.add_row("…", "", f"{len(reasons) - most} more reasons: convoy data info --json")
    console().print(table)


@contextmanager
def _progress(task: Task) -> Iterator[Callable[["Progress"], None]]:
    """Progress of all tasks, shown by the first one."""
    if task.number != 0:
        yield lambda _: None
        return
    with progress("shards") as shown:
        yield lambda state: shown.show(
            state.units, state.units_total, f"{state.done} samples, {state.failed} failed"
        )
