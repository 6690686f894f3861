"""`convoy plan` against SLURM's commands as a real controller answered them, and what it leaves."""

import json
import os
import subprocess
import sys
from pathlib import Path

from convoy.host import choice, cluster_file, history, plan, starts
from convoy.host.locate import expected_run
from convoy.host.plan import Training
from convoy.run import story

ROOT = Path(__file__).parents[2]
RECORDED = Path(__file__).with_name("slurm_22.05")


def test_every_possible_shape_is_asked_with_its_own_time_limit(slurm, tmp_path):
    folder = tmp_path / "recorded"
    folder.mkdir()
    for path in (RECORDED / "busy").iterdir():
        (folder / path.name).write_text(path.read_text())
    (folder / "test_only.txt").write_text(
        "sbatch: Job 31 to start at 2099-11-25T22:31:19 using 2 processors on nodes gl006\n"
    )
    log = slurm(folder)
    words = ["plan", "--json", "--", "agent=transfuser_agent", "global_batch=176"]
    environment = {**os.environ, "NAVSIM_EXP_ROOT": str(tmp_path / "exp"), "SBATCH_QOS": "normal"}
    done = subprocess.run(
        [sys.executable, "-m", "convoy.commands", *words],
        env=environment,
        text=True,
        capture_output=True,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)["rows"]
    possible = [row for row in rows if row["possible"]]
    assert {row["wait"]["source"] for row in possible} == {"sbatch --test-only"}
    refused = {row["refusals"][0] for row in rows if not row["possible"]}
    assert {"partition closed is down", "vip is for the accounts vip"} <= refused
    asked = [line for line in log.read_text().splitlines() if "--test-only" in line]
    assert len(asked) == len(possible)
    assert all("--qos=normal" in line for line in asked)
    # The job file's own 12 hours need no word: one row asks for just as much.
    assert sum("--time=" in line for line in asked) == len(asked) - 1
    assert any("--gpus-per-node=l40s:1 --cpus-per-task=32" in line for line in asked), asked


def test_what_slurm_refuses_stays_in_the_table_with_its_reason(slurm, tmp_path):
    folder = tmp_path / "recorded"
    folder.mkdir()
    for path in (RECORDED / "busy").iterdir():
        (folder / path.name).write_text(path.read_text())
    (folder / "test_only.txt").write_text(
        "allocation failure: Invalid account or account/partition combination specified\n"
    )
    slurm(folder)
    done = subprocess.run(
        [sys.executable, "-m", "convoy.commands", "plan", "--json", "--", "global_batch=176"],
        env={**os.environ, "NAVSIM_EXP_ROOT": str(tmp_path)},
        text=True,
        capture_output=True,
        cwd=ROOT,
    )
    content = json.loads(done.stdout)
    assert done.returncode == 1 and content["recommended"] is None
    said = "SLURM: Invalid account or account/partition combination specified"
    assert any(row["refusals"] == [said] for row in content["rows"])


def test_a_prediction_is_found_again_beside_what_happened(tmp_path):
    picture, _ = cluster_file.load(Path(__file__).with_name("notes.toml"))
    training = Training("x_agent", 1000, 100, 2, 16, 16)
    offer = next(offer for offer in plan.offers(picture, "users") if offer.nodes == 2)
    row = plan.forecast(offer, training, starts.Wait.of(600, "given"))
    assert choice.choose([row], "soonest").best is row
    overrides = ["experiment_name=first", "seed=1"]
    root = expected_run(tmp_path, overrides, "12")
    assert root == tmp_path / "first" / "12"
    history.write_prediction(root, row, training, "12", 1000.0)
    (root / "launches.jsonl").write_text(json.dumps({"time": 1900.0}) + "\n")
    found = history.check(story.read(root))
    assert found is not None and found.predicted_rate == row.rate.samples_per_s
    assert (found.predicted_wait, found.actual_wait, found.actual_rate) == (600, 900, None)
    assert expected_run(tmp_path, ["run_dir=/runs/a"], "12") == Path("/runs/a")
