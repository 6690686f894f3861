"""One node's part of a start, in the container: checks, then torchrun with a rank per GPU."""

import os
import shutil
import signal
import sys
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from convoy import config
from convoy.errors import ConvoyError, ExitCode
from convoy.launch import nccl, network, survivors, verdict, vitals
from convoy.launch.agent import load_torchrun, run_torchrun, set_rank_environment
from convoy.launch.fork_server import ForkServer
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

GONE = 1.0  # seconds that ranks have to end by themselves once another node has gone
STOPPED = 10.0  # seconds after which ranks here have stopped too, once those of a node have
WRITING = 4.0  # the same for one that is writing a file; the batch script waits for 5


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
    return Part(run, launch).take(address, overrides, agreed)


class Part:
    """This node's part of a start; how it goes stands in the run directory from the beginning."""

    def __init__(self, run: RunDirectory, launch: Launch) -> None:
        self._run, self._launch = run, launch
        self._peers: Peers | None = None
        self._server: ForkServer | None = None
        self._state = node_state.begin(run, launch.start, launch.host)

    def take(self, address: str, overrides: Sequence[str], agreed: Agreement | None = None) -> int:
        """The exit code of the first failed rank, or of a preflight that did not go well.

        `agreed` is a job's, whose nodes look at themselves before and stay in touch.
        """
        code = int(ExitCode.FAILED)
        set_rank_environment(self._launch)
        self._server = ForkServer(overrides, self._launch.processes)
        try:
            if agreed is None:
                code = self._train(address, overrides)
            else:
                code = self._train_with_others(address, overrides, agreed)
        finally:
            self._server.close()
            self._say(exit_code=code)
        return code

    def _train_with_others(self, address: str, overrides: Sequence[str], agreed: Agreement) -> int:
        launch = self._launch
        load_torchrun()
        endpoint = network.host_and_port(agreed.peers)
        with in_touch(launch.hosts, launch.host, endpoint) as peers:
            self._peers = peers
            code = int(ExitCode.FAILED)
            try:
                code = self._preflight(Path(agreed.data), peers)
                if code == ExitCode.FINISHED:
                    if peers is not None:
                        peers.follow(self._lost, self._ended)
                    code = self._train(address, overrides)
            finally:
                if peers is not None:
                    peers.leave(code)
        return code

    def _preflight(self, data: Path, peers: Peers | None) -> int:
        """FINISHED where all nodes can take part."""
        try:
            problems = preflight(self._run, self._launch, data, peers)
        except LostNode as gone:
            for host in gone.args:
                node_state.lose(self._run, self._launch.start, host)
            return ExitCode.RESUMABLE
        if own := "; ".join(problems.get(self._launch.host, ())):
            self._say(problem=own)
            return ExitCode.PREFLIGHT
        return ExitCode.RESUMABLE if problems else ExitCode.FINISHED

    def _train(self, address: str, overrides: Sequence[str]) -> int:
        run, launch = self._run, self._launch
        arguments = [*torchrun_arguments(launch, address, run.root), "--", *overrides]
        try:
            with vitals.sampled(run.node_vitals(launch.host)), looked_for(self._asked):
                failed = run_torchrun(
                    arguments, launch, run, self._told, self._failed, self._server
                )
        except SystemExit as stopped:
            if launch.kind != "job" and launch.is_host:  # else `convoy verdict` does so
                report.leave(run)
            return int(stopped.code or 0)
        # A job's batch script reports for all nodes at its end, from their records.
        if failed is not None and (launch.kind != "job" or not failed.recorded):
            print(failed.report(), file=sys.stderr, flush=True)
        return ExitCode.FINISHED if failed is None else failed.exit_code

    def _say(self, **changes: Any) -> None:
        self._state = replace(self._state, **changes)
        node_state.write(self._run, self._launch.start, self._state)

    # --- what others want of the ranks meanwhile

    def _told(self, number: signal.Signals) -> None:
        self._say(signal=number.name)

    def _asked(self) -> int:
        if not self._launch.is_host:
            return 0
        return stop_request.read(self._run, self._launch.start, self._state.began)

    def _failed(self, code: int) -> None:
        """Ranks of this node failed: the others' ranks wait for them, so they hear of it now."""
        if self._peers is not None and is_failure(code):
            self._peers.leave(code)

    def _lost(self, host: str) -> None:
        node_state.lose(self._run, self._launch.start, host)
        print(f"{host} went away: ending this node's ranks", file=sys.stderr, flush=True)
        self._end(GONE, WRITING)

    def _ended(self, host: str, code: int) -> None:
        if is_failure(code):  # ranks here may wait for those there until their timeout
            limits = (survivors.GRACE, survivors.WRITING)
            threading.Thread(target=self._end, args=limits, name="end", daemon=True).start()
            return
        timer = threading.Timer(STOPPED, self._end_after_a_watchdog)
        timer.daemon = True  # this node's part may be over before
        timer.start()

    def _end_after_a_watchdog(self) -> None:
        """A watchdog there ended ranks as if they had stopped; ranks here may stand still too."""
        if verdict.read(self._run, self._launch.start):
            self._end(survivors.GRACE, survivors.WRITING)

    def _end(self, grace: float, writing: float) -> None:
        self._say(exit_code=int(ExitCode.RESUMABLE))
        if self._server is not None:
            self._server.abandon()
        end_ranks(grace, writing)


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
    """This node's address for its peers; sets interface and transport for NCCL and gloo."""
    if launch.is_host:
        print(f"launch: {launch.where}", flush=True)
    if launch.peer is None:
        return LOOPBACK
    if launch.kind == "srun" and launch.is_host:  # the port was not probed by anybody yet
        network.free_port(int(rendezvous_endpoint(launch).rpartition(":")[2]), launch.start)
    address = network.address_towards(launch.peer)
    interface = network.interface_of(address)
    choices = [choose_interface(os.environ, launch.peer, address, interface)]
    choices += nccl.choose(os.environ, nccl.look(interface))
    for choice in choices:
        os.environ.update(choice.variables)
        if launch.is_host:
            print(f"launch: {choice.reason}", flush=True)
    return address
