"""`python -m convoy.launch.rank [--run-dir=DIR] [--] OVERRIDE…`: one rank of a training run.

torchrun starts one process per rank; started by itself, it is a run of one rank. With
--fork-server=CONNECTION it imports first and becomes the ranks that it is asked for
(launch/fork_server.py).
"""

import contextlib
import os
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

from convoy import config
from convoy.errors import ConvoyError, ExitCode
from convoy.launch import error_file, fork_server, verdict
from convoy.launch.heap import keep_freed_memory
from convoy.navsim import tree
from convoy.run import garbage
from convoy.run.kernel_cache import keep_what_the_driver_compiles
from convoy.run.layout import RunDirectory
from convoy.run.stop_request import StopRequest, follow_parent
from convoy.topology import Topology

RUN_DIR = "--run-dir="


def main(arguments: Sequence[str]) -> int:
    """Train one rank. Returns the process's exit code.

    The run directory is the node's choice; without one, rank 0 names it for all ranks.
    """
    garbage.look_rarely()
    request = StopRequest().install()
    keep_freed_memory(os.environ)
    run, overrides = _split(arguments)
    topology = Topology()
    try:
        topology = Topology.from_environment(os.environ)
        if topology.launcher == "torchrun":
            follow_parent()
        if run is not None:
            _write_to_own_log(run, topology)
        settings = config.load(overrides, topology, tree.config_directory())
        if run is not None:
            settings.config.run_dir = str(run.root)
        keep_what_the_driver_compiles(settings.config)
        # After the checks that need no torch: a mistake is reported in half a second.
        from convoy.training.run import train

        train(
            settings,
            topology,
            request,
            lambda message: _record(run, topology, message, ExitCode.RESUMABLE, fixable=True),
        )
    except ConvoyError as error:
        if error.exit_code == ExitCode.RESUMABLE:  # not a failure: rank 0 says it for all
            if topology.is_rank_zero:
                _say(f"convoy: {error}", sys.stdout)
            return error.exit_code
        where = f" (rank {topology.rank} on {topology.host})" if topology.world_size > 1 else ""
        _say(f"convoy{where}: {error}", sys.stderr)
        _record(run, topology, str(error), error.exit_code, fixable=True)
        return error.exit_code
    except Exception as error:
        _record(run, topology, f"{type(error).__name__}: {error}", ExitCode.FAILED)
        raise
    return ExitCode.FINISHED


def _split(arguments: Sequence[str]) -> tuple[RunDirectory | None, list[str]]:
    rest = list(arguments)
    run = None
    if rest and rest[0].startswith(RUN_DIR):
        run = RunDirectory(Path(rest.pop(0).removeprefix(RUN_DIR)))
    if rest[:1] == ["--"]:
        rest.pop(0)
    return run, rest


def _write_to_own_log(run: RunDirectory, topology: Topology) -> None:
    """Send what this rank writes to its own log from here on, native code's words too; rank 0 keeps
    standard output."""
    log = run.rank_log(topology.rank)
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("a") as file:
            streams = (sys.stderr,) if topology.is_rank_zero else (sys.stderr, sys.stdout)
            for stream in streams:
                os.dup2(file.fileno(), stream.fileno())
    except OSError as error:
        raise ConvoyError(
            f"{log} cannot be written: {error.strerror}. Give another: run_dir=/path."
        ) from error


def _say(message: str, stream: TextIO) -> None:
    with contextlib.suppress(OSError):  # a full disk below the log is not what it ends of
        print(message, file=stream, flush=True)


def _record(
    run: RunDirectory | None,
    topology: Topology,
    message: str,
    exit_code: int,
    fixable: bool = False,
) -> None:
    if run is None:
        return
    failure = verdict.Failure(
        topology.rank, topology.host, time.time(), exit_code, message, fixable
    )
    try:
        verdict.write(run, topology.start, failure)
    except OSError:  # a full disk may be what it failed of
        error_file.leave(failure)


def _end(code: int) -> None:
    """End the process. Python's own end takes seconds with torch, and with a process group that was
    not left it may wait for other ranks; all is written by now."""
    distributed = sys.modules.get("torch.distributed")
    is_joined = distributed is not None and distributed.is_initialized()
    if code == ExitCode.RESUMABLE or is_joined:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


if __name__ == "__main__":
    given = sys.argv[1:]
    if given and given[0].startswith(fork_server.FLAG):
        number = int(given[0].removeprefix(fork_server.FLAG))
        given = fork_server.become_rank(number, given[2:])
    try:
        ended = main(given)
    except Exception:
        traceback.print_exc()
        ended = ExitCode.FAILED
    _end(ended)
