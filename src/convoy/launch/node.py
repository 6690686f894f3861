"""One node's part of a start, in the container: checks, then torchrun with a rank per GPU."""

import os
import shutil
import signal
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from convoy import config
from convoy.errors import ConvoyError, ExitCode
from convoy.launch import network, vitals
from convoy.launch.agent import run_torchrun
from convoy.launch.interface import choose_interface
from convoy.launch.preflight import preflight
from convoy.launch.signals import looked_for
from convoy.launch.torchrun import LOOPBACK, rendezvous_endpoint, torchrun_arguments
from convoy.navsim import tree
from convoy.run import node_state, stop_request
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
    except ConvoyError:  # every node finds the same: one of them says so
        if is_first_task(os.environ):
            raise
        return ExitCode.FAILED
    return _run_ranks(run, launch, _choose_address(launch), overrides)


def _run_ranks(run: RunDirectory, launch: Launch, address: str, overrides: Sequence[str]) -> int:
    """The exit code of the first failed rank; how this node's part ended stands in the run."""
    state = node_state.begin(run, launch.start, launch.host)

    def told(number: signal.Signals) -> None:
        nonlocal state
        state = replace(state, signal=number.name)
        node_state.write(run, launch.start, state)

    def asked() -> int:
        return stop_request.read(run, launch.start, state.began) if launch.is_host else 0

    code = int(ExitCode.FAILED)
    try:
        if launch.kind == "job" and (problem := preflight(run)):
            state, code = replace(state, problem=problem), int(ExitCode.PREFLIGHT)
            return code
        arguments = [*torchrun_arguments(launch, address, run.root), "--", *overrides]
        with vitals.sampled(run.node_vitals(launch.host)), looked_for(asked):
            failed = run_torchrun(arguments, launch, run, told)
        code = ExitCode.FINISHED if failed is None else failed.exit_code
        # A job's batch script reports for all nodes at its end, from their records.
        if failed is not None and (launch.kind != "job" or not failed.recorded):
            print(failed.report(), file=sys.stderr, flush=True)
    except SystemExit as stopped:
        code = int(stopped.code or 0)
    finally:
        node_state.write(run, launch.start, replace(state, exit_code=code))
    return code


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
