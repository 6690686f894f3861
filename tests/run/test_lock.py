"""Two starts in one run directory, told apart by signs of life. Beats are fast here."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from convoy.errors import ConvoyError
from convoy.run.layout import RunDirectory
from convoy.run.lock import LIFETIME, LostRun, RunLock, newest

FAST = {"beat": 0.05, "lifetime": 0.6}

HOLDER = """
import sys, time
from pathlib import Path
from convoy.run.layout import RunDirectory
from convoy.run.lock import RunLock
lock = RunLock(RunDirectory(Path(sys.argv[1])), "7", beat=0.05, lifetime=0.6)
lock.acquire()
print("mine", flush=True)
time.sleep(60)
"""


@pytest.fixture
def run(tmp_path):
    return RunDirectory(tmp_path)


@pytest.fixture
def holder(run):
    """Another process that owns the run."""
    process = subprocess.Popen([sys.executable, "-c", HOLDER, run.root], stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"mine\n"
    yield process
    process.kill()
    process.communicate()


def elsewhere(run):
    """Make the owner's file look as if it came from another machine, where no pid can be asked."""
    number, owner = newest(run)
    facts = json.loads(run.owner(number).read_text()) | {"place": "another kernel"}
    run.owner(number).write_text(json.dumps(facts))


def test_a_free_run_is_taken_at_once_and_given_back(run):
    for number in (1, 2, 3):
        lock = RunLock(run)
        assert lock.acquire() is None
        assert run.owners() == [number]
        lock.require()
        lock.release()


def test_a_living_owner_keeps_the_run(run, holder):
    told = []
    with pytest.raises(ConvoyError, match=rf"in use by process {holder.pid} on .*, job 7, since"):
        RunLock(run, **FAST).acquire(told.append)
    assert len(told) == 1 and "waiting up to" in told[0]
    assert run.owners() == [1]


def test_who_was_killed_here_is_followed_at_once(run, holder):
    holder.kill()
    holder.wait()
    begun = time.monotonic()
    dead = RunLock(run).acquire()  # with the long lifetime
    assert dead.pid == holder.pid and time.monotonic() - begun < LIFETIME / 2


def test_who_was_killed_in_another_container_here_is_followed_at_once(run):
    """A job's next start is in a new container, with a count of processes of its own."""
    inside = ["unshare", "--user", "--map-root-user", "--pid", "--fork", "--kill-child"]
    if subprocess.run([*inside, "true"], capture_output=True).returncode:
        pytest.skip("no namespaces for this user here: sysctl kernel.unprivileged_userns_clone=1")
    command = [*inside, sys.executable, "-c", HOLDER, run.root]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"mine\n"
        with pytest.raises(ConvoyError, match="in use by process 1 on"):
            RunLock(run, **FAST).acquire()
        process.kill()
    begun = time.monotonic()
    assert RunLock(run).acquire().pid == 1 and time.monotonic() - begun < LIFETIME / 2


def test_who_was_killed_elsewhere_is_followed_after_a_silence(run, holder):
    holder.kill()
    holder.wait()
    elsewhere(run)
    begun = time.monotonic()
    assert RunLock(run, **FAST).acquire().pid == holder.pid
    assert time.monotonic() - begun >= FAST["lifetime"]


def test_an_owner_that_stood_still_finds_that_it_lost_the_run(run):
    first, second = RunLock(run, **FAST), RunLock(run, **FAST)
    first.acquire()
    first._ended.set()  # its thread stands still, as in a stopped process
    first._thread.join()
    elsewhere(run)
    assert second.acquire() is not None
    with pytest.raises(LostRun, match="taken over by process"):
        first.require()
    second.require()
    first.release()
    second.require()


def test_a_stopped_owner_is_followed_and_writes_no_more_after_it_woke(run, holder):
    os.kill(holder.pid, signal.SIGSTOP)
    lock = RunLock(run, **FAST)
    lock.acquire()
    os.kill(holder.pid, signal.SIGCONT)
    time.sleep(0.3)
    assert run.owners()[-1] == 2
    lock.require()
    lock.release()


def test_one_of_many_who_want_a_dead_run_gets_it(run, holder):
    holder.kill()
    holder.wait()
    program = HOLDER.replace("lock.acquire()", "try: lock.acquire()\nexcept Exception: sys.exit(3)")
    program = program.replace("time.sleep(60)", "time.sleep(2)")
    many = [subprocess.Popen([sys.executable, "-c", program, run.root]) for _ in range(4)]
    codes = [process.wait() for process in many]
    assert sorted(codes)[:1] == [0] and set(codes) <= {0, 3}
    assert len(run.owners()) == 1


def test_a_file_that_says_nothing_is_a_silent_owner(run):
    run.owner(4).write_text("")
    lock = RunLock(run, **FAST)
    begun = time.monotonic()
    lock.acquire()
    assert time.monotonic() - begun >= FAST["lifetime"] and run.owners() == [5]
    lock.release()
