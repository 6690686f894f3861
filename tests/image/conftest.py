"""The built images, and how they are run here: by Apptainer itself, or by one that is in the
testbed's container."""

import functools
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SIF = ROOT / "build" / "convoy.sif"


@functools.cache
def docker() -> str | None:
    """A docker whose daemon answers; Debian's own has BuildKit built in."""
    for program in ("/usr/bin/docker", "docker"):
        if (
            shutil.which(program)
            and not subprocess.run([program, "info"], capture_output=True).returncode
        ):
            return program
    return None


@functools.cache
def apptainer_prefix() -> tuple[str, ...] | None:
    if shutil.which("apptainer"):
        return ()
    return (str(ROOT / "testbed" / "apptainer"),) if docker() else None


class Apptainer:
    """Runs commands where Apptainer is, as an ordinary user."""

    def command(
        self, *command: str | Path, errors: int = subprocess.STDOUT, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [
                *apptainer_prefix(),
                "env",
                *(f"{name}={value}" for name, value in environment.items()),
                *command,
            ],
            cwd=ROOT,
            env=os.environ | {"DOCKER": docker() or "docker"},
            text=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            timeout=1500,
        )

    def run(self, *arguments: str | Path, **environment: str) -> str:
        """`apptainer ARGUMENTS…`; its standard output, or the test fails."""
        done = self.command(
            "apptainer", "--quiet", *arguments, errors=subprocess.PIPE, **environment
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout


@pytest.fixture(scope="session")
def apptainer(requirement) -> Apptainer:
    requirement(
        "apptainer",
        apptainer_prefix() is not None,
        "neither Apptainer nor Docker here (apt install docker.io)",
    )
    return Apptainer()


@pytest.fixture(scope="session")
def sif(apptainer: Apptainer, requirement) -> Path:
    requirement(
        "image",
        SIF.exists(),
        f"no {SIF}: make image VARIANT=cpu (or testbed/apptainer make image VARIANT=cpu)",
    )
    labels = json.loads(apptainer.run("inspect", "--json", SIF))["data"]["attributes"]["labels"]
    requirement(
        "image",
        labels["convoy.variant"] == "cpu",
        "the image is not of the cpu variant: make image VARIANT=cpu",
    )
    return SIF


@pytest.fixture(scope="session")
def docker_image(requirement) -> str:
    built = (
        docker()
        and not subprocess.run(
            [docker(), "image", "inspect", "convoy:cpu"], capture_output=True
        ).returncode
    )
    requirement("docker", bool(built), "no Docker image convoy:cpu: make docker VARIANT=cpu")
    return "convoy:cpu"


@pytest.fixture
def workspace() -> Iterator[Path]:
    """A folder that containers see too, and may write."""
    (ROOT / "build").mkdir(exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="test-", dir=ROOT / "build"))
    folder.chmod(0o777)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)
