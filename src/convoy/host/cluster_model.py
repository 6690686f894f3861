"""What a cluster is made of, as planning and watching see it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime


@dataclass(frozen=True)
class Node:
    """One node; `gpu` is the type that GRES names ("gpu" where it names none)."""

    name: str
    partitions: tuple[str, ...]
    gpu: str
    gpus: int
    gpus_used: int = 0
    cpus: int = 0
    memory_mib: int = 0
    state: str = "IDLE"  # without flags
    usable: bool = True
    reason: str = ""

    @property
    def is_free(self) -> bool:
        """Whether a job could have the whole node now."""
        return self.usable and self.state == "IDLE" and not self.gpus_used


@dataclass(frozen=True)
class Partition:
    """`limit` in seconds, None for none; `wait` is a known wait in seconds (cluster files only);
    `nodes` is how many it has, where that is known."""

    name: str
    up: bool = True
    limit: int | None = None
    max_nodes: int | None = None
    min_nodes: int = 0
    accounts: tuple[str, ...] | None = None  # None: all
    denied_accounts: tuple[str, ...] = ()
    is_default: bool = False
    wait: float | None = None
    nodes: int | None = None


@dataclass(frozen=True)
class Job:
    """One job or array task of the queue. `gpus` is the total; `limit` and `left` in seconds."""

    id: str
    user: str
    account: str
    partitions: tuple[str, ...]
    state: str
    reason: str
    nodes: int
    gpus: int | None
    limit: int | None
    left: int | None
    start: datetime | None  # expected start while pending
    priority: int
    submitted: datetime | None = None
    hosts: str = ""
    qos: str = ""
    name: str = ""


@dataclass(frozen=True)
class Limits:
    """What the accounting grants a user: per account its QOS names, per QOS its ceilings."""

    accounts: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    qos_wall: Mapping[str, int] = field(default_factory=dict)
    qos_gpus_per_user: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Cluster:
    """A moment's picture. `limits` is None where accounting did not answer."""

    now: datetime
    nodes: tuple[Node, ...]
    partitions: Mapping[str, Partition]
    jobs: tuple[Job, ...] = ()
    limits: Limits | None = None
    user: str = ""
    source: str = "SLURM"
