"""The short form of `make chaos`: one round of the faults that a run meets most often."""

import importlib.util
import sys
from datetime import datetime, timedelta
from pathlib import Path

import pytest

CHAOS = Path(__file__).parents[2] / "testbed" / "chaos.py"
SEED = 12


@pytest.fixture(scope="module")
def chaos():
    spec = importlib.util.spec_from_file_location("testbed_chaos", CHAOS)
    assert spec and spec.loader
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


def test_what_a_fault_cost_is_read_from_the_log(chaos):
    begin = datetime(2026, 11, 25)
    taken = [(0, 1), (1, 2), (2, 3), (42, 3), (43, 4), (95, 5), (96, 6)]
    steps = [(begin + timedelta(seconds=at), step) for at, step in taken]
    assert chaos.cost(steps) == (1, 92.0, 3)  # step 3 was taken twice; 40 s, then 52 s


def test_every_run_comes_home(testbed, chaos):
    import random

    chance = random.Random(SEED)
    print(f"seed {SEED}")
    bed = chaos.Testbed(testbed.name, testbed.image)
    expected = chaos.reference(bed)
    results = [chaos.suffer(bed, fault, expected, chance) for fault in chaos.SHORT]
    print(chaos.table(results))
    assert all(result.is_good for result in results), chaos.table(results)
    assert all(result.starts == 2 for result in results), chaos.table(results)
    testbed.assert_nothing_left()
