"""What a run is made of, in one file: manifest.json, written at every start and completed at the
end. launches.jsonl has the starts themselves."""

import hashlib
import json
import logging
import platform
import subprocess
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from convoy.run import cost
from convoy.run.cost import Counted
from convoy.run.layout import RunDirectory
from convoy.run.record import CHECKOUT
from convoy.run.story import read_json, read_lines

logger = logging.getLogger("convoy")

PACKAGES = ("torch", "pytorch-lightning", "numpy")
MOST_DIFF = 1_000_000  # bytes of edited files that are kept
# Settings that change how fast it runs and not, or hardly, what it computes.
SWITCHES = ("precision", "strategy", "benchmark", "deterministic", "accelerator")


def write_manifest(
    run: RunDirectory, config: DictConfig, samples: dict[str, tuple[str, ...]]
) -> None:
    """At a start, on rank 0. `samples` has the names of each split's samples, in order.

    A run goes on without it: what goes wrong here is logged.
    """
    starts = list(read_lines(run.launches))
    content = {
        **read_json(run.manifest),
        "written": _now(),
        "software": starts[-1].get("software") if starts else None,
        "packages": {name: version(name) for name in PACKAGES}
        | {"python": platform.python_version()},
        "hardware": hardware(),
        "data": {"path": str(config.cache_path)}
        | {
            name: {"samples": len(own), "fingerprint": fingerprint(own)}
            for name, own in samples.items()
        },
        "switches": switches(config),
        "starts": len(starts),
    }
    content.pop("finished", None)
    _write(run, content)
    _keep_edits(run, starts[-1] if starts else {})


def has_cost(run: RunDirectory) -> bool:
    return cost.of_manifest(read_json(run.manifest)) is not None


def add_cost(run: RunDirectory, counted: Counted) -> None:
    """On rank 0: what a sample costs; later starts keep it."""
    _write(run, {**read_json(run.manifest), cost.KEY: asdict(counted)})


def complete_manifest(run: RunDirectory) -> None:
    """At the end, on rank 0: the time, and how many starts it took."""
    starts = list(read_lines(run.launches))
    _write(run, {**read_json(run.manifest), "finished": _now(), "starts": len(starts)})


def fingerprint(names: tuple[str, ...]) -> str:
    """SHA-256 over the samples' names in order: the same data set gives the same on any machine."""
    return f"sha256:{hashlib.sha256(chr(10).join(names).encode()).hexdigest()}"


def hardware() -> dict[str, Any]:
    """CPU and GPUs of this node, driver, CUDA and NCCL."""
    found: dict[str, Any] = {"machine": platform.machine(), "kernel": platform.release()}
    if torch.cuda.is_available():
        count = torch.cuda.device_count()
        found["gpus"] = [torch.cuda.get_device_name(index) for index in range(count)]
        found["cuda"] = torch.version.cuda
        found["nccl"] = ".".join(map(str, torch.cuda.nccl.version()))
        found["driver"] = _driver()
    return found


def _driver() -> str | None:
    try:
        command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        lines = subprocess.run(command, text=True, capture_output=True, timeout=10).stdout.split()
    except (OSError, subprocess.TimeoutExpired):
        return None
    return lines[0] if lines else None


def switches(config: DictConfig) -> dict[str, Any]:
    """Speed switches and their like, as resolved."""
    params = {
        name: config.trainer.params[name] for name in SWITCHES if name in config.trainer.params
    }
    own = {"speed": config.speed} if "speed" in config else {}
    return {
        name: OmegaConf.to_container(value) if OmegaConf.is_config(value) else value
        for name, value in {**params, **own}.items()
    }


def _keep_edits(run: RunDirectory, start: Any) -> None:
    """The difference to the commit, where the record says that files were edited."""
    if not str((start.get("software") or {}).get("convoy")).endswith("-edited"):
        return
    git = ["git", "-c", f"safe.directory={CHECKOUT}", "-C", str(CHECKOUT), "diff", "HEAD"]
    try:
        edits = subprocess.run(git, capture_output=True, timeout=60).stdout
        if len(edits) <= MOST_DIFF:
            run.edits.write_bytes(edits)
    except (OSError, subprocess.TimeoutExpired) as error:
        logger.warning("the edits of Convoy's files were not kept: %s", error)


def _write(run: RunDirectory, content: dict[str, Any]) -> None:
    temporary = run.manifest.with_suffix(".tmp")
    try:
        temporary.write_text(json.dumps(content, indent=1, default=str) + "\n")
        temporary.replace(run.manifest)
    except OSError as error:
        logger.warning("%s was not written: %s", run.manifest, error.strerror)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
