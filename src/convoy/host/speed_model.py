"""Samples per second of a training on some GPUs: from earlier runs, else from a roofline's ratios.

A rate is a median and a spread, the standard deviation of its natural logarithm: a range of about
80 % is median x exp(+-1.28 spread). Scaling over nodes follows the cost model of a ring all-reduce,
2 (n - 1) / n x bytes / bandwidth (Patarasuk and Yuan, J. Parallel Distrib. Comput. 69, 2009), of
which backward hides a part (PyTorch DDP overlaps buckets: Li et al., VLDB 2020).
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace

from convoy.host import roofline
from convoy.host.roofline import COSTS, UNKNOWN, UNKNOWN_DEVICE, Cost

RANGE = 1.2816  # standard deviations of a central range of 80 %


# A NAVSIM cache of gzip pickles: 15.4 ms to decode a sample and 2.6 ms to collate it, on one core
# (measured); over a parallel file system it was 340 to 430 ms in a public run, hence the spread.
CACHE_SAMPLES_PER_CORE, CACHE_SPREAD = 25.0, 0.8
INTERCONNECT = 2.5  # GB/s between nodes: 25 Gbit/s Ethernet
INTERCONNECT_RANGE = (1.0, 12.0)  # 10 Gbit/s Ethernet … 100 Gbit/s InfiniBand
HIDDEN = 0.5  # share of the compute time of a step that can hide communication
SEVERAL_SPREAD = 0.15  # of `max` on several GPUs: it trained there, and was not timed alone
PER_DOUBLING = 0.12  # spread added for each factor of two between a run and the shape asked for


@dataclass(frozen=True)
class Shape:
    """GPUs of one type on some nodes."""

    gpu: str
    nodes: int
    gpus_per_node: int
    cpus_per_gpu: float = 16.0

    @property
    def world_size(self) -> int:
        return self.nodes * self.gpus_per_node


@dataclass(frozen=True)
class Workload:
    """What the rate depends on besides the GPUs; `data` is "shards" or "cache", `speed` the
    setting of that name, `counted` what its samples cost where somebody counted."""

    agent: str
    global_batch: int
    data: str = "shards"
    workers: int = 4
    speed: str = "max"
    rank_batch: int = 64  # the most samples that a GPU holds at once
    counted: Cost | None = None


@dataclass(frozen=True)
class Observation:
    """An earlier run's rate over all GPUs."""

    workload: Workload
    shape: Shape
    samples_per_s: float
    where: str = "an earlier run"
    all_reduce: float | None = None  # measured between its nodes, GB/s


@dataclass(frozen=True)
class Rate:
    """Samples per second: median, spread and where it comes from."""

    samples_per_s: float
    spread: float
    source: str

    @property
    def range(self) -> tuple[float, float]:
        return (
            self.samples_per_s * math.exp(-RANGE * self.spread),
            self.samples_per_s * math.exp(RANGE * self.spread),
        )


def predict(
    workload: Workload,
    shape: Shape,
    observations: Sequence[Observation] = (),
    all_reduce: float | None = None,
) -> Rate:
    """The rate of `workload` on `shape`.

    `all_reduce` is a measured bandwidth between nodes, GB/s; without it, what earlier runs measured
    counts.
    """
    all_reduce = all_reduce or _measured(observations)
    alike = [
        replace(seen, workload=replace(seen.workload, counted=workload.counted))
        for seen in observations
        if seen.workload.agent == workload.agent
    ]
    same_gpu = [seen for seen in alike if seen.shape.gpu == shape.gpu]
    if same_gpu:
        return _from_run(workload, shape, _closest(workload, shape, same_gpu), all_reduce)
    if alike:
        return _from_run(workload, shape, _closest(workload, shape, alike), all_reduce)
    return _prior(workload, shape, all_reduce)


def _measured(observations: Sequence[Observation]) -> float | None:
    """Between nodes, GB/s: the median of the runs that measured it, whatever their agent."""
    found = [seen.all_reduce for seen in observations if seen.all_reduce]
    return statistics.median(found) if found else None


def _closest(
    workload: Workload, shape: Shape, observations: Sequence[Observation]
) -> list[Observation]:
    """Those with the same data and the nearest number of GPUs."""

    def distance(seen: Observation) -> tuple[bool, float]:
        return (
            seen.workload.data != workload.data,
            abs(math.log2(seen.shape.world_size / shape.world_size)),
        )

    nearest = min(map(distance, observations))
    return [seen for seen in observations if distance(seen) == nearest]


def _from_run(
    workload: Workload, shape: Shape, seen: Sequence[Observation], all_reduce: float | None
) -> Rate:
    """Scale earlier rates by the model's ratio between their shape and this one."""
    rates, spreads = [], []
    for run in seen:
        alone = _without_communication(run, run.all_reduce or all_reduce)
        alone *= _alone(workload, shape) / _alone(run.workload, run.shape)
        rates.append(_with_communication(workload, shape, alone, all_reduce))
        doublings = abs(math.log2(shape.world_size / run.shape.world_size))
        spreads.append(0.1 + PER_DOUBLING * doublings)
    spread = max(spreads)
    if len(rates) > 2:
        spread = math.hypot(spread - 0.1, statistics.stdev(map(math.log, rates)))
    of_run = seen[0]
    if of_run.shape.gpu != shape.gpu:
        spread = math.hypot(spread, _ratio_spread(shape.gpu, of_run.shape.gpu))
    if of_run.workload.data != workload.data:
        spread = math.hypot(spread, 0.7)
    count = f"{len(seen)} runs" if len(seen) > 1 else of_run.where
    where = f"{count} on {of_run.shape.world_size} {of_run.shape.gpu}"
    return Rate(math.exp(statistics.fmean(map(math.log, rates))), max(0.05, spread), where)


def _prior(workload: Workload, shape: Shape, all_reduce: float | None) -> Rate:
    name = roofline.known_name(shape.gpu) or shape.gpu
    level = _level(workload, shape)
    spread = roofline.spread(cost_of(workload), name, level)
    if level == "max" and shape.world_size > 1:
        spread = math.hypot(spread, SEVERAL_SPREAD)
    if workload.data == "cache" and _loader(workload, shape) < _compute(workload, shape):
        spread = math.hypot(spread, CACHE_SPREAD)
    if shape.nodes > 1 and all_reduce is None:
        low, high = (_model(workload, shape, bandwidth) for bandwidth in INTERCONNECT_RANGE)
        spread = math.hypot(spread, math.log(high / low) / (2 * RANGE))
    counted = workload.agent not in COSTS and workload.counted is not None
    source = f"roofline{', operations counted' if counted else ''}, no earlier run"
    return Rate(_model(workload, shape, all_reduce), spread, source)


def _model(workload: Workload, shape: Shape, all_reduce: float | None) -> float:
    """Samples per second: compute, or the loader where it is slower, and what shows of
    all-reduce."""
    return _with_communication(workload, shape, _alone(workload, shape), all_reduce)


def _alone(workload: Workload, shape: Shape) -> float:
    """Samples per second if communication cost nothing."""
    return min(_compute(workload, shape), _loader(workload, shape))


def _with_communication(
    workload: Workload, shape: Shape, alone: float, all_reduce: float | None
) -> float:
    step = workload.global_batch / alone
    shown = max(0.0, _communication(workload, shape, all_reduce) - HIDDEN * step)
    return workload.global_batch / (step + shown)


def _without_communication(run: Observation, all_reduce: float | None) -> float:
    """The inverse: what a measured rate would have been without communication."""
    step = run.workload.global_batch / run.samples_per_s
    communication = _communication(run.workload, run.shape, all_reduce)
    if communication > HIDDEN * step:
        step = max(0.1 * step, (step - communication) / (1 - HIDDEN))
    return run.workload.global_batch / step


def cost_of(workload: Workload) -> Cost:
    return COSTS.get(workload.agent) or workload.counted or UNKNOWN


def _accumulation(workload: Workload, shape: Shape) -> int:
    return max(1, math.ceil(workload.global_batch / shape.world_size / workload.rank_batch))


def _level(workload: Workload, shape: Shape) -> str:
    """Where batches are accumulated, `max` has no graph: about `default` (docs/speed.md)."""
    is_accumulated = _accumulation(workload, shape) > 1
    return "default" if workload.speed == "max" and is_accumulated else workload.speed


def _compute(workload: Workload, shape: Shape) -> float:
    batches = _accumulation(workload, shape)
    batch = workload.global_batch / shape.world_size / batches
    card = roofline.device(shape.gpu) or UNKNOWN_DEVICE
    took = roofline.step_seconds(cost_of(workload), card, batch, _level(workload, shape))
    return shape.world_size * batch / took


def _loader(workload: Workload, shape: Shape) -> float:
    if workload.data == "shards":
        return math.inf  # 13,000 samples/s a node were measured: not what limits
    cores = min(float(workload.workers), shape.cpus_per_gpu)
    return max(1.0, cores) * CACHE_SAMPLES_PER_CORE * shape.world_size


def _communication(workload: Workload, shape: Shape, all_reduce: float | None) -> float:
    """Seconds of one step's all-reduce of float32 gradients."""
    size = cost_of(workload).parameters * 4e-3  # GB
    if shape.world_size == 1:
        return 0.0
    within = (roofline.device(shape.gpu) or UNKNOWN_DEVICE).within_node
    bandwidth = within if shape.nodes == 1 else min(within, all_reduce or INTERCONNECT)
    return 2 * (shape.world_size - 1) / shape.world_size * size / bandwidth


def _ratio_spread(gpu: str, reference: str) -> float:
    """Between two cards: the more, the less alike their compute and memory are."""
    if gpu == reference:
        return 0.0
    own, other = roofline.device(gpu), roofline.device(reference)
    if own is None or other is None:
        return 0.8
    compute, memory = own.tflops / other.tflops, own.bandwidth / other.bandwidth
    return 0.15 + abs(math.log(compute / memory)) / (2 * RANGE)
