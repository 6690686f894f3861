"""All checks of one machine, by name, in the order of the report."""

import os
import tempfile
from pathlib import Path

from convoy.health import environment, gpu, host, sources
from convoy.health.finding import Check, Status


def machine_checks(expected_gpus: int | None) -> dict[str, Check]:
    """What doctor looks at; `expected_gpus` are those that must be here, None where nobody says."""
    return {
        "image": environment.examine_manifest,
        "python": environment.examine_python,
        "isolation": environment.examine_isolation,
        "packages": environment.examine_packages,
        "torch": gpu.examine_torch,
        "driver": lambda: gpu.examine_driver(expected_gpus),
        "GPUs": lambda: gpu.examine_gpus(expected_gpus),
        "NCCL": gpu.examine_nccl,
        "navsim": lambda: sources.examine_source("navsim", "navsim"),
        "nuplan-devkit": lambda: sources.examine_source("nuplan-devkit", "nuplan"),
        "weights": environment.examine_weights,
        "CPUs": lambda: host.examine_cpus(expected_gpus),
        "/dev/shm": host.examine_shared_memory,
        "temporary files": lambda: host.examine_writable(
            Path(tempfile.gettempdir()), Status.FAIL, "TMPDIR names another place"
        ),
        "run directories": lambda: host.examine_writable(
            Path(os.environ.get("NAVSIM_EXP_ROOT", "exp")),
            Status.WARN,
            "NAVSIM_EXP_ROOT, output_dir or run_dir name another place; it must be bound into the "
            "container",
        ),
    }
