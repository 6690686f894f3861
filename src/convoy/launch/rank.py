"""`python -m convoy.launch.rank OVERRIDE…`: one rank of a training run; torchrun starts one process
per rank."""

import contextlib
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from convoy import config
from convoy.errors import ConvoyError, ExitCode
from convoy.launch import verdict
from convoy.navsim import tree
from convoy.run.layout import RunDirectory
from convoy.run.stop_request import StopRequest
from convoy.topology import Topology


def main(overrides: Sequence[str] | None = None) -> int:
    """Train with Hydra `overrides` (default: the command line's). Returns the process's exit
    code."""
    request = StopRequest().install()
    topology = Topology()
    run_dir = os.environ.get("CONVOY_RUN_DIR")  # the launch's word; `convoy train` alone has none
    try:
        topology = Topology.from_environment(os.environ)
        if run_dir is not None and topology.launcher == "torchrun":
            _write_to_own_log(Path(run_dir), topology)
        settings = config.load(
            sys.argv[1:] if overrides is None else overrides, topology, tree.config_directory()
        )
        from convoy.training.run import (
            train,  # after the checks that need no torch: a mistake is told in half a second
        )

        train(settings, topology, request)
    except ConvoyError as error:
        if error.exit_code == ExitCode.RESUMABLE:  # no failure: rank 0 says it for all
            if topology.is_rank_zero:
                print(f"convoy: {error}", flush=True)
            return error.exit_code
        where = f" (rank {topology.rank} on {topology.host})" if topology.world_size > 1 else ""
        print(f"convoy{where}: {error}", file=sys.stderr, flush=True)
        _record(run_dir, topology, str(error), error.exit_code, mended_by_user=True)
        return error.exit_code
    except Exception as error:
        _record(run_dir, topology, f"{type(error).__name__}: {error}", ExitCode.FAILED)
        raise
    return ExitCode.FINISHED


def _write_to_own_log(run_dir: Path, topology: Topology) -> None:
    """Send what this rank writes to its own log from here on, native code's words too; rank 0 keeps
    standard output."""
    log = RunDirectory(run_dir).rank_log(topology.rank)
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("a") as file:
            for stream in (sys.stderr,) if topology.is_rank_zero else (sys.stderr, sys.stdout):
                os.dup2(file.fileno(), stream.fileno())
    except OSError as error:
        raise ConvoyError(
            f"{log} cannot be written: {error.strerror}. Give another: run_dir=/path."
        ) from error


def _record(
    run_dir: str | None,
    topology: Topology,
    message: str,
    exit_code: int,
    mended_by_user: bool = False,
) -> None:
    if run_dir is None or topology.launcher != "torchrun":
        return
    place = verdict.folder(Path(run_dir), topology.run_id)
    with contextlib.suppress(OSError):  # a full disk may be what it failed of
        verdict.write(
            place,
            verdict.Failure(
                topology.rank, topology.host, time.time(), exit_code, message, mended_by_user
            ),
        )


if __name__ == "__main__":
    sys.exit(main())
