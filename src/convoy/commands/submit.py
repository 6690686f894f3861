"""`convoy submit`: finds before queueing what would fail after it, then submits with sbatch."""

import argparse
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from convoy.errors import ConvoyError, ExitCode
from convoy.host import job_file, site
from convoy.host.digest import image_digest


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--nodes", type=int, default=1, help="nodes (default: %(default)s)")
    for name, summary in (
        ("partition", "partition"),
        ("account", "account that is charged"),
        ("time", "time limit, as sbatch writes it: 12:00:00"),
        ("gpus-per-node", "GPUs of each node, a rank on each"),
    ):
        parser.add_argument(
            f"--{name}", help=f"{summary} (default: environment, slurm/site.conf, the job file)"
        )
    parser.add_argument(
        "--sbatch",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="any other sbatch option",
    )
    parser.add_argument(
        "--image", type=Path, help="image (default: CONVOY_IMAGE, build/convoy.sif)"
    )
    parser.add_argument(
        "--estimate",
        metavar="TIME",
        help="how long the training will take, to hold the limit against",
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="check, and print the whole text instead of submitting",
    )
    parser.add_argument(
        "overrides", nargs="*", metavar="KEY=VALUE", help="the training's own arguments, after --"
    )


def run(args: argparse.Namespace) -> int:
    root = site.find_checkout()
    settings = site.load(root)
    if args.image:
        settings = site.Site(
            root, {**settings.environment, "CONVOY_IMAGE": str(args.image.absolute())}
        )
    options = {"nodes": str(args.nodes)} | settings.sbatch_options | _given(args)
    script = job_file.choose(root, args.nodes)
    text = script.read_text()
    effective = job_file.directives(text) | options

    digest = image_digest(settings.image)
    _require_writable(settings.experiments)
    _require_time(effective, args.estimate)
    gpus = effective["gpus-per-node"].rpartition(":")[2]
    _check_in_image(settings, args.nodes, gpus, [*settings.overrides, *args.overrides])
    _require_estimate_of_the_run(effective["time"], args.overrides)

    command = job_file.command(script, options, args.overrides)
    if args.dry_run:
        print(f"{shlex.join(command)}\nimage {settings.image} sha256:{digest}", file=sys.stderr)
        print(job_file.render(text, options, root, args.overrides), end="")
        return ExitCode.FINISHED
    print(shlex.join(command), flush=True)
    environment = {**os.environ, "CONVOY_ROOT": str(root), "CONVOY_IMAGE_SHA256": digest}
    if args.image:
        environment["CONVOY_IMAGE"] = str(args.image.absolute())
    return subprocess.run(command, env=environment).returncode


def _given(args: argparse.Namespace) -> dict[str, str]:
    named = {
        name: getattr(args, name.replace("-", "_"))
        for name in ("partition", "account", "time", "gpus-per-node")
    }
    more = dict(entry.removeprefix("--").split("=", 1) for entry in args.sbatch if "=" in entry)
    if len(more) < len(args.sbatch):
        raise ConvoyError("--sbatch takes NAME=VALUE, for example --sbatch constraint=l40s.")
    return {name: value for name, value in named.items() if value is not None} | more


def _require_writable(experiments: Path) -> None:
    try:
        experiments.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConvoyError(
            f"NAVSIM_EXP_ROOT={experiments} cannot be made: {error.strerror}. Name a shared folder."
        ) from error
    if not os.access(experiments, os.W_OK):
        raise ConvoyError(
            f"NAVSIM_EXP_ROOT={experiments} cannot be written. Name a shared folder that can."
        )


def _require_time(effective: Mapping[str, str], estimate: str | None) -> None:
    """The time limit against the partition's, and against the estimate that was given."""
    limit = _seconds("--time", effective["time"])
    partition = effective["partition"]
    if shutil.which("scontrol") is None:
        raise ConvoyError(
            "scontrol is not in PATH: convoy submit runs where sbatch does, on a login node."
        )
    shown = subprocess.run(
        ["scontrol", "--oneliner", "show", "partition", partition], text=True, capture_output=True
    )
    if shown.returncode:
        found = subprocess.run(
            ["sinfo", "--noheader", "--format=%R"], text=True, capture_output=True
        ).stdout.split()
        raise ConvoyError(
            f"There is no partition {partition!r}. This cluster has: "
            f"{', '.join(sorted(set(found)))}."
        )
    facts = dict(re.findall(r"(\S+?)=(\S*)", shown.stdout))
    allowed = job_file.seconds(facts.get("MaxTime", "UNLIMITED"))
    if allowed is not None and (limit is None or limit > allowed):
        raise ConvoyError(
            f"--time={effective['time']} is over the limit of partition {partition}, "
            f"{facts['MaxTime']}: the job would never start. Ask for less; the same command goes "
            "on from the last checkpoint."
        )
    total = facts.get("TotalNodes", "")
    if total.isdigit() and int(effective["nodes"]) > int(total):
        raise ConvoyError(
            f"--nodes={effective['nodes']}, and partition {partition} has {total} node(s) in all."
        )
    if estimate is not None:
        _require_within("--estimate", _seconds("--estimate", estimate), effective["time"])


def _check_in_image(settings: site.Site, nodes: int, gpus: str, overrides: list[str]) -> None:
    """`convoy check` as the job will see it: in the image, with its bind paths. Says what is wrong
    itself."""
    container = settings.root / "slurm" / "container.sh"
    environment = {
        **settings.environment,
        "CONVOY_IMAGE": str(settings.image),
        "CONVOY_PROCESSES_PER_NODE": gpus,
        "CONVOY_HEAD": "",
        "NAVSIM_EXP_ROOT": str(settings.experiments),
    }
    size = [f"--nodes={nodes}", f"--processes-per-node={gpus}"]
    checked = subprocess.run(
        [container, "check", "--quiet", *size, "--", *overrides], env=environment
    )
    if checked.returncode:
        raise SystemExit(checked.returncode)


def _require_estimate_of_the_run(limit: str, overrides: list[str]) -> None:
    """The limit against what the run itself said last, where `run_dir` names one to go on with."""
    named = [
        value
        for key, _, value in (override.partition("=") for override in overrides)
        if key == "run_dir"
    ]
    log = Path(named[-1]) / "logs" / "rank-000.log" if named else None
    if log is None or not log.is_file():
        return
    told = re.findall(r"step (\d+)/\d+ .* ETA (\d+:\d\d:\d\d)", log.read_text(errors="replace"))
    if told:
        step, eta = told[-1]
        _require_within(f"the run's own estimate at step {step}", _seconds("ETA", eta), limit)


def _require_within(what: str, needed: int | None, limit: str) -> None:
    available = _seconds("--time", limit)
    if available is not None and (needed is None or needed > available):
        hours = "unlimited" if needed is None else f"{needed / 3600:.1f} h"
        raise ConvoyError(
            f"The time limit {limit} is shorter than {what} ({hours}). Give --time, or more nodes; "
            "or submit in parts: the same command with the same run_dir goes on, then without "
            "--estimate."
        )


def _seconds(name: str, text: str) -> int | None:
    try:
        return job_file.seconds(text)
    except ValueError as error:
        raise ConvoyError(
            f"{name}={text} is no time of SLURM's: 90, 12:00:00 or 1-12:00:00, for example."
        ) from error
