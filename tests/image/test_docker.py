"""The Docker twin: `make docker VARIANT=cpu` comes first."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest

CPU = (
    "trainer.params.accelerator=cpu",
    "trainer.params.precision=32-true",
    "dataloader.params.num_workers=0",
)
# Any uid, nothing writable but the temporary directory and what is mounted.
LOCKED_DOWN = ("--user=12345:12345", "--read-only", "--tmpfs=/tmp", "--network=none")


@pytest.fixture(scope="session")
def program() -> str:
    return "/usr/bin/docker" if shutil.which("/usr/bin/docker") else "docker"


@pytest.fixture
def run(program: str, docker_image: str):
    def run(*arguments: str, options: tuple[str, ...] = ()) -> str:
        done = subprocess.run(
            [program, "run", "--rm", *LOCKED_DOWN, *options, docker_image, *arguments],
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=600,
        )
        assert done.returncode == 0, done.stdout
        return done.stdout

    return run


def test_doctor_passes(run):
    report = json.loads(run("doctor", "--json"))
    assert report["ok"]
    assert {"navsim", "nuplan-devkit", "torch"} <= {
        finding["name"] for finding in report["findings"]
    }


def test_two_processes_train(run, workspace: Path):
    options = (
        f"--volume={workspace}:/out",
        "--env=CONVOY_PROCESSES_PER_NODE=2",
    )
    run("synth", "/out/cache", "--samples", "32", "--logs", "4", options=options)
    output = run(
        "train",
        *CPU,
        "agent=bev_fusion_agent",
        "cache_path=/out/cache",
        "run_dir=/out/run",
        "global_batch=8",
        "data.val_fraction=0.25",
        "trainer.params.max_epochs=1",
        options=options,
    )
    assert "finished" in output
    assert json.loads((workspace / "run/results.json").read_text())["world_size"] == 2


def test_both_images_hold_the_same_packages(run, apptainer, sif):
    """One recipe, two builders: of the same commit they hold the same, file by file."""
    twins = [
        json.loads(run("image", "manifest")),
        json.loads(apptainer.run("run", "--containall", sif, "image", "manifest")),
    ]
    parts = ["python", "debian", "sources", "lock", "variant"]
    if twins[0]["commit"] == twins[1]["commit"] and not twins[0]["commit"].endswith("-dirty"):
        parts.append("digest")
    for part in parts:
        assert twins[0][part] == twins[1][part], part


def test_no_layer_knows_of_the_build_s_secrets(program, docker_image):
    history = subprocess.run(
        [program, "history", "--no-trunc", docker_image], capture_output=True, text=True, check=True
    )
    config = subprocess.run(
        [program, "inspect", docker_image], capture_output=True, text=True, check=True
    )
    for word in ("PIP_", "127.0.0.1", "APT_MIRROR", "proxy"):
        assert word not in history.stdout + config.stdout
    search = (
        "find /run/secrets -type f; "
        "cat /etc/apt/sources.list /etc/apt/sources.list.d/* /etc/pip.conf 2>&1; true"
    )
    left = subprocess.run(
        [program, "run", "--rm", "--entrypoint=sh", docker_image, "-c", search],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert "/run/secrets/" not in left and "127.0.0.1" not in left and "PIP_" not in left
