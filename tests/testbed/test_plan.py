"""`convoy plan`, `watch`, `stop` and the report on a real SLURM, against what then happened.

A cluster of its own: one pretended GPU a node, two types of them, preemption, a partition with a
limit of half an hour. The agent sleeps for each sample: as on GPUs, and unlike anything else on one
machine, twice the ranks take half the time.
"""

import json
import re
import time
from dataclasses import dataclass
from typing import Any

import pytest

AGENT = """
import time
import torch


class Builder:
    def __init__(self, name):
        self.name = name

    def get_unique_name(self):
        return self.name


class Agent(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.mlp = torch.nn.Linear(8, 24)

    def get_feature_builders(self):
        return [Builder("ego_status_feature")]

    def get_target_builders(self):
        return [Builder("trajectory_target")]

    def forward(self, features):
        time.sleep(len(features["ego_status"]) * (0.15 if self.training else 0.05))
        return {"trajectory": self.mlp(features["ego_status"].float()).reshape(-1, 8, 3)}

    def compute_loss(self, features, targets, predictions):
        return torch.nn.functional.l1_loss(predictions["trajectory"], targets["trajectory"].float())

    def get_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.01)

    def get_training_callbacks(self):
        return []
"""
FILES = {
    "/scratch/fork/navsim/__init__.py": "",
    "/scratch/fork/navsim/agents/__init__.py": "",
    "/scratch/fork/navsim/agents/sleeping.py": AGENT,
    "/scratch/fork/navsim/planning/script/config/common/agent/sleeping_agent.yaml": (
        "_target_: navsim.agents.sleeping.Agent\n_convert_: all\n"
    ),
}
SLURM = (
    "PreemptType=preempt/partition_prio",
    "PreemptMode=REQUEUE",
    "PartitionName=low Nodes=ALL PriorityTier=1 GraceTime=5",
    "PartitionName=high Nodes=ALL PriorityTier=10",
    "PartitionName=short Nodes=ALL MaxTime=00:30:00",
)
TRAINING = (
    "agent=sleeping_agent",
    "cache_path=/scratch/cache",
    "global_batch=8",
    "checkpoint.every_minutes=0.05",
    "trainer.params.log_every_n_steps=1",
)
SIZE = ("--samples=48", "--val-samples=16")  # of /scratch/cache
FIRST = (*TRAINING, "experiment_name=first", "trainer.params.max_epochs=8")
PATIENCE = 240.0


@dataclass(frozen=True)
class Site:
    """A person on the login node."""

    testbed: Any  # conftest.py's

    def convoy(self, *words: str, code: int = 0) -> str:
        named = ("PYTHONPATH=src", f"CONVOY_IMAGE={self.testbed.image}")
        fork = "NAVSIM_DEVKIT_ROOT=/scratch/fork"
        command = ("env", *named, fork, "python3", "-m", "convoy.commands.__main__", *words)
        done = self.testbed.run(*command)
        assert done.code == code, done.out
        return done.out

    def plan(self, *options: str, training: tuple[str, ...] = TRAINING) -> dict[str, Any]:
        out = self.convoy("plan", "--json", *options, "--", *training)
        plan: dict[str, Any] = json.loads(out[out.index("{") :])
        return plan

    def submit(self, nodes: int, partition: str, training: tuple[str, ...]) -> str:
        """`convoy plan --submit`, with a plan of that shape alone; its job."""
        shape = ("--partition", partition, "--nodes", str(nodes))
        said = self.convoy("plan", *shape, *SIZE, "--submit=1", "--", *training)
        found = re.search(r"^Submitted batch job (\d+)", said, re.MULTILINE)
        assert found, said
        return found.group(1)

    def state(self, job: str) -> str:
        """State and reason; empty where the job has left the queue."""
        said = self.testbed.run("squeue", "-h", "-j", job, "-o", "%T %r").out.strip()
        return "" if "error" in said else said

    def wait_for(self, what: str, happened: Any) -> None:
        deadline = time.monotonic() + PATIENCE
        while not happened():
            if time.monotonic() > deadline:
                logs = self.testbed.run("bash", "-c", "tail -n 15 convoy-*.log /scratch/*.log").out
                raise AssertionError(f"{what} did not happen:\n{logs}")
            time.sleep(0.3)

    def step(self, run: str) -> int:
        """The step that the run has reported last."""
        said = self.testbed.run("cat", f"{run}/progress.json")
        return int(json.loads(said.out)["step"]) if said.code == 0 else 0

    def occupy(self, nodes: int, seconds: int, minutes: int, *options: str) -> str:
        """Another's job, which nothing preempts."""
        given = ("--parsable", "--account=users", "--partition=high", "--output=/dev/null")
        size = (f"--nodes={nodes}", "--gpus-per-node=l40s:1", f"--time={minutes}")
        done = self.testbed.run("sbatch", *given, *size, *options, f"--wrap=sleep {seconds}")
        assert done.code == 0, done.out
        return done.out.strip()


@pytest.fixture(scope="module")
def site(another_testbed):
    shape = ("--nodes=5", "--gpus=1", "--gpu-types=l40s,l40s,l40s,l40s,h200")
    with another_testbed("plan", *shape, *(f"--slurm-conf={line}" for line in SLURM)) as testbed:
        synth = ("synth", "/scratch/cache", "--samples", "64", "--logs", "4")
        made = testbed.run("apptainer", "run", "--bind=/scratch", str(testbed.image), *synth)
        assert made.code == 0, made.out
        write = 'mkdir -p "$(dirname "$1")" && printf %s "$2" > "$1"'
        for path, text in FILES.items():
            assert testbed.run("bash", "-c", write, "bash", path, text).code == 0
        yield Site(testbed)


def rows(plan: dict[str, Any], **wanted: Any) -> list[dict[str, Any]]:
    return [row for row in plan["rows"] if wanted.items() <= row["offer"].items()]


def test_what_speaks_against_a_shape(site):
    """Two types of GPU, a drained node, a limit of half an hour, an account without rights."""
    reason = ("State=DRAIN", "Reason=a fan is loud")
    drained = site.testbed.run("scontrol", "update", "NodeName=gl021", *reason, root=True)
    assert drained.code == 0, drained.out
    plan = site.plan("--samples", "20000000", "--val-samples", "1000000")
    assert {row["offer"]["gpu"] for row in plan["rows"]} == {"l40s", "h200"}
    assert {row["offer"]["partition"] for row in plan["rows"]} == {
        *("l40s_public", "h200", "low", "high", "short"),
    }
    for row in rows(plan, gpu="h200"):
        assert not row["possible"]
        assert row["refusals"] == [
            "only 0 of 1 such nodes are in service (1 are away: a fan is loud)"
        ]
    for row in rows(plan, partition="short", gpu="l40s"):
        assert row["segments"] > 1 and "the limit is 0.5 h" in row["remarks"][0]
    best = plan["rows"][plan["recommended"] - 1]
    assert best["possible"] and best["offer"]["gpu"] == "l40s" and best["wait"]["expected"] < 60

    added = site.testbed.run("sacctmgr", "-i", "add", "account", "strangers", root=True)
    assert added.code == 0, added.out
    refused = site.convoy("plan", "--json", "--account=strangers", "--", *TRAINING, code=1)
    assert '"recommended": null' in refused
    assert "the account strangers is not yours (yours: users)" in refused
    asked = ("sbatch", "--test-only", "--account=strangers", "--wrap=true")
    assert "Invalid account" in site.testbed.run(*asked).out  # SLURM says the same


def test_the_report_of_a_run_that_was_preempted_twice(site, show, tmp_path):
    """By jobs of a partition with a higher priority. Submitted by the plan, so that it has a
    prediction; the rate that it reaches is what the next test's plan is made of."""
    job = site.submit(2, "low", FIRST)
    run = f"/scratch/exp/first/{job}"
    for beyond in (3, 12):
        site.wait_for(f"step {beyond}", lambda beyond=beyond: site.step(run) > beyond)
        other = site.occupy(4, 3, 1)
        site.wait_for("the preemption", lambda: site.state(job).startswith("PENDING"))
        site.wait_for("the other job's end", lambda other=other: not site.state(other))
        # SLURM holds a requeued job for two minutes.
        site.testbed.run("scontrol", "update", f"JobId={job}", "StartTime=now")
    site.wait_for("the end", lambda: not site.state(job))
    results = json.loads(site.testbed.read(f"{run}/results.json"))
    assert results["step"] == 48
    launches = site.testbed.read(f"{run}/launches.jsonl").splitlines()
    starts = [json.loads(line)["start"].partition(".")[0] for line in launches]
    assert list(dict.fromkeys(starts)) == [f"{job}-{restart}" for restart in range(3)]

    page = tmp_path / "report.html"
    page.write_text(site.testbed.read(f"{run}/report.html"))
    assert page.stat().st_size < 2 << 20
    document, said = show(page, 1400)
    assert said == "" and 'data-ready="yes"' in document
    timeline = next(
        figure
        for figure in re.findall(r"<figure .*?</figure>", document, re.DOTALL)
        if 'id="timeline"' in figure
    )
    ended = "(1) signal: SIGTERM; (2) signal: SIGTERM"
    assert f"3 starts: what ended the earlier ones was {ended}" in timeline


def test_the_recommended_row_finishes_first_of_three(site):
    """One node and two are free, four are not: the plan has to see that two are the soonest. Then
    watch while SLURM's controller is stopped, and stop what is not needed any more."""
    training = (*TRAINING, "experiment_name=race", "trainer.params.max_epochs=14")
    busy = site.occupy(1, 600, 10)
    site.wait_for("its start", lambda: site.state(busy).startswith("RUNNING"))
    shapes = ("--nodes=1,2,4", "--partition=l40s_public")
    plan = site.plan(*shapes, *SIZE, training=training)
    best = plan["rows"][plan["recommended"] - 1]
    assert (best["offer"]["gpu"], best["offer"]["nodes"]) == ("l40s", 2), plan["reason"]
    assert "no earlier run" not in best["rate"]["source"], best["rate"]
    assert 6 < best["rate"]["samples_per_s"] < 14
    (one,) = rows(plan, gpu="l40s", nodes=1)
    (four,) = rows(plan, gpu="l40s", nodes=4)
    assert four["wait"]["expected"] > 300
    assert one["total"]["expected"] > 1.1 * best["total"]["expected"]
    slower = site.submit(1, "l40s_public", training)
    fastest = site.submit(2, "l40s_public", training)
    later = site.submit(4, "l40s_public", training)

    run = f"/scratch/exp/race/{fastest}"
    site.wait_for("a step", lambda: site.step(run) > 0)
    site.testbed.run("pkill", "-STOP", "slurmctld", root=True)
    try:
        shown = json.loads(site.convoy("watch", "--json", run))
    finally:
        site.testbed.run("pkill", "-CONT", "slurmctld", root=True)
    assert "squeue" in shown["slurm"] and shown["progress"]["step"] > 0

    site.wait_for("the end of the recommended", lambda: not site.state(fastest))
    assert json.loads(site.testbed.read(f"{run}/results.json"))["step"] == 84
    assert site.state(slower).startswith("RUNNING") and site.state(later).startswith("PENDING")

    said = site.convoy("stop", slower)
    assert f"Job {slower} has ended; the same command continues from its checkpoint" in said
    events = site.testbed.read(f"/scratch/exp/race/{slower}/events.jsonl")
    kept = site.testbed.run("ls", f"/scratch/exp/race/{slower}/checkpoints").out
    assert "stop" in events and "last.ckpt" in kept and not site.state(slower)
    assert site.convoy("stop", later) == f"Job {later} is cancelled.\n"

    checks = json.loads(site.convoy("plan", "--history", "--json"))
    (raced,) = (check for check in checks if check["run"] == f"race/{fastest}")
    assert raced["actual_wait"] < 120 and raced["actual_total"] > raced["actual_wait"]
    assert abs(raced["actual_rate"] / raced["predicted_rate"] - 1) < 0.5
