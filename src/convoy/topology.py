"""Where this process stands among the others: the one module that reads scheduler and torchrun
variables."""

import os
import re
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

from convoy.errors import ConvoyError


@dataclass(frozen=True)
class Topology:
    """Ranks and sizes of one training process, and the names that its run goes by.

    `job_id` is the scheduler's (`<job>_<task>` in an array), the same after every requeue; `run_id`
    is torchrun's. Both are None where nobody set one.
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
                f"{self.num_nodes} nodes x {self.local_world_size} processes are not the world "
                f"size {self.world_size}: start the same number of processes on every node."
            )

    @classmethod
    def planned(
        cls,
        num_nodes: int,
        processes_per_node: int,
        environment: Mapping[str, str] = MappingProxyType({}),
        run_id: str | None = None,
    ) -> "Topology":
        """The topology that a launch of this size will have, seen from rank 0; `environment` names
        the job."""
        return cls(
            job_id=_job_id(environment),
            run_id=run_id,
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
                f"srun started {tasks} tasks of the training program itself. Start one task per "
                "node and let torchrun start the ranks: srun --ntasks-per-node=1 "
                "entrypoint/train.sh …"
            )
        if int(environment.get("WORLD_SIZE", "1")) > 1:
            raise ConvoyError(
                f"WORLD_SIZE is {environment['WORLD_SIZE']}, but torchrun did not start this "
                "process. Start it with entrypoint/train.sh (or torchrun), or unset WORLD_SIZE."
            )
        return alone

    @property
    def is_rank_zero(self) -> bool:
        return self.rank == 0

    def __str__(self) -> str:
        return (
            f"rank {self.rank} of {self.world_size} (node {self.node_rank} of {self.num_nodes}, "
            f"local rank {self.local_rank} of {self.local_world_size}) on {self.host}, "
            f"{self.launcher}"
        )


@dataclass(frozen=True)
class Task:
    """One of `count` tasks that work on the same thing side by side, as srun starts them; alone
    outside of srun.

    `start` names this start of all of them; `job` is the scheduler's, the same after a requeue,
    which raises `restart`.
    """

    start: str
    number: int = 0
    count: int = 1
    job: str | None = None
    restart: int = 0

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> "Task":
        """Read what slurm/prepare.slurm hands into the container, else srun's variables; else the
        task is alone."""
        job = _job_id(environment)
        if "CONVOY_TASKS" in environment:
            count, start = int(environment["CONVOY_TASKS"]), environment["CONVOY_RUN_ID"]
            restart = int(environment.get("CONVOY_RESTART", "0"))
        elif job is not None and "SLURM_STEP_ID" in environment:
            count = int(environment["SLURM_STEP_NUM_TASKS"])
            restart = int(environment.get("SLURM_RESTART_COUNT", "0"))
            start = f"{job}.{environment['SLURM_STEP_ID']}-{restart}"
        else:
            return cls(f"{socket.gethostname()}-{os.getpid()}-{time.time_ns()}", job=job)
        return cls(start, int(environment["SLURM_PROCID"]), count, job, restart)


def gpus_of_node(environment: Mapping[str, str]) -> int | None:
    """How many GPUs SLURM gave the job on this node, or None where it does not say."""
    given = environment.get("SLURM_GPUS_ON_NODE", "")
    return int(given) if given.isdigit() else None


@dataclass(frozen=True)
class Launch:
    """How this node takes part in a launch, before torchrun starts its ranks. `where` says so in
    one line.

    `endpoint` is None where the node is alone; `peer` is another node's name or address, to choose
    an interface by; `is_host` tells whether the rendezvous is on this node, None leaves that to
    torchrun.
    """

    nodes: int
    processes: int
    where: str
    endpoint: str | None = None
    is_host: bool | None = None
    peer: str | None = None
    run_id: str | None = None
    local_address: str | None = None

    @classmethod
    def from_environment(cls, environment: Mapping[str, str], gpus: int) -> "Launch":
        """Read Convoy's own launch facts, else those of an srun task, else the node is alone.

        `gpus` are those that the node shows; without any other word there is a rank for each, and
        at least one. Raises ConvoyError where srun started several tasks on a node: each would
        start all of its ranks.
        """
        job = environment.get("SLURM_JOB_ID")
        host = environment.get("SLURMD_NODENAME") or socket.gethostname()
        allocated = environment.get("SLURM_GPUS_ON_NODE", "")
        processes = (
            _count(environment, "CONVOY_PROCESSES_PER_NODE")
            or (int(allocated) if allocated else gpus)
            or 1
        )
        tasks, step_nodes = (
            int(environment.get(f"SLURM_STEP_NUM_{what}", "1")) for what in ("TASKS", "NODES")
        )
        in_step = "SLURM_STEP_ID" in environment
        if in_step and tasks > step_nodes and tasks > 1:
            raise ConvoyError(
                f"srun started {tasks} tasks on {step_nodes} node(s), and torchrun starts the "
                "ranks: one task per node, srun --ntasks-per-node=1."
            )
        named = dict(
            run_id=environment.get("CONVOY_RUN_ID") or None,
            local_address=environment.get("CONVOY_LOCAL_ADDR") or None,
        )
        nodes = _count(environment, "CONVOY_NODES")
        if nodes is not None:
            if job and not allocated and not environment.get("CONVOY_PROCESSES_PER_NODE"):
                raise ConvoyError(
                    f"SLURM job {job} has no GPUs: give --gpus-per-node=4, or "
                    "CONVOY_PROCESSES_PER_NODE for CPU ranks."
                )
            is_host = environment.get("CONVOY_RDZV_IS_HOST")
            others = [name for name in environment.get("CONVOY_HOSTS", "").split() if name != host]
            by = f"SLURM job {job}" if job else "by hand"
            return cls(
                nodes,
                processes,
                f"{by}: {nodes} node(s) x {processes} rank(s)",
                endpoint=environment.get("CONVOY_RDZV_ENDPOINT") or None,
                is_host=None if is_host is None else is_host == "1",
                peer=others[0] if others else None,
                **named,
            )
        if in_step and step_nodes > 1:
            hosts = expand_hosts(environment["SLURM_STEP_NODELIST"])
            step = f"{job}.{environment['SLURM_STEP_ID']}"
            named["run_id"] = named["run_id"] or step
            return cls(
                step_nodes,
                processes,
                f"srun in SLURM job {job}: {step_nodes} node(s) x {processes} rank(s)",
                endpoint=hosts[0],
                is_host=environment["SLURM_NODEID"] == "0",
                peer=hosts[1] if environment["SLURM_NODEID"] == "0" else hosts[0],
                **named,
            )
        where = f"alone on {host}: {processes} rank(s)"
        if job:
            where = f"SLURM job {job}, {where}"
            if int(environment.get("SLURM_JOB_NUM_NODES", "1")) > 1 and not in_step:
                where += (
                    "; slurm/launch.sh or srun would take all "
                    f"{environment['SLURM_JOB_NUM_NODES']} nodes of the job"
                )
        return cls(1, processes, where, **named)


def is_first_task(environment: Mapping[str, str]) -> bool:
    """Whether this is the task that speaks for all of its srun step; true outside of one."""
    return environment.get("SLURM_PROCID", "0") == "0"


def expand_hosts(names: str) -> list[str]:
    """The hosts of a SLURM list, `gl[001,006-008],h1` for example, in its order.

    For where scontrol is not, in the container; on a node the launch asks scontrol.
    """
    hosts: list[str] = []
    for part in re.findall(r"(?:[^,\[]|\[[^\]]*\])+", names):
        found = [""]
        for literal, ranges in re.findall(r"([^\[]*)(?:\[([^\]]*)\])?", part):
            values = (
                [number for item in ranges.split(",") for number in _range(item)]
                if ranges
                else [""]
            )
            found = [f"{start}{literal}{value}" for start in found for value in values]
        hosts += found
    return hosts


def _range(item: str) -> list[str]:
    first, _, last = item.partition("-")
    return [f"{number:0{len(first)}d}" for number in range(int(first), int(last or first) + 1)]


def _count(environment: Mapping[str, str], name: str) -> int | None:
    text = environment.get(name)
    if not text:
        return None
    if not text.isdigit() or int(text) < 1:
        raise ConvoyError(f"{name}={text} must be a whole number of at least 1.")
    return int(text)


def _job_id(environment: Mapping[str, str]) -> str | None:
    if "SLURM_ARRAY_JOB_ID" in environment and "SLURM_ARRAY_TASK_ID" in environment:
        return f"{environment['SLURM_ARRAY_JOB_ID']}_{environment['SLURM_ARRAY_TASK_ID']}"
    return environment.get("SLURM_JOB_ID")
