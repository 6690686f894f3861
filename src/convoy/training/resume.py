"""All ranks resume from one checkpoint: rank 0 chooses it, and every rank has to see the same."""

import logging
import time
from pathlib import Path

from convoy.errors import ConvoyError
from convoy.training.checkpoint import CheckpointFolder, DamagedCheckpoint, fingerprint
from convoy.training.process_group import HostGroup

logger = logging.getLogger("convoy")

PATIENCE = 60.0  # seconds: an NFS client may keep an old listing of a directory for that long


def choose_checkpoint(
    folder: CheckpointFolder, host_group: HostGroup, patience: float = PATIENCE
) -> Path | None:
    """The newest whole checkpoint, or None where there is none yet; the same on every rank.

    Raises ConvoyError, on all ranks, naming the rank and host that see another file or none.
    """

    def decide() -> tuple[str, str] | None:
        path = folder.newest_whole()
        return None if path is None else (path.name, fingerprint(path))

    decision = host_group.on_rank_zero(decide)
    topology = host_group.topology
    seen = host_group.gather((topology.host, _disagreement(folder, decision, patience)))
    for rank, (host, problem) in enumerate(seen):
        if problem is not None:
            raise ConvoyError(
                f"The ranks do not see the same checkpoints in {folder.run.checkpoints}: {problem} "
                f"on rank {rank} ({host}). run_dir must be on a file system that all nodes share."
            )
    return None if decision is None else folder.run.checkpoints / decision[0]


def _disagreement(
    folder: CheckpointFolder, decision: tuple[str, str] | None, patience: float
) -> str | None:
    if decision is None:
        found = folder.run.step_checkpoints()
        return f"rank 0 sees none, but {found[0].name} is there" if found else None
    name, print_ = decision
    deadline = time.monotonic() + patience
    while True:
        try:
            if fingerprint(folder.run.checkpoints / name) == print_:
                return None
            problem = f"{name} is not the one that rank 0 chose"
        except DamagedCheckpoint as error:
            problem = str(error).rstrip(".")
        if time.monotonic() >= deadline:
            return problem
        time.sleep(1)
