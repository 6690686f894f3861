"""The short form of `make chaos`: a training that suffers the faults which runs meet most often."""

import random
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

SEED = 12


@pytest.fixture(scope="module")
def chaos():
    """testbed/chaos.py and the modules beside it."""
    folder = str(Path(__file__).parents[2] / "testbed")
    sys.path.insert(0, folder)
    try:
        import chaos
        import marathon
        import results
        import taken
        import watched
    finally:
        sys.path.remove(folder)
    return SimpleNamespace(
        chaos=chaos, marathon=marathon, results=results, taken=taken, watched=watched
    )


def record(taken, start, steps, rank=0, begin=0.0, ranks=2):
    """What chaos_agent.py writes of a rank that takes its share of the samples."""
    share = 8 // ranks
    tokens = [[f"{48 * (step // 6) + 8 * (step % 6) + n:x}" for n in range(8)] for step in steps]
    return [
        taken.Taken(rank, start, f"gl00{rank}", step, begin + i, f"w{step}", 2.0, tuple(own))
        for i, (step, own) in enumerate(
            zip(steps, (all[rank * share :][:share] for all in tokens), strict=True)
        )
    ]


def test_lines_that_an_agent_writes_are_read_but_for_one_that_is_not_whole(chaos, tmp_path):
    (tmp_path / "rank-1.log").write_text("7-0.1 gl006 12 1795.5 ab12 2.5 t1 t2\n7-0.1 gl006 1")
    (entry,) = chaos.taken.read(tmp_path)
    assert entry == chaos.taken.Taken(1, "7-0.1", "gl006", 12, 1795.5, "ab12", 2.5, ("t1", "t2"))


def test_what_a_fault_cost_is_read_from_the_record(chaos):
    taken = chaos.taken
    steps = record(taken, "a", range(5)) + record(taken, "b", range(3, 6), begin=44)
    assert taken.cost(steps) == (2, 40.0, 2)  # steps 3 and 4 were taken twice


def test_a_record_shows_what_was_left_out_taken_twice_or_began_with_other_weights(chaos):
    taken = chaos.taken
    both = [entry for rank in (0, 1) for entry in record(taken, "a", range(12), rank)]
    reference = taken.Reference.of(both, "last")
    again = [
        *record(taken, "a", range(8)),
        *record(taken, "b", range(5, 12), begin=50),
        *record(taken, "a", range(8), 1),
        *record(taken, "b", range(5, 12), 1, begin=50),
    ]
    assert taken.left_out(again) is None
    assert taken.once(again, 12, 6, 48) is None
    assert taken.other_samples(again, reference) is None
    assert taken.other_weights(again, reference) is None

    assert taken.once(again[:-1], 12, 6, 48) == "epoch 1: 44 samples, 44 different ones"
    assert taken.left_out([again[0], again[2]]) == "rank 0: step 2 came after step 0"
    skipped = [*record(taken, "a", range(3)), *record(taken, "b", range(4, 6))]
    assert taken.left_out(skipped) == "rank 0: start b left out step 3"
    zombie = [*record(taken, "a", range(2)), *record(taken, "b", [1]), *record(taken, "a", [2])]
    assert taken.left_out(zombie) == "rank 0: start a wrote after another one had begun"

    wrong = again[3]._replace(weights="w2")
    assert taken.other_weights([*again[:3], wrong], reference) == (
        "step 3 of rank 0 began with other weights"
    )
    wrong = again[3]._replace(tokens=again[2].tokens)
    assert taken.other_samples([*again[:3], wrong], reference) == (
        "step 3 of rank 0 took other samples"
    )


def test_fewer_ranks_have_to_take_the_same_samples_with_the_same_loss(chaos):
    taken = chaos.taken
    both = [entry for rank in (0, 1) for entry in record(taken, "a", range(6), rank)]
    reference = taken.Reference.of(both, "last")
    alone = record(taken, "b", range(3, 6), begin=50, ranks=1)
    assert taken.once(both + alone, 6, 6, 48) is None
    assert taken.other_losses(both + alone, reference, 1e-5) == (0.0, None)
    off = [*both, *alone[:2], alone[2]._replace(loss=2.0001)]
    away, problem = taken.other_losses(off, reference, 1e-5)
    assert away == pytest.approx(5e-5) and problem == "the loss of step 5 is 5.0e-05 away"
    short = [*both, *alone[:2], alone[2]._replace(tokens=alone[2].tokens[:-1])]
    assert taken.other_losses(short, reference, 1e-5)[1] == "step 5 took other samples"


def test_results_are_kept_one_by_one(chaos, tmp_path):
    kept, results = tmp_path / "chaos.json", chaos.results
    found = [
        results.Result("time limit", 5, 0, 12.3, 2, True),
        results.Result("time limit", 9, 4, 14.0, 2, True, orphans=1),
        results.Result("disk full", 7, problem="it did not end"),
    ]
    for result in found:
        results.add(kept, result, {"seed": 1})
    assert results.load(kept) == found
    assert [result.is_good for result in found] == [True, False, False]
    shown = re.split(r"  +", results.table(found).splitlines()[1])
    assert shown == ["time limit", "2", "1", "0 / 4 / 4", "12 / 14 / 14", "2", "1"]


def test_every_round_has_every_fault_once(chaos):
    names = [*chaos.chaos.FAULTS, chaos.chaos.FEWER_NODES]
    dealt = chaos.chaos.dealt(names, 3, seed=1)
    assert [len(faults) for faults in dealt] == [16, 1, 16, 1, 16, 1]
    assert all(len(set(faults)) == len(faults) for faults in dealt)
    assert chaos.chaos.dealt(["rank SIGKILL"], 20, seed=1) == [
        ["rank SIGKILL"] * 16,
        ["rank SIGKILL"] * 4,
    ]


def test_every_run_comes_home(testbed, chaos):
    print(f"seed {SEED}")
    bed = chaos.watched.Testbed(testbed.name, testbed.image)
    bed.make_cache()
    faults = random.Random(SEED).sample(chaos.chaos.SHORT, len(chaos.chaos.SHORT))
    reference = chaos.marathon.undisturbed(bed, chaos.marathon.STEPS_PER_FAULT * len(faults))
    found = []
    assert chaos.marathon.run(bed, faults, reference, str(SEED), found.append) == []
    print(chaos.results.table(found))
    assert [result.fault for result in found] == faults
    assert all(result.is_good for result in found), "\n".join(map(str, found))
    testbed.assert_nothing_left()
