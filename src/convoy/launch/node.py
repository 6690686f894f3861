"""`python -m convoy.launch.node OVERRIDE…`: one node's part of a training, in the container:
torchrun.

Alone, under srun, or one of several nodes whose launch facts the environment gives
(entrypoint/train.sh lists them).
"""

import contextlib
import logging
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from convoy import config
from convoy.errors import ConvoyError, ExitCode
from convoy.launch import network, verdict
from convoy.navsim import tree
from convoy.run.layout import RunDirectory
from convoy.run.ownership import choose_root, require_same_configuration
from convoy.topology import Launch, Topology, is_first_task


def main(overrides: Sequence[str] | None = None) -> int:
    """Train with Hydra `overrides` (default: the command line's). Returns the exit code of the
    first failed rank."""
    overrides = list(sys.argv[1:] if overrides is None else overrides)
    try:
        launch = Launch.from_environment(os.environ, _gpus())
        if (
            "CONVOY_RUN_DIR" not in os.environ
        ):  # else slurm/launch.sh has checked, once for all nodes
            run_dir = check(overrides, launch)
            if run_dir is not None:
                os.environ["CONVOY_RUN_DIR"] = str(run_dir)
                shutil.rmtree(
                    verdict.folder(run_dir, launch.run_id), ignore_errors=True
                )  # an earlier start's
        if launch.is_host in (True, None):
            print(f"launch: {launch.where}", flush=True)
        arguments = torchrun_arguments(launch)
    except ConvoyError as error:
        if is_first_task(os.environ):
            print(f"convoy: {error}", file=sys.stderr)
        return error.exit_code
    return _torchrun([*arguments, "-m", "convoy.launch.rank", *overrides], launch)


def check(overrides: Sequence[str], launch: Launch) -> Path | None:
    """Raise ConvoyError for what would fail later. Returns the run directory, None where nodes
    cannot know it."""
    topology = Topology.planned(launch.nodes, launch.processes, os.environ, launch.run_id)
    settings = config.load(overrides, topology, tree.config_directory())
    if launch.nodes > 1 and not (settings.config.run_dir or topology.job_id or topology.run_id):
        return None  # rank 0 names it by the time, for all
    run_dir = choose_root(settings.config, topology)
    require_same_configuration(run_dir, settings.config)
    return run_dir


def torchrun_arguments(launch: Launch) -> list[str]:
    """torchrun's options; also chooses the interface for NCCL and gloo, unless the environment
    names one."""
    local_address = launch.local_address
    if launch.peer is not None:
        address = network.address_towards(launch.peer)
        local_address = local_address or address
        interface = network.interface_of(address)
        if interface is not None:
            for name in ("NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME"):
                os.environ.setdefault(name, interface)
            if launch.is_host:
                print(
                    f"launch: interface {os.environ['GLOO_SOCKET_IFNAME']}: {address} on "
                    f"{interface} is the route to {launch.peer} (NCCL_SOCKET_IFNAME and "
                    "GLOO_SOCKET_IFNAME choose another)",
                    flush=True,
                )
    endpoint = launch.endpoint or "localhost:0"
    if launch.endpoint is not None and launch.run_id and ":" not in launch.endpoint:
        # Bare srun: the nodes have no channel to agree over, so the port follows from the step's
        # id.
        port = network.port_of(launch.run_id)
        if launch.is_host:
            network.free_port(port, launch.run_id)
        endpoint = network.endpoint(launch.endpoint, port)
    return [
        f"--nnodes={launch.nodes}",
        f"--nproc-per-node={launch.processes}",
        "--rdzv-backend=c10d",
        f"--rdzv-endpoint={endpoint}",
        f"--rdzv-id={launch.run_id or 'none'}",
        *([] if launch.is_host is None else [f"--rdzv-conf=is_host={int(launch.is_host)}"]),
        *([f"--local-addr={local_address}"] if local_address else []),
    ]


def _torchrun(arguments: list[str], launch: Launch) -> int:
    """torchrun in this process, so that its verdict on each rank is at hand when one fails."""
    # Each rank gets half of its share of the CPUs; the other half is the data loader's.
    os.environ.setdefault(
        "OMP_NUM_THREADS",
        str(max(1, min(8, len(os.sched_getaffinity(0)) // launch.processes // 2))),
    )
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.elastic.rendezvous import RendezvousError
    from torch.distributed.run import parse_args, run

    for name in (
        "agent.server.api",
        "multiprocessing.api",
    ):  # they announce each rank's end; the report says it once
        logging.getLogger(f"torch.distributed.elastic.{name}").setLevel(logging.CRITICAL)
    host = socket.gethostname()
    run_dir = Path(os.environ["CONVOY_RUN_DIR"]) if "CONVOY_RUN_DIR" in os.environ else None
    died: list[verdict.Failure] = []
    try:
        with _standard_error_to(RunDirectory(run_dir).agent_log(host) if run_dir else None):
            run(parse_args(arguments))
        return ExitCode.FINISHED
    except ChildFailedError as error:
        if {failure.exitcode for failure in error.failures.values()} == {ExitCode.RESUMABLE}:
            return ExitCode.RESUMABLE
        died = [
            verdict.died(rank, host, failure.exitcode) for rank, failure in error.failures.items()
        ]
    except (
        RendezvousError
    ) as error:  # also where the rendezvous went away with a node that failed first
        if run_dir is None or not verdict.read(verdict.folder(run_dir, launch.run_id)):
            print(
                f"convoy: {host} could not meet the other nodes at {launch.endpoint}: {error}",
                file=sys.stderr,
            )
            return ExitCode.FAILED
    except SignalException as stopped:
        return 128 + stopped.sigval
    return _tell(died, run_dir, launch)


@contextlib.contextmanager
def _standard_error_to(log: Path | None) -> Iterator[None]:
    """Send what torchrun's agent writes to `log` meanwhile, native code's words too: of a failure,
    the report tells."""
    if log is None:
        yield
        return
    own = os.dup(2)
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("a") as file:
            os.dup2(file.fileno(), 2)
        yield
    except OSError as error:
        os.dup2(own, 2)
        raise SystemExit(
            f"convoy: {log} cannot be written: {error.strerror}. Give another: run_dir=/path."
        ) from error
    finally:
        os.dup2(own, 2)
        os.close(own)


def _tell(died: list[verdict.Failure], run_dir: Path | None, launch: Launch) -> int:
    """Leave records of the ranks that left none; report here, unless slurm/launch.sh reports for
    all nodes."""
    records = died
    if run_dir is not None:
        place = verdict.folder(run_dir, launch.run_id)
        for failure in died:
            verdict.write(place, failure)
        records = verdict.read(place)
        if "CONVOY_HOSTS" not in os.environ:
            print(verdict.report(records, RunDirectory(run_dir)), file=sys.stderr, flush=True)
    return records[0].exit_code if records[0].exit_code > 0 else ExitCode.FAILED


def _gpus() -> int:
    """GPUs that this process may use, counted without torch."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return len([device for device in visible.split(",") if device.strip() not in {"", "-1"}])
    try:
        listed = subprocess.run(
            ["nvidia-smi", "--list-gpus"], text=True, capture_output=True
        ).stdout
    except FileNotFoundError:
        return 0
    return sum(line.startswith("GPU ") for line in listed.splitlines())


if __name__ == "__main__":
    sys.exit(main())
