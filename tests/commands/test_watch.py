"""`convoy watch`, `list`, `logs` and `stop`: screens, and what they say when things are missing."""

import json
import os
import shutil
import signal
import stat
import subprocess
import sys
from datetime import datetime
from pathlib import Path

import pytest
from rich.console import Console

from convoy.commands import watch
from convoy.host.cluster_model import Job
from convoy.host.locate import Found
from convoy.host.view import view
from convoy.run import stop_request
from convoy.run.layout import RunDirectory

ROOT = Path(__file__).parents[2]
NOW = 1_767_600_000.0 + 6.4 * 3600 + 20


@pytest.fixture(autouse=True)
def clock(monkeypatch):
    import time

    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def job(state: str, reason: str = "None", start: datetime | None = None) -> Job:
    hosts = "gl[001,006]" if state == "RUNNING" else ""
    left = 5 * 3600 if state == "RUNNING" else 12 * 3600
    return Job(
        "12",
        "me",
        "users",
        ("l40s_public",),
        state,
        reason,
        2,
        8,
        12 * 3600,
        left,
        start,
        5,
        hosts=hosts,
        name="convoy",
    )


def screen(found: Found, width: int) -> str:
    console = Console(width=width, record=True, file=open(os.devnull, "w"))
    console.print(watch.render(view(found, NOW)))
    return "\n".join(line.rstrip() for line in console.export_text().splitlines()) + "\n"


@pytest.mark.parametrize("width", [80, 200])
def test_the_screen_of_a_running_job(preempted_run, width):
    shown = screen(Found("12", job("RUNNING"), preempted_run), width)
    golden = Path(__file__).with_name(f"watch-{width}.golden")
    assert shown == golden.read_text(), f"if this is meant, write it to {golden}:\n{shown}"
    assert max(map(len, shown.splitlines())) <= width


@pytest.mark.parametrize(
    ("reason", "said"),
    [
        ("Priority", "jobs with a higher priority are before it"),
        ("Resources", "it is next; it waits for nodes to come free"),
        ("QOSMaxGRESPerUser", "your running jobs use what your QOS allows a user"),
        ("AssocGrpGRES", "your account uses what it may use at once"),
        ("PartitionTimeLimit", "it will never start"),
        ("ReqNodeNotAvail, UnavailableNodes:gl008", "nodes that it needs are down, drained"),
        ("SomethingNew", "SomethingNew"),
    ],
)
def test_why_a_job_waits(tmp_path, reason, said):
    start = datetime.fromtimestamp(NOW + 6.5 * 3600)
    shown = " ".join(screen(Found("12", job("PENDING", reason, start), None), 100).split())
    assert said in shown and "expected to start in 6 h 30 min" in shown


def test_files_alone_when_slurm_does_not_answer(preempted_run):
    found = Found("12", None, preempted_run, "squeue failed: Unable to contact slurm controller")
    shown = screen(found, 120)
    assert "Only the run's files are shown: squeue failed" in shown
    assert "UNKNOWN" in shown and "step 2,400 of 19,320" in shown


def test_a_failed_rank_is_quoted(preempted_run):
    failed = preempted_run / "logs/failed-12-2"
    failed.mkdir()
    (preempted_run / "logs/rank-003.log").write_text("a\n" * 50 + "the last words\n")
    record = {"rank": 3, "host": "gl001", "time": NOW, "exit_code": 1}
    (failed / "rank-003.json").write_text(json.dumps(record | {"message": "CUDA out of memory"}))
    shown = screen(Found("12", None, preempted_run), 100)
    assert "Rank 3 on gl001 failed first: CUDA out of memory" in shown and "the last words" in shown
    # Training has gone on since then.
    (failed / "rank-003.json").write_text(json.dumps(record | {"message": "x", "time": NOW - 9999}))
    assert "failed first" not in screen(Found("12", None, preempted_run), 100)


def convoy(
    exp: Path, *arguments: str, path: str = "/without/slurm"
) -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ,
        "NAVSIM_EXP_ROOT": str(exp),
        "PATH": path,
        "PYTHONPATH": str(ROOT / "src"),
    }
    return subprocess.run(
        [sys.executable, "-m", "convoy.commands", *arguments],
        env=environment,
        text=True,
        capture_output=True,
        cwd=ROOT,
        timeout=60,
    )


@pytest.fixture
def programs(tmp_path: Path) -> Path:
    """SLURM's commands: job 12 runs until it is asked to stop, and every call is written down."""
    folder = tmp_path / "bin"
    folder.mkdir()
    row = "12|me|users|l40s_public|RUNNING|None|2|12:00:00|5:00:00|N/A|5|N/A|gres/gpu=8|N/A|gl001"
    calls, output = f">> {tmp_path}/calls", f"{tmp_path}/job.log"
    scripts = {
        "squeue": f"[ -e {tmp_path}/stopped ] || echo '{row}|q|convoy|'",
        "scontrol": f'echo "scontrol $*" {calls}; echo "JobId=12 StdOut={output}"',
        "scancel": f'echo "scancel $*" {calls}; touch {tmp_path}/stopped',
    }
    for name, text in scripts.items():
        path = folder / name
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return folder


def test_list(preempted_run, programs):
    exp = preempted_run.parents[1]
    shutil.copytree(preempted_run, exp / "second" / "20260101-000000")
    done = convoy(exp, "list", "--json", path=f"{programs}:/usr/bin:/bin")
    running, earlier = json.loads(done.stdout)
    assert (running["run"], running["job"], running["state"]) == ("first/12", "12", "running")
    assert running["step"] == "2400/19320" and running["agent"] == "transfuser_agent"
    assert earlier["state"] == "ended"
    table = convoy(exp, "list")  # no SLURM here
    assert "Runs only: squeue is not in PATH" in table.stdout and "2400/19320" in table.stdout


def test_watch_once_finds_the_newest_job(preempted_run, programs):
    done = convoy(preempted_run.parents[1], "watch", "--once", path=f"{programs}:/usr/bin:/bin")
    assert done.returncode == 0 and "first/12 | transfuser_agent" in done.stdout, done.stderr
    content = json.loads(
        convoy(preempted_run.parents[1], "watch", "--json", str(preempted_run)).stdout
    )
    assert content["progress"]["step"] == 2400 and len(content["nodes"]) == 2 and content["hints"]


def test_stop_asks_for_a_checkpoint_and_forbids_the_requeue(preempted_run, programs, tmp_path):
    exp, path = preempted_run.parents[1], f"{programs}:/usr/bin:/bin"
    done = convoy(exp, "stop", "12", path=path)
    assert done.returncode == 0 and "has ended" in done.stdout, done.stderr
    assert stop_request.read(RunDirectory(preempted_run), "now", since=0) == signal.SIGUSR1
    assert (tmp_path / "calls").read_text().splitlines() == [
        "scontrol update JobId=12 Requeue=0",
        "scancel --ctld --batch --signal=USR1 12",
    ]
    gone = convoy(exp, "stop", "12", path=path)
    assert gone.returncode == 1 and "Job 12 is not in the queue" in gone.stderr
    nowhere = convoy(exp, "stop", "12")
    assert "SLURM does not answer, so nothing was stopped" in nowhere.stderr


def test_logs(preempted_run, programs, tmp_path):
    (tmp_path / "job.log").write_text("of the job\n")
    exp, path = preempted_run.parents[1], f"{programs}:/usr/bin:/bin"
    assert convoy(exp, "logs", "12", path=path).stdout == "of the job\n"
    assert (
        convoy(exp, "logs", str(preempted_run), "--rank", "0", "--lines", "1").stdout == "line 2\n"
    )
    missing = convoy(exp, "logs", "12", "--rank", "7", path=path)
    assert missing.returncode == 1 and "ranks 0 to 0 have one" in missing.stderr


def test_a_job_nobody_knows(tmp_path):
    done = convoy(tmp_path, "watch", "99")
    assert (
        done.returncode == 1 and "There is no job 99 in the queue and no run of it" in done.stderr
    )


def test_an_array_is_named_by_its_tasks(preempted_run, programs, tmp_path):
    """All of its tasks are stopped together, those that wait first; one is watched at a time."""
    row = (
        "{}|me|users|l40s_public|{}|None|1|1:00:00|5:00:00|N/A|5|N/A|gres/gpu=8|N/A|gl001|q|convoy|"
    )
    rows = [
        row.format("12_0", "RUNNING"),
        row.format("12_10", "PENDING"),
        row.format("9", "RUNNING"),
    ]
    listed = "\n".join(rows)
    (programs / "squeue").write_text(f"#!/bin/sh\necho '{listed}'\n")
    exp, path = preempted_run.parents[1], f"{programs}:/usr/bin:/bin"
    said = convoy(exp, "watch", "12", path=path).stderr
    assert "Job 12 is an array: name one of its tasks in the queue, 12_0 or 12_10" in said
    assert "12_10" in convoy(exp, "watch", "12_10", "--once", path=path).stdout
    done = convoy(exp, "stop", "12", "--no-wait", path=path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "calls").read_text().splitlines() == [
        "scancel 12_10",
        "scontrol update JobId=12_0 Requeue=0",
        "scancel --ctld --batch --signal=USR1 12_0",
    ]


def test_the_newest_job_is_a_training(preempted_run, programs):
    """A job that scores beside it has a higher number."""
    row = "{}|me|users|gpu|RUNNING|None|1|1:00:00|5:00:00|N/A|5|N/A|gres/gpu=8|N/A|gl001|q|{}|"
    listed = "\n".join([row.format("12", "convoy"), row.format("13", "convoy-score")])
    (programs / "squeue").write_text(f"#!/bin/sh\necho '{listed}'\n")
    done = convoy(preempted_run.parents[1], "watch", "--once", path=f"{programs}:/usr/bin:/bin")
    assert "first/12" in done.stdout
