"""Samples per second of a training on some GPUs: from earlier runs, else from a roofline's ratios.

A rate is a median and a spread, the standard deviation of its natural logarithm: a range of about
80 % is median x exp(+-1.28 spread). Scaling over nodes follows the cost model of a ring all-reduce,
2 (n - 1) / n x bytes / bandwidth (Patarasuk and Yuan, J. Parallel Distrib. Comput. 69, 2009), of
which backward hides a part (PyTorch DDP overlaps buckets: Li et al., VLDB 2020).
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

RANGE = 1.2816  # standard deviations of a central range of 80 %


@dataclass(frozen=True)
class Device:
    """Dense tensor-core TFLOP/s in bf16 (fp16 before Ampere), GB/s and GB of memory: data
    sheets."""

    tflops: float
    bandwidth: float
    memory: float


DEVICES = {
    "b200": Device(2250, 8000, 180),
    "h200": Device(989, 4800, 141),
    "gh200": Device(989, 4000, 96),
    "h100": Device(989, 3350, 80),
    "a100": Device(312, 2039, 80),
    "l40s": Device(362, 864, 48),
    "l40": Device(181, 864, 48),
    "a40": Device(150, 696, 48),
    "a6000": Device(155, 768, 48),
    "rtx6000": Device(155, 768, 48),
    "l4": Device(121, 300, 24),
    "a30": Device(165, 933, 24),
    "a10": Device(125, 600, 24),
    "v100": Device(125, 900, 32),
    "t4": Device(65, 320, 16),
    "rtx4090": Device(165, 1008, 24),
    "rtx3090": Device(71, 936, 24),
}


@dataclass(frozen=True)
class AgentPrior:
    """Rates of one H200 in samples/s by the setting `speed`, and their spread; parameters in
    millions. `gib_per_sample` is GPU memory in training for each sample of a rank's batch.
    """

    plain: float
    default: float
    max: float
    spread: float
    parameters: float
    gib_per_sample: float | None = None


# Measured with synthetic data of the real size (docs/speed.md, docs/plan.md): TransFuser on one
# H200 359 and 480 to 570 samples/s, as one CUDA graph 1,317, on one H100 1,163; EgoStatusMLP 8,400,
# 11,100 and 17,200. The last line is for agents that nobody has measured.
AGENTS = {
    "transfuser_agent": AgentPrior(350.0, 525.0, 1_250.0, 0.35, 56.0, 0.16),
    "ego_status_mlp_agent": AgentPrior(8_400.0, 11_100.0, 17_200.0, 0.3, 0.6, 0.001),
}
UNKNOWN_AGENT = AgentPrior(200.0, 300.0, 500.0, 0.9, 60.0)

# A NAVSIM cache of gzip pickles: 15.4 ms to decode a sample and 2.6 ms to collate it, on one core
# (measured); over a parallel file system it was 340 to 430 ms in a public run, hence the spread.
CACHE_SAMPLES_PER_CORE, CACHE_SPREAD = 25.0, 0.8
INTERCONNECT = 2.5  # GB/s between nodes: 25 Gbit/s Ethernet
INTERCONNECT_RANGE = (1.0, 12.0)  # 10 Gbit/s Ethernet … 100 Gbit/s InfiniBand
WITHIN_NODE = 12.0  # GB/s over PCIe 4.0 x16 without NVLink
HIDDEN = 0.5  # share of the compute time of a step that can hide communication
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
    setting of that name."""

    agent: str
    global_batch: int
    data: str = "shards"
    workers: int = 4
    speed: str = "max"


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
    alike = [seen for seen in observations if seen.workload.agent == workload.agent]
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
    agent = AGENTS.get(workload.agent, UNKNOWN_AGENT)
    spread = math.hypot(agent.spread, _ratio_spread(shape.gpu, "h200"))
    if workload.data == "cache" and _loader(workload, shape) < _compute(workload, shape):
        spread = math.hypot(spread, CACHE_SPREAD)
    if shape.nodes > 1 and all_reduce is None:
        low, high = (_model(workload, shape, bandwidth) for bandwidth in INTERCONNECT_RANGE)
        spread = math.hypot(spread, math.log(high / low) / (2 * RANGE))
    return Rate(_model(workload, shape, all_reduce), spread, "roofline, no earlier run")


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


def _compute(workload: Workload, shape: Shape) -> float:
    agent = AGENTS.get(workload.agent, UNKNOWN_AGENT)
    # On several GPUs `max` is `default` for the time being (docs/speed.md).
    speed = "default" if workload.speed == "max" and shape.world_size > 1 else workload.speed
    rates = {"plain": agent.plain, "default": agent.default, "max": agent.max}
    alone = rates.get(speed, agent.default)
    return alone * device_ratio(shape.gpu, "h200") * shape.world_size


def _loader(workload: Workload, shape: Shape) -> float:
    if workload.data == "shards":
        return math.inf  # 13,000 samples/s a node were measured: not what limits
    cores = min(float(workload.workers), shape.cpus_per_gpu)
    return max(1.0, cores) * CACHE_SAMPLES_PER_CORE * shape.world_size


def _communication(workload: Workload, shape: Shape, all_reduce: float | None) -> float:
    """Seconds of one step's all-reduce of float32 gradients."""
    size = AGENTS.get(workload.agent, UNKNOWN_AGENT).parameters * 4e-3  # GB
    if shape.world_size == 1:
        return 0.0
    bandwidth = WITHIN_NODE if shape.nodes == 1 else (all_reduce or INTERCONNECT)
    return 2 * (shape.world_size - 1) / shape.world_size * size / bandwidth


def device(gpu: str) -> Device | None:
    """Data-sheet figures of a GRES type such as `l40s`, `nvidia_l40s` or `a100_80gb`.

    None if unknown.
    """
    name = (
        gpu.lower().replace("nvidia", "").replace("-", "").replace("_", "").replace("geforce", "")
    )
    found = [known for known in DEVICES if name.startswith(known) or name.startswith(f"rtx{known}")]
    return DEVICES[max(found, key=len)] if found else None


def device_ratio(gpu: str, reference: str) -> float:
    """Geometric mean of the ratios of compute and of memory bandwidth: a step needs both."""
    own, other = device(gpu), device(reference)
    if own is None or other is None:
        return 0.3  # a GPU that is not in the table: _ratio_spread is wide
    return math.sqrt(own.tflops / other.tflops * own.bandwidth / other.bandwidth)


def _ratio_spread(gpu: str, reference: str) -> float:
    own, other = device(gpu), device(reference)
    if gpu == reference:
        return 0.0
    if own is None or other is None:
        return 0.8
    compute, memory = own.tflops / other.tflops, own.bandwidth / other.bandwidth
    return 0.15 + abs(math.log(compute / memory)) / (2 * RANGE)
