#!/usr/bin/env python3
"""Faults at random moments against real trainings on the testbed; standard library only.

`testbed/chaos.py [--rounds 20] [--seed 1] [FAULT…]` needs a cluster that is up (testbed/cluster.py)
and an image. Each training has to end by itself with the weights of an undisturbed one, bit by bit,
and to leave no process. A table says how many steps were lost and how long until the next one.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CLUSTER = ROOT / "testbed" / "cluster.py"
STEPS = 120
PATIENCE = 600.0  # seconds for one training with its fault
TRAINING = (
    "agent=bev_fusion_agent",
    "cache_path=/scratch/chaos-cache",
    "global_batch=8",
    f"+trainer.params.max_steps={STEPS}",
    "trainer.params.max_epochs=1000",
    "trainer.params.check_val_every_n_epoch=5",
    "trainer.params.log_every_n_steps=1",
    "trainer.params.deterministic=true",
    "dataloader.params.num_workers=0",
    "checkpoint.every_minutes=0.05",
)
# What the weights of a run are, in one line: run in the image, on the run's last checkpoint.
DIGEST = """
import hashlib, sys, torch
state = torch.load(sys.argv[1], map_location="cpu", weights_only=True)
total = hashlib.sha256()
for name, value in sorted(state["state_dict"].items()):
    total.update(name.encode() + value.contiguous().view(torch.uint8).numpy().tobytes())
print("digest", state["global_step"], total.hexdigest())
"""


class Failed(Exception):
    """A training that did not come home, with what was seen."""


@dataclass(frozen=True)
class Testbed:
    """The cluster by its commands; `image` is what the jobs run, `bind` what they see beside it."""

    name: str
    image: Path
    bind: str = "/scratch"

    def run(self, *command: str, host: str = "login", root: bool = False) -> str:
        flags = [f"--host={host}", *(["--root"] if root else [])]
        done = subprocess.run(
            [sys.executable, CLUSTER, f"--name={self.name}", "run", *flags, *command],
            text=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        return done.stdout

    def in_image(self, *command: str) -> str:
        return self.run("apptainer", "exec", f"--bind={self.bind}", str(self.image), *command)

    def submit(self, run_dir: str, *options: str) -> str:
        given = self.run(
            "env",
            f"CONVOY_IMAGE={self.image}",
            f"CONVOY_BIND={self.bind}",
            "sbatch",
            "--parsable",
            "--output=/scratch/chaos-%j.log",
            *("--gpus-per-node=1", "--cpus-per-task=8", "--mem=8G"),
            *options,
            "slurm/torchrun_2node.slurm",
            *TRAINING,
            f"run_dir={run_dir}",
        ).strip()
        if not given.isdigit():
            raise Failed(f"sbatch said: {given}")
        return given

    def processes(self, pattern: str, hosts: list[str]) -> list[tuple[str, int]]:
        """(host, pid) of the user's processes whose command matches, lowest pid first."""
        found = []
        for host in hosts:
            listed = self.run("pgrep", "-u", "researcher", "-f", pattern, host=host, root=True)
            found += [(host, int(pid)) for pid in listed.split() if pid.isdigit()]
        return found

    def kill(self, signal: str, host: str, pid: int) -> None:
        self.run("kill", f"-{signal}", str(pid), host=host, root=True)


@dataclass
class Training:
    """One training on the testbed, watched from outside."""

    testbed: Testbed
    job: str
    run_dir: str

    @property
    def log(self) -> str:
        return self.testbed.run("cat", f"{self.run_dir}/logs/rank-000.log")

    def steps(self) -> list[tuple[datetime, int]]:
        """When each step was logged; in order of the log, over all starts."""
        found = re.findall(r"^(\S+ \S+) .* step (\d+)/", self.log, re.MULTILINE)
        return [(datetime.strptime(when, "%Y-%m-%d %H:%M:%S,%f"), int(n)) for when, n in found]

    @property
    def hosts(self) -> list[str]:
        """The nodes of the newest start."""
        lines = self.testbed.run("cat", f"{self.run_dir}/launches.jsonl").splitlines()
        return list(json.loads(lines[-1])["nodes"])

    def wait_for_step(self, step: int) -> None:
        deadline = time.monotonic() + PATIENCE / 2
        while not any(number >= step for _, number in self.steps()):
            self._require(deadline, f"step {step} did not come")
            time.sleep(0.3)

    def wait_for_the_end(self) -> None:
        """Until the run has its results and the job is gone. A requeued job need not wait for the
        two minutes that SLURM gives it: its begin is moved, and nothing else is done by hand."""
        deadline = time.monotonic() + PATIENCE
        while state := self.testbed.run("squeue", "-h", "-j", self.job, "-o", "%T %r").strip():
            if state.startswith("slurm_load_jobs error"):
                break
            if state == "PENDING BeginTime":
                self.testbed.run("scontrol", "update", f"JobId={self.job}", "StartTime=now")
            self._require(deadline, f"it is still {state}")
            time.sleep(0.5)
        if "samples_per_s" not in self.testbed.run("cat", f"{self.run_dir}/results.json"):
            raise Failed(self._said("it ended without results"))

    def digest(self) -> str:
        said = self.testbed.in_image(
            "python", "-c", DIGEST, f"{self.run_dir}/checkpoints/last.ckpt"
        )
        found = re.search(r"^digest (\d+) (\w+)$", said, re.MULTILINE)
        if not found or int(found[1]) != STEPS:
            raise Failed(self._said(f"its last checkpoint says: {said.strip()[-300:]}"))
        return found[2]

    def _require(self, deadline: float, problem: str) -> None:
        if time.monotonic() > deadline:
            raise Failed(self._said(problem))

    def _said(self, problem: str) -> str:
        log = self.testbed.run("tail", "-n", "12", f"/scratch/chaos-{self.job}.log")
        return f"job {self.job}: {problem}; its log ends with:\n{log}"


Fault = Callable[[Training, random.Random], None]
RANK, LAUNCHER = "convoy.launch.rank", "convoy train --agreement"


def _kill(pattern: str, signal: str) -> Fault:
    def fault(training: Training, chance: random.Random) -> None:
        found = training.testbed.processes(pattern, training.hosts)
        if not found:
            raise Failed(f"no process {pattern!r} on {training.hosts}")
        training.testbed.kill(signal, *chance.choice(found))

    return fault


def _signal_batch(name: str) -> Fault:
    def fault(training: Training, chance: random.Random) -> None:
        training.testbed.run("scancel", "--batch", f"--signal={name}", training.job)

    return fault


def _two_stops(training: Training, chance: random.Random) -> None:
    _signal_batch("USR1")(training, chance)
    time.sleep(chance.uniform(0.2, 3))
    _signal_batch("TERM")(training, chance)


def _resubmit(training: Training, chance: random.Random) -> None:
    training.testbed.run("scancel", training.job)
    training.job = training.testbed.submit(training.run_dir)


def _truncate(training: Training, chance: random.Random) -> None:
    """The newest checkpoint loses its second half, and a rank dies before there is another."""
    newest = 'file=$(ls "$1"/checkpoints/step-*.ckpt | tail -n 1)'
    cut = f'{newest}; truncate --size=$(($(stat --format=%s "$file") / 2)) "$file"'
    _kill(RANK, "KILL")(training, chance)
    training.testbed.run("bash", "-c", cut, "bash", training.run_dir)


def _preempt(training: Training, chance: random.Random) -> None:
    """As a preemption with PreemptMode=REQUEUE ends a job: SLURM requeues it by itself."""
    training.testbed.run("scontrol", "requeue", training.job)


def _container(training: Training, host: str) -> None:
    container = f"{training.testbed.name}-{host}"
    subprocess.run(["docker", "kill", container], check=True, capture_output=True)
    # Back for the trainings to come, once SLURM has given the node up and the job has moved on.
    deadline = time.monotonic() + PATIENCE / 2
    while training.testbed.run("squeue", "-h", "-j", training.job, "-o", "%T").strip() == "RUNNING":
        if time.monotonic() > deadline:
            break
        time.sleep(1)
    subprocess.run(["docker", "start", container], check=True, capture_output=True)


def _lose_node(training: Training, chance: random.Random) -> None:
    _container(training, training.hosts[-1])


def _lose_rendezvous(training: Training, chance: random.Random) -> None:
    _container(training, training.hosts[0])


FAULTS: dict[str, Fault] = {
    "rank SIGKILL": _kill(RANK, "KILL"),
    "agent SIGKILL": _kill(LAUNCHER, "KILL"),
    "time limit": _signal_batch("USR1"),
    "SIGTERM with grace": _signal_batch("TERM"),
    "two stops": _two_stops,
    "requeued by SLURM": _preempt,
    "scancel and resubmit": _resubmit,
    "newest checkpoint cut": _truncate,
    "node killed": _lose_node,
    "rendezvous node killed": _lose_rendezvous,
}
SHORT = ("rank SIGKILL", "agent SIGKILL", "time limit")


@dataclass(frozen=True)
class Result:
    """What one fault cost. `equal`: the weights are those of the undisturbed run."""

    fault: str
    at_step: int
    lost_steps: int
    seconds: float
    starts: int
    equal: bool
    orphans: int

    @property
    def is_good(self) -> bool:
        return self.equal and not self.orphans


def suffer(testbed: Testbed, fault: str, expected: str, chance: random.Random) -> Result:
    """One training with one fault. Raises Failed where it does not come home by itself."""
    run_dir = f"/scratch/chaos/{time.time_ns()}"
    training = Training(testbed, testbed.submit(run_dir), run_dir)
    step = chance.randint(STEPS // 6, STEPS // 2)
    training.wait_for_step(step)
    FAULTS[fault](training, chance)
    training.wait_for_the_end()
    lost, seconds, starts = cost(training.steps())
    orphans = len(testbed.processes(RANK, [host for host in training.hosts]))
    return Result(fault, step, lost, seconds, starts, training.digest() == expected, orphans)


def cost(steps: list[tuple[datetime, int]]) -> tuple[int, float, int]:
    """Steps that were taken twice, seconds between the last step before and the first after, and
    how many starts took steps."""
    lost, seconds, starts = 0, 0.0, 1
    for (before, reached), (after, first) in zip(steps, steps[1:], strict=False):
        pause = (after - before).total_seconds()
        if first <= reached or (pause > 10 and pause > seconds):
            lost += max(0, reached - first + 1)
            seconds, starts = seconds + pause, starts + 1
    return lost, seconds, starts


def reference(testbed: Testbed) -> str:
    """The weights of an undisturbed training."""
    if "ok" not in testbed.run("bash", "-c", "test -d /scratch/chaos-cache && echo ok"):
        made = testbed.in_image(
            "convoy", "synth", "/scratch/chaos-cache", "--samples=64", "--logs=4"
        )
        if "64 samples" not in made:
            raise Failed(f"convoy synth said: {made[-300:]}")
    run_dir = f"/scratch/chaos/{time.time_ns()}"
    training = Training(testbed, testbed.submit(run_dir), run_dir)
    training.wait_for_the_end()
    return training.digest()


def table(results: list[Result]) -> str:
    head = ("fault", "runs", "steps lost", "s to next step", "weights equal", "orphans")
    rows = []
    for fault in dict.fromkeys(result.fault for result in results):
        own = [result for result in results if result.fault == fault]
        lost = [result.lost_steps for result in own]
        seconds = [result.seconds for result in own]
        equal = sum(result.equal for result in own)
        rows.append(
            (
                fault,
                str(len(own)),
                f"{min(lost)}-{max(lost)}",
                f"{min(seconds):.0f}-{max(seconds):.0f}",
                f"{equal} of {len(own)}",
                str(sum(result.orphans for result in own)),
            )
        )
    widths = [max(len(row[column]) for row in (head, *rows)) for column in range(len(head))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in (head, *rows)
    ]
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(prog="testbed/chaos.py", description=__doc__)
    parser.add_argument("faults", nargs="*", metavar="FAULT", help=f"of: {', '.join(FAULTS)}")
    parser.add_argument("--rounds", type=int, default=20, help="of each fault (%(default)s)")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    parser.add_argument("--name", default=os.environ.get("TESTBED_NAME", "convoy-testbed"))
    parser.add_argument("--image", type=Path, default=ROOT / "build" / "convoy.sif")
    parser.add_argument("--bind", default="/scratch", help="what the image sees (%(default)s)")
    args = parser.parse_args()
    unknown = [fault for fault in args.faults if fault not in FAULTS]
    if unknown:
        parser.error(f"no fault {unknown[0]!r}; there are: {', '.join(FAULTS)}")
    print(f"seed {args.seed}", flush=True)
    chance = random.Random(args.seed)
    testbed = Testbed(args.name, args.image.absolute(), args.bind)
    results, problems = [], []
    try:
        expected = reference(testbed)
    except Failed as error:
        print(f"chaos: the undisturbed training: {error}", file=sys.stderr)
        return 1
    for _ in range(args.rounds):
        for fault in args.faults or FAULTS:
            try:
                result = suffer(testbed, fault, expected, chance)
            except Failed as error:
                problems.append(fault)
                print(f"chaos: {fault}: {error}", file=sys.stderr, flush=True)
                testbed.run("scancel", "--user=researcher")
                continue
            results.append(result)
            print(result, flush=True)
    if results:
        print(table(results))
    bad = [result.fault for result in results if not result.is_good] + problems
    if bad:
        print(f"chaos: not home: {', '.join(bad)}", file=sys.stderr)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
