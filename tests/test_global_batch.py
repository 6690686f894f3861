import pytest

from convoy.errors import ConvoyError
from convoy.global_batch import BatchPlan, plan_batches


@pytest.mark.parametrize(
    ("world_size", "limit", "global_batch", "accumulation", "rank_batch", "steps"),
    [
        (8, 64, 176, None, 22, 1),  # the seed's recommended row
        (4, 64, 176, None, 44, 1),  # the same optimiser steps on half the ranks
        (1, 64, 176, None, 44, 4),  # and on one: 176 = 4 x 44, the fewest that fit
        (2, 8, 352, 44, 4, 44),
        (1, 1, 7, None, 1, 7),
    ],
)
def test_global_batch_is_kept(world_size, limit, global_batch, accumulation, rank_batch, steps):
    plan = plan_batches(world_size, limit, global_batch, accumulation)
    assert (plan.rank_batch, plan.accumulation) == (rank_batch, steps)
    assert plan.rank_batch * plan.accumulation * world_size == global_batch
    assert plan.rank_samples_per_step * world_size == global_batch


def test_without_a_global_batch_the_meaning_is_navsims():
    assert plan_batches(8, 64) == BatchPlan(512, 8, 64, 1)
    assert plan_batches(2, 64, accumulation=3) == BatchPlan(384, 2, 64, 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((8, 64, 100, None), "global_batch=96 or 104"),
        ((8, 64, 5, None), "global_batch=8"),
        ((2, 64, 100, 3), "x accumulation 3.*global_batch=96 or 102"),
        ((2, 8, 64, 2), "needs 16 samples a rank, more than dataloader.params.batch_size=8"),
        (
            (2, 0, 64, None),
            "dataloader.params.batch_size must be a whole number of at least 1, not 0",
        ),
        ((2, 8, -4, None), "global_batch must be a whole number of at least 1, not -4"),
        ((2, 8, 64.5, None), "not 64.5"),
    ],
)
def test_impossible_combinations_name_the_nearest(arguments, message):
    with pytest.raises(ConvoyError, match=message):
        plan_batches(*arguments)
