"""What would finish when: every shape that the cluster offers for one training.

Only arithmetic: commands/plan.py fetches the cluster's picture, waits and earlier runs, and shows
the rows.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from convoy.errors import ConvoyError
from convoy.global_batch import BatchPlan, plan_batches
from convoy.host import roofline, speed_model, words
from convoy.host.cluster_model import Cluster, Node, Partition
from convoy.host.roofline import COSTS, UNKNOWN, Cost
from convoy.host.speed_model import Observation, Rate, Shape, Workload
from convoy.host.starts import Wait

VALIDATION = 1 / 3  # of a training sample's cost: forward only, without backward (twice forward)
START_UP = 180.0  # seconds from a job's start to its first step
MARGIN = 300.0  # seconds before the time limit at which a job is asked to stop (--signal in slurm/)
REQUEUED = 120.0  # seconds that SLURM holds a requeued job at least
# 6.5 failures in 1,000 node-days of 8-GPU nodes: Kokolis et al., "Revisiting Reliability in
# Large-Scale Machine Learning Research Clusters", HPCA 2025 (arXiv:2410.21680), section III.
NODE_FAILURES = 6.5 / (1000 * 86_400)  # a second and node
HOST_GIB_PER_GPU = 32  # less has ended runs at the switch to validation


@dataclass(frozen=True)
class Training:
    """What is to be trained; `global_batch` None means NAVSIM's way, a batch for every rank."""

    agent: str
    samples: int
    val_samples: int
    epochs: int
    global_batch: int | None
    rank_batch: int
    data: str = "shards"
    workers: int = 4
    speed: str = "max"
    counted: Cost | None = None


@dataclass(frozen=True)
class Offer:
    """One shape: what is asked of SLURM. `limit` is the longest that it may run, in seconds."""

    partition: str
    gpu: str
    nodes: int
    gpus_per_node: int
    whole_nodes: bool
    node: Node  # one of its kind
    free: int
    limit: int | None

    @property
    def gpus(self) -> int:
        return self.nodes * self.gpus_per_node

    def __str__(self) -> str:
        if not self.whole_nodes:
            return f"{self.gpus_per_node} {self.gpu} on {self.partition}"
        nodes = f"{self.nodes} node{'s' if self.nodes > 1 else ''}"
        return f"{nodes} x {self.gpus_per_node} {self.gpu} on {self.partition}"


@dataclass(frozen=True)
class Span:
    """Seconds: the expected value, and the ends of a range of about 80 %."""

    expected: float
    low: float
    high: float


@dataclass(frozen=True)
class Row:
    """One offer with its forecast.

    `refusals` are reasons why it cannot be, `remarks` what to know.
    """

    offer: Offer
    batches: BatchPlan | None = None
    rate: Rate | None = None
    wait: Wait | None = None
    epoch: float | None = None
    training: Span | None = None
    segments: int | None = None
    total: Span | None = None
    gpu_hours: float | None = None
    chance: float | None = None
    refusals: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()

    @property
    def possible(self) -> bool:
        return not self.refusals and self.total is not None


def offers(cluster: Cluster, account: str, sizes: Sequence[int] | None = None) -> list[Offer]:
    """Every partition x GPU type x number of nodes, and one GPU.

    `sizes` names the numbers of nodes.
    """
    found = []
    for partition in cluster.partitions.values():
        kinds: dict[str, list[Node]] = {}
        for node in cluster.nodes:
            if partition.name in node.partitions and node.gpus:
                kinds.setdefault(node.gpu, []).append(node)
        for gpu, nodes in kinds.items():
            found += list(_offers(cluster, partition, gpu, nodes, account, sizes))
    return found


def _offers(
    cluster: Cluster,
    partition: Partition,
    gpu: str,
    nodes: Sequence[Node],
    account: str,
    sizes: Sequence[int] | None,
) -> Iterator[Offer]:
    gpus = Counter(node.gpus for node in nodes).most_common(1)[0][0]
    kind = [node for node in nodes if node.gpus == gpus]
    usable = sum(node.usable for node in kind)
    free = sum(node.is_free for node in kind)
    limit = _longest(cluster, partition, account)
    most = min(len(kind), partition.max_nodes or len(kind))
    counts = [count for count in (1, 2, 4, 8) if count <= min(most, max(usable, 1))]
    if sizes is not None:
        counts = list(sizes)
    elif len(counts) < 4 and counts and most not in counts and most <= 8:
        counts.append(most)
    if gpus > 1 and sizes is None:
        free_gpus = sum(node.gpus - node.gpus_used for node in kind if node.usable)
        yield Offer(partition.name, gpu, 1, 1, False, kind[0], free_gpus, limit)
    for count in counts:
        yield Offer(partition.name, gpu, count, gpus, True, kind[0], free, limit)


def _longest(cluster: Cluster, partition: Partition, account: str) -> int | None:
    """The partition's limit, or that of the account's QOS where all of its QOS have shorter
    ones."""
    walls = [partition.limit] if partition.limit is not None else []
    if cluster.limits is not None:
        names = cluster.limits.accounts.get(account, ())
        longest = [cluster.limits.qos_wall.get(name) for name in names]
        bounded = [wall for wall in longest if wall is not None]
        if longest and len(bounded) == len(longest):
            walls.append(max(bounded))
    return min(walls) if walls else None


def refusals(cluster: Cluster, offer: Offer, account: str) -> list[str]:
    """Why the cluster would not take a job of this shape, as far as its description says."""
    partition = cluster.partitions[offer.partition]
    kind = [
        node
        for node in cluster.nodes
        if offer.partition in node.partitions
        and node.gpu == offer.gpu
        and node.gpus >= offer.gpus_per_node
    ]
    usable = [node for node in kind if node.usable]
    found = []
    if not partition.up:
        found.append(f"partition {partition.name} is down")
    if partition.max_nodes and offer.nodes > partition.max_nodes:
        found.append(f"{partition.name} takes at most {partition.max_nodes} nodes a job")
    if offer.nodes < partition.min_nodes:
        found.append(f"{partition.name} takes at least {partition.min_nodes} nodes a job")
    if len(usable) < offer.nodes:
        away = sorted(
            {
                node.reason.partition(" [")[0] or node.state.lower()
                for node in kind
                if not node.usable
            }
        )
        lost = f" ({len(kind) - len(usable)} are away: {', '.join(away[:2])})" if away else ""
        found.append(f"only {len(usable)} of {len(kind)} such nodes are in service{lost}")
    if partition.accounts is not None and account not in partition.accounts:
        found.append(f"{partition.name} is for the accounts {', '.join(partition.accounts)}")
    if account in partition.denied_accounts:
        found.append(f"{partition.name} does not take the account {account}")
    return found + _account_refusals(cluster, offer, account)


def _account_refusals(cluster: Cluster, offer: Offer, account: str) -> list[str]:
    limits = cluster.limits
    if limits is None or not limits.accounts:
        return []
    if account not in limits.accounts:
        return [f"the account {account} is not yours (yours: {', '.join(sorted(limits.accounts))})"]
    most = [limits.qos_gpus_per_user.get(name) for name in limits.accounts[account]]
    bounded = [count for count in most if count is not None]
    if most and len(bounded) == len(most) and offer.gpus > max(bounded):
        return [f"your QOS allows {max(bounded)} GPUs a user"]
    return []


def cautions(cluster: Cluster, offer: Offer, account: str) -> list[str]:
    """What of this user's own jobs stands in the way of a job of this shape."""
    limits = cluster.limits
    if limits is None:
        return []
    most = [limits.qos_gpus_per_user.get(name) for name in limits.accounts.get(account, ())]
    bounded = [count for count in most if count is not None]
    held = sum(
        job.gpus or 0 for job in cluster.jobs if job.user == cluster.user and job.state == "RUNNING"
    )
    if not held or not most or len(bounded) < len(most) or offer.gpus + held <= max(bounded):
        return []
    return [
        f"your jobs hold {held} of the {max(bounded)} GPUs that your QOS allows: it waits for them"
    ]


def forecast(
    offer: Offer,
    training: Training,
    wait: Wait | None,
    observations: Sequence[Observation] = (),
    refused: Sequence[str] = (),
    warned: Sequence[str] = (),
    calibrate: Callable[[Rate], Rate] = lambda rate: rate,
) -> Row:
    """The row of one offer."""
    try:
        batches = plan_batches(offer.gpus, training.rank_batch, training.global_batch)
    except ConvoyError as error:
        return Row(offer, refusals=(*refused, _indivisible(training, offer, error)))
    if refused:
        return Row(offer, batches, refusals=tuple(refused))
    per_gpu = offer.node.cpus / offer.node.gpus if offer.node.cpus else 16.0
    shape = Shape(offer.gpu, offer.nodes, offer.gpus_per_node, per_gpu)
    workload = Workload(
        training.agent,
        batches.global_batch,
        training.data,
        training.workers,
        training.speed,
        training.rank_batch,
        training.counted,
    )
    rate = calibrate(speed_model.predict(workload, shape, observations))
    work = training.samples + VALIDATION * training.val_samples
    slow, fast = rate.range
    duration = Span(*(training.epochs * work / speed for speed in (rate.samples_per_s, fast, slow)))
    row = Row(
        offer,
        batches,
        rate,
        wait,
        work / rate.samples_per_s,
        duration,
        segments(duration.expected, offer.limit),
        gpu_hours=offer.gpus * duration.expected / 3600,
        chance=_chance(duration.expected, rate.spread, offer),
    )
    if wait is None:
        return replace(row, refusals=("no expected start is known",))
    total = Span(
        _total(wait.expected, duration.expected, offer.limit, wait.expected),
        _total(wait.low, duration.low, offer.limit, REQUEUED),
        _total(wait.high, duration.high, offer.limit, wait.high),
    )
    return replace(row, total=total, remarks=(*warned, *_remarks(row, training)))


def _indivisible(training: Training, offer: Offer, error: ConvoyError) -> str:
    nearest = str(error).rpartition("global_batch=")[2].rstrip(".")
    whole = f"global_batch={training.global_batch} cannot be split over {offer.gpus} GPUs"
    return f"{whole} (nearest: {nearest})" if "Nearest" in str(error) else str(error)


def segments(duration: float, limit: float | None) -> int:
    """Starts that a training of `duration` seconds takes under a time limit of `limit`."""
    if limit is None:
        return 1
    return max(1, math.ceil(duration / max(60.0, limit - MARGIN - START_UP)))


def _total(wait: float, duration: float, limit: float | None, again: float) -> float:
    starts = segments(duration, limit)
    return wait + duration + starts * START_UP + (starts - 1) * max(REQUEUED, again)


def _chance(duration: float, spread: float, offer: Offer) -> float:
    """Of ending in one piece: no time limit reached (a normal in log time), no node lost."""
    whole = math.exp(-NODE_FAILURES * offer.nodes * duration)
    if offer.limit is None:
        return whole
    usable = max(60.0, offer.limit - MARGIN - START_UP)
    z = math.log(usable / duration) / max(spread, 1e-6)
    return whole * 0.5 * (1 + math.erf(z / math.sqrt(2)))


def _remarks(row: Row, training: Training) -> Iterator[str]:
    offer, batches, rate = row.offer, row.batches, row.rate
    assert batches is not None and rate is not None and row.segments is not None
    if row.segments > 1:
        assert offer.limit is not None
        yield f"{row.segments} starts: the limit is {offer.limit / 3600:.3g} h"
    elif offer.limit is not None and row.chance is not None and row.chance < 0.7:
        yield "may reach the time limit, and then waits again"
    if batches.rank_batch < 8 and batches.rank_batch < training.rank_batch:
        yield f"{batches.rank_batch} samples a GPU use it poorly"
    gib = offer.node.memory_mib / 1024 / offer.node.gpus
    if 0 < gib < HOST_GIB_PER_GPU:
        yield f"{gib:.0f} GiB of host memory a GPU is little"
    needed = COSTS.get(training.agent, UNKNOWN).gib_per_sample
    device = roofline.device(offer.gpu)
    if needed and device and needed * batches.rank_batch > 0.9 * device.memory:
        yield f"{batches.rank_batch} samples a GPU may not fit into {device.memory:.0f} GB"


def ask(row: Row) -> int | None:
    """The time limit to ask for in seconds: the high end and a quarter of an hour, in half
    hours."""
    if row.training is None:
        return row.offer.limit
    wanted = math.ceil((row.training.high + MARGIN + START_UP + 900) / 1800) * 1800
    return wanted if row.offer.limit is None else min(wanted, row.offer.limit)


def sbatch_options(row: Row, job: Mapping[str, str], account: str) -> dict[str, str]:
    """Options of sbatch for this row, where the job file's own (`job`) would not do."""
    offer = row.offer
    typed = f"{offer.gpu}:" if offer.gpu != "gpu" else ""
    options = {
        "nodes": str(offer.nodes),
        "partition": offer.partition,
        "account": account,
        "gpus-per-node": f"{typed}{offer.gpus_per_node}",
    }
    limit = ask(row)
    if limit is not None:
        options["time"] = words.slurm_time(limit)
    cpus = offer.node.cpus
    if not offer.whole_nodes:
        share = offer.gpus_per_node / offer.node.gpus
        if cpus:
            options["cpus-per-task"] = str(max(1, int(cpus * share)))
        if offer.node.memory_mib:
            options["mem"] = f"{int(offer.node.memory_mib * share / 1024)}G"
    elif cpus and cpus < int(job.get("cpus-per-task", "1")):
        options["cpus-per-task"] = str(cpus)
    return options
