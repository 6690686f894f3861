"""Numbers that an agent draws: of a rank's own, and those of one rank with the same samples."""

import random

import numpy as np
import torch

from convoy.global_batch import BatchPlan
from convoy.training.randomness import derive, place_of, seed_generators


def drawn(*key: int) -> tuple[float, float, float]:
    seed_generators(derive(*key))
    return random.random(), float(np.random.random()), float(torch.rand(1))


def test_ranks_draw_numbers_of_their_own_in_every_batch():
    batches = BatchPlan(global_batch=16, world_size=4, rank_batch=2, accumulation=2)
    places = {place_of(batch, batches, rank) for batch in range(6) for rank in range(4)}
    assert len(places) == 24
    numbers = {drawn(7, 0, epoch, place) for epoch in range(2) for place in places}
    assert len(numbers) == 48


def test_two_ranks_draw_what_one_with_two_batches_a_step_does():
    two = BatchPlan(global_batch=8, world_size=2, rank_batch=4, accumulation=1)
    one = BatchPlan(global_batch=8, world_size=1, rank_batch=4, accumulation=2)
    of_two = [place_of(step, two, rank) for step in range(3) for rank in range(2)]
    assert of_two == [place_of(batch, one, 0) for batch in range(6)]
