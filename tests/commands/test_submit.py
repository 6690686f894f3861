"""`convoy submit` on a cluster that the job files do not know, with SLURM's commands replaced."""

import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

SCONTROL = "echo 'PartitionName=gpu State=UP Default=YES TotalNodes=4 MaxTime=1-00:00:00'"
SACCTMGR = "[[ $* != *assoc* ]] || echo 'vision|normal'"


@pytest.fixture
def submit(tmp_path):
    """Runs `convoy submit` with `keys` typed on a terminal, or without one."""
    for name, script in {"scontrol": SCONTROL, "sacctmgr": SACCTMGR}.items():
        (tmp_path / name).write_text(f"#!/usr/bin/env bash\n{script}\n")
        (tmp_path / name).chmod(0o755)
    file = tmp_path / "site.conf"
    file.write_text("CONVOY_IMAGE=/nowhere.sif\n")
    environment = os.environ | {
        "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}",
        "CONVOY_SITE": str(file),
    }
    command = [sys.executable, "-m", "convoy.commands.__main__", "submit", "--", "cache_path=/data"]

    def run(keys: str | None) -> tuple[str, str]:
        terminal, inside = pty.openpty()
        if keys:
            os.write(terminal, keys.encode())
        done = subprocess.run(
            command,
            cwd=Path(__file__).parents[2],
            env=environment,
            stdin=inside if keys is not None else subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
        )
        os.close(terminal)
        os.close(inside)
        return done.stderr, file.read_text()

    return run


def test_words_are_asked_for_and_kept(submit):
    said, kept = submit("wrong\n\nvision\n")
    assert said.count("SBATCH_PARTITION (your partitions: gpu) [gpu]: ") == 2
    assert kept.endswith("SBATCH_PARTITION=gpu\nSBATCH_ACCOUNT=vision\n")
    assert "There is no image /nowhere.sif" in said  # it went on with the checks


def test_without_a_terminal_one_line_says_what_is_missing(submit):
    said, kept = submit(None)
    assert len(said.splitlines()) == 1
    assert "does not set SBATCH_PARTITION (your partitions: gpu) and SBATCH_ACCOUNT" in said
    assert "--partition and --account" in said and "SBATCH" not in kept
