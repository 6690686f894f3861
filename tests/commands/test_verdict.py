"""`convoy verdict`: what a person reads, what the batch script does, and what the run records."""

import json

import pytest

from convoy.commands.__main__ import main
from convoy.launch import verdict
from convoy.run import events, node_state
from convoy.run.layout import RunDirectory
from convoy.run.lock import RunLock, newest
from convoy.topology import Agreement

RUNNING = "JobState=RUNNING Requeue=1 BatchFlag=1 ExcNodeList=(null)"


@pytest.fixture
def ended(tmp_path, capsys):
    """A start on two nodes; ask for its verdict."""
    run = RunDirectory(tmp_path)
    run.logs.mkdir()
    entry = {"start": "7-0", "job": "7", "software": {}, "nodes": ["gl001", "gl006"]}
    run.launches.write_text(json.dumps(entry) + "\n")
    for host in ("gl001", "gl006"):
        node_state.begin(run, "7-0", host)
    events.record(run, "checkpoint", step=40)

    def ask(*arguments: str):
        agreement = Agreement("7-0", "gl001:61000", str(tmp_path), "gl001:61001", "/data").to_text()
        assert main(["verdict", f"--job={RUNNING}", *arguments, agreement]) == 0
        said = capsys.readouterr()
        marked = [line for line in said.out.splitlines() if line.startswith("convoy-verdict ")]
        assert len(marked) == 1
        return marked[0].removeprefix("convoy-verdict ").split(), said.err

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
    verdict.write(ended.run, "7-0", verdict.died(1, "gl006", -9))
    for _ in range(2):
        answer, said = ended("--status=1", "--answering=gl001\ngl006")
        assert answer == ["again", "75", "-", "-"]
        assert "rank 1 on gl006 failed first: it was killed by SIGKILL" in said
    answer, said = ended("--status=1", "--answering=gl001\ngl006")
    assert answer == ["end", "1", "-", "-"]
    assert "3 starts in a row ended at step 40" in said
    assert [entry["kind"] for entry in events.read(ended.run)][1:] == ["restart", "restart", "end"]


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
