"""One node's part of a start, in the container: checks, then torchrun with a rank per GPU."""

import os
import shutil
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

from convoy import config
from convoy.errors import ConvoyError, ExitCode
from convoy.launch import network, vitals
from convoy.launch.agent import run_torchrun
from convoy.launch.interface import choose_interface
from convoy.launch.torchrun import LOOPBACK, rendezvous_endpoint, torchrun_arguments
from convoy.navsim import tree
from convoy.run.layout import RunDirectory
from convoy.run.ownership import choose_root, require_same_configuration
from convoy.run.record import Software, record_start
from convoy.topology import Launch, is_first_task


def train_on_node(launch: Launch, overrides: Sequence[str], agreed: Path | None = None) -> int:
    """Run this node's ranks to their end; returns the exit code of the first failed rank.

    `agreed` is the run directory that a job's first node has checked and made for all nodes;
    without it, this node does so. Raises ConvoyError for what would fail later, once for all nodes.
    """
    try:
        run = RunDirectory(agreed or check(overrides, launch))
        if agreed is None and launch.is_host:
            begin(run, launch, overrides)
        address = _choose_address(launch)
    except ConvoyError:
        if is_first_task(os.environ):
            raise
        return ExitCode.FAILED
    arguments = torchrun_arguments(launch, address, run.root)
    with vitals.sampled(run.node_vitals(socket.gethostname())):
        failed = run_torchrun([*arguments, "--", *overrides], launch, run)
    if failed is None:
        return ExitCode.FINISHED
    # A job's batch script reports for all nodes at its end.
    if launch.kind != "job":
        print(failed.report(), file=sys.stderr, flush=True)
    return failed.exit_code


def check(overrides: Sequence[str], launch: Launch) -> Path:
    """The run directory. Raises ConvoyError for what would fail later."""
    settings = config.load(overrides, launch.planned, tree.config_directory())
    run_dir = choose_root(settings.config, launch.planned)
    require_same_configuration(run_dir, settings.config)
    return run_dir


def begin(
    run: RunDirectory, launch: Launch, overrides: Sequence[str], changed: Sequence[str] = ()
) -> None:
    """Record the start, on one node for all, and forget failures of one with the same name."""
    for note in record_start(run, launch, Software.here(tree.commit()), overrides, changed):
        # Not on standard output: that of the rendezvous step is the answer.
        print(f"launch: {note}", file=sys.stderr, flush=True)
    shutil.rmtree(run.failures(launch.start), ignore_errors=True)


def _choose_address(launch: Launch) -> str:
    """This node's address for its peers; names the interface for NCCL and gloo."""
    if launch.is_host:
        print(f"launch: {launch.where}", flush=True)
    if launch.peer is None:
        return LOOPBACK
    if launch.kind == "srun" and launch.is_host:  # the port was not probed by anybody yet
        network.free_port(int(rendezvous_endpoint(launch).rpartition(":")[2]), launch.start)
    address = network.address_towards(launch.peer)
    choice = choose_interface(os.environ, launch.peer, address, network.interface_of(address))
    os.environ.update(choice.variables)
    if launch.is_host:
        print(f"launch: {choice.reason}", flush=True)
    return address
