"""The Makefile's help and its choice of an interpreter."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def make(*arguments: str, folder: Path = ROOT, **environment: str) -> str:
    # Run by `make test`, these would tell the inner make about the outer one.
    outer = {
        name: value
        for name, value in os.environ.items()
        if name not in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS")
    }
    return subprocess.run(
        ["make", "--no-print-directory", "--makefile", ROOT / "Makefile", *arguments],
        cwd=folder,
        env=outer | environment,
        check=True,
        capture_output=True,
        text=True,
    ).stdout


def interpreter(path: Path, works: bool) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        f'#!/bin/sh\nexec "{sys.executable}" "$@"\n' if works else "#!/bin/sh\nexit 127\n"
    )
    path.chmod(0o755)


def test_help_is_the_default_and_lists_every_target():
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    listed = re.findall(r"^  ([a-z-]+) +\S", make(), re.MULTILINE)
    assert (
        listed
        == targets
        == re.findall(r"^\.PHONY: (\S+)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    )
    assert {"help", "venv", "demo", "test", "navsim", "lock", "check", "clean"} <= set(targets)


def test_an_interpreter_that_does_not_run_is_passed_over(tmp_path: Path):
    interpreter(tmp_path / "bin" / "python3.11", works=False)
    interpreter(tmp_path / "bin" / "python3.12", works=True)
    output = make(
        "--dry-run", "venv", folder=tmp_path, PATH=f"{tmp_path}/bin{os.pathsep}{os.environ['PATH']}"
    )
    assert output.startswith("python3.12 image/environment.py .venv")


@pytest.mark.parametrize("works", [True, False])
def test_an_environment_keeps_its_interpreter_while_that_works(tmp_path: Path, works: bool):
    interpreter(tmp_path / ".venv" / "bin" / "python", works)
    (tmp_path / ".venv" / "convoy.stamp").touch()
    output = make("--dry-run", "venv", folder=tmp_path)
    assert output.startswith(".venv/bin/python ") == works


def test_the_interpreter_can_be_named(tmp_path: Path):
    output = make("--dry-run", "venv", "PYTHON=/opt/my/python", folder=tmp_path)
    assert output.startswith("/opt/my/python image/environment.py .venv")
