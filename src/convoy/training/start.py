"""One start of a run: which directory, who owns it, what is recorded of it."""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from convoy.errors import ConvoyError
from convoy.run import events
from convoy.run.layout import RunDirectory
from convoy.run.lock import RunLock, newest
from convoy.run.ownership import choose_root, open_run, require_same_configuration, unwritable
from convoy.topology import Topology
from convoy.training.checkpoint import CheckpointFolder
from convoy.training.process_group import HostGroup
from convoy.training.resume import PATIENCE
from convoy.training.stopping import StoppedEarly

logger = logging.getLogger("convoy")


@dataclass(frozen=True)
class Start:
    """`lock` is rank 0's, which writes for all; None on the other ranks."""

    run: RunDirectory
    topology: Topology
    lock: RunLock | None

    def record(self, kind: str, **facts: Any) -> None:
        """Write one line of events.jsonl: on rank 0, which speaks for all."""
        if self.topology.is_rank_zero:
            events.record(self.run, kind, start=self.topology.start, **facts)

    def record_any(self, kind: str, **facts: Any) -> None:
        """The same for what concerns one rank or node only."""
        events.record(self.run, kind, start=self.topology.start, rank=self.topology.rank, **facts)

    def require_owned(self) -> None:
        """Raise LostRun on rank 0 when another start has taken the run over."""
        if self.lock is not None:
            self.lock.require()


@contextmanager
def started(config: DictConfig, topology: Topology, host_group: HostGroup) -> Iterator[Start]:
    """Own the run directory meanwhile, as one for all ranks.

    Raises ConvoyError when it belongs to another configuration, is in use by another start, or is
    not the same directory on all nodes.
    """
    locks: list[RunLock] = []  # rank 0's, once it has it

    def own() -> tuple[str, str]:
        root = choose_root(config, topology)
        config.run_dir = config.output_dir = config.trainer.params.default_root_dir = str(root)
        require_same_configuration(root, config)
        run = RunDirectory(root)
        lock = RunLock(run, topology.job_id)
        try:
            dead = lock.acquire(tell=logger.warning)
            locks.append(lock)
        except OSError as error:
            raise unwritable(root, error) from error
        open_run(root, config)
        CheckpointFolder(run).tidy()
        if dead is not None:
            logger.warning("taken over from %s, which has died", dead.described)
            events.record(run, "takeover", start=topology.start, dead=dead.described)
        return str(run.root), lock.token

    root, token = host_group.on_rank_zero(own)
    config.run_dir = config.output_dir = config.trainer.params.default_root_dir = root
    start = Start(RunDirectory(Path(root)), topology, locks[0] if locks else None)
    try:
        _require_one_directory(start.run, token, host_group)
        start.record("start", world_size=topology.world_size, restart=topology.restart_count)
        yield start
        start.record("finish")
    except StoppedEarly as error:
        start.record("stop", message=str(error))
        raise
    except Exception as error:
        start.record("failure", message=f"{type(error).__name__}: {error}")
        raise
    finally:
        if start.lock is not None:
            start.lock.release()


def _require_one_directory(
    run: RunDirectory, token: str, host_group: HostGroup, patience: float = PATIENCE
) -> None:
    """Raise ConvoyError, naming the rank, unless every rank sees what rank 0 wrote."""
    deadline = time.monotonic() + patience
    while True:
        _, owner = newest(run)
        sees = owner is not None and owner.token == token
        if sees or time.monotonic() >= deadline:
            break
        time.sleep(1)
    for rank, (host, found) in enumerate(host_group.gather((host_group.topology.host, sees))):
        if not found:
            raise ConvoyError(
                f"The run directory {run.root} is not the same on all nodes: rank {rank} on {host} "
                "does not see what rank 0 wrote. run_dir must be on a file system that all nodes "
                "share, and bound into the container on each."
            )
