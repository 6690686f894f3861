"""`convoy verdict`: what a person reads, what the batch script does, and what the run records."""

import json
import os
import subprocess
import time
from pathlib import Path

import pytest

from convoy.commands.__main__ import main
from convoy.launch import verdict
from convoy.run import events, node_state
from convoy.run.layout import RunDirectory
from convoy.run.lock import RunLock, newest
from convoy.topology import Agreement

ROOT = Path(__file__).parents[2]
RUNNING = "JobState=RUNNING Requeue=1 BatchFlag=1 ExcNodeList=(null)"


@pytest.fixture
def ended(tmp_path, capsys):
    """A start on two nodes; ask for its verdict."""
    run = RunDirectory(tmp_path)
    run.logs.mkdir()

    def begin(start: str):
        entry = {"start": start, "job": "7", "software": {}, "nodes": ["gl001", "gl006"]}
        with run.launches.open("a") as file:
            file.write(json.dumps(entry) + "\n")
        for host in ("gl001", "gl006"):
            node_state.begin(run, start, host)

    begin("7-0")
    events.record(run, "checkpoint", step=40)

    def ask(*arguments: str, start: str = "7-0"):
        agreement = Agreement(start, "gl001:61000", str(tmp_path), "gl001:61001", "/data").to_text()
        assert main(["verdict", f"--job={RUNNING}", *arguments, agreement]) == 0
        said = capsys.readouterr()
        marked = [line for line in said.out.splitlines() if line.startswith("convoy-verdict ")]
        assert len(marked) == 1
        return marked[0].removeprefix("convoy-verdict ").split(), said.err

    ask.begin = begin
    ask.run = run
    return ask


def test_a_lost_node_is_named_not_the_rank_that_noticed(ended):
    reset = "RuntimeError: Connection reset by peer"
    verdict.write(ended.run, "7-0", verdict.Failure(0, "gl001", 1.0, 1, reset))
    answer, said = ended("--status=1", "--answering=Welcome\ngl001")
    assert answer == ["requeue", "75", "gl006", "-"]
    assert said.splitlines()[0].startswith("convoy: gl006 went away")
    assert "failed first" not in said
    recorded = events.read(ended.run)[1:]
    assert [entry["kind"] for entry in recorded] == ["lost_node", "excluded_node", "requeue"]
    assert recorded[1]["node"] == "gl006" and recorded[1]["until"] > recorded[1]["time"]
    assert recorded[2]["step"] == 40


def test_another_start_that_was_refused_meanwhile_is_not_meant(ended):
    """A second job of the same run leaves its line, too: its nodes are none of this start's."""
    second = {"start": "8-0", "job": "8", "software": {}, "nodes": ["gl011", "gl016"]}
    with ended.run.launches.open("a") as file:
        file.write(json.dumps(second) + "\n")
    killed = verdict.Failure(0, "gl001", 1.0, -9, "it was killed by SIGKILL")
    verdict.write(ended.run, "7-0", killed)
    answer, said = ended("--status=1", "--answering=gl001\ngl006")
    assert answer == ["again", "75", "-", "-"] and "gl011" not in said


def test_every_end_leaves_a_report(ended):
    ended("--status=75", "--asked=USR1")
    assert "<html" in ended.run.report.read_text()


@pytest.mark.parametrize(
    ("job", "gone", "ended_by_itself", "waits"),
    [("7", "", False, False), ("8", "", False, True), ("7", "gl006", False, True)]
    + [("7", "gl006", True, False)],
)
def test_the_next_start_need_not_wait_for_an_owner_that_has_ended(
    ended, job, gone, ended_by_itself, waits
):
    """Not so for another job's owner, nor for one that may live on where a node went."""
    owned = RunLock(ended.run, job)
    owned.acquire()
    number, _ = newest(ended.run)
    elsewhere = json.loads(ended.run.owner(number).read_text()) | {"place": "x", "host": "gl001"}
    owned._ended.set()  # killed, on another machine than the next start's
    ended.run.owner(number).write_text(json.dumps(elsewhere))
    if gone:
        node_state.lose(ended.run, "7-0", gone)
    if ended_by_itself:
        node_state.write(ended.run, "7-0", node_state.NodeState("gl001", 1.0, exit_code=75))
    ended("--status=1", "--answering=gl001\ngl006")
    assert newest(ended.run)[1].is_over is not waits


def elastic(ended, monkeypatch, overrides, nodes=("gl001", "gl006", "gl011"), config="32"):
    """Three nodes of two ranks each; gl006 has gone, and the job may continue on two."""
    monkeypatch.setenv("CONVOY_MIN_NODES", "2")
    monkeypatch.setenv("SLURM_JOB_NUM_NODES", "3")
    entry = {
        "start": "7-0",
        "software": {},
        "nodes": list(nodes),
        "processes_per_node": 2,
        "overrides": overrides,
    }
    ended.run.launches.write_text(json.dumps(entry) + "\n")
    ended.run.config.write_text(f"global_batch: {config}\n")
    return ended("--status=75", "--answering=gl001\ngl011")


def test_the_others_continue_with_the_same_global_batch(
    ended, monkeypatch, ego_cache, foreign_tree
):
    cpu = ("trainer.params.accelerator=cpu", "trainer.params.precision=32-true")
    given = ["agent=foreign_agent", f"cache_path={ego_cache}", *cpu]
    answer, said = elastic(ended, monkeypatch, [*given, "global_batch=24"], config="24")
    assert answer == ["shrink", "75", "gl006", "-"]
    assert "launch: continuing on 2 nodes without gl006" in said
    kinds = [entry["kind"] for entry in events.read(ended.run)][1:]
    assert kinds == ["lost_node", "excluded_node", "shrink"]
    # Where only the number of ranks made it what it is, it has to be named.
    assert elastic(ended, monkeypatch, given, config="24")[0] == ["shrink", "75", "gl006", "24"]


@pytest.mark.parametrize(
    ("batch", "nodes", "said"),
    [
        ("30", ("gl001", "gl006", "gl011"), "global_batch=30 cannot be split over world size 4"),
        ("24", ("gl006", "gl001", "gl011"), "the rendezvous was on it"),
        ("24", ("gl001", "gl006"), "1 of the 2 that CONVOY_MIN_NODES asks for are left"),
    ],
)
def test_where_the_others_cannot_continue_the_job_is_requeued(
    ended, monkeypatch, ego_cache, foreign_tree, batch, nodes, said
):
    cpu = ("trainer.params.accelerator=cpu", "trainer.params.precision=32-true")
    given = ["agent=foreign_agent", f"cache_path={ego_cache}", *cpu, f"global_batch={batch}"]
    answer, shown = elastic(ended, monkeypatch, given, nodes, batch)
    assert answer == ["requeue", "75", "gl006", "-"]
    assert "launch: requeueing the job, without gl006 (" in shown and said in shown


def test_a_killed_rank_is_started_again_until_that_leads_nowhere(ended):
    for start in ("7-0", "7-0.1", "7-0.2"):
        ended.begin(start)
        verdict.write(ended.run, start, verdict.died(1, "gl006", -9))
        # Both sides of a network that is cut decide: that is one start.
        for _ in range(2):
            answer, said = ended("--status=1", "--answering=gl001\ngl006", start=start)
        if start != "7-0.2":
            assert answer == ["again", "75", "-", "-"]
            assert "rank 1 on gl006 failed first: it was killed by SIGKILL" in said
    assert answer == ["end", "1", "-", "-"]
    assert "3 starts in a row ended at step 40" in said
    kinds = [entry["kind"] for entry in events.read(ended.run)][1:]
    assert kinds == [*["restart"] * 4, "end", "end"]


def test_a_start_that_fell_back_to_an_older_checkpoint_makes_progress_too(ended):
    """The newest was damaged: the next start continues before it, and writes others."""
    for start, step in (("7-0", 60), ("7-0.1", 45), ("7-0.2", 50)):
        ended.begin(start)
        events.record(ended.run, "checkpoint", step=step)
        verdict.write(ended.run, start, verdict.died(1, "gl006", -9))
        answer, _ = ended("--status=1", "--answering=gl001\ngl006", start=start)
        assert answer == ["again", "75", "-", "-"]
        assert events.read(ended.run)[-1]["step"] == step


def test_a_stop_before_the_time_limit_is_requeued(ended):
    for host in ("gl001", "gl006"):
        node_state.write(ended.run, "7-0", node_state.NodeState(host, 1.0, 75, "SIGUSR1"))
    answer, said = ended("--status=75", "--asked=USR1")
    assert answer == ["requeue", "75", "-", "-"]
    assert said.splitlines() == [
        "convoy: the ranks saved and stopped.",
        "launch: requeueing the job",
    ]
    assert main(["verdict", "--status=1", "not an agreement"]) == 1


@pytest.fixture
def script(tmp_path):
    """Runs lines of bash after slurm/verdict.sh, with stand-ins for programs; its output."""

    def run(lines: str, **programs: str) -> str:
        for name, body in programs.items():
            (tmp_path / name).write_text(f"#!/usr/bin/env bash\n{body}\n")
            (tmp_path / name).chmod(0o755)
        done = subprocess.run(
            ["bash", "-c", f"root=. SLURM_JOB_ID=7; . slurm/verdict.sh; {lines}"],
            cwd=ROOT,
            env=os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"},
            text=True,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        return done.stdout

    return run


def test_the_nodes_to_avoid_are_named_although_slurm_ends_the_script(script):
    """With the requeued job SLURM sends SIGTERM to all of its processes, scontrol's too."""
    scontrol = (
        'if [[ $1 == requeue ]]; then (sleep 0.1; kill -TERM 0) & exit; fi; sleep 0.3; echo "$@"'
    )
    said = script("trap : TERM; requeue gl001", scontrol=scontrol)
    assert said == "update JobId=7 ExcNodeList=gl001\n"


def test_a_node_that_is_gone_is_given_up_although_srun_waits_for_it(script):
    srun = "if [[ $* == *gl006* ]]; then trap '' TERM; sleep 20; fi; echo gl001"
    timeout = 'exec /usr/bin/timeout "${@/#15/0.2}"'
    began = time.monotonic()
    assert script("answering gl001 gl006", srun=srun, timeout=timeout) == "gl001\n"
    assert time.monotonic() - began < 5


def test_a_signal_to_the_script_does_not_hide_how_the_ranks_ended(script):
    """They end while the script passes the signal on: it asks the ranks in a container."""
    lines = """
        (sleep 0.2; exit 75) & ranks=$!
        (sleep 0.1; kill -TERM $$) &
        trap 'interrupted=1; sleep 0.4' TERM
        await "$ranks"; echo "$status"
    """
    assert script(lines) == "75\n"
