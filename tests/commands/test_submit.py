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


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    """SLURM's commands and Apptainer replaced: sbatch counts jobs, the queue is a file, and a word
    in the image is this Python's. Returns `convoy submit` as a function."""
    python = f"exec {sys.executable} -m convoy.commands"
    scripts = {
        "scontrol": SCONTROL,
        "sacctmgr": SACCTMGR,
        "squeue": f"cat {tmp_path}/queue",
        "sbatch": f'echo "$@" >> {tmp_path}/sbatch.log; wc -l < {tmp_path}/sbatch.log',
        "apptainer": f'while [[ $1 != */run.sh ]]; do shift; done; shift; {python} "$@"',
    }
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, script in scripts.items():
        (folder / name).write_text(f"#!/usr/bin/env bash\n{script}\n")
        (folder / name).chmod(0o755)
    (tmp_path / "queue").write_text("")
    (tmp_path / "site.conf").write_text("SBATCH_PARTITION=gpu\nSBATCH_ACCOUNT=vision\n")
    (tmp_path / "image.sif").write_text("")
    environment = os.environ | {
        "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}",
        "CONVOY_SITE": str(tmp_path / "site.conf"),
        "CONVOY_IMAGE": str(tmp_path / "image.sif"),
        "NAVSIM_EXP_ROOT": str(tmp_path / "exp"),
        "CONVOY_OVERRIDES": "trainer.params.accelerator=cpu",
        "PYTHONPATH": str(Path(__file__).parents[2] / "src"),
    }

    def run(*words):
        command = [sys.executable, "-m", "convoy.commands", "submit", *words]
        return subprocess.run(
            command,
            cwd=Path(__file__).parents[2],
            env=environment,
            text=True,
            capture_output=True,
            timeout=60,
        )

    return run


def test_a_sweep_is_one_array_and_is_taken_up_again(cluster, ego_cache, tmp_path):
    words = ["--multirun", "--concurrency=2", "--", "agent=bev_fusion_agent"]
    words += [f"cache_path={ego_cache}", "seed=0,1,2"]
    done = cluster(*words)
    assert done.returncode == 0, done.stderr
    (root,) = (tmp_path / "exp").glob("sweep-*")
    (first,) = (tmp_path / "sbatch.log").read_text().splitlines()
    assert "--array=0-2%2" in first and first.endswith(f"torchrun_1node.slurm --sweep={root}")
    lines = (root / "points" / "1").read_text().splitlines()
    assert lines == ["agent=bev_fusion_agent", f"cache_path={ego_cache}", "seed=1", lines[-1]]
    row = "1_0|me|vision|gpu|RUNNING|None|1|1:00:00|5:00|N/A|5|N/A|gres/gpu=8|N/A|g1|q|convoy|"
    (tmp_path / "queue").write_text(row + "\n")
    finished = root / "seed=2" / "results.json"
    finished.parent.mkdir()
    finished.write_text('{"ade": 1.0}')
    again = cluster(f"--sweep={root}", "--time=2:00:00")
    assert again.returncode == 0, again.stderr
    assert "for 1 of 3 points (1 running, 1 stopped, 1 finished)" in again.stdout
    second = (tmp_path / "sbatch.log").read_text().splitlines()[1]
    assert "--array=1%2" in second and "--time=2:00:00" in second
    refused = cluster(f"--sweep={root}", "--", "seed=4")
    assert refused.returncode == 1 and "has its arguments" in refused.stderr


def test_scores_beside_a_training_are_a_second_job(cluster, ego_cache, tmp_path):
    words = ["--", "agent=bev_fusion_agent", f"cache_path={ego_cache}", "score.every_epochs=5"]
    done = cluster("--nodes=2", "--gpus-per-node=1", *words)
    assert done.returncode == 0, done.stderr
    training, beside = (tmp_path / "sbatch.log").read_text().splitlines()
    assert "torchrun_2node.slurm agent=bev_fusion_agent" in training
    assert "--dependency=after:1 " in beside and "gpus" not in beside
    assert beside.endswith("slurm/score_waiting.slurm 1")
    swept = cluster("--multirun", *words, "seed=0,1")
    assert swept.returncode == 1 and "score.every_epochs is for one training" in swept.stderr
