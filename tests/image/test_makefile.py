"""The Makefile's help and its choice of an interpreter."""

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def make(*arguments: str, **environment: str) -> str:
    # Run by `make test`, these would tell the inner make about the outer one.
    outer = {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS")}
    return subprocess.run(
        ["make", "--no-print-directory", *arguments],
        cwd=ROOT, env=outer | environment, check=True, capture_output=True, text=True,
    ).stdout  # fmt: skip


def test_help_is_the_default_and_lists_every_target():
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    listed = re.findall(r"^  ([a-z-]+) +\S", make(), re.MULTILINE)
    assert listed == targets == re.findall(r"^\.PHONY: (\S+)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert {"help", "venv", "demo", "test", "navsim", "lock", "lint", "clean"} <= set(targets)


def test_an_interpreter_that_does_not_run_is_passed_over(tmp_path: Path):
    broken = tmp_path / "python3.11"
    broken.write_text("#!/bin/sh\nexit 127\n")
    (tmp_path / "python3.12").write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    for program in tmp_path.iterdir():
        program.chmod(0o755)
    output = make("--dry-run", "venv", PATH=f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    assert output.startswith("python3.12 image/environment.py .venv")


def test_the_interpreter_can_be_named():
    assert make("--dry-run", "venv", "PYTHON=/opt/my/python").startswith("/opt/my/python image/environment.py")
