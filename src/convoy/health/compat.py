"""NVIDIA's forward-compatibility libraries: a newer libcuda over a node's older driver. Standard
library only: the image's first word asks this module before anything else starts.

They bridge a major version of CUDA, on data-centre GPUs only, and must not be used on a driver that
is new enough: there they fail with error 803. So each node decides for itself.
https://docs.nvidia.com/deploy/cuda-compatibility/forward-compatibility.html
"""

import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

# The oldest driver branch that runs a CUDA major version's programs (NVIDIA, "CUDA Compatibility",
# minor version compatibility).
OLDEST_DRIVER = {12: 525, 13: 580}
DRIVER = Path("/proc/driver/nvidia/version")
LIBRARIES = Path("/opt/convoy/compat")  # baked into the image, or bound there

# What cuInit returns; cuda.h.
SUCCESS, NO_DEVICE, MISMATCH, NOT_SUPPORTED = 0, 100, 803, 804
TRIAL = "import ctypes, sys; print(ctypes.CDLL(sys.argv[1]).cuInit(0))"


@dataclass(frozen=True)
class Choice:
    """Whether to use the libraries, and why. `old`: the driver is too old without them."""

    use: bool
    reason: str
    old: bool = False


def decide(
    driver: str | None, cuda: str | None, libraries: str | None, trial: Callable[[], int | None]
) -> Choice:
    """From the versions of the node's driver, of the image's CUDA and of the libraries (None: there
    is none). `trial` returns what the libraries' cuInit does here, None where they cannot be
    loaded; it is asked last."""
    if cuda is None:
        return Choice(False, "this is the cpu variant")
    if driver is None:
        return Choice(False, "no NVIDIA driver on this machine")
    needed = OLDEST_DRIVER.get(branch(cuda))
    if needed is None:
        return Choice(False, f"it is not known which driver CUDA {cuda} needs")
    if branch(driver) >= needed:
        return Choice(False, f"driver {driver} is new enough for CUDA {cuda}")
    old = f"driver {driver} is older than the {needed} that CUDA {cuda} needs"
    if libraries is None:
        return Choice(False, f"{old}, and there are no forward-compatibility libraries", True)
    if branch(libraries) < needed:
        reason = f"{old}, and so are the forward-compatibility libraries, {libraries}"
        return Choice(False, reason, True)
    code = trial()
    if code == SUCCESS:
        reason = f"{old}; the forward-compatibility libraries {libraries} are used"
        return Choice(True, reason, True)
    why = {
        None: "cannot be loaded",
        NO_DEVICE: "see no GPU (error 100)",
        MISMATCH: "do not work with so old a driver (error 803)",
        NOT_SUPPORTED: "are not allowed on this GPU (error 804; they are on data-centre GPUs)",
    }.get(code, f"fail with error {code}")
    reason = f"{old}, and the forward-compatibility libraries {libraries} {why}"
    return Choice(False, reason, True)


def choose(libraries: Path = LIBRARIES) -> Choice:
    """What this node decides."""
    driver = driver_version(DRIVER.read_text() if DRIVER.exists() else "")
    found = libraries_version(libraries)
    return decide(driver, cuda_version(), found, lambda: attempt(libraries))


def branch(version: str) -> int:
    """580 of 580.95.05; 13 of 13.0."""
    return int(version.split(".")[0])


def driver_version(text: str) -> str | None:
    """From /proc/driver/nvidia/version."""
    match = re.search(r"Kernel Module(?: +for \S+)? +(\d+\.[\d.]+)", text)
    return match[1] if match else None


def cuda_version() -> str | None:
    """That of torch, which takes seconds to import."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return None
    text = (Path(spec.origin).parent / "version.py").read_text()
    match = re.search(r"^cuda\b.*?=\s*'([\d.]+)'", text, re.MULTILINE)
    return match[1] if match else None


def libraries_version(folder: Path) -> str | None:
    """From the name of libcuda's file, libcuda.so.580.95.05."""
    found = [path.name.removeprefix("libcuda.so.") for path in folder.glob("libcuda.so.*.*")]
    versions = [name for name in found if re.fullmatch(r"\d+(\.\d+)+", name)]
    return max(versions, key=branch, default=None)


def attempt(folder: Path) -> int | None:
    """cuInit in a process of its own: a process keeps the libcuda that it loaded first."""
    done = subprocess.run(
        [sys.executable, "-c", TRIAL, str(folder / "libcuda.so.1")],
        env=os.environ | {"LD_LIBRARY_PATH": with_libraries(folder)},
        capture_output=True,
        text=True,
    )
    return int(done.stdout) if done.returncode == 0 else None


def with_libraries(folder: Path) -> str:
    """LD_LIBRARY_PATH with `folder` first."""
    return os.pathsep.join(filter(None, (str(folder), os.environ.get("LD_LIBRARY_PATH", ""))))


def in_use(folder: Path = LIBRARIES) -> bool:
    return str(folder) in os.environ.get("LD_LIBRARY_PATH", "").split(os.pathsep)


def main() -> None:
    """For entrypoint/run.sh: the new LD_LIBRARY_PATH, or nothing; the reason on standard error
    where the driver is too old."""
    choice = choose()
    if choice.old:
        print(f"convoy: {choice.reason}", file=sys.stderr)
    if choice.use:
        print(with_libraries(LIBRARIES))


if __name__ == "__main__":
    main()
