"""`convoy rendezvous`: what slurm/launch.sh asks once, on the first node, before it starts all of
them.

Checks the configuration for the launch, makes the run directory and finds the rendezvous. Prints
NAME=VALUE lines for the shell; everything for a person goes to standard error.
"""

import argparse
import json
import os
import shutil
import sys
from datetime import UTC, datetime
from pathlib import Path

from convoy.errors import ConvoyError, ExitCode
from convoy.launch import network, verdict
from convoy.launch.node import check
from convoy.topology import Launch


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "overrides", nargs="*", metavar="KEY=VALUE", help="the training's own arguments"
    )


def run(args: argparse.Namespace) -> int:
    launch = Launch.from_environment(os.environ, gpus=0)
    run_dir = check(args.overrides, launch)
    assert run_dir is not None, "a SLURM job names its run"
    _prepare(run_dir, launch, args.overrides)
    wanted = os.environ.get("CONVOY_RDZV_PORT")
    if wanted and not wanted.isdigit():
        raise ConvoyError(f"CONVOY_RDZV_PORT={wanted} must be a port's number.")
    port = network.free_port(int(wanted) if wanted else None, seed=launch.run_id or "")
    address = network.address_towards(launch.peer) if launch.peer else "127.0.0.1"
    print(f"CONVOY_RDZV_ENDPOINT={network.endpoint(address, port)}\nCONVOY_RUN_DIR={run_dir}")
    print(
        f"launch: run directory {run_dir}, rendezvous at {network.endpoint(address, port)}",
        file=sys.stderr,
    )
    return ExitCode.FINISHED


def _prepare(run_dir: Path, launch: Launch, overrides: list[str]) -> None:
    """Make the directory, forget failures of a start with the same id, and add this start to
    `launches.jsonl`."""
    entry = {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "run_id": launch.run_id,
        "nodes": os.environ.get("CONVOY_HOSTS", "").split(),
        "processes_per_node": launch.processes,
        "image": os.environ.get("CONVOY_IMAGE"),
        "image_sha256": os.environ.get("CONVOY_IMAGE_SHA256"),
        "overrides": overrides,
    }
    try:
        (run_dir / "logs").mkdir(parents=True, exist_ok=True)
        shutil.rmtree(verdict.folder(run_dir, launch.run_id), ignore_errors=True)
        with (run_dir / "launches.jsonl").open("a") as file:
            file.write(json.dumps(entry) + "\n")
    except OSError as error:
        raise ConvoyError(
            f"The run directory {run_dir} cannot be written: {error.strerror}. Give another "
            "(run_dir=/path), or another NAVSIM_EXP_ROOT; its file system must be among "
            "CONVOY_BIND."
        ) from error
