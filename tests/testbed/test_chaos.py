"""The short form of `make chaos`: one round of the faults that a run meets most often."""

import random
import sys
from datetime import datetime, timedelta
from pathlib import Path

import pytest

SEED = 12


@pytest.fixture(scope="module")
def chaos():
    """testbed/chaos.py, which finds its own modules beside it."""
    folder = str(Path(__file__).parents[2] / "testbed")
    sys.path.insert(0, folder)
    try:
        import chaos
    finally:
        sys.path.remove(folder)
    return chaos


def test_what_a_fault_cost_is_read_from_the_log(chaos):
    begin = datetime(2026, 11, 25)
    taken = [(0, 1), (1, 2), (2, 3), (42, 3), (43, 4), (95, 5), (96, 6)]
    steps = [(begin + timedelta(seconds=at), step) for at, step in taken]
    assert chaos.cost(steps) == (1, 92.0, 3)  # step 3 was taken twice; 40 s, then 52 s


def record(start, steps, rank=0):
    """Lines of a rank that takes half of the samples, as chaos_agent.py writes them."""
    tokens = [f"{24 * rank + number:x}" for number in range(24)]
    return [
        f"rank-{rank}.log:{start} {step} {' '.join(tokens[step % 6 * 4 : step % 6 * 4 + 4])}"
        for step in steps
    ]


def test_a_record_of_samples_shows_what_was_missed_or_taken_twice(chaos):
    from watched import wrongly_consumed

    other = record("a", range(120), rank=1)
    again = record("a", range(50)) + record("b", range(40, 120))
    assert wrongly_consumed(again + other) is None  # steps 40 to 49 were lost, and taken again
    assert wrongly_consumed(again[:-1] + other[:-1]) == "steps 0 to 118, 119 of 120"
    swapped = [line.replace("log:b 60 ", "log:b 61 ") for line in again if " 61 " not in line]
    assert "steps" in wrongly_consumed(swapped + other[:60] + other[61:])
    twice = [*other[:6], "rank-1.log:a 6 0 1 2 3", *other[7:]]
    assert wrongly_consumed(again + twice) == "epoch 1: 48 samples, 44 different ones"
    zombie = again + record("a", [50])
    assert "start a wrote after another one had begun" in wrongly_consumed(zombie + other)


def test_every_run_comes_home(testbed, chaos):
    chance = random.Random(SEED)
    print(f"seed {SEED}")
    bed = chaos.Testbed(testbed.name, testbed.image, "/scratch,/small")
    expected = chaos.reference(bed)
    results = [chaos.suffer(bed, fault, expected, chance) for fault in chaos.SHORT]
    print(chaos.table(results))
    assert all(result.is_good for result in results), "\n".join(map(str, results))
    testbed.assert_nothing_left()
