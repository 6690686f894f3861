"""How far a point is, of files as runs leave them and a queue as SLURM shows it."""

import json
import time
from dataclasses import replace

import pytest

from convoy.host import sweep
from convoy.host.cluster_model import Job
from convoy.host.sweep_state import standings
from convoy.run import events
from convoy.run.layout import RunDirectory

JOB = Job(
    id="12_0", user="me", account="users", partitions=("l40s",), state="RUNNING", reason="None",
    nodes=1, gpus=4, limit=3600, left=1800, start=None, priority=1, submitted=None, hosts="gl001",
    qos="normal", name="convoy",
)  # fmt: skip


@pytest.fixture
def one(tmp_path):
    """A sweep of one point that was submitted as 12_0, and the point's run."""
    found = [{"name": "seed=0", "chosen": {"seed=0": "seed=0"}}]
    made = sweep.save(sweep.build(tmp_path, ["seed=0"], 1, {}, None, found))
    sweep.record(made, "12", made.points, str(tmp_path / "%A_%a.log"))
    return made, RunDirectory(made.directory(made.points[0]))


def started(run: RunDirectory, job: str, at: float) -> None:
    run.logs.mkdir(parents=True, exist_ok=True)
    entry = {"time": at, "start": f"{job}-0", "job": job, "nodes": ["a", "b"]}
    with run.launches.open("a") as file:
        file.write(json.dumps(entry | {"processes_per_node": 4}) + "\n")


def state(made, queue=(), problem=""):
    (found,) = standings(made, queue, problem)
    return found


def test_new_running_and_finished(one, tmp_path):
    made, run = one
    made.files.submissions.rename(tmp_path / "away")
    assert (state(made).state, state(made).is_open) == ("new", True)
    (tmp_path / "away").rename(made.files.submissions)
    assert (state(made, [JOB]).state, state(made, [JOB]).is_open) == ("running", False)
    assert state(made, [replace(JOB, state="PENDING")]).state == "pending"
    now = time.time()
    started(run, "12_0", now - 3600)
    run.progress.write_text(json.dumps({"time": now - 1800, "step": 4}))
    run.results.write_text(json.dumps({"ade": 1.5, "fde": 3.0, "loss": 0.25}))
    done = state(made, [JOB])
    assert (done.state, done.is_open, done.job) == ("finished", False, "12_0")
    assert done.figures == {"ade": 1.5, "fde": 3.0, "loss": 0.25}
    assert done.hours == pytest.approx(0.5, abs=0.01)
    assert done.gpu_hours == pytest.approx(4.0, abs=0.05)  # two nodes with four ranks each


def test_the_reason_of_an_end(one):
    made, run = one
    started(run, "12_0", time.time())
    assert state(made).state == "stopped" and "convoy logs 12_0" in state(made).reason
    events.record(run, "requeue", start="12_0-0", step=1, outcome="stopped", reason="they saved")
    assert (state(made).state, state(made).reason) == ("stopped", "they saved")
    events.record(run, "end", start="12_0-0", step=1, outcome="failed", reason="rank 3: no")
    failed = state(made)
    assert (failed.state, failed.reason, failed.is_open) == ("failed", "rank 3: no", True)


def test_a_task_that_never_reached_its_run(one, tmp_path):
    made, run = one
    started(run, "9_0", time.time() - 999)  # of an earlier array
    assert "left the queue before it started" in state(made).reason
    (tmp_path / "12_0.log").write_text("hello\nconvoy: cache_path=/x is not a directory\nsrun: 1\n")
    assert state(made).state == "failed"
    assert state(made).reason == "cache_path=/x is not a directory"


def test_without_slurm_nothing_is_claimed(one):
    made, run = one
    found = state(made, problem="squeue is not in PATH")
    assert (found.state, found.is_open, found.reason) == ("unknown", False, "squeue is not in PATH")
