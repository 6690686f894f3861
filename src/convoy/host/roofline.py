"""How long a training step takes on a GPU, from what the agent computes and moves, the card's
figures and measured efficiency. Standard library only.

A step of b samples takes `fixed + b (FLOPs / (peak x efficiency) + bytes / bandwidth)`: the
roofline's two roofs (Williams, Waterman and Patterson, CACM 52, 2009) one after the other rather
than the higher of the two, since a network's layers take turns at being bound by either; `fixed` is
what does not shrink with the batch. docs/speed.md says how wrong this was where it was measured.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Device:
    """Dense tensor-core TFLOP/s in bf16 (fp16 before Ampere), GB/s and GB of memory: NVIDIA's data
    sheets. And GB/s to another GPU of the node over PCIe 4.0 x16, or by NVLink: the bus bandwidth
    of an all-reduce, 208 as measured between two H100, others in proportion to their links.
    """

    tflops: float
    bandwidth: float
    memory: float
    within_node: float = 12.0


# The SXM forms of cards that come in several: sites' names for GPUs do not tell them apart.
DEVICES = {
    "b200": Device(2250, 8000, 180, 416),
    "h200": Device(989, 4800, 141, 208),
    "gh200": Device(989, 4000, 96, 208),
    "h100": Device(989, 3350, 80, 208),
    "a100": Device(312, 2039, 80, 139),
    "l40s": Device(362, 864, 48),
    "l40": Device(181, 864, 48),
    "a40": Device(150, 696, 48),
    "a6000": Device(155, 768, 48),
    "rtx6000": Device(155, 768, 48),
    "l4": Device(121, 300, 24),
    "a30": Device(165, 933, 24),
    "a10": Device(125, 600, 24),
    "v100": Device(125, 900, 32, 100),
    "t4": Device(65, 320, 16),
    "rtx4090": Device(165, 1008, 24),
    "rtx3090": Device(71, 936, 24),
}
UNKNOWN_DEVICE = Device(300, 1440, 48)  # three tenths of an H200


@dataclass(frozen=True)
class Cost:
    """One sample's training, forward and backward, and what of a step is fixed.

    `gigabytes` is traffic that reaches memory at full bandwidth: fitted to measured steps, so the
    efficiency of memory is in it. `parameters` are in millions, `gib_per_sample` is GPU memory.
    """

    gflop: float
    gigabytes: float
    parameters: float
    fixed_ms: float
    spread: float  # of the logarithm of the rate, on cards that were measured
    gib_per_sample: float | None = None


# TransFuser: 162.9 GFLOP counted; what is fixed was fitted to `speed=max` on one H100 and one H200
# at batch 64 and 128, the traffic to 1,293 samples/s on one H100 at batch 64, since operators that
# moved less came later. EgoStatusMLP: its step is the host's alone. UNKNOWN is for agents that
# nobody has measured or counted.
COSTS = {
    "transfuser_agent": Cost(162.9, 0.48, 56.0, 9.3, 0.1, 0.18),
    "ego_status_mlp_agent": Cost(0.004, 0.0001, 0.6, 3.7, 0.3, 0.001),
}
UNKNOWN = Cost(420.0, 1.8, 60.0, 10.0, 0.9)
MEASURED_ON = ("h100", "h200")
# Of agents that were counted but not measured: TransFuser's traffic for each GFLOP. The spread is
# a judgement: networks reach a fifth to a half of a card's peak.
GIGABYTES_PER_GFLOP = 0.48 / 162.9
COUNTED_SPREAD, COUNTED_SMALL_SPREAD = 0.5, 0.6

EFFICIENCY = 0.345  # of the peak, of a compiled step with bf16: fitted with the costs above
OPTIMIZER_BYTES = 28.0  # per parameter: Adam reads four float32 values and writes three


@dataclass(frozen=True)
class Level:
    """What a setting of `speed` makes of `max`: the GPU's time in multiples, and the host's time,
    which a step takes at least, in milliseconds."""

    device: float
    host_ms: float
    spread: float


# Of TransFuser on one H200, batch 64: `default` 86 ms of GPU time, 480 to 570 samples/s (the host
# bounds it; before operators that moved less); `plain` 394 with the batch on the GPU, 359 from
# shards.
LEVELS = {
    "max": Level(1.0, 0.0, 0.0),
    "default": Level(1.89, 122.0, 0.2),
    "plain": Level(3.89, 150.0, 0.2),
}
SMALL_LEVELS = {"max": 1.4, "default": 5.8, "plain": 7.6}  # ms of EgoStatusMLP's step
SMALL = 1.0  # GFLOP: below it launches alone count


def counted(gflop: float, parameters: float) -> Cost:
    """Of an agent whose operations and parameters are known and no more."""
    spread = COUNTED_SMALL_SPREAD if gflop < SMALL else COUNTED_SPREAD
    return Cost(gflop, gflop * GIGABYTES_PER_GFLOP, parameters, UNKNOWN.fixed_ms, spread)


def step_seconds(cost: Cost, device: Device, batch: float, speed: str = "max") -> float:
    """Of one GPU by itself, `batch` samples."""
    level = LEVELS.get(speed, LEVELS["default"])
    compute = cost.gflop / (device.tflops * 1e3 * EFFICIENCY)
    memory = cost.gigabytes / device.bandwidth
    optimizer = cost.parameters * OPTIMIZER_BYTES / 1e3 / device.bandwidth
    on_device = (batch * (compute + memory) + optimizer) * level.device
    if cost.gflop < SMALL:
        return SMALL_LEVELS.get(speed, SMALL_LEVELS["default"]) / 1e3 + on_device
    return max(on_device + cost.fixed_ms / 1e3 * level.device, level.host_ms / 1e3)


def spread(cost: Cost, gpu: str, speed: str) -> float:
    """Standard deviation of the rate's logarithm: the agent's, and more for a setting that was
    measured less and for a card that was not measured."""
    level = LEVELS.get(speed, LEVELS["default"])
    other = 0.0 if gpu in MEASURED_ON else 0.3 if gpu in DEVICES else 0.8
    return float((cost.spread**2 + level.spread**2 + other**2) ** 0.5)


def device(gpu: str) -> Device | None:
    """Data-sheet figures of a GRES type such as `l40s`, `nvidia_l40s` or `a100_80gb`.

    None if unknown.
    """
    name = known_name(gpu)
    return DEVICES[name] if name else None


def known_name(gpu: str) -> str | None:
    """The name in `DEVICES` of a GRES type."""
    name = (
        gpu.lower().replace("nvidia", "").replace("-", "").replace("_", "").replace("geforce", "")
    )
    found = [known for known in DEVICES if name.startswith(known) or name.startswith(f"rtx{known}")]
    return max(found, key=len) if found else None
