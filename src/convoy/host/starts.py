"""When a job of some shape would start, from a picture of the queue: for clusters that cannot be
asked.

The queue is played through in its order of priority over GPU slots: each job takes the GPUs that
are free first and holds them for its whole time limit. Real jobs end before their limits and small
ones are backfilled, so this is late more often than early; `Wait.low` allows for it. 20,000 jobs
over 500 nodes take well under a second.
"""

import heapq
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from convoy.host.cluster_model import Cluster, Job, Node

UNKNOWN_LIMIT = 86_400.0  # seconds that a job without a time limit is taken to run
# How much of its time limit a job uses: half, at the median of production logs (Mu'alem and
# Feitelson, IEEE TPDS 12(6), 2001, sections 3 and 4). What waits for jobs to end may wait so much
# less; what comes with a higher priority later may push it back.
EARLY, LATE = 0.3, 1.5
STARTING = 180.0  # seconds that an immediate start may take at the worst: prolog, node wake-up


@dataclass(frozen=True)
class Wait:
    """Expected wait in seconds as a point and a range of about 80 %, and where it comes from."""

    expected: float
    low: float
    high: float
    source: str

    @classmethod
    def of(cls, expected: float, source: str) -> "Wait":
        """The usual range about an expected wait."""
        if expected <= 60:
            return cls(expected, 0.0, STARTING, source)
        return cls(expected, EARLY * expected, LATE * expected + STARTING, source)


class Pool:
    """GPUs of the nodes that belong to the same partitions and have the same type."""

    def __init__(self, nodes: Sequence[Node]) -> None:
        self.partitions = frozenset(nodes[0].partitions)
        self.gpu = nodes[0].gpu
        self.slots = [0.0] * sum(node.gpus - node.gpus_used for node in nodes)
        self.busy = sum(node.gpus_used for node in nodes)
        self.per_node = max(node.gpus for node in nodes)

    def release(self, gpus: int, after: float) -> None:
        """GPUs that a running job frees in `after` seconds."""
        freed = min(gpus, self.busy)
        self.busy -= freed
        self.slots += [after] * freed


class Timeline:
    """The queue played through once; then `start` answers for any shape."""

    def __init__(self, cluster: Cluster) -> None:
        self._pools = pools(cluster.nodes)
        waiting: list[Job] = []
        for job in cluster.jobs:
            if job.state == "PENDING":
                waiting.append(job)
            elif job.state in {"RUNNING", "COMPLETING", "SUSPENDED", "CONFIGURING"}:
                self._run(job)
        for pool in self._pools:
            heapq.heapify(pool.slots)
        waiting.sort(key=lambda job: -job.priority)
        for job in waiting:
            if job.priority > 0:  # a held job takes nothing
                self._take(job)

    def _run(self, job: Job) -> None:
        left = UNKNOWN_LIMIT if job.left is None else max(0.0, float(job.left))
        wanted = job.gpus if job.gpus is not None else 0
        for pool in self._pools_of(job.partitions):
            freed = min(wanted, pool.busy)
            pool.release(freed, left)
            wanted -= freed

    def _take(self, job: Job) -> None:
        found = self._pools_of(job.partitions)
        wanted = (
            job.gpus if job.gpus is not None else job.nodes * (found[0].per_node if found else 0)
        )
        if not wanted or sum(len(pool.slots) for pool in found) < wanted:
            return  # needs no GPU, or more than there are: it blocks nobody
        limit = UNKNOWN_LIMIT if job.limit is None else float(job.limit)
        taken: list[Pool] = []
        start = 0.0
        for _ in range(wanted):
            pool = min((pool for pool in found if pool.slots), key=lambda pool: pool.slots[0])
            start = max(start, heapq.heappop(pool.slots))
            taken.append(pool)
        for pool in taken:
            heapq.heappush(pool.slots, start + limit)

    def _pools_of(self, partitions: Iterable[str]) -> list[Pool]:
        return [pool for pool in self._pools if not pool.partitions.isdisjoint(partitions)]

    def start(self, partition: str, gpu: str, gpus: int) -> float | None:
        """Seconds until `gpus` GPUs are free behind all that waits.

        None if there are not so many.
        """
        slots: list[float] = []
        for pool in self._pools_of([partition]):
            if pool.gpu == gpu:
                slots += pool.slots
        if len(slots) < gpus:
            return None
        return heapq.nsmallest(gpus, slots)[-1]


def pools(nodes: Iterable[Node]) -> list[Pool]:
    """The usable nodes with GPUs, grouped."""
    groups: dict[tuple[frozenset[str], str], list[Node]] = {}
    for node in nodes:
        if node.usable and node.gpus:
            groups.setdefault((frozenset(node.partitions), node.gpu), []).append(node)
    return [Pool(group) for group in groups.values()]


def waits(cluster: Cluster, shapes: Sequence[tuple[str, str, int]]) -> Mapping[int, Wait | None]:
    """By index of `shapes` (partition, GPU type, GPUs); None where the GPUs do not exist."""
    timeline = Timeline(cluster)
    found: dict[int, Wait | None] = {}
    for index, (partition, gpu, gpus) in enumerate(shapes):
        given = cluster.partitions[partition].wait
        if given is not None:
            found[index] = Wait.of(given, "given in the cluster file")
            continue
        start = timeline.start(partition, gpu, gpus)
        found[index] = None if start is None else Wait.of(start, "the queue, in its order")
    return found
