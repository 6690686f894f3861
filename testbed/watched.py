"""Trainings on the testbed, watched from outside; standard library only."""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import taken
from cluster import command_on
from taken import Taken

ROOT = Path(__file__).resolve().parents[1]
CLUSTER = ROOT / "testbed" / "cluster.py"
FORK = ROOT / "testbed" / "fork"  # a NAVSIM tree of nothing but the agent of these trainings
RECORDS = ROOT / "build" / "chaos"  # what the agent writes down: read here without a container
STEPS_PER_EPOCH = 6  # of 48 samples; chaos_cache.py's other 16 are held out
SAMPLES = 48
STEPS_PER_VALIDATION = 5 * STEPS_PER_EPOCH  # there is a checkpoint before and after each
PATIENCE = 300.0  # seconds for one fault
CACHE = "/scratch/chaos-cache"
FOLDER = "/small/chaos"  # of the runs: a small file system that all hosts of the testbed share
PACE = 0.1  # seconds that a step takes at least
TRAINING = (
    "agent=chaos_agent",
    f"cache_path={CACHE}",
    "data.val_fraction=0.25",
    "global_batch=8",
    "trainer.params.max_epochs=1000000",
    f"trainer.params.check_val_every_n_epoch={STEPS_PER_VALIDATION // STEPS_PER_EPOCH}",
    "trainer.params.log_every_n_steps=10",
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
    bind: str = "/scratch,/small"
    environment: dict[str, str] = field(default_factory=dict)

    def run(self, *command: str, host: str = "login", root: bool = False) -> str:
        done = subprocess.run(
            command_on(self.name, host, root, command),
            text=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        return done.stdout

    def in_image(self, *command: str) -> str:
        bind = f"--bind={self.bind},{ROOT}"
        return self.run("apptainer", "exec", "--no-home", bind, str(self.image), *command)

    def make_cache(self) -> None:
        """The samples of these trainings, the same each time."""
        said = self.in_image("python", f"{FORK}/chaos_cache.py", CACHE)
        if "Error" in said:
            raise Failed(f"no samples could be made: {said[-500:]}")

    def sbatch(self, *arguments: str, environment: dict[str, str] | None = None) -> str:
        """The job's number."""
        variables = [f"{name}={value}" for name, value in (environment or {}).items()]
        options = ("--parsable", "--output=/scratch/chaos-%j.log")
        given = self.run("env", *variables, "sbatch", *options, *arguments).strip()
        if not given.isdigit():
            raise Failed(f"sbatch said: {given}")
        return given

    def container(self, host: str) -> str:
        """The name of the container that is `host`."""
        return f"{self.name}-{host}"

    def switch_off(self, host: str) -> None:
        """The node is gone at once, as without power."""
        self.docker("kill", self.container(host))

    def switch_on(self, host: str) -> None:
        """The node comes back, and SLURM takes it, as soon as it can."""
        self.docker("start", self.container(host))
        update = ("scontrol", "update", f"NodeName={host}", "Reason=chaos")
        for state in ("down", "resume"):  # else SLURM asks it a minute later to end its steps
            self.run(*update, f"State={state}", root=True)
        # It may have another address than before, and SLURM's daemons keep the old one.
        self.run("scontrol", "reconfigure", root=True)

    def docker(self, *command: str) -> None:
        """Raises Failed where Docker does not do it."""
        done = subprocess.run(["docker", *command], text=True, capture_output=True)
        if done.returncode:
            raise Failed(f"docker {' '.join(command)}: {done.stderr.strip()}")

    def hosts(self) -> list[str]:
        """All compute nodes."""
        return sorted(set(self.run("sinfo", "--noheader", "--Node", "--format=%N").split()))

    def processes(self, pattern: str, hosts: Sequence[str]) -> list[tuple[str, int]]:
        """(host, pid) of the user's processes whose command matches, lowest pid first."""
        found = []
        for host in hosts:
            listed = self.run("pgrep", "-u", "researcher", "-f", pattern, host=host, root=True)
            found += [(host, int(pid)) for pid in listed.split() if pid.isdigit()]
        return found

    def orphans(self, hosts: Sequence[str], patience: float = 30) -> int:
        """How many processes of the user are left on `hosts`, once SLURM had its time."""
        deadline = time.monotonic() + patience
        while left := self.processes(".", hosts):
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

    def empty(self) -> None:
        """No job, as before a training."""
        self.run("scancel", "--user=researcher")
        deadline = time.monotonic() + 60
        while self.run("squeue", "--noheader").strip() and time.monotonic() < deadline:
            time.sleep(0.5)


@dataclass
class Training:
    """One training on the testbed, of `steps` steps; `arguments` are sbatch's and then the job
    file's, `environment` the job's."""

    testbed: Testbed
    steps: int
    options: tuple[str, ...] = ()
    overrides: tuple[str, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)
    job: str = ""
    name: str = field(default_factory=lambda: str(time.time_ns()))

    def submit(self) -> str:
        """The number of a job of this run."""
        self.record.mkdir(parents=True, exist_ok=True)
        for folder in (RECORDS, self.record):
            folder.chmod(0o777)  # the testbed's user may be another one
        if not (self.record / "pace").exists():
            self.pace(PACE)
        return self.testbed.sbatch(
            *("--gpus-per-node=1", "--cpus-per-task=8", "--mem=8G"),
            *self.options,
            "slurm/torchrun_2node.slurm",
            *TRAINING,
            *self.overrides,
            f"+trainer.params.max_steps={self.steps}",
            f"agent.record={self.record}",
            f"run_dir={self.run_dir}",
            environment={
                "CONVOY_IMAGE": str(self.testbed.image),
                "CONVOY_BIND": self.testbed.bind,
                "NAVSIM_DEVKIT_ROOT": str(FORK),
                **self.testbed.environment,
                **self.environment,
            },
        )

    @property
    def run_dir(self) -> str:
        return f"{FOLDER}/{self.name}"

    @property
    def record(self) -> Path:
        return RECORDS / self.name

    def pace(self, seconds: float) -> None:
        """How long each step takes at least, from now on."""
        beside = self.record / "pace.new"
        beside.write_text(str(seconds))
        beside.replace(self.record / "pace")

    def taken(self) -> list[Taken]:
        return taken.read(self.record)

    def newest(self, rank: int = 0) -> Taken | None:
        """The newest step of a rank, over all starts."""
        try:
            lines = (self.record / f"rank-{rank}.log").read_text().rpartition("\n")[0]
        except OSError:
            return None
        return taken.parse(rank, lines.rpartition("\n")[2]) if lines else None

    @property
    def start(self) -> str:
        newest = self.newest()
        return newest.start if newest else ""

    @property
    def hosts(self) -> list[str]:
        """The nodes of the newest start that took a step, that of rank 0 first."""
        found = [self.newest(rank) for rank in range(2)]
        return [entry.host for entry in found if entry is not None and entry.start == self.start]

    def wait_for_step(self, step: int) -> None:
        self.wait(
            lambda: (entry := self.newest()) is not None and entry.step >= step,
            f"step {step} did not come",
        )

    def wait_for_a_step(self, after: float, start: str = "") -> None:
        """Until a step has begun after the time `after`, in another start than `start`."""
        self.wait(
            lambda: (
                (entry := self.newest()) is not None and entry.at > after and entry.start != start
            ),
            "no step came after the fault",
        )

    def wait_for_the_end(self) -> None:
        """Until the run has its results and the job is gone."""
        self.pace(0)
        self.wait(lambda: not self.testbed.state(self.job), "it did not end", over=True)
        if "samples_per_s" not in self.testbed.run("cat", f"{self.run_dir}/results.json"):
            raise Failed(self._said("it ended without results"))

    def wait(
        self,
        condition: Callable[[], bool],
        problem: str,
        patience: float = PATIENCE,
        over: bool = False,
    ) -> None:
        """Raises Failed where it takes too long, or the job is gone and may not be (`over`).

        A requeued job need not wait for the two minutes that SLURM gives it: its begin is moved,
        and nothing else is done by hand.
        """
        began = asked = time.monotonic()
        while not condition():
            time.sleep(0.1)
            if time.monotonic() - asked < 1:  # asking SLURM costs more than reading a file
                continue
            state = self.testbed.state(self.job)
            asked = time.monotonic()
            if state == "PENDING BeginTime":
                self.testbed.run("scontrol", "update", f"JobId={self.job}", "StartTime=now")
            if not (state or over or condition()) or asked - began > patience:
                raise Failed(self._said(f"{problem} ({state or 'the job is gone'})"))

    def digest(self) -> str:
        """SHA-256 of the weights in the last checkpoint."""
        last = f"{self.run_dir}/checkpoints/last.ckpt"
        said = self.testbed.in_image("python", "-c", DIGEST, last)
        found = re.search(r"^digest (\d+) (\w+)$", said, re.MULTILINE)
        if not found or int(found[1]) != self.steps:
            raise Failed(self._said(f"its last checkpoint says: {said.strip()[-300:]}"))
        return found[2]

    def _said(self, problem: str) -> str:
        log = self.testbed.run("tail", "-n", "12", f"/scratch/chaos-{self.job}.log")
        return f"job {self.job} {self.run_dir}: {problem}; its log ends with:\n{log}"
