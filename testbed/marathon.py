"""One training that suffers many faults, one after another at random moments, so that a fault costs
its recovery only; and one that continues with fewer nodes. Standard library only."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import taken
from faults import FAULTS, FEWER_NODES, RANK, SAME_START
from results import Result
from taken import Reference
from watched import SAMPLES, STEPS_PER_EPOCH, STEPS_PER_VALIDATION, Failed, Testbed, Training

STEPS_PER_FAULT = 80
TOLERANCE = 1e-5  # of a loss, relative, at another world size
# Without what draws random numbers per rank, and in numbers whose rounding Adam does not magnify.
TOLERANT = ("agent.dropout=0", "trainer.params.precision=64-true")
TOLERANT_STEPS = 2 * STEPS_PER_FAULT
Report = Callable[[Result], None]


def undisturbed(testbed: Testbed, steps: int, overrides: Sequence[str] = ()) -> Reference:
    """What a training takes that nothing happens to."""
    training = Training(testbed, steps, overrides=tuple(overrides))
    training.job = training.submit()
    training.wait_for_the_end()
    found = training.taken()
    if problem := taken.left_out(found) or taken.once(found, steps, STEPS_PER_EPOCH, SAMPLES):
        raise Failed(f"the undisturbed training did not take every sample once: {problem}")
    return Reference.of(found, training.digest())


@dataclass(frozen=True)
class Struck:
    """A fault that a training suffered: at which step and time, and in which start."""

    fault: str
    step: int
    at: float
    start: str

    @classmethod
    def now(cls, fault: str, training: Training) -> Struck:
        newest = training.newest()
        return cls(fault, newest.step if newest else 0, time.time(), training.start)

    def suffer(self, training: Training, chance: random.Random) -> None:
        """Returns once the training takes steps again."""
        FAULTS[self.fault](training, chance)
        training.wait_for_a_step(time.time(), "" if self.fault in SAME_START else self.start)

    def result(self, training: Training, reference: Reference) -> Result:
        """What it cost until now; nothing else has happened since."""
        found = training.taken()
        since = [entry for entry in found if entry.at > self.at]
        before = [entry for entry in taken.of_rank(found) if entry.at <= self.at]
        lost, seconds, starts = taken.cost([*before[-1:], *taken.of_rank(since)])
        other = taken.other_weights(since, reference)
        return Result(
            self.fault,
            self.step,
            lost,
            round(seconds, 1),
            starts,
            other is None,
            consumed=taken.left_out(found) or taken.other_samples(since, reference),
            orphans=strays(training),
            problem=other,
        )

    def last_result(self, training: Training, reference: Reference) -> Result:
        """After the end of the training: its last checkpoint and all of its samples count too."""
        result = self.result(training, reference)
        if result.is_good and training.digest() != reference.last:
            return Result(self.fault, self.step, problem="the last checkpoint has other weights")
        problem = taken.once(training.taken(), training.steps, STEPS_PER_EPOCH, SAMPLES)
        return Result(self.fault, self.step, consumed=problem) if problem else result


def run(
    testbed: Testbed, faults: Sequence[str], reference: Reference, seed: str, report: Report
) -> list[str]:
    """Reports a result per fault; returns the faults that are left, where one before them did not
    come home. Raises Failed where the training did not even begin."""
    chance = random.Random(seed)
    training = Training(testbed, reference.steps)
    left, struck = list(faults), None
    try:
        training.job = training.submit()
        training.wait_for_step(0)
        while left:
            training.wait_for_step(next_step(training, chance))
            if struck is not None:
                result = struck.result(training, reference)
                report(result)
                if not result.is_good:
                    return left
            struck = Struck.now(left.pop(0), training)
            struck.suffer(training, chance)
        training.wait_for_the_end()
        assert struck is not None
        report(struck.last_result(training, reference))
    except Failed as error:
        if struck is None:
            raise
        report(Result(struck.fault, struck.step, problem=str(error)))
    finally:
        testbed.empty()
    return left


def next_step(training: Training, chance: random.Random) -> int:
    """A random one. A run ends after three starts without a new checkpoint, so where the newest one
    brought none, this one shall."""
    steps = taken.of_rank(training.taken())
    first: dict[str, int] = {}
    for entry in steps:
        first.setdefault(entry.start, entry.step)
    resumed = list(first.values())[-2:]
    now = steps[-1].step
    step = now + chance.randint(3, 60)
    if len(resumed) == 2 and resumed[0] == resumed[1]:
        step = max(step, (now // STEPS_PER_VALIDATION + 1) * STEPS_PER_VALIDATION + 3)
    return step


def strays(training: Training) -> int:
    """Processes of earlier starts that are left: all but a rank on each of the run's nodes, and
    what launched it."""
    testbed = training.testbed
    used = training.hosts if testbed.state(training.job) else []
    others = [host for host in testbed.hosts() if host not in used]
    ranks = len(testbed.processes(RANK, used))
    return testbed.orphans(others) + max(0, ranks - len(used))


def on_fewer_nodes(testbed: Testbed, reference: Reference, seed: str, report: Report) -> None:
    """A node is lost and the others continue without it: the same samples in each step, and losses
    within the tolerance."""
    chance = random.Random(seed)
    training = Training(
        testbed,
        reference.steps,
        ("--no-kill",),
        TOLERANT,
        {"CONVOY_MIN_NODES": "1"},
    )
    struck = Struck(FEWER_NODES, 0, 0.0, "")
    try:
        training.job = training.submit()
        training.wait_for_step(chance.randint(5, reference.steps // 2))
        struck = Struck.now(FEWER_NODES, training)
        host = training.hosts[-1]
        testbed.switch_off(host)
        try:
            training.wait_for_a_step(struck.at, struck.start)
        finally:
            testbed.switch_on(host)
        training.wait_for_the_end()
        found = training.taken()
        since = [entry for entry in taken.of_rank(found) if entry.at > struck.at - 1]
        away, problem = taken.other_losses(found, reference, TOLERANCE)
        lost, seconds, starts = taken.cost(since)
        report(
            Result(
                FEWER_NODES,
                struck.step,
                lost,
                round(seconds, 1),
                starts,
                problem is None,
                away,
                taken.once(found, training.steps, STEPS_PER_EPOCH, SAMPLES),
                testbed.orphans(testbed.hosts()),
                problem,
            )
        )
    except Failed as error:
        report(Result(FEWER_NODES, struck.step, problem=str(error)))
    finally:
        testbed.empty()
