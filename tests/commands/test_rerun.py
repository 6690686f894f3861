"""`convoy diff` and `convoy rerun` as a person uses them."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from convoy.commands import rerun
from convoy.errors import ConvoyError
from convoy.host.site import Site
from convoy.run import story

ROOT = Path(__file__).parents[2]


def convoy(exp: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "NAVSIM_EXP_ROOT": str(exp)}
    return subprocess.run(
        [sys.executable, "-m", "convoy.commands", *arguments],
        env=environment,
        text=True,
        capture_output=True,
        cwd=ROOT,
    )


def test_the_same_command_again_in_a_new_directory(preempted_run):
    launches = preempted_run / "launches.jsonl"
    launch = json.loads(launches.read_text().splitlines()[-1])
    launch["overrides"] = ["seed=1", "agent=a_agent", "run_dir=/old", "+note='a b'"]
    launches.write_text(json.dumps(launch) + "\n")
    site = Site(ROOT, {"CONVOY_OVERRIDES": "seed=1", "SBATCH_ACCOUNT": "mine"})
    submission = rerun.again(story.read(preempted_run), site, ["time=01:00:00"])
    assert submission.command == [
        "sbatch",
        "--account=mine",
        "--time=01:00:00",
        str(ROOT / "slurm/torchrun_2node.slurm"),
        "agent=a_agent",
        "+note='a b'",
    ]


def test_a_dry_run_says_what_will_not_be_the_same(preempted_run):
    done = convoy(preempted_run.parents[1], "rerun", "--dry-run", str(preempted_run))
    assert done.returncode == 0, done.stderr
    assert "Not the same: convoy was 0a1b2c and is" in done.stdout
    assert done.stdout.splitlines()[-1].endswith("agent=transfuser_agent global_batch=176")


def test_a_run_that_left_no_record(tmp_path):
    with pytest.raises(ConvoyError, match="has no launches.jsonl"):
        rerun.again(story.read(tmp_path), Site(ROOT, {}), [])


def test_diff(preempted_run):
    exp, other = preempted_run.parents[1], preempted_run.parents[1] / "second" / "13"
    shutil.copytree(preempted_run, other)
    assert "Same configuration" in convoy(exp, "diff", "12", "13").stdout
    (other / "config.yaml").write_text("global_batch: 352\n")
    assert "352" in convoy(exp, "diff", "12", "13").stdout
    found = json.loads(convoy(exp, "diff", "--json", "12", "13").stdout)
    assert {
        "part": "configuration",
        "name": "global_batch",
        "first": "176",
        "second": "352",
    } in found
    assert convoy(exp, "diff", "12", "99").returncode == 1
