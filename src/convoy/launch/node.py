"""One node's part of a start, in the container: checks, then torchrun with a rank per GPU."""

import os
import shutil
import signal
import sys
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from convoy import config
from convoy.errors import ConvoyError, ExitCode
from convoy.launch import network, vitals
from convoy.launch.agent import load_torchrun, run_torchrun
from convoy.launch.interface import choose_interface
from convoy.launch.peers import LostNode, Peers, in_touch, is_failure
from convoy.launch.preflight import preflight
from convoy.launch.signals import end_ranks, looked_for
from convoy.launch.torchrun import LOOPBACK, rendezvous_endpoint, torchrun_arguments
from convoy.navsim import tree
from convoy.run import node_state, report, stop_request
from convoy.run.layout import RunDirectory
from convoy.run.ownership import choose_root, require_same_configuration
from convoy.run.record import Software, record_start
from convoy.topology import Agreement, Launch, is_first_task

GRACE = 10.0  # seconds that ranks have to end by themselves once those of another node have failed


def train_on_node(launch: Launch, overrides: Sequence[str], agreed: Agreement | None = None) -> int:
    """Run this node's ranks to their end; returns the exit code of the first failed rank.

    `agreed` is what a job's first node has checked and made for all nodes; without it, this node
    does so. Raises ConvoyError for what would fail later, once for all nodes.
    """
    try:
        run = RunDirectory(Path(agreed.run_dir) if agreed else check(overrides, launch)[0])
        if agreed is None and launch.is_host:
            begin(run, launch, overrides)
    except ConvoyError:  # every node finds the same: one of them says so
        if is_first_task(os.environ):
            raise
        return ExitCode.FAILED
    address = _choose_address(launch)
    if agreed is None:
        return _run_ranks(run, launch, address, overrides)
    load_torchrun()
    with in_touch(launch.hosts, launch.host, network.host_and_port(agreed.peers)) as peers:
        return _run_ranks(run, launch, address, overrides, Path(agreed.data), peers)


def _run_ranks(
    run: RunDirectory,
    launch: Launch,
    address: str,
    overrides: Sequence[str],
    data: Path | None = None,
    peers: Peers | None = None,
) -> int:
    """The exit code of the first failed rank; how this node's part ended stands in the run.

    In a job, `data` is what the nodes look at before, and `peers` are the other nodes.
    """
    state = node_state.begin(run, launch.start, launch.host)

    def told(number: signal.Signals) -> None:
        nonlocal state
        state = replace(state, signal=number.name)
        node_state.write(run, launch.start, state)

    def asked() -> int:
        return stop_request.read(run, launch.start, state.began) if launch.is_host else 0

    def end() -> None:
        node_state.write(run, launch.start, replace(state, exit_code=int(ExitCode.RESUMABLE)))
        end_ranks()

    def lost(host: str) -> None:
        node_state.lose(run, launch.start, host)
        print(f"{host} went away: ending this node's ranks", file=sys.stderr, flush=True)
        end()

    def ended(host: str, code: int) -> None:
        if is_failure(code):  # ranks here may wait for those there until their timeout
            threading.Timer(GRACE, end).start()

    code = int(ExitCode.FAILED)
    try:
        if data is not None:
            try:
                problems = preflight(run, launch, data, peers)
            except LostNode as gone:
                for host in gone.args:
                    node_state.lose(run, launch.start, host)
                code = int(ExitCode.RESUMABLE)
                return code
            if problems:
                own = "; ".join(problems.get(launch.host, ()))
                state = replace(state, problem=own)
                code = int(ExitCode.PREFLIGHT if own else ExitCode.RESUMABLE)
                return code
        if peers is not None:
            peers.follow(lost, ended)
        arguments = [*torchrun_arguments(launch, address, run.root), "--", *overrides]
        with vitals.sampled(run.node_vitals(launch.host)), looked_for(asked):
            failed = run_torchrun(arguments, launch, run, told)
        code = ExitCode.FINISHED if failed is None else failed.exit_code
        # A job's batch script reports for all nodes at its end.
        if failed is not None and launch.kind != "job":
            print(failed.report(), file=sys.stderr, flush=True)
    except SystemExit as stopped:
        code = int(stopped.code or 0)
        if launch.kind != "job" and launch.is_host:  # else `convoy verdict` does so
            report.leave(run)
    finally:
        node_state.write(run, launch.start, replace(state, exit_code=code))
        if peers is not None:
            peers.leave(code)
    return code


def check(overrides: Sequence[str], launch: Launch) -> tuple[Path, Path]:
    """The run directory and the data. Raises ConvoyError for what would fail later."""
    settings = config.load(overrides, launch.planned, tree.config_directory())
    run_dir = choose_root(settings.config, launch.planned)
    require_same_configuration(run_dir, settings.config)
    return run_dir, Path(settings.config.cache_path).absolute()


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
