"""Driver, GPUs and NCCL, as torch sees them."""

import ctypes
from pathlib import Path

from convoy.health import compat
from convoy.health.finding import Status

GIB = 1 << 30


def examine_torch() -> tuple[Status, str]:
    import torch

    return (
        Status.OK,
        f"{torch.__version__}, "
        f"{f'CUDA {torch.version.cuda}' if torch.version.cuda else 'without CUDA'}",
    )


def examine_driver(expected_gpus: int | None) -> tuple[Status, str]:
    import torch

    return judge_driver(
        compat.choose(),
        compat.in_use(),
        torch.version.cuda is not None,
        compat.DRIVER.exists(),
        _loads("libcuda.so.1"),
        bool(expected_gpus),
    )


def judge_driver(
    choice: compat.Choice, in_use: bool, cuda: bool, there: bool, loads: bool, needed: bool
) -> tuple[Status, str]:
    """`choice` of this node, and whether this process runs with the forward-compatibility
    libraries; `cuda`: torch has it; `there`: the machine has a driver; `loads`: its library can be
    loaded; `needed`: GPUs are expected here."""
    if not cuda:
        if needed:
            return Status.FAIL, "this is the cpu variant: GPUs need the cuda one"
        return Status.OK, "not needed by the CPU build"
    if not there:
        absent = "no NVIDIA driver on this machine (usual on a login node)"
        return (Status.FAIL if needed else Status.WARN), absent
    if choice.old and not choice.use:
        return Status.FAIL, (
            f"{choice.reason}. Ask for other nodes, or the administrators for a newer driver; on "
            "data-centre GPUs an image of `make image COMPAT=FILE` does too (docs/image.md)"
        )
    if choice.use and not in_use:
        return Status.WARN, f"{choice.reason} by entrypoint/run.sh only, which did not start this"
    if not loads:
        return Status.FAIL, "it is on the host, but not in here: start the container with --nv"
    return Status.OK, choice.reason


def examine_gpus(expected: int | None) -> tuple[Status, str]:
    """Each GPU that is seen multiplies two small matrices: a count alone says little."""
    import torch

    seen = torch.cuda.device_count()
    names = []
    for index in range(seen):
        ones = torch.ones(256, 256, device=f"cuda:{index}", dtype=torch.bfloat16)
        if (ones @ ones).sum().item() != 256**3:
            return (
                Status.FAIL,
                f"GPU {index} ({torch.cuda.get_device_name(index)}) computes wrongly: exclude this "
                "node",
            )
        properties = torch.cuda.get_device_properties(index)
        names.append(
            f"{properties.name} {properties.total_memory / GIB:.0f} GiB "
            f"sm_{properties.major}{properties.minor}"
        )
    described = ", ".join(f"{names.count(name)}x {name}" for name in dict.fromkeys(names)) or "none"
    if expected is None or seen == expected:
        return Status.OK, described + ("" if expected is None else f", as expected: {expected}")
    return (
        Status.FAIL,
        f"{expected} expected, {seen} seen ({described}): see --nv, CUDA_VISIBLE_DEVICES and the "
        "job's --gres",
    )


def examine_nccl() -> tuple[Status, str]:
    """NCCL silently falls back to TCP without verbs library or devices in the container."""
    import torch

    adapters = sorted(path.name for path in Path("/sys/class/infiniband").glob("*"))
    version = (
        ".".join(map(str, torch.cuda.nccl.version()))
        if torch.version.cuda
        else "not in the CPU build"
    )
    if not adapters:
        return Status.OK, f"{version}; no InfiniBand or RoCE adapter on this machine"
    if not _loads("libibverbs.so.1") or not Path("/dev/infiniband").exists():
        return (
            Status.WARN,
            f"{version}; the adapters {', '.join(adapters)} cannot be used from here: TCP would be",
        )
    return Status.OK, f"{version}; adapters {', '.join(adapters)}"


def _loads(library: str) -> bool:
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True
