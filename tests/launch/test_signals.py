"""A launcher and its ranks: signals get through, and neither outlives the other."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from convoy.errors import ExitCode
from convoy.launch.signals import children
from convoy.launch.survivors import is_alive

SRC = Path(__file__).parents[2] / "src"

# A rank that remembers what it was asked, and a launcher of one that passes signals on.
RANK = """
import signal, sys, time
from convoy.run.stop_request import StopRequest, follow_parent
request = StopRequest().install()
follow_parent()
print("rank", __import__("os").getpid(), flush=True)
until = time.monotonic() + 120
while not request.number and time.monotonic() < until:
    time.sleep(0.02)
open(sys.argv[1], "w").write(signal.Signals(request.number).name)
sys.exit(75)
"""
LAUNCHER = """
import os, subprocess, sys
from convoy.launch.signals import looked_for, passed_on
asked = lambda: int(os.path.exists(sys.argv[3]) and open(sys.argv[3]).read() or 0)
with looked_for(asked, 0.05), passed_on(lambda number: print("told", number.name, flush=True)):
    rank = subprocess.Popen([sys.executable, "-c", sys.argv[1], sys.argv[2]])
    code = None
    while code is None:
        try:
            code = rank.wait(0.05)
        except subprocess.TimeoutExpired:
            pass
sys.exit(code)
"""


@pytest.fixture
def pair(tmp_path):
    """A launcher, its rank's pid, and the file in which the rank says what it heard."""
    heard = tmp_path / "heard"
    launcher = subprocess.Popen(
        [sys.executable, "-c", LAUNCHER, RANK, heard, tmp_path / "request"],
        env=os.environ | {"PYTHONPATH": str(SRC)},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert launcher.stdout is not None
    word, pid = launcher.stdout.readline().split()
    assert word == "rank"
    yield launcher, int(pid), heard
    launcher.kill()
    launcher.wait()


def wait_for(condition) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_the_launcher_reaches_the_rank_which_decides_when_to_end(pair, number):
    launcher, _, heard = pair
    launcher.send_signal(number)
    assert launcher.wait(60) == 75
    assert heard.read_text() == number.name
    assert launcher.stdout.read().split() == ["told", number.name]


def test_a_request_in_a_file_reaches_the_rank(pair, tmp_path):
    launcher, _, heard = pair
    (tmp_path / "request").write_text(str(int(signal.SIGUSR1)))
    assert launcher.wait(60) == 75
    assert heard.read_text() == "SIGUSR1"


def test_a_rank_whose_launcher_is_killed_saves_and_ends(pair):
    launcher, rank, heard = pair
    assert children(launcher.pid) == [rank]
    launcher.kill()
    wait_for(lambda: heard.exists() and heard.read_text() == "SIGTERM")
    wait_for(lambda: not is_alive(rank))


def test_ranks_end_at_once_with_their_launcher():
    """They ignore SIGTERM, as ranks do that wait in a collective."""
    program = (
        "import subprocess\n"
        "from convoy.launch.signals import end_ranks\n"
        'rank = ["sh", "-c", "trap : TERM; echo here; while :; do sleep 0.1; done"]\n'
        "child = subprocess.Popen(rank, stdout=subprocess.PIPE)\n"
        "child.stdout.readline()\n"
        "print(child.pid, flush=True)\n"
        "end_ranks(grace=0, writing=0)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert done.returncode == ExitCode.RESUMABLE
    wait_for(lambda: not is_alive(int(done.stdout)))  # a kill takes its moment
