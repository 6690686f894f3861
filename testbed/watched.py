"""Trainings on the testbed, watched from outside; standard library only."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CLUSTER = ROOT / "testbed" / "cluster.py"
FORK = ROOT / "testbed" / "fork"  # a NAVSIM tree of nothing but the agent of these trainings
STEPS = 120
STEPS_PER_EPOCH = 6  # of 48 samples; chaos_cache.py's other 16 are held out
SAMPLES = 48
PATIENCE = 300.0  # seconds for one training with its fault
CACHE = "/scratch/chaos-cache"
TRAINING = (
    "agent=chaos_agent",
    f"cache_path={CACHE}",
    "data.val_fraction=0.25",
    "global_batch=8",
    f"+trainer.params.max_steps={STEPS}",
    "trainer.params.max_epochs=1000",
    "trainer.params.check_val_every_n_epoch=5",
    "trainer.params.log_every_n_steps=1",
    "trainer.params.deterministic=true",
    "trainer.params.accelerator=cpu",
    "trainer.params.precision=32-true",
    "dataloader.params.num_workers=0",
    "checkpoint.every_minutes=0.05",
    "watchdog_minutes=0.25",
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
    """The cluster by its commands; `image` is what the jobs run, `bind` what they see beside it.

    `environment` are variables of every job.
    """

    name: str
    image: Path
    bind: str = "/scratch"
    environment: dict[str, str] = field(default_factory=dict)

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
        bind = f"--bind={self.bind},{ROOT}"
        return self.run("apptainer", "exec", "--no-home", bind, str(self.image), *command)

    def sbatch(self, *arguments: str, environment: dict[str, str] | None = None) -> str:
        """The job's number."""
        variables = [f"{name}={value}" for name, value in (environment or {}).items()]
        options = ("--parsable", "--output=/scratch/chaos-%j.log")
        given = self.run("env", *variables, "sbatch", *options, *arguments).strip()
        if not given.isdigit():
            raise Failed(f"sbatch said: {given}")
        return given

    def submit(self, run_dir: str, *options: str, seconds: float = 0.1) -> str:
        """Submit a training whose steps take at least `seconds`; `options` are sbatch's."""
        return self.sbatch(
            *("--gpus-per-node=1", "--cpus-per-task=8", "--mem=8G"),
            *options,
            "slurm/torchrun_2node.slurm",
            *TRAINING,
            f"agent.record={consumed_in(run_dir)}",
            f"agent.seconds={seconds}",
            f"run_dir={run_dir}",
            environment={
                "CONVOY_IMAGE": str(self.image),
                "CONVOY_BIND": self.bind,
                "NAVSIM_DEVKIT_ROOT": str(FORK),
                **self.environment,
            },
        )

    def container(self, host: str) -> str:
        """The name of the container that is `host`."""
        return f"{self.name}-{host}"

    def hosts(self) -> list[str]:
        """All compute nodes."""
        return self.run("sinfo", "--noheader", "--Node", "--format=%N").split()

    def processes(self, pattern: str, hosts: list[str]) -> list[tuple[str, int]]:
        """(host, pid) of the user's processes whose command matches, lowest pid first."""
        found = []
        for host in hosts:
            listed = self.run("pgrep", "-u", "researcher", "-f", pattern, host=host, root=True)
            found += [(host, int(pid)) for pid in listed.split() if pid.isdigit()]
        return found

    def orphans(self, patience: float = 30) -> int:
        """How many processes of the user are left on the compute nodes, once SLURM had its time."""
        deadline = time.monotonic() + patience
        while left := self.processes(".", sorted(set(self.hosts()))):
            if time.monotonic() > deadline:
                break
            time.sleep(0.5)
        return len(left)

    def kill(self, signal: str, host: str, pid: int) -> None:
        self.run("kill", f"-{signal}", str(pid), host=host, root=True)

    def state(self, job: str) -> str:
        """SLURM's state and reason of a job; empty once it is gone."""
        said = self.run("squeue", "-h", "-j", job, "-o", "%T %r").strip()
        return "" if said.startswith("slurm_load_jobs error") else said


@dataclass
class Training:
    """One training on the testbed."""

    testbed: Testbed
    job: str
    run_dir: str
    seconds: float = 0.1  # that a step takes at least

    @classmethod
    def submitted(
        cls, testbed: Testbed, folder: str = "/scratch/chaos", seconds: float = 0.1
    ) -> Training:
        run_dir = f"{folder}/{time.time_ns()}"
        return cls(testbed, testbed.submit(run_dir, seconds=seconds), run_dir, seconds)

    def submit_again(self) -> str:
        """The number of another job of the same run."""
        return self.testbed.submit(self.run_dir, seconds=self.seconds)

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
        return list(json.loads(self._launches()[-1])["nodes"])

    @property
    def starts(self) -> int:
        return len(self._launches())

    def _launches(self) -> list[str]:
        return self.testbed.run("cat", f"{self.run_dir}/launches.jsonl").splitlines()

    def wait_for_step(self, step: int) -> None:
        self.wait(
            lambda: any(number >= step for _, number in self.steps()), f"step {step} did not come"
        )

    def wait_for_the_end(self) -> None:
        """Until the run has its results and the job is gone. A requeued job need not wait for the
        two minutes that SLURM gives it: its begin is moved, and nothing else is done by hand."""

        def is_gone() -> bool:
            state = self.testbed.state(self.job)
            if state == "PENDING BeginTime":
                self.testbed.run("scontrol", "update", f"JobId={self.job}", "StartTime=now")
            return not state

        self.wait(is_gone, "it did not end")
        if "samples_per_s" not in self.testbed.run("cat", f"{self.run_dir}/results.json"):
            raise Failed(self._said("it ended without results"))

    def wait(self, condition: Callable[[], bool], problem: str, patience: float = PATIENCE) -> None:
        deadline = time.monotonic() + patience
        while not condition():
            if time.monotonic() > deadline:
                state = self.testbed.state(self.job) or "gone"
                raise Failed(self._said(f"{problem} ({state})"))
            time.sleep(0.3)

    def digest(self) -> str:
        """SHA-256 of the weights in the last checkpoint."""
        last = f"{self.run_dir}/checkpoints/last.ckpt"
        said = self.testbed.in_image("python", "-c", DIGEST, last)
        found = re.search(r"^digest (\d+) (\w+)$", said, re.MULTILINE)
        if not found or int(found[1]) != STEPS:
            raise Failed(self._said(f"its last checkpoint says: {said.strip()[-300:]}"))
        return found[2]

    def consumed(self) -> str | None:
        """What is wrong with the record of consumed samples; None where nothing is."""
        folder = consumed_in(self.run_dir)
        text = self.testbed.run("bash", "-c", f"cd {folder} && grep . rank-*.log /dev/null")
        return wrongly_consumed(text.splitlines())

    def _said(self, problem: str) -> str:
        log = self.testbed.run("tail", "-n", "12", f"/scratch/chaos-{self.job}.log")
        return f"job {self.job} {self.run_dir}: {problem}; its log ends with:\n{log}"


def consumed_in(run_dir: str) -> str:
    """Where the agent records its samples: not on the run's own file system, which may be full."""
    return f"/scratch/consumed/{Path(run_dir).name}"


def wrongly_consumed(lines: list[str]) -> str | None:
    """Whether chaos_agent.py's lines (`rank-0.log:START STEP TOKEN…`) say that every epoch took
    every sample once, and that no two starts wrote at the same time; what is wrong, or None.

    A step that was taken again after a fault counts once: what it did before was lost with it.
    """
    steps: dict[int, dict[str, list[str]]] = {}
    starts: dict[str, list[str]] = {}
    for line in lines:
        rank, _, entry = line.partition(":")
        start, step, *tokens = entry.split()
        steps.setdefault(int(step), {})[rank] = tokens
        own = starts.setdefault(rank, [])
        if not own or own[-1] != start:
            if start in own:
                return f"{rank}: start {start} wrote after another one had begun"
            own.append(start)
    if sorted(steps) != list(range(STEPS)):
        return f"steps {min(steps, default=0)} to {max(steps, default=0)}, {len(steps)} of {STEPS}"
    for epoch in range(STEPS // STEPS_PER_EPOCH):
        first = epoch * STEPS_PER_EPOCH
        taken = [
            token
            for step in range(first, first + STEPS_PER_EPOCH)
            for tokens in steps[step].values()
            for token in tokens
        ]
        if len(taken) != SAMPLES or len(set(taken)) != SAMPLES:
            return f"epoch {epoch}: {len(taken)} samples, {len(set(taken))} different ones"
    return None
