"""Two real ranks that are stopped, orphaned and hung: what is left, and that it goes on."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from convoy.launch.survivors import is_alive
from convoy.run.events import read
from convoy.run.layout import RunDirectory
from convoy.training.watchdog import read_states

ROOT = Path(__file__).parents[2]
SETTINGS = (
    "agent=foreign_agent",
    "data.val_fraction=0.25",
    "trainer.params.log_every_n_steps=1",
    "trainer.params.accelerator=cpu",
    "trainer.params.precision=32-true",
    "trainer.params.check_val_every_n_epoch=1000000",
    "dataloader.params.num_workers=0",
    "global_batch=8",
)


class Training:
    """A launch of two ranks in the background."""

    def __init__(self, run_dir, cache, *overrides):
        self.run = RunDirectory(run_dir)
        environment = os.environ | {
            "CONVOY_PROCESSES_PER_NODE": "2",
            "PYTHONPATH": str(ROOT / "src"),
            "OMP_NUM_THREADS": "1",
        }
        settings = (*SETTINGS, f"cache_path={cache}", f"run_dir={run_dir}", *overrides)
        self.agent = subprocess.Popen(
            [sys.executable, "-m", "convoy.commands", "train", "--", *settings],
            env=environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )

    def ranks(self):
        """Process ids by rank."""
        states = read_states(self.run, world_size=2)
        return {state.rank: state.pid for state in states if is_alive(state.pid)}

    def wait_for_steps(self, steps=5):
        deadline = time.monotonic() + 240
        pattern = re.compile(r"step (\d+)/")
        while True:
            log = self.run.rank_log(0)
            found = pattern.findall(log.read_text()) if log.is_file() else []
            if found and int(found[-1]) >= steps:
                return
            assert self.agent.poll() is None, self.agent.communicate()[0]
            assert time.monotonic() < deadline
            time.sleep(0.1)

    def end(self, timeout=120):
        said = self.agent.communicate(timeout=timeout)[0]
        return self.agent.returncode, said

    def wait_until_no_rank_is_left(self, timeout=60):
        deadline = time.monotonic() + timeout
        while self.ranks():
            assert time.monotonic() < deadline, self.ranks()
            time.sleep(0.2)


@pytest.fixture
def start(tmp_path, ego_cache, foreign_tree):
    started = []

    def begin(*overrides, run_dir="run"):
        started.append(Training(tmp_path / run_dir, ego_cache, *overrides))
        return started[-1]

    yield begin
    for training in started:
        for pid in [training.agent.pid, *training.ranks().values()]:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        training.agent.wait()


LONG = "trainer.params.max_epochs=100000"


def kinds(training):
    return [event["kind"] for event in read(training.run)]


def test_a_signal_to_one_rank_stops_all_and_the_same_command_goes_on(start):
    stopped = start(LONG, "trainer.params.deterministic=true")
    stopped.wait_for_steps()
    os.kill(stopped.ranks()[1], signal.SIGTERM)
    code, said = stopped.end()
    assert code == 75, said
    line = re.search(
        r"^convoy: Stopped by SIGTERM after step (\d+); its checkpoint is ", said, re.M
    )
    assert line, said
    step = int(line.group(1))
    assert stopped.run.step_checkpoint(step).is_file() and stopped.run.report.is_file()
    assert kinds(stopped)[0] == "start" and kinds(stopped)[-3:] == ["signal", "checkpoint", "stop"]
    epochs = f"trainer.params.max_epochs={step // 3 + 2}"  # three steps an epoch
    done = start(epochs, "trainer.params.deterministic=true")
    code, said = done.end()
    assert code == 0 and "going on from" in said, said
    whole = start(epochs, "trainer.params.deterministic=true", run_dir="whole")
    assert whole.end()[0] == 0
    states = [
        torch.load(training.run.last_checkpoint, weights_only=True)["state_dict"]
        for training in (done, whole)
    ]
    for name, value in states[0].items():
        assert torch.equal(value, states[1][name]), name


def test_ranks_whose_agent_was_killed_save_and_end(start):
    training = start(LONG)
    training.wait_for_steps()
    os.kill(training.agent.pid, signal.SIGKILL)
    training.wait_until_no_rank_is_left()
    assert kinds(training)[-2:] == ["checkpoint", "stop"]
    assert training.run.last_checkpoint.is_file()


def test_a_rank_that_stands_still_is_named_and_the_run_can_go_on(start):
    training = start(LONG, "watchdog_minutes=0.1")
    training.wait_for_steps()
    os.kill(training.ranks()[0], signal.SIGSTOP)
    code, said = training.end()
    assert code == 75, said
    message = r"No step for 0.1 minutes: rank 0 on \S+ \(\w+, step \d+\) shows no sign of life"
    assert re.search(message, said), said
    log = training.run.rank_log(1).read_text()
    # Where it waits differs: in a collective, or in the backward pass.
    _, _, stacks = log.partition("the stacks of this rank's threads follow")
    assert "(most recent call first)" in stacks and "launch/rank.py" in stacks
    assert kinds(training)[-1] == "stuck"
    training.wait_until_no_rank_is_left()
