"""Real ranks under torchrun's agent: what is left of them when one dies, or when they are asked to
stop."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from convoy.launch import verdict
from convoy.launch.survivors import end, is_alive
from convoy.run import node_state
from convoy.run.atomic import leftovers
from convoy.run.layout import RunDirectory

SRC = Path(__file__).parents[2] / "src"

# Rank 0 writes a file for longer than the grace, and waits in native code as a collective over NCCL
# does: neither a signal nor a dead peer ends that. Rank 1 is killed meanwhile, or both stop, and
# rank 0 needs its time for that.
RANK = """
import ctypes, os, subprocess, sys, threading, time
from pathlib import Path
from convoy.launch.survivors import GRACE
from convoy.run import node_state
from convoy.run.atomic import replacing
from convoy.run.stop_request import StopRequest, follow_parent
request = StopRequest().install()
follow_parent()
folder, rank, dies = Path(sys.argv[1]), os.environ["RANK"], sys.argv[2] == "dies"
loader = subprocess.Popen(["sleep", "300"])
(folder / f"rank-{rank}").write_text(f"{os.getpid()} {loader.pid}")

def write():
    with replacing(folder / "checkpoint") as file:
        until = time.monotonic() + 1.5
        while time.monotonic() < until:
            file.write(b"part of it")
            time.sleep(0.1)

writer = threading.Thread(target=write)
if rank == "0" and dies:
    writer.start()
    while True:
        ctypes.CDLL(None).sleep(1000)
while not request.number:
    time.sleep(0.05)
if rank == "0":
    writer.start()
    writer.join()
loader.kill()
os._exit(75)
"""
LAUNCHER = """
import json, os, sys
from pathlib import Path
from convoy.launch import survivors
from convoy.launch.agent import run_torchrun
from convoy.run.layout import RunDirectory
from convoy.topology import Launch
survivors.GRACE = 1.0
folder, heard = Path(sys.argv[1]), []
rank_0 = lambda: int((folder / "rank-0").read_text().split()[0])
arguments = ["--nnodes=1", "--nproc-per-node=2", "--rdzv-backend=convoy", "--rdzv-conf=number=0"]
arguments += ["--rdzv-endpoint=127.0.0.1:0", "--rdzv-id=a", "--local-addr=127.0.0.1"]
arguments += ["--signals-to-handle=SIGHUP,SIGQUIT", sys.argv[3], str(folder), sys.argv[2]]
launch, run = Launch.by_hand({}, 1, 0, "127.0.0.1:0", "a"), RunDirectory(folder)
hear = lambda code: heard.append((code, survivors.is_alive(rank_0())))
failed = run_torchrun(arguments, launch, run, lambda number: None, hear)
print(json.dumps([heard, failed.report(), failed.exit_code]))
"""


@pytest.fixture
def launched(tmp_path):
    """Starts two ranks; gives the launcher, and the pids of each rank and of what it started."""
    started = []

    def begin(word):
        script = tmp_path / "rank.py"
        script.write_text(RANK)
        launcher = subprocess.Popen(
            [sys.executable, "-c", LAUNCHER, tmp_path, word, script],
            env=os.environ | {"PYTHONPATH": str(SRC)},
            stdout=subprocess.PIPE,
            text=True,
        )
        started.append(launcher.pid)
        deadline = time.monotonic() + 60
        files = [tmp_path / f"rank-{rank}" for rank in (0, 1)]
        while not all(file.is_file() and " " in file.read_text() for file in files):
            assert launcher.poll() is None and time.monotonic() < deadline
            time.sleep(0.02)
        ranks = [[int(pid) for pid in file.read_text().split()] for file in files]
        started.extend(pid for pids in ranks for pid in pids)
        return launcher, ranks

    yield begin
    for pid in started:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            pass


def test_a_rank_in_a_collective_that_never_ends_follows_a_killed_one_in_seconds(launched, tmp_path):
    launcher, ranks = launched("dies")
    while not leftovers(tmp_path):
        time.sleep(0.02)
    at = time.time()
    os.kill(ranks[1][0], signal.SIGKILL)
    said = launcher.communicate(timeout=60)[0]
    assert time.time() - at < 20  # torchrun's agent alone takes 30
    heard, report, code = json.loads(said)
    assert "rank 1 on" in report and "failed first: it was killed by SIGKILL" in report
    # The other nodes hear of it while a rank of this one still has its time to end.
    assert code == 1 and heard == [[1, True]]
    assert [failure.rank for failure in verdict.read(RunDirectory(tmp_path), "a")] == [1]
    assert not any(map(is_alive, ranks[0] + ranks[1]))
    assert (tmp_path / "checkpoint").is_file() and not leftovers(tmp_path)


def test_a_rank_that_was_asked_to_stop_has_more_time_than_that(launched, tmp_path):
    launcher, ranks = launched("stops")
    launcher.send_signal(signal.SIGTERM)
    assert launcher.communicate(timeout=60)[0] == "" and launcher.returncode == 75
    assert (tmp_path / "checkpoint").is_file()
    assert not verdict.read(RunDirectory(tmp_path), "a")
    assert not any(map(is_alive, ranks[0] + ranks[1]))


def test_processes_that_end_are_not_waited_for_and_the_others_are_killed():
    ended = subprocess.Popen(["true"])
    stuck = subprocess.Popen(["sh", "-c", "trap : TERM; while :; do sleep 0.1; done"])
    assert end([ended.pid, stuck.pid], grace=0.2, writing=5) == {stuck.pid}
    assert stuck.wait(10) == -signal.SIGKILL
    ended.wait(10)
    began = time.monotonic()
    assert end([ended.pid, stuck.pid], 60, 60) == set() and time.monotonic() - began < 20


def test_ranks_here_follow_those_that_failed_on_another_node(tmp_path):
    """They ignore SIGTERM, as ranks do that wait in a collective."""
    program = (
        "import subprocess, sys, time\n"
        "from pathlib import Path\n"
        "from convoy.launch import survivors\n"
        "from convoy.launch.node import Part\n"
        "from convoy.run.layout import RunDirectory\n"
        "from convoy.topology import Launch\n"
        "survivors.GRACE = 0.3\n"
        'child = subprocess.Popen(["sh", "-c", "trap : TERM; while :; do sleep 0.1; done"])\n'
        "print(child.pid, flush=True)\n"
        'launch = Launch("job", 1, 2, "here", "7-0", ("gl001",), "gl001")\n'
        'Part(RunDirectory(Path(sys.argv[1])), launch)._ended("gl006", 1)\n'
        "time.sleep(60)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, tmp_path],
        env=os.environ | {"PYTHONPATH": str(SRC)},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert done.returncode == 75
    deadline = time.monotonic() + 10  # a kill takes its moment
    while is_alive(int(done.stdout)):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert node_state.read(RunDirectory(tmp_path), "7-0")["gl001"].exit_code == 75
