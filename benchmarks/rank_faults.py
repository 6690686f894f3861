"""A rank that is killed and a rank that hangs, one of two: what is left, and how long it takes.

    python benchmarks/rank_faults.py            # two GPUs, NCCL
    python benchmarks/rank_faults.py --cpu      # gloo
    python benchmarks/rank_faults.py speed_switches.graph=true speed_switches.peer_copies=true

One training is hurt in the middle, once each way, and continues each time with the same command.
`noticed`: seconds from the fault to the end of all ranks; of a hung rank it includes the watchdog's
limit, which is 6 s here. `20 steps`: from the next start until 20 steps beyond the fault. `GPU MiB
left`: what the cards hold more than before the training, after its end. It checkpoints every three
seconds. What happens is printed as it happens; after `--limit` seconds of training it all ends.
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
from collections.abc import Callable
from pathlib import Path
from typing import Any

from launch import write_cache
from report import print_report

from convoy.launch.survivors import is_alive
from convoy.run.layout import RunDirectory
from convoy.training.watchdog import read_states

FAULTS = {"killed": signal.SIGKILL, "stopped": signal.SIGSTOP}
COLUMNS = ("rank 1", "noticed s", "exit", "processes left", "GPU MiB left", "lost", "20 steps s")


class Clock:
    """What happened when, and whether the time is up."""

    def __init__(self, limit: float) -> None:
        self._began = time.monotonic()
        self._limit = limit

    @property
    def now(self) -> float:
        return time.monotonic() - self._began

    def say(self, text: str) -> None:
        print(f"{self.now:6.1f} s  {text}", file=sys.stderr, flush=True)

    def wait(self, what: str, condition: Callable[[], object]) -> None:
        """Raises TimeoutError, which names what was waited for."""
        while not condition():
            if self.now > self._limit:
                raise TimeoutError(f"{what} took too long: {self._limit:g} s are over")
            time.sleep(0.05)


class Training:
    """A launch of two ranks on this node."""

    def __init__(
        self, run: RunDirectory, cache: Path, args: argparse.Namespace, clock: Clock
    ) -> None:
        self.run, self._clock = run, clock
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
            "trainer.params.max_epochs=100000",
            "checkpoint.every_minutes=0.05",
            "watchdog_minutes=0.1",
            "speed=default",
            *args.settings,
        ]
        if args.cpu:
            settings += ["trainer.params.accelerator=cpu", "trainer.params.precision=32-true"]
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
        def reached() -> bool:
            if self.agent.poll() is not None:
                sys.exit(f"no step {step}:\n{self.output.read_text()[-3000:]}")
            return self.step() >= step

        self._clock.wait(f"step {step}", reached)
        self._clock.say(f"step {self.step()}")

    def ranks(self) -> dict[int, int]:
        """Process ids by rank."""
        states = read_states(self.run, world_size=2)
        return {state.rank: state.pid for state in states if is_alive(state.pid)}

    def wait_for_end(self) -> None:
        self._clock.wait("the launcher's end", lambda: self.agent.poll() is not None)
        self._clock.say(f"the launcher ended with {self.agent.returncode}")

    def kill(self) -> None:
        for pid in (self.agent.pid, *self.ranks().values()):
            if is_alive(pid):
                os.kill(pid, signal.SIGKILL)
        self.agent.wait()


def gpu_memory() -> list[int]:
    """MiB used on each card; empty without one."""
    command = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    try:
        return [int(line) for line in subprocess.check_output(command, text=True).split()]
    except (OSError, subprocess.CalledProcessError):
        return []


def hurt(name: str, training: Training, clock: Clock, before: list[int]) -> dict[str, Any]:
    """The fault, until the launcher has ended; `before` is what the cards held at first."""
    run = training.run
    clock.wait("a checkpoint", run.step_checkpoints)
    at, rank = training.step(), training.ranks()[1]
    clock.say(f"rank 1 is {name} after step {at}")
    began = time.monotonic()
    os.kill(rank, FAULTS[name])
    training.wait_for_end()
    noticed = time.monotonic() - began
    held = [now - then for now, then in zip(gpu_memory(), before, strict=True)]
    said = training.output.read_text().splitlines()
    newest = run.step_checkpoints()[0]
    return {
        "noticed_s": noticed,
        "exit_code": training.agent.returncode,
        "said": next((line.strip()[:200] for line in said if "rank 1" in line), ""),
        "stacks": "most recent call first" in run.rank_log(0).read_text(),
        "processes_left": len(training.ranks()),
        "gpu_mib_left": max(held, default=0),
        "at_step": at,
        "steps_lost": at - int(re.findall(r"\d+", newest.stem)[-1]),
    }


def measure(
    cache: Path, args: argparse.Namespace, clock: Clock, results: dict[str, dict[str, Any]]
) -> None:
    """Raises TimeoutError; `results` has what was measured until then."""
    run = RunDirectory(cache.with_name("run"))
    before = gpu_memory()
    clock.say("starting a training of two ranks")
    training = Training(run, cache, args, clock)
    try:
        training.wait_for_step(20)
        for name in FAULTS:
            entry = results[name] = hurt(name, training, clock, before)
            began = time.monotonic()
            training = Training(run, cache, args, clock)
            training.wait_for_step(entry["at_step"] + 20)
            entry["continued_s"] = time.monotonic() - began
            clock.say(f"{name}: {json.dumps(entry)}")
        training.agent.send_signal(signal.SIGTERM)
        training.wait_for_end()
    finally:
        training.kill()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("settings", nargs="*", metavar="KEY=VALUE", help="of the training")
    parser.add_argument("--cpu", action="store_true")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--limit", type=float, default=100.0, help="seconds of all trainings (100)")
    args = parser.parse_args()
    results: dict[str, dict[str, Any]] = {}
    late = None
    with tempfile.TemporaryDirectory() as temporary:
        cache = write_cache(Path(temporary) / "cache", 256, 8)
        try:
            measure(cache, args, Clock(args.limit), results)
        except TimeoutError as error:
            late = str(error)
    rows = [
        (
            name,
            f"{entry['noticed_s']:.1f}",
            entry["exit_code"],
            entry["processes_left"],
            entry["gpu_mib_left"],
            entry["steps_lost"],
            f"{entry['continued_s']:.1f}" if "continued_s" in entry else "-",
        )
        for name, entry in results.items()
    ]
    record = {"benchmark": "rank_faults", "arguments": vars(args), "results": results}
    print_report("one of two ranks fails", COLUMNS, rows, record, args.json)
    if late is not None:
        sys.exit(late)


if __name__ == "__main__":
    main()
