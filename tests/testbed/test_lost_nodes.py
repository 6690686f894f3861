"""Nodes that go away, or should not take part: real containers are killed under a real SLURM."""

import json
import time
from datetime import datetime

import pytest

ONE_GPU = ("--gpus-per-node=1", "--cpus-per-task=8", "--mem=8G")
TWO = "slurm/torchrun_2node.slurm"
TRAINING = (
    "agent=bev_fusion_agent",
    "cache_path=/scratch/cache",
    "global_batch=16",
    "dataloader.params.num_workers=0",
    "trainer.params.max_epochs=100000",
    "trainer.params.check_val_every_n_epoch=100000",
    "trainer.params.log_every_n_steps=1",
    "checkpoint.every_minutes=0.05",
)


class Watched:
    """A submitted training, seen from outside."""

    def __init__(self, testbed, *arguments, environment=()):
        self.testbed = testbed
        submitted = testbed.run(
            "env",
            f"CONVOY_IMAGE={testbed.image}",
            *environment,
            "sbatch",
            "--parsable",
            "--output=/scratch/job-%j.log",
            *ONE_GPU,
            *arguments,
        )
        self.job = submitted.out.strip()
        assert self.job.isdigit(), submitted.out
        self.run_dir = f"/scratch/exp/train/{self.job}"

    @property
    def log(self) -> str:
        return self.testbed.run("cat", f"/scratch/job-{self.job}.log").out

    @property
    def facts(self) -> dict[str, str]:
        shown = self.testbed.run("scontrol", "show", "job", self.job).out
        return dict(word.split("=", 1) for word in shown.split() if "=" in word)

    def events(self, kind: str) -> list[dict]:
        lines = self.testbed.run("cat", f"{self.run_dir}/events.jsonl").out.splitlines()
        found = [json.loads(line) for line in lines if line.startswith("{")]
        return [entry for entry in found if entry["kind"] == kind]

    def steps(self) -> list[tuple[float, int]]:
        """Time and number of each step, over all starts."""
        text = self.testbed.run(
            "bash", "-c", f"grep -h 'step [0-9]*/' {self.run_dir}/logs/rank-000.log"
        ).out
        found = []
        for line in text.splitlines():
            when, _, rest = line.partition(",")
            if " step " in rest:
                stamp = datetime.strptime(when, "%Y-%m-%d %H:%M:%S").timestamp()
                found.append((stamp, int(rest.split(" step ")[1].split("/")[0])))
        return found

    def noticed(self, start: object) -> float:
        """When the others left word that a node went."""
        path = f"{self.run_dir}/logs/nodes-{self.job}-{start}/lost"
        return float(self.testbed.run("stat", "--format=%.Y", path).out)

    def wait(self, what, done, patience=120.0):
        deadline = time.monotonic() + patience
        while not (value := done()):
            assert time.monotonic() < deadline, f"{what} did not come; {self.facts}\n{self.log}"
            time.sleep(0.5)
        return value

    def wait_for_log(self, text: str, patience=120.0):
        self.wait(text, lambda: text in self.log, patience)


def test_the_others_continue_without_a_lost_node(testbed):
    run = Watched(
        testbed,
        "--nodes=3",
        "--nodelist=gl001,gl006,gl011",
        "--no-kill",
        TWO,
        *TRAINING,
        "global_batch=24",
        environment=("CONVOY_MIN_NODES=2",),
    )
    run.wait("a checkpoint", lambda: run.events("checkpoint"))
    (measured,) = run.events("all_reduce")
    assert (measured["ranks"], measured["nodes"], measured["backend"]) == (3, 3, "gloo")
    assert measured["gb_per_s"] > 0
    with testbed.killed("gl006") as when:
        run.wait_for_log("convoy: gl006 went away: SLURM cannot reach it any more.", 60)
        run.wait_for_log("launch: continuing on 2 nodes without gl006", 10)
        taken = run.wait("a step", lambda: [step for at, step in run.steps() if at > when + 15], 90)
        again = run.events("start")[-1]["time"]
        print(
            f"noticed after {run.noticed(0) - when:.1f} s, verdict after "
            f"{run.events('shrink')[0]['time'] - when:.0f} s, start after {again - when:.0f} s, "
            f"a step after {run.steps()[-1][0] - when:.0f} s"
        )
        assert again - when < 60
        # The survivors ended by themselves, and nobody is taken for the cause.
        assert "failed first" not in run.log
        (lost,) = run.events("lost_node")
        assert lost["node"] == "gl006"
        assert run.events("shrink")[0]["time"] - when < 40
        launches = testbed.read(f"{run.run_dir}/launches.jsonl").splitlines()
        assert [json.loads(line)["nodes"] for line in launches] == [
            ["gl001", "gl006", "gl011"],
            ["gl001", "gl011"],
        ]
        assert "global batch 24 = 2 ranks x 12 samples x 1" in run.log
        assert taken and run.facts["JobState"] == "RUNNING" and run.facts["Restarts"] == "0"
        # One more, and too few are left: the job is requeued without both.
        with testbed.cut_off("gl011") as when:
            run.wait_for_log("1 of the 2 that CONVOY_MIN_NODES asks for are left", 60)
            print(f"a cut noticed after {run.noticed('0.1') - when:.1f} s")
            assert run.noticed("0.1") - when < 12
            run.wait("requeueing", lambda: run.facts["ExcNodeList"] == "gl006,gl011", 20)
    testbed.assert_nothing_left()


def test_the_rendezvous_is_lost(testbed):
    """The batch script went with it: the first of the others requeues the job."""
    run = Watched(testbed, "--nodelist=gl001,gl006", TWO, *TRAINING)
    run.wait("a checkpoint", lambda: run.events("checkpoint"))
    with testbed.killed("gl001") as when:
        run.wait_for_log("convoy: gl001 went away: SLURM cannot reach it any more.", 60)
        run.wait_for_log("launch: requeueing the job, without gl001", 10)
        run.wait("requeueing", lambda: run.facts["Restarts"] == "1", 10)
        print(f"requeued after {time.time() - when:.0f} s")
        assert run.facts["ExcNodeList"] == "gl001"
        assert run.events("lost_node")[0]["node"] == "gl001"
        assert [entry["reason"] for entry in run.events("excluded_node")] != []


def test_an_unfit_node_is_named_and_left_out(testbed):
    """Its folder of the data set is another one than the other nodes'."""
    cover = testbed.run("mount", "-t", "tmpfs", "none", "/scratch/cache", host="gl006", root=True)
    assert cover.code == 0, cover.out
    try:
        run = Watched(testbed, "--nodelist=gl001,gl006", TWO, *TRAINING)
        run.wait_for_log("convoy: unfit for the run: gl006: the data set is 0 logs", 60)
        run.wait_for_log("launch: requeueing the job, without gl006", 10)
        run.wait("requeueing", lambda: run.facts["Restarts"] == "1", 20)
        assert run.facts["ExcNodeList"] == "gl006" and run.facts["ExitCode"] in {"3:0", "0:0"}
        found = run.events("preflight")
        assert {entry["host"] for entry in found} == {"gl001", "gl006"}
        assert all(entry["seconds"] < 20 for entry in found)
        print({entry["host"]: (entry["seconds"], entry["with_the_others"]) for entry in found})
        (left_out,) = run.events("excluded_node")
        assert left_out["until"] - left_out["time"] == pytest.approx(12 * 3600, abs=60)
    finally:
        testbed.run("umount", "/scratch/cache", host="gl006", root=True)
        testbed.run("scancel", "--user=researcher")
