"""A sweep on a real SLURM: four points, two at a time, one that fails at first and one that is
requeued."""

import json
import time

import pytest

SWEEP = "/scratch/exp/four"
POINTS = (
    "agent=bev_fusion_agent",
    "cache_path=/scratch/cache",
    "data.val_fraction=0.25",
    "seed=0,1",
    "trainer.params.max_epochs=1,30",
    "global_batch=16",
    "dataloader.params.num_workers=0",
    "trainer.params.log_every_n_steps=1",
)
SUBMIT = (
    f"--sweep={SWEEP}",
    "--concurrency=2",
    "--gpus-per-node=1",
    "--sbatch=cpus-per-task=8",
    "--sbatch=mem=20G",
    "--sbatch=output=/scratch/%A_%a.log",
    "--multirun",
)
FAILING = f"{SWEEP}/seed=1,trainer.params.max_epochs=1"


@pytest.fixture
def convoy(testbed):
    def run(*arguments):
        environment = ("PYTHONPATH=src", f"CONVOY_IMAGE={testbed.image}")
        return testbed.run(
            "env", *environment, "python3", "-m", "convoy.commands", *arguments, timeout=600
        )

    return run


def queue(testbed) -> dict[str, str]:
    """Array task -> its state, or why it waits."""
    listed = testbed.run("squeue", "--noheader", "--array", "-O", "JobArrayID:|,State:|,Reason:|")
    rows = [line.split("|") for line in listed.out.splitlines()]
    return {row[0]: row[1] if row[1] != "PENDING" else f"PENDING {row[2]}" for row in rows}


def points(convoy) -> dict[str, dict]:
    done = convoy("sweep", SWEEP, "--json")
    assert done.code == 0, done.out
    return {point["name"]: point for point in json.loads(done.out)["points"]}


def test_a_sweep_ends_in_its_table_after_a_restart(testbed, convoy):
    # A file where the run's folder of checkpoints would be: its ranks cannot write.
    made = testbed.run("bash", "-c", f"mkdir -p {FAILING} && touch {FAILING}/checkpoints")
    assert made.code == 0, made.out
    bad = convoy("submit", *SUBMIT, "--", *POINTS[:-3], "global_batch=16,-3", *POINTS[-2:])
    assert bad.code == 1 and len(bad.out.splitlines()) == 4, bad.out
    assert "global_batch=-3,seed=0,trainer.params.max_epochs=1: global_batch" in bad.out
    assert queue(testbed) == {}

    submitted = convoy("submit", *SUBMIT, "--", *POINTS)
    assert submitted.code == 0, submitted.out
    command, said, _ = submitted.out.splitlines()
    assert "--array=0-3%2" in command and command.endswith(f"--sweep={SWEEP}")
    job = said.split()[3]
    again = convoy("submit", *SUBMIT, "--", *POINTS)  # while the first is queued
    assert again.code == 0 and "there is nothing to submit" in again.out, again.out

    warned, most = False, 0
    deadline = time.monotonic() + 400
    while left := queue(testbed):
        assert time.monotonic() < deadline, left
        most = max(most, list(left.values()).count("RUNNING"))
        log = testbed.run("bash", "-c", f"cat /scratch/{job}_1.log 2> /dev/null").out
        if not warned and "epoch 1 " in log:
            assert (
                testbed.run("scancel", "--ctld", "--signal=USR1", "--batch", f"{job}_1").code == 0
            )
            warned = True
        if left.get(f"{job}_1") == "PENDING BeginTime":
            testbed.run("scontrol", "update", f"JobId={job}_1", "StartTime=now")
        time.sleep(0.5)
    assert warned and most == 2

    found = points(convoy)
    failed = found.pop("seed=1,trainer.params.max_epochs=1")
    assert failed["state"] == "failed" and "cannot be written" in failed["reason"], failed
    assert {point["state"] for point in found.values()} == {"finished"}, found
    requeued = found["seed=0,trainer.params.max_epochs=30"]
    assert (requeued["job"], requeued["starts"]) == (f"{job}_1", 2)
    log = testbed.read(f"/scratch/{job}_1.log")
    assert "launch: requeueing the job" in log and "going on from" in log
    assert all(point["starts"] == 1 for point in found.values() if point is not requeued)
    logs = convoy("logs", f"{job}_2", "--lines=20")
    assert logs.code == 0 and "cannot be written" in logs.out, logs.out

    assert testbed.run("rm", f"{FAILING}/checkpoints").code == 0
    restarted = convoy("submit", f"--sweep={SWEEP}")
    assert restarted.code == 0 and "--array=2%2" in restarted.out, restarted.out
    second = restarted.out.splitlines()[1].split()[3]
    assert testbed.wait(second).code == 0
    found = points(convoy)
    assert {point["state"] for point in found.values()} == {"finished"}, found
    assert found["seed=1,trainer.params.max_epochs=1"]["job"] == f"{second}_2"
    order = [point["ade"] for point in found.values()]
    assert order == sorted(order)

    shown = testbed.run(
        "apptainer", "exec", "--bind=/scratch", str(testbed.image), "convoy", "sweep", SWEEP
    )
    assert shown.code == 0, shown.out
    assert "4 of 4 points are finished" in shown.out and "ADE, m" in shown.out, shown.out
    assert testbed.run("test", "-s", f"{SWEEP}/sweep.png").code == 0
    done = convoy("submit", f"--sweep={SWEEP}")
    assert done.code == 0 and "4 finished; there is nothing to submit" in done.out, done.out
    testbed.assert_nothing_left()


def test_tasks_are_stopped_one_by_one_or_all(testbed, convoy):
    endless = [
        word.replace("max_epochs=1,30", "max_epochs=100000").replace("seed=0,1", "seed=0,1,2,3")
        for word in POINTS
    ]
    submitted = convoy("submit", *SUBMIT[1:], "--", *endless)
    assert submitted.code == 0, submitted.out
    job = submitted.out.splitlines()[1].split()[3]
    deadline = time.monotonic() + 200
    while "epoch 1 " not in testbed.run("bash", "-c", f"cat /scratch/{job}_0.log").out:
        assert time.monotonic() < deadline
        time.sleep(1)
    listed = json.loads(convoy("list", "--json").out)
    states = {line["job"]: line["state"] for line in listed if line["job"].startswith(job)}
    assert states == {
        f"{job}_0": "running",
        f"{job}_1": "running",
        f"{job}_2": "pending",
        f"{job}_3": "pending",
    }
    watched = convoy("watch", f"{job}_2", "--json")
    assert "its array runs as many tasks at once as it may" in watched.out, watched.out
    whole = convoy("watch", job, "--json")
    assert whole.code == 1 and f"Job {job} is an array: name one of its tasks" in whole.out
    one = convoy("stop", f"{job}_0")
    assert one.code == 0 and f"Job {job}_0 has ended" in one.out, one.out
    assert f"{job}_0" not in queue(testbed)
    log = testbed.read(f"/scratch/{job}_0.log")
    assert "the ranks were asked to save and stop" in log or "Stopped" in log, log
    rest = convoy("stop", job)
    assert rest.code == 0, rest.out
    assert queue(testbed) == {}
    testbed.assert_nothing_left()
