"""One cluster for all of the tests here: real SLURM, real Apptainer, the image that `make image
VARIANT=cpu` built."""

import os
import re
import shutil
import subprocess
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CLUSTER = ROOT / "testbed" / "cluster.py"
# Each clone has a cluster of its own.
NAME = f"convoy-test-{zlib.crc32(os.fsencode(ROOT)):08x}"
CPU = ("trainer.params.accelerator=cpu", "trainer.params.precision=32-true")


@dataclass(frozen=True)
class Done:
    code: int
    out: str


@dataclass(frozen=True)
class Job:
    id: str
    code: int
    log: str


@dataclass(frozen=True)
class Testbed:
    """The cluster as a person uses it, by its commands."""

    image: Path
    nodes: tuple[str, ...]
    name: str = NAME

    def run(
        self, *command: str, host: str = "login", root: bool = False, timeout: float = 300
    ) -> Done:
        """`testbed/run COMMAND…`."""
        flags = [f"--host={host}", *(["--root"] if root else [])]
        done = subprocess.run(
            ["python3", CLUSTER, f"--name={self.name}", "run", *flags, *command],
            text=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=timeout,
        )
        return Done(done.returncode, done.stdout)

    def sbatch(
        self, *arguments: str, environment: dict[str, str] | None = None, timeout: float = 300
    ) -> Job:
        """Submit, wait for the end, and read the job's log. Options of sbatch come first, then the
        job file."""
        variables = {"CONVOY_IMAGE": str(self.image), **(environment or {})}
        named = [f"{name}={value}" for name, value in variables.items()]
        submitted = self.run(
            "env", *named, "sbatch", "--parsable", "--output=/scratch/job-%j.log", *arguments
        )
        if submitted.code:
            return Job("", submitted.code, submitted.out)
        job = submitted.out.strip()
        return self.wait(job, timeout)

    def wait(self, job: str, timeout: float = 300) -> Job:
        """The job's end (`sbatch --wait` asks too rarely); the exit code is the worst of its
        array's."""
        ended = (
            "while squeue --noheader --jobs=$1 2>/dev/null | grep -q .; do sleep 0.3; done; "
            "scontrol show job $1"
        )
        shown = self.run("bash", "-c", ended, "bash", job, timeout=timeout).out
        codes = re.findall(r"^ *(?:\S+=\S+ )*ExitCode=(\d+):(\d+)", shown, re.MULTILINE)
        assert codes, shown
        log = self.run("bash", "-c", f"cat /scratch/job-{job}.log 2>/dev/null").out
        return Job(job, max(int(code) or int(signal) for code, signal in codes), log)

    def read(self, path: str) -> str:
        done = self.run("cat", path)
        assert done.code == 0, done.out
        return done.out

    def processes(self) -> list[str]:
        """Commands of the ordinary user on the compute nodes."""
        found = [
            self.run("ps", "-u", "researcher", "-o", "args=", host=node, root=True).out
            for node in self.nodes
        ]
        return [line for text in found for line in text.splitlines()]

    def empty_the_queue(self) -> None:
        """Cancel what is queued or runs, and wait until SLURM is done with every job."""
        ended = "while squeue --noheader | grep -q .; do sleep 0.3; done"
        done = self.run("bash", "-c", f"scancel --user=researcher && {ended}")
        assert done.code == 0, done.out

    @contextmanager
    def killed(self, host: str) -> Iterator[float]:
        """The node's container is killed: the kernel closes its connections."""
        name = f"{self.name}-{host}"
        with self._away(host, ["kill", name], ["start", name]) as when:
            yield when

    @contextmanager
    def cut_off(self, host: str) -> Iterator[float]:
        """The node has no network: nothing is closed, and nothing is heard."""
        name = f"{self.name}-{host}"
        back = ["network", "connect", f"--alias={host}", self.name, name]
        with self._away(host, ["network", "disconnect", self.name, name], back) as when:
            yield when

    @contextmanager
    def _away(self, host: str, out: list[str], back: list[str]) -> Iterator[float]:
        """Yields the time at which the node went; it is idle again afterwards."""
        when = time.time()
        subprocess.run(["docker", *out], check=True, capture_output=True)
        try:
            yield when
        finally:
            self.run("scancel", "--user=researcher")
            subprocess.run(["docker", *back], check=True, capture_output=True)
            for state in ("down", "resume"):  # else SLURM asks it a minute later to end its steps
                self.set_state(host, state)
            # It may have another address than before, and SLURM's daemons keep the old one.
            self.run("scontrol", "reconfigure", root=True)
            deadline = time.monotonic() + 60
            # A star behind the state says that the node does not answer.
            while set(self.run("sinfo", "-hN", "-o", "%T", "-n", host).out.split()) != {"idle"}:
                assert time.monotonic() < deadline
                time.sleep(0.5)

    def set_state(self, host: str, state: str) -> None:
        """As an administrator does it."""
        update = ["scontrol", "update", f"NodeName={host}", f"State={state}", "Reason=test"]
        self.run(*update, root=True)

    def assert_nothing_left(self) -> None:
        deadline = time.monotonic() + 60
        while left := self.processes():
            assert time.monotonic() < deadline, left
            time.sleep(0.5)


@pytest.fixture(scope="session")
def docker(requirement: Callable[[str, bool, str], None]) -> None:
    installed = shutil.which("docker") is not None
    running = installed and subprocess.run(["docker", "info"], capture_output=True).returncode == 0
    requirement(
        "docker",
        running,
        "no Docker daemon here; .ci/docker COMMAND installs and starts one on Debian",
    )


@pytest.fixture(scope="session")
def image(requirement: Callable[[str, bool, str], None]) -> Path:
    """A SIF of the cpu variant, or of the cuda one: it trains on the CPU too."""
    path = Path(os.environ.get("CONVOY_TEST_IMAGE", ROOT / "build" / "convoy.sif"))
    requirement("image", path.exists(), f"no image {path}; `make image VARIANT=cpu` builds it")
    return path


@contextmanager
def started(name: str, image: Path, *options: str) -> Iterator[Testbed]:
    """A cluster of these options, until it is not needed any more."""
    manage = ["python3", CLUSTER, f"--name={name}"]
    subprocess.run([*manage, "down"], check=True)
    up = subprocess.run(
        [*manage, "up", *options], text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    assert up.returncode == 0, up.stdout
    cluster = Testbed(image, (), name)
    hosts = cluster.run("sinfo", "-hN", "-o", "%N").out.split()
    yield replace(cluster, nodes=tuple(sorted(set(hosts))))
    subprocess.run([*manage, "down"], check=True)


@pytest.fixture(scope="session")
def testbed(docker: None, image: Path) -> Iterator[Testbed]:
    """Four nodes, idle slurmds but for those that a test takes.

    /scratch/cache holds synthetic samples.
    """
    with started(NAME, image, "--nodes=4") as cluster:
        synth = ["synth", "/scratch/cache", "--samples", "64", "--logs", "4"]
        made = cluster.run("apptainer", "run", "--bind=/scratch", str(image), *synth)
        assert made.code == 0, made.out
        yield cluster


@pytest.fixture(scope="session")
def another_testbed(docker: None, image: Path) -> Callable[..., AbstractContextManager[Testbed]]:
    """`started` beside it, by a name and options of testbed/cluster.py."""
    return lambda name, *options: started(f"{NAME}-{name}", image, *options)


@pytest.fixture(autouse=True)
def queue(request: pytest.FixtureRequest) -> Iterator[None]:
    """A test that failed half-way leaves no job to those after it."""
    cluster = request.getfixturevalue("testbed") if "testbed" in request.fixturenames else None
    yield
    if cluster is not None:
        cluster.empty_the_queue()
