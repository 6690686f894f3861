"""Ranks are forked from a process that has imported what they need.

Torch, Lightning and NAVSIM take a rank seconds of processor time and thousands of files, the same
for all ranks of a node. Here one process imports them, while the node still finds out whether it
can train; then it forks a process for each rank, and ends. The kernel hands its children to
torchrun's agent, which takes them as if it had started them.

Where that is not possible, the ranks are started as torchrun does, each on its own.
"""

import contextlib
import ctypes
import gc
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from multiprocessing.reduction import recv_handle, send_handle
from typing import Any

from convoy.config import compose
from convoy.errors import ExitCode
from convoy.navsim import tree
from convoy.navsim.importing import import_agents
from convoy.run.kernel_cache import keep_what_the_driver_compiles
from convoy.run.stop_request import SIGNALS
from convoy.topology import Topology

FLAG = "--fork-server="  # with the number of an open connection to the node's process
RANK = [sys.executable, "-u", "-m", "convoy.launch.rank"]  # as torchrun starts it
STREAMS = (1, 2)
_PR_SET_CHILD_SUBREAPER = 36
_CUDA_SUCCESS, _CUDA_NOT_INITIALIZED, _CUDA_NO_DEVICE = 0, 3, 100


class ForkServer:
    """The node's side: ranks are asked for in `forks_ranks`, all of them; then the server ends."""

    def __init__(self, overrides: Sequence[str], ranks: int) -> None:
        self._ranks = ranks
        self._abandoned = False
        self._connection, theirs = Pipe()
        _adopt_orphans(True)
        with theirs:
            self._process = subprocess.Popen(
                [*RANK, f"{FLAG}{theirs.fileno()}", "--", *overrides],
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    @contextlib.contextmanager
    def forks_ranks(self) -> Iterator[None]:
        """Let torchrun's agent take its ranks from here meanwhile."""
        from torch.distributed.elastic.multiprocessing import api
        from torch.distributed.elastic.multiprocessing.subprocess_handler import SubprocessHandler

        server = self

        class Handler(SubprocessHandler):
            def _popen(self, args: tuple[str, ...], env: dict[str, str]) -> Any:
                return server._fork(args, env) or super()._popen(args, env)

        before: Any = api.get_subprocess_handler
        api.get_subprocess_handler = Handler  # type: ignore[assignment]
        try:
            yield
        finally:
            api.get_subprocess_handler = before

    def abandon(self) -> None:
        """From another thread: no rank is to start any more. One that was being forked is this
        process's child afterwards."""
        self._abandoned = True
        if self._ranks:
            self._process.kill()
            self._process.wait()

    def close(self) -> None:
        """End the server; ranks that it has forked are not its any more."""
        self._connection.close()
        if self._ranks:
            self._process.kill()
            self._ranks = 0
        self._process.wait()
        _adopt_orphans(False)

    def _fork(self, command: tuple[str, ...], environment: Mapping[str, str]) -> "Child | None":
        """None where this rank has to be started in the ordinary way."""
        if self._abandoned:
            raise SystemExit(int(ExitCode.RESUMABLE))
        if not self._ranks or list(command[: len(RANK)]) != RANK:
            return None
        try:
            self._connection.send((list(command[len(RANK) :]), dict(environment)))
            for stream in STREAMS:
                send_handle(self._connection, stream, self.pid)
            child = Child(self._connection.recv())
        except (OSError, EOFError) as error:
            if self._abandoned:
                raise SystemExit(int(ExitCode.RESUMABLE)) from error
            reason = f"the process that imports for them has ended ({type(error).__name__})"
            print(f"launch: each rank imports for itself: {reason}", file=sys.stderr, flush=True)
            self.close()
            return None
        self._ranks -= 1
        if not self._ranks:
            self.close()
        return child


class Child:
    """A rank as torchrun's agent sees it: what it uses of subprocess.Popen."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None

    def poll(self) -> int | None:
        if self.returncode is None:
            ended, status = os.waitpid(self.pid, os.WNOHANG)
            if ended:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        began = time.monotonic()
        while (code := self.poll()) is None:
            if timeout is not None and time.monotonic() - began >= timeout:
                raise subprocess.TimeoutExpired(RANK, timeout)
            time.sleep(0.02)
        return code


def become_rank(connection: int, overrides: Sequence[str]) -> list[str]:
    """The server's side: import, then fork. Returns in the ranks alone, with their arguments."""
    for number in SIGNALS:  # the node ends this process by closing the connection
        signal.signal(number, signal.SIG_IGN)
    # A rank is born with this, and keeps one that comes before `StopRequest.install`.
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    # torch.cuda.is_available() in some module must not start CUDA: it would not survive the fork.
    os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"
    server, node, before = os.getpid(), os.getppid(), dict(os.environ)
    obstacle = _import_for_ranks(overrides)
    # Some packages set variables at their import (GDAL's certificates, OpenCV's libraries), and so
    # does Convoy.
    set_by_imports = {
        name: value for name, value in os.environ.items() if before.get(name) != value
    }
    if obstacle is not None:
        print(f"launch: each rank imports for itself: {obstacle}", file=sys.stderr, flush=True)
    with Connection(connection) as requests:
        while True:
            try:
                arguments, environment = requests.recv()
                streams = [recv_handle(requests) for _ in STREAMS]
            except (EOFError, OSError):
                os._exit(ExitCode.FINISHED)
            pid = os.fork()
            if not pid:
                break
            requests.send(pid)
            for stream in streams:
                os.close(stream)
    os.setsid()
    for stream, own in zip(streams, STREAMS, strict=True):
        os.dup2(stream, own)
        os.close(stream)
    os.environ.clear()
    os.environ.update(environment | set_by_imports)
    # A rank follows its parent (stop_request.follow_parent): that has to be the agent by then.
    while os.getppid() == server:
        time.sleep(0.001)
    if os.getppid() != node:
        os._exit(ExitCode.RESUMABLE)
    if obstacle is None and not _cuda_starts():
        obstacle = "CUDA does not start in a forked process here"
        print(f"launch: this rank imports for itself: {obstacle}", file=sys.stderr, flush=True)
    if obstacle is not None:
        os.execve(RANK[0], [*RANK, *arguments], environment)
    _tell_lightning(environment)
    sys.argv[1:] = arguments
    return arguments


def _import_for_ranks(overrides: Sequence[str]) -> str | None:
    """Import what the training of `overrides` takes; None, or why no rank can be forked then.

    Of an agent that is not Convoy's this is what all agents of NAVSIM import. Its own module may
    ask at its import which rank it is in, so that each rank imports it.
    """
    gc.disable()  # nothing that is imported becomes garbage, and looking for it takes its time
    try:
        config = compose(overrides, tree.config_directory())
        keep_what_the_driver_compiles(config)  # a forked rank starts CUDA before all else
        agent = config.agent._target_
        import convoy.training.run  # noqa: F401  # with torch and Lightning
        from convoy.training.speed import recipe

        if config.trainer.params.accelerator != "cpu" and recipe.wanted(config, "compile"):
            import torch._inductor.compile_fx  # noqa: F401
        if not agent.startswith("convoy."):
            import_agents()
            with contextlib.suppress(ImportError):
                import timm  # noqa: F401  # TransFuser's backbones, and most others'
    except Exception as error:  # a rank says what it is, with its own record
        return f"{type(error).__name__} while importing"
    finally:
        gc.freeze()  # a collection would write to the pages that the ranks share
        gc.enable()
    if _cuda_is_up():
        return "an import starts CUDA, which a fork does not survive"
    return None


def _cuda_is_up() -> bool:
    try:
        driver = ctypes.CDLL("libcuda.so.1", mode=os.RTLD_NOLOAD)
    except OSError:
        return False
    count = ctypes.c_int()
    return int(driver.cuDeviceGetCount(ctypes.byref(count))) != _CUDA_NOT_INITIALIZED


def _cuda_starts() -> bool:
    """Whether a forked rank can use what the node has of GPUs, before it begins anything."""
    import torch

    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return True
    started = int(driver.cuInit(0)) in (_CUDA_SUCCESS, _CUDA_NO_DEVICE)
    return started and not torch.cuda._is_in_bad_fork()


def _tell_lightning(environment: Mapping[str, str]) -> None:
    """What Lightning and its metrics read at their import: which rank this is."""
    from lightning_utilities.core.rank_zero import rank_zero_only
    from torchmetrics.utilities import prints

    topology = Topology.from_environment(environment)
    rank_zero_only.rank = topology.rank  # type: ignore[attr-defined]
    prints.rank_zero_only.rank = topology.local_rank  # type: ignore[attr-defined]


def _adopt_orphans(on: bool) -> None:
    """Whether processes whose parent ends become this one's, if they descend from it."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, int(on), 0, 0, 0)
