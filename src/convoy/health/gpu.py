"""Driver, GPUs and NCCL, as torch sees them."""

import ctypes
import re
from pathlib import Path

from convoy.health.finding import Status

# The oldest driver branch that runs a CUDA major version's programs (NVIDIA, "CUDA Compatibility",
# minor version compatibility).
OLDEST_DRIVER = {12: 525, 13: 580}
DRIVER = Path("/proc/driver/nvidia/version")
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

    text = DRIVER.read_text() if DRIVER.exists() else ""
    return judge_driver(text, torch.version.cuda, _loads("libcuda.so.1"), bool(expected_gpus))


def judge_driver(text: str, cuda: str | None, loads: bool, needed: bool) -> tuple[Status, str]:
    """`text` is /proc/driver/nvidia/version, empty without a driver; `cuda` is torch's version of
    it, None in a CPU build; `loads` says whether the driver's library can be loaded; `needed`
    whether GPUs are expected here."""
    match = re.search(r"Kernel Module(?: +for \S+)? +(\d+)\.([\d.]+)", text)
    version = f"{match[1]}.{match[2]}" if match else "unknown"
    if cuda is None:
        return (
            (Status.FAIL, "this is the cpu variant: GPUs need the cuda one")
            if needed
            else (Status.OK, "not needed by the CPU build")
        )
    oldest = OLDEST_DRIVER.get(int(cuda.split(".")[0]))
    if not text:
        return (
            Status.FAIL if needed else Status.WARN,
            "no NVIDIA driver on this machine (on a login node that is usual)",
        )
    if match and oldest and int(match[1]) < oldest:
        return Status.FAIL, (
            f"{version} is too old: torch's CUDA {cuda} needs driver {oldest} or newer. Ask for "
            "other nodes, or the administrators for a newer driver"
        )
    if not loads:
        return Status.FAIL, f"{version} on the host, but not in here: start the container with --nv"
    return Status.OK, f"{version} (CUDA {cuda} needs {oldest or 'an unknown one'} or newer)"


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
    """NCCL falls back to TCP without a word when the verbs library or the devices are not in the
    container."""
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
