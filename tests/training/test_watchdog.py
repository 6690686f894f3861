from dataclasses import replace

from convoy.training.watchdog import RankState, verdict

FOUR = [
    RankState(rank, f"gl00{rank // 2 + 1}", 100, "training", step=9, progress=10, beat=5)
    for rank in range(4)
]


def later(states):
    return [replace(state, beat=state.beat + 3) for state in states]


def test_who_shows_no_sign_of_life_is_named():
    after = later(FOUR)
    after[3] = FOUR[3]
    said = verdict(FOUR, after, limit=600, world_size=4)
    assert said == (
        "No step for 10 minutes: rank 3 on gl002 (training, step 9) shows no sign of life."
    )


def test_who_is_behind_is_named_else():
    states = [replace(state, progress=11) for state in FOUR]
    states[2] = replace(states[2], progress=10, phase="validating")
    said = verdict(states, later(states), limit=60, world_size=4)
    assert "rank 2 on gl002 (validating, step 9) is behind the others" in said


def test_nobody_is_accused_without_a_difference():
    assert "all ranks wait at step 9 (training)" in verdict(
        FOUR, later(FOUR), limit=60, world_size=4
    )


def test_a_rank_that_never_wrote_is_named():
    assert "rank 3 shows no sign of life" in verdict(FOUR[:3], later(FOUR[:3]), 60, world_size=4)
