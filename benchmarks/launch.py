"""Starts both sides of a comparison under the same torchrun and reads what they measured."""

import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

BENCHMARKS = Path(__file__).parent


@dataclass(frozen=True)
class Size:
    """What both sides train on.

    `steps` optimiser steps, the rate taken over windows of `window` steps.
    """

    cache: Path
    global_batch: int
    steps: int
    processes: int
    workers: int
    accelerator: str
    window: int = 10


@dataclass(frozen=True)
class Timing:
    """Seconds from starting torchrun to the end of the first optimiser step; samples/s after the
    first window."""

    first_step: float
    samples_per_s: float


def write_cache(folder: Path, samples: int, logs: int, seed: int = 0) -> Path:
    """Synthetic data, made by Convoy's own command."""
    arguments = [
        "synth",
        str(folder),
        "--samples",
        str(samples),
        "--logs",
        str(logs),
        f"--seed={seed}",
    ]
    subprocess.run(
        [sys.executable, "-m", "convoy.commands.__main__", *arguments],
        check=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    return folder


def bare(size: Size) -> Timing:
    """Plain PyTorch."""
    arguments = [
        str(BENCHMARKS / "bare_ddp.py"),
        str(size.cache),
        f"--global-batch={size.global_batch}",
        f"--steps={size.steps}",
        f"--window={size.window}",
        f"--workers={size.workers}",
        f"--accelerator={size.accelerator}",
        "--val-logs",
        *_held_out(size.cache),
    ]
    started = time.time()
    record = json.loads(torchrun(size.processes, arguments).splitlines()[-1])
    return Timing(record["first_step"] - started, record["samples_per_s"])


def convoy(size: Size) -> Timing:
    """A rank of Convoy's, as `convoy train` starts it."""
    with tempfile.TemporaryDirectory() as folder:
        held_out = _held_out(size.cache)
        train = sorted(path.name for path in size.cache.iterdir() if path.name not in held_out)
        arguments = [
            "-m",
            "convoy.launch.rank",
            "agent=bev_fusion_agent",
            f"cache_path={size.cache}",
            f"run_dir={folder}/run",
            f"global_batch={size.global_batch}",
            f"train_logs=[{','.join(train)}]",
            f"val_logs=[{','.join(held_out)}]",
            f"dataloader.params.num_workers={size.workers}",
            "dataloader.params.batch_size=4096",
            f"trainer.params.accelerator={size.accelerator}",
            "trainer.params.precision=32-true",
            f"trainer.params.log_every_n_steps={size.window}",
            "trainer.params.check_val_every_n_epoch=1000000",
            f"+trainer.params.max_steps={size.steps}",
            "trainer.params.max_epochs=1000000",
        ]
        started = time.time()
        torchrun(size.processes, arguments)
        rate = json.loads((Path(folder) / "run/results.json").read_text())["samples_per_s"]
        first = _first_report(Path(folder) / "run/logs/rank-000.log")
    return Timing(first - started, rate)


def _first_report(log: Path) -> float:
    """Time of the first reported step (with `window` 1, of the first optimiser step)."""
    line = next(line for line in log.read_text().splitlines() if "samples/s" in line)
    return datetime.strptime(" ".join(line.split()[:2]), "%Y-%m-%d %H:%M:%S,%f").timestamp()


def _held_out(cache: Path) -> list[str]:
    return sorted(path.name for path in cache.iterdir())[:1]


def torchrun(processes: int, arguments: list[str]) -> str:
    """Run one training to its end and return what it printed; the benchmark ends with its output
    when it fails."""
    launcher = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--local-addr=127.0.0.1",
    ]
    paths = [str(BENCHMARKS), os.environ.get("PYTHONPATH", "")]
    environment = {"OMP_NUM_THREADS": "1"} | dict(os.environ)
    environment["PYTHONPATH"] = ":".join(filter(None, paths))
    done = subprocess.run(
        [*launcher, f"--nproc-per-node={processes}", *arguments],
        env=environment,
        text=True,
        capture_output=True,
    )
    if done.returncode:
        sys.exit(f"{' '.join(arguments)} failed:\n{done.stdout}{done.stderr}")
    return done.stdout
