"""Where this process stands among the others.

The one module that reads the variables of scheduler, torchrun and launch.
"""

import json
import os
import re
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from datetime import datetime

from convoy.errors import ConvoyError


@dataclass(frozen=True)
class Topology:
    """Ranks and sizes of one training process, and the names that its run goes by.

    `job_id` is the scheduler's (`<job>_<task>` in an array), the same after every requeue, None
    outside of a job. `start` names this start of the run, the same for all of its ranks.
    """

    rank: int = 0
    local_rank: int = 0
    world_size: int = 1
    local_world_size: int = 1
    node_rank: int = 0
    num_nodes: int = 1
    restart_count: int = 0
    launcher: str = "alone"
    start: str = "alone"
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
        cls, num_nodes: int, processes_per_node: int, start: str = "planned", job: str | None = None
    ) -> "Topology":
        """The topology that a launch of this size will have, seen from rank 0."""
        return cls(
            job_id=job,
            start=start,
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
        alone = cls(start=_by_time(), job_id=_job_id(environment), host=socket.gethostname())
        if "TORCHELASTIC_RUN_ID" in environment:
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
                start=environment["TORCHELASTIC_RUN_ID"],
            )
        tasks = int(environment.get("SLURM_STEP_NUM_TASKS", "1"))
        if tasks > 1:
            raise ConvoyError(
                f"srun started {tasks} tasks of the training program itself. Start one task per "
                "node and let torchrun start the ranks: srun --ntasks-per-node=1 convoy train …"
            )
        if int(environment.get("WORLD_SIZE", "1")) > 1:
            raise ConvoyError(
                f"WORLD_SIZE is {environment['WORLD_SIZE']}, but torchrun did not start this "
                "process. Start it with convoy train (or torchrun), or unset WORLD_SIZE."
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
        """Read srun's variables; without them the task is alone."""
        job = _job_id(environment)
        if job is None or "SLURM_STEP_ID" not in environment:
            return cls(f"{socket.gethostname()}-{os.getpid()}-{time.time_ns()}", job=job)
        count = int(environment["SLURM_STEP_NUM_TASKS"])
        restart = _restart(environment)
        start = f"{job}.{environment['SLURM_STEP_ID']}-{restart}"
        return cls(start, int(environment["SLURM_PROCID"]), count, job, restart)


def gpus_of_node(environment: Mapping[str, str]) -> int | None:
    """How many GPUs SLURM gave the job on this node, or None where it does not say."""
    given = environment.get("SLURM_GPUS_ON_NODE", "")
    return int(given) if given.isdigit() else None


@dataclass(frozen=True)
class Agreement:
    """What a job's first node finds out once for all of its nodes: the name of the start, where
    torchrun's agents meet, the run directory, where the launchers keep in touch, and the data."""

    start: str
    endpoint: str
    run_dir: str
    peers: str
    data: str

    def to_text(self) -> str:
        """One line, whatever is in a path."""
        return json.dumps(asdict(self))

    @classmethod
    def from_text(cls, text: str) -> "Agreement":
        """Raises ConvoyError for anything but what `to_text` writes."""
        try:
            content = json.loads(text)
            if content.keys() != {field.name for field in fields(cls)}:
                raise ValueError(f"it has the keys {', '.join(content)}")
            if not all(isinstance(value, str) and value for value in content.values()):
                raise ValueError("every value must be a string")
        except (ValueError, AttributeError) as error:
            raise ConvoyError(
                f"What the first node agreed on cannot be read ({error}): expected one line of "
                f"`convoy rendezvous`, got {text[:200]!r}."
            ) from error
        return cls(**content)


@dataclass(frozen=True)
class Launch:
    """How this node takes part in a start of a run, before torchrun starts its ranks.

    `kind` is alone, by hand, srun or job. `endpoint` is host:port of the rendezvous, a host alone
    where the nodes have no way to agree on a port, None where the node is alone. `peer` is another
    node's name or address, to choose an interface by. `host` is this node's name, `number` its
    place among the nodes; the rendezvous is on number 0.
    """

    kind: str
    nodes: int
    processes: int
    where: str
    start: str
    hosts: tuple[str, ...]
    host: str
    number: int = 0
    endpoint: str | None = None
    peer: str | None = None
    job: str | None = None

    @property
    def is_host(self) -> bool:
        return self.number == 0

    @property
    def planned(self) -> Topology:
        """The topology of the ranks to come."""
        return Topology.planned(self.nodes, self.processes, self.start, self.job)

    @classmethod
    def of_job(cls, environment: Mapping[str, str], endpoint: str | None = None) -> "Launch":
        """All nodes of a SLURM job, as slurm/launch.sh starts them; `endpoint` as agreed.

        Raises ConvoyError outside of a job, and for a job without GPUs.
        """
        job = _job_id(environment)
        if job is None:
            raise ConvoyError(
                "This is not a SLURM job: sbatch slurm/torchrun_2node.slurm …, or convoy train."
            )
        processes = _processes(environment) or gpus_of_node(environment)
        if not processes:
            raise ConvoyError(
                f"SLURM job {job} has no GPUs: give --gpus-per-node=4, or "
                "CONVOY_PROCESSES_PER_NODE for CPU ranks."
            )
        # The launch leaves out nodes that the job has lost.
        named = environment.get("CONVOY_HOSTS") or environment["SLURM_JOB_NODELIST"]
        hosts = tuple(expand_hosts(named))
        host = environment["SLURMD_NODENAME"]
        return cls(
            "job",
            len(hosts),
            processes,
            f"SLURM job {job}: {len(hosts)} node(s) x {processes} rank(s)",
            _start_of_job(job, environment),
            hosts,
            host,
            number=hosts.index(host),
            endpoint=endpoint,
            peer=_peer(hosts, host),
            job=job,
        )

    @classmethod
    def by_hand(
        cls, environment: Mapping[str, str], nodes: int, node_rank: int, endpoint: str, start: str
    ) -> "Launch":
        """One of `nodes` nodes that a person starts, each with the same `endpoint` and `start`."""
        processes = _processes(environment) or visible_gpus(environment) or 1
        return cls(
            "by hand",
            nodes,
            processes,
            f"by hand: node {node_rank} of {nodes} x {processes} rank(s)",
            start,
            (socket.gethostname(),),
            socket.gethostname(),
            number=node_rank,
            endpoint=endpoint,
            peer=endpoint.rpartition(":")[0].strip("[]"),
            job=_job_id(environment),
        )

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> "Launch":
        """This node's part of an srun step, else the node is alone.

        Raises ConvoyError where srun started several tasks on a node: each would start all ranks.
        """
        job = _job_id(environment)
        host = environment.get("SLURMD_NODENAME") or socket.gethostname()
        processes = (
            _processes(environment) or gpus_of_node(environment) or visible_gpus(environment) or 1
        )
        in_step = "SLURM_STEP_ID" in environment
        tasks, nodes = (
            int(environment.get(f"SLURM_STEP_NUM_{what}", "1")) for what in ("TASKS", "NODES")
        )
        if in_step and tasks > nodes:
            raise ConvoyError(
                f"srun started {tasks} tasks on {nodes} node(s), and torchrun starts the ranks: "
                "one task per node, srun --ntasks-per-node=1."
            )
        if in_step and nodes > 1:
            hosts = tuple(expand_hosts(environment["SLURM_STEP_NODELIST"]))
            return cls(
                "srun",
                nodes,
                processes,
                f"srun in SLURM job {job}: {nodes} node(s) x {processes} rank(s)",
                f"{job}.{environment['SLURM_STEP_ID']}-{_restart(environment)}",
                hosts,
                host,
                number=hosts.index(host),
                endpoint=hosts[0],
                peer=_peer(hosts, host),
                job=job,
            )
        where = f"alone on {host}: {processes} rank(s)"
        if job:
            where = f"SLURM job {job}, {where}"
            others = int(environment.get("SLURM_JOB_NUM_NODES", "1"))
            if others > 1 and not in_step:
                where += f"; slurm/launch.sh or srun would take all {others} nodes of the job"
        return cls("alone", 1, processes, where, _by_time(), (host,), host, job=job)


def agreed_launch(environment: Mapping[str, str], agreement: Agreement) -> Launch:
    """This node's part of a job's start."""
    return replace(Launch.of_job(environment, agreement.endpoint), start=agreement.start)


def visible_gpus(environment: Mapping[str, str]) -> int:
    """GPUs that this process may use, counted without torch."""
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return len([d for d in visible.split(",") if d.strip() not in {"", "-1"}])
    try:
        listed = subprocess.run(["nvidia-smi", "--list-gpus"], text=True, capture_output=True)
    except FileNotFoundError:
        return 0
    return sum(line.startswith("GPU ") for line in listed.stdout.splitlines())


def rendezvous_port(environment: Mapping[str, str]) -> int | None:
    """CONVOY_RDZV_PORT, the port that a site wants the rendezvous on, or None."""
    return _count(environment, "CONVOY_RDZV_PORT")


def least_nodes(environment: Mapping[str, str]) -> int | None:
    """CONVOY_MIN_NODES: on how many nodes a job may continue when it has lost others, or None."""
    least = _count(environment, "CONVOY_MIN_NODES")
    nodes = int(environment.get("SLURM_JOB_NUM_NODES", "1"))
    if least is not None and least > nodes and not environment.get("CONVOY_HOSTS"):
        raise ConvoyError(f"CONVOY_MIN_NODES={least}, and the job has {nodes} node(s).")
    return least


def is_first_task(environment: Mapping[str, str]) -> bool:
    """Whether this is the task that speaks for all of its srun step; true outside of one."""
    return environment.get("SLURM_PROCID", "0") == "0"


def expand_hosts(names: str) -> list[str]:
    """The hosts of a SLURM list, `gl[001,006-008],h1` for example, in its order.

    The container has no scontrol to ask.
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


def _processes(environment: Mapping[str, str]) -> int | None:
    return _count(environment, "CONVOY_PROCESSES_PER_NODE")


def _restart(environment: Mapping[str, str]) -> int:
    return int(environment.get("SLURM_RESTART_COUNT", "0"))


def _start_of_job(job: str, environment: Mapping[str, str]) -> str:
    """The job and how often it was requeued; also which start this is where the launch started the
    run again in the same allocation (CONVOY_ATTEMPT, counted from 0)."""
    attempt = int(environment.get("CONVOY_ATTEMPT") or 0)
    name = f"{job}-{_restart(environment)}"
    return f"{name}.{attempt}" if attempt else name


def _peer(hosts: Sequence[str], own: str) -> str | None:
    return next((host for host in hosts if host != own), None)


def _by_time() -> str:
    return datetime.now().strftime("%Y%m%d-%H%M%S")
