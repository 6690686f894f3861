"""A rank that is killed and a rank that hangs, one of two: what is left, and how long it takes.

    python benchmarks/rank_faults.py            # two GPUs, NCCL
    python benchmarks/rank_faults.py --cpu      # gloo

Each training is hurt in the middle, and the same command is given again. `noticed`: seconds from
the fault to the end of all ranks. `20 steps`: from the second start until 20 steps beyond the
fault. `GPU MiB left`: what the cards hold more than before the training, after its end.
"""

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from launch import write_cache
from report import print_report

from convoy.run.layout import RunDirectory

FAULTS = {"rank 1 killed": signal.SIGKILL, "rank 1 stopped": signal.SIGSTOP}
PATIENCE = 240.0  # seconds


class Training:
    """A launch of two ranks on this node."""

    def __init__(self, run: RunDirectory, cache: Path, cpu: bool, epochs: int) -> None:
        self.run = run
        logs = sorted(path.name for path in cache.iterdir())
        settings = [
            "agent=bev_fusion_agent",
            f"cache_path={cache}",
            f"run_dir={run.root}",
            f"train_logs=[{','.join(logs[1:])}]",
            f"val_logs=[{logs[0]}]",
            "global_batch=16",
            "dataloader.params.num_workers=0",
            "trainer.params.log_every_n_steps=1",
            "trainer.params.check_val_every_n_epoch=100000",
            f"trainer.params.max_epochs={epochs}",
            "watchdog_minutes=0.2",
            "speed=default",
            *(
                ["trainer.params.accelerator=cpu", "trainer.params.precision=32-true"]
                if cpu
                else []
            ),
        ]
        self.output = run.root.with_suffix(f".{time.time_ns()}.txt")
        with self.output.open("wb") as output:
            self.agent = subprocess.Popen(
                [sys.executable, "-m", "convoy.commands", "train", "--", *settings],
                env=os.environ | {"CONVOY_PROCESSES_PER_NODE": "2", "OMP_NUM_THREADS": "1"},
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    def step(self) -> int:
        log = self.run.rank_log(0)
        found = re.findall(r"step (\d+)/", log.read_text()) if log.is_file() else []
        return int(found[-1]) if found else 0

    def wait_for_step(self, step: int) -> None:
        deadline = time.monotonic() + PATIENCE
        while self.step() < step:
            if self.agent.poll() is not None or time.monotonic() > deadline:
                sys.exit(f"no step {step}:\n{self.output.read_text()[-3000:]}")
            time.sleep(0.05)

    def ranks(self) -> dict[int, int]:
        """Process ids by rank."""
        found = {}
        for process in Path("/proc").glob("[0-9]*"):
            try:
                line = (process / "cmdline").read_bytes().decode().split("\0")
                environment = (process / "environ").read_bytes().decode().split("\0")
            except OSError:
                continue
            if f"run_dir={self.run.root}" in line and "convoy.launch.rank" in line:
                rank = next(entry for entry in environment if entry.startswith("RANK="))
                found[int(rank.removeprefix("RANK="))] = int(process.name)
        return found

    def end(self) -> None:
        self.agent.wait(PATIENCE)
        deadline = time.monotonic() + 60
        while self.ranks() and time.monotonic() < deadline:
            time.sleep(0.1)


def gpu_memory() -> list[int]:
    """MiB used on each card; empty without one."""
    command = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    try:
        return [int(line) for line in subprocess.check_output(command, text=True).split()]
    except (OSError, subprocess.CalledProcessError):
        return []


def hurt(name: str, folder: Path, cache: Path, cpu: bool) -> dict[str, Any]:
    run = RunDirectory(folder / re.sub(r"\W", "-", name))
    before = gpu_memory()
    training = Training(run, cache, cpu, epochs=100000)
    training.wait_for_step(60)
    at = training.step()
    began = time.monotonic()
    os.kill(training.ranks()[1], FAULTS[name])
    training.end()
    noticed = time.monotonic() - began
    left_over = len(training.ranks())
    held = [now - then for now, then in zip(gpu_memory(), before, strict=True)]
    said = training.output.read_text()
    began = time.monotonic()
    again = Training(run, cache, cpu, epochs=100000)
    resumed = resume_step(run)
    again.wait_for_step(at + 20)
    took = time.monotonic() - began
    again.agent.send_signal(signal.SIGTERM)
    again.end()
    named = next((line for line in said.splitlines() if "rank 1" in line), "")
    return {
        "noticed_s": noticed,
        "exit_code": training.agent.returncode,
        "said": named.strip()[:200],
        "stacks": "most recent call first" in run.rank_log(0).read_text(),
        "processes_left": left_over,
        "gpu_mib_left": max(held, default=0),
        "steps_lost": at - resumed,
        "continued_s": took,
        "second_exit_code": again.agent.returncode,
    }


def resume_step(run: RunDirectory) -> int:
    """The step of the newest checkpoint: 0 where there is none."""
    found = [re.search(r"(\d+)", path.stem) for path in run.step_checkpoints()]
    return max((int(match.group(1)) for match in found if match), default=0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cpu", action="store_true")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        cache = write_cache(folder / "cache", 256, 8)
        results = {}
        for name in FAULTS:
            results[name] = hurt(name, folder, cache, args.cpu)
            print(f"{name}: {json.dumps(results[name])}", file=sys.stderr, flush=True)
    rows = [
        (
            name,
            f"{entry['noticed_s']:.1f}",
            entry["exit_code"],
            entry["processes_left"],
            entry["gpu_mib_left"],
            entry["steps_lost"],
            f"{entry['continued_s']:.1f}",
        )
        for name, entry in results.items()
    ]
    record = {"benchmark": "rank_faults", "arguments": vars(args), "results": results}
    columns = (
        "",
        "noticed s",
        "exit",
        "processes left",
        "GPU MiB left",
        "steps lost",
        "20 steps s",
    )
    print_report("one of two ranks fails", columns, rows, record, args.json)


if __name__ == "__main__":
    main()
