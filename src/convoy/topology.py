"""Where this process stands among the others: the one module that reads scheduler and torchrun variables."""

import socket
from collections.abc import Mapping
from dataclasses import dataclass, replace

from convoy.errors import ConvoyError


@dataclass(frozen=True)
class Topology:
    """Ranks and sizes of one training process, and the names that its run goes by.

    `job_id` is the scheduler's (`<job>_<task>` in an array), the same after every requeue; `run_id` is torchrun's.
    Both are None where nobody set one.
    """

    rank: int = 0
    local_rank: int = 0
    world_size: int = 1
    local_world_size: int = 1
    node_rank: int = 0
    num_nodes: int = 1
    restart_count: int = 0
    launcher: str = "alone"
    run_id: str | None = None
    job_id: str | None = None
    host: str = "localhost"

    def __post_init__(self) -> None:
        if self.local_world_size * self.num_nodes != self.world_size:
            raise ConvoyError(
                f"{self.num_nodes} nodes x {self.local_world_size} processes are not the world size "
                f"{self.world_size}: start the same number of processes on every node."
            )

    @classmethod
    def planned(cls, num_nodes: int, processes_per_node: int) -> "Topology":
        """The topology that a launch of this size will have, seen from rank 0."""
        return cls(
            world_size=num_nodes * processes_per_node,
            local_world_size=processes_per_node,
            num_nodes=num_nodes,
            launcher="planned",
        )

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> "Topology":
        """Read torchrun's variables, or none: then the process is alone.

        Raises ConvoyError where several processes were started without torchrun, since each of them
        would train a model of its own.
        """
        alone = cls(job_id=_job_id(environment), host=socket.gethostname())
        if "TORCHELASTIC_RUN_ID" in environment:
            run_id = environment["TORCHELASTIC_RUN_ID"]
            return replace(
                alone,
                rank=int(environment["RANK"]),
                local_rank=int(environment["LOCAL_RANK"]),
                world_size=int(environment["WORLD_SIZE"]),
                local_world_size=int(environment["LOCAL_WORLD_SIZE"]),
                node_rank=int(environment["GROUP_RANK"]),
                num_nodes=int(environment["GROUP_WORLD_SIZE"]),
                restart_count=int(environment["TORCHELASTIC_RESTART_COUNT"]),
                launcher="torchrun",
                run_id=None if run_id == "none" else run_id,
            )
        tasks = int(environment.get("SLURM_STEP_NUM_TASKS", "1"))
        if tasks > 1:
            raise ConvoyError(
                f"srun started {tasks} tasks of the training program itself. Start one task per node and let "
                "torchrun start the ranks: srun --ntasks-per-node=1 entrypoint/train.sh …"
            )
        if int(environment.get("WORLD_SIZE", "1")) > 1:
            raise ConvoyError(
                f"WORLD_SIZE is {environment['WORLD_SIZE']}, but torchrun did not start this process. "
                "Start it with entrypoint/train.sh (or torchrun), or unset WORLD_SIZE."
            )
        return alone

    @property
    def is_rank_zero(self) -> bool:
        return self.rank == 0

    def __str__(self) -> str:
        return (
            f"rank {self.rank} of {self.world_size} (node {self.node_rank} of {self.num_nodes}, "
            f"local rank {self.local_rank} of {self.local_world_size}) on {self.host}, {self.launcher}"
        )


def _job_id(environment: Mapping[str, str]) -> str | None:
    if "SLURM_ARRAY_JOB_ID" in environment and "SLURM_ARRAY_TASK_ID" in environment:
        return f"{environment['SLURM_ARRAY_JOB_ID']}_{environment['SLURM_ARRAY_TASK_ID']}"
    return environment.get("SLURM_JOB_ID")
