"""Builds that must fail, by the real Apptainer in a clone of this checkout: each ends in one clear
line, and soon."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def clone(apptainer, navsim_tree, workspace: Path) -> Path:
    folder = workspace / "clone"
    subprocess.run(["git", "clone", "--quiet", ROOT, folder], check=True)
    for name in ("navsim", "nuplan-devkit"):
        shutil.copytree(ROOT / "build" / name, folder / "build" / name, symlinks=True)
    (folder / "build").chmod(0o777)
    return folder


@pytest.fixture
def build(apptainer, clone: Path):
    """`make image VARIANT=cpu` there; the lines that the user is left with."""

    def build(ca: Path | None = None, **environment: str) -> list[str]:
        options = [
            f"{name}={ROOT / os.environ[name]}" for name in ("BASE", "CA") if os.environ.get(name)
        ]
        options += [f"CA={ca}"] if ca else []
        make = ["make", "--no-print-directory", "-C", clone, "image", "VARIANT=cpu", *options]
        done = apptainer.command(
            *make, CONVOY_IMAGE_CACHE="", APPTAINER_TMPDIR=str(clone / "build"), **environment
        )
        assert done.returncode == 2, done.stdout  # make's code for a recipe that failed
        assert not (clone / "build/convoy.sif").exists() and not list(
            clone.glob("build/**/*.partial")
        )
        assert "Traceback" not in done.stdout
        return [
            line
            for line in done.stdout.splitlines()
            if not line.startswith(("make:", "cpu dependencies ->"))
        ]

    return build


def test_a_corrupt_hash_in_the_lock(build, clone: Path):
    lock = clone / "image/requirements/cpu.txt"
    before, after = lock.read_text().split("\nsetuptools==")
    lines = [
        line.replace("sha256:", "sha256:dead")[:87] if "sha256:" in line else line
        for line in after.splitlines()
    ]
    lock.write_text("\nsetuptools==".join([before, "\n".join(lines) + "\n"]))
    assert build()[0].startswith("image: a downloaded package is not the one that is locked")


def test_certificates_that_do_not_fit(build, clone: Path):
    """As behind a proxy whose bundle was not given: no certificate of the package index can be
    verified."""
    subprocess.run(
        [
            "openssl",
            "req",
            "-x509",
            "-newkey",
            "rsa:2048",
            "-nodes",
            "-subj",
            "/CN=other",
            "-days",
            "1",
            "-keyout",
            "/dev/null",
            "-out",
            clone / "other.pem",
        ],
        check=True,
        capture_output=True,
    )
    first = build(clone / "other.pem")[0]
    assert (
        first.startswith("image: a certificate could not be verified")
        and "CA=/path/to/ca.pem" in first
    )


def test_another_commit_of_navsim(build, clone: Path):
    subprocess.run(
        ["git", "-C", clone / "build/navsim", "reset", "--quiet", "--soft", "HEAD"], check=True
    )
    (clone / "build/navsim/navsim/__init__.py").write_text("mine = True")
    first = build()[0]
    assert (
        first.startswith("image: navsim: ") and "is not as committed (navsim/__init__.py)" in first
    )


def test_a_disk_that_is_too_small(apptainer, clone: Path):
    """The container's shared memory is a real, small file system."""
    build = ["python3", clone / "image/build_image.py", "apptainer", "--variant=cpu"]
    done = apptainer.command(*build, APPTAINER_TMPDIR="/dev/shm")
    assert done.returncode == 1
    assert done.stdout.startswith("image: /dev/shm has ") and done.stdout.count("\n") == 1
    assert "the build takes 6 GB there: APPTAINER_TMPDIR=/path names another place" in done.stdout


def test_a_base_that_cannot_be_fetched(build, clone: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("BASE", "")
    recipe = (clone / "Apptainer.def").read_text()
    (clone / "Apptainer.def").write_text(
        re.sub(r"(?m)^    base=.*", "    base=nowhere.invalid/debian:12", recipe)
    )
    assert build()[0].startswith("image: the base image cannot be fetched")
