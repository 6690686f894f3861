"""Faults for trainings on the testbed, each at a moment of its own; standard library only.

A fault gets a training that takes steps. It may wait, and mends what a person with a cluster would
mend (a node is switched on again), but never helps the training.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable

from watched import FOLDER, PACE, STEPS_PER_VALIDATION, Failed, Training

Fault = Callable[[Training, random.Random], None]
RANK, LAUNCHER = "convoy.launch.rank", "convoy train --agreement"
FULL = f"{FOLDER}/full"


def _kill(pattern: str, signal: str) -> Fault:
    def fault(training: Training, chance: random.Random) -> None:
        found = training.testbed.processes(pattern, training.hosts)
        if not found:
            raise Failed(f"no process {pattern!r} on {training.hosts}")
        training.testbed.kill(signal, *chance.choice(found))

    return fault


def _signal_batch(name: str) -> Fault:
    def fault(training: Training, chance: random.Random) -> None:
        # scancel tries for minutes where the job was requeued a moment before.
        signal = ("scancel", "--batch", f"--signal={name}", training.job)
        training.testbed.run("timeout", "5", *signal)

    return fault


def _two_stops(training: Training, chance: random.Random) -> None:
    _signal_batch("USR1")(training, chance)
    time.sleep(chance.uniform(0.2, 3))
    _signal_batch("TERM")(training, chance)


def _resubmit(training: Training, chance: random.Random) -> None:
    training.testbed.run("scancel", training.job)
    training.job = training.submit()


def _submit_twice(training: Training, chance: random.Random) -> None:
    """The second one has to be refused, and to leave the first one alone."""
    testbed = training.testbed
    training.pace(5 * PACE)  # the second one waits for half a minute
    second = training.submit()
    training.wait(lambda: not testbed.state(second), "the second job did not end")
    training.pace(PACE)
    said = testbed.run("cat", f"/scratch/chaos-{second}.log")
    if " is in use by " not in said:
        raise Failed(f"the second job was not refused: {said[-500:]}")


def _truncate(training: Training, chance: random.Random) -> None:
    """The newest checkpoint loses its second half, and a rank dies before there is another. There
    has to be an earlier one."""
    training.wait_for_step(2 * STEPS_PER_VALIDATION + 3)
    newest = 'file=$(ls "$1"/checkpoints/step-*.ckpt | tail -n 1)'
    cut = f'{newest}; truncate --size=$(($(stat --format=%s "$file") / 2)) "$file"'
    _kill(RANK, "KILL")(training, chance)
    training.testbed.run("bash", "-c", cut, "bash", training.run_dir)


def _requeue(training: Training, chance: random.Random) -> None:
    """As an administrator does: SLURM ends the job and requeues it by itself."""
    training.testbed.run("scontrol", "requeue", training.job)


def _preempt(training: Training, chance: random.Random) -> None:
    """A job of a partition with a higher priority takes the training's nodes, at once or after a
    time of grace."""
    testbed, hosts = training.testbed, ",".join(training.hosts)
    urgent = "PartitionName=urgent Nodes=ALL PriorityTier=10 PreemptMode=OFF"
    testbed.run("scontrol", "create", *urgent.split(), root=True)
    _set_grace(training, chance.choice((0, 20)))
    job = testbed.sbatch(
        "--partition=urgent", "--exclusive", f"--nodelist={hosts}", "--wrap=sleep 3"
    )
    training.wait(lambda: not testbed.state(job), "the urgent job did not get its nodes")
    testbed.run("scontrol", "delete", "PartitionName=urgent", root=True)
    _set_grace(training, 0)


def _set_grace(training: Training, seconds: int) -> None:
    grace = ("PartitionName=l40s_public", f"GraceTime={seconds}")
    training.testbed.run("scontrol", "update", *grace, root=True)


def _lose(index: int) -> Fault:
    """A node is switched off, and on again once the job has moved on or has ended its start."""

    def fault(training: Training, chance: random.Random) -> None:
        host, before = training.hosts[index], training.start
        training.testbed.switch_off(host)
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and training.start == before:
            if not training.testbed.state(training.job).startswith("RUNNING"):
                break
            time.sleep(1)
        training.testbed.switch_on(host)

    return fault


def _cut_network(training: Training, chance: random.Random) -> None:
    """A node without its network for a while, short or long; its processes run on."""
    link = ("ip", "link", "set", "eth0")
    host = chance.choice(training.hosts)
    training.testbed.run(*link, "down", host=host, root=True)
    time.sleep(chance.choice((3, 40)))
    training.testbed.run(*link, "up", host=host, root=True)


def _slow_node(training: Training, chance: random.Random) -> None:
    """A tenth of a CPU for one node, for a while."""
    testbed = training.testbed
    container = testbed.container(chance.choice(training.hosts))
    testbed.docker("update", "--cpu-period=100000", "--cpu-quota=10000", container)
    time.sleep(chance.uniform(5, 15))
    testbed.docker("update", "--cpu-period=100000", "--cpu-quota=-1", container)


def _fill_disk(training: Training, chance: random.Random) -> None:
    """No room for some checkpoints, then there is room again."""
    testbed = training.testbed
    testbed.run("dd", "if=/dev/zero", f"of={FULL}", "bs=64K", root=True)
    time.sleep(chance.uniform(4, 8))
    testbed.run("rm", FULL, root=True)


FAULTS: dict[str, Fault] = {
    "rank SIGKILL": _kill(RANK, "KILL"),
    "rank SIGSTOP": _kill(RANK, "STOP"),
    "agent SIGKILL": _kill(LAUNCHER, "KILL"),
    "time limit": _signal_batch("USR1"),
    "SIGTERM with grace": _signal_batch("TERM"),
    "two stops": _two_stops,
    "preempted": _preempt,
    "requeued by SLURM": _requeue,
    "scancel and resubmit": _resubmit,
    "submitted twice": _submit_twice,
    "newest checkpoint cut": _truncate,
    "disk full": _fill_disk,
    "slow node": _slow_node,
    "network cut": _cut_network,
    "node killed": _lose(-1),
    "rendezvous node killed": _lose(0),
}
SAME_START = {"submitted twice", "disk full", "slow node", "network cut"}  # may end no start
FEWER_NODES = "node lost, fewer continue"  # with CONVOY_MIN_NODES: equal but for rounding
