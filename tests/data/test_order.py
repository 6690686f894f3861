import numpy as np
import pytest

from convoy.data.order import TrainingOrder, ValidationOrder
from convoy.errors import ConvoyError


def global_batches(samples, global_batch, world_size, seed, epoch):
    """The set of samples of every optimiser step, put together from what each rank iterates."""
    shares = []
    for rank in range(world_size):
        order = TrainingOrder(samples, global_batch, world_size, rank, seed)
        order.set_epoch(epoch)
        assert len(order) == len(list(order))
        shares.append(np.array(list(order)).reshape(order.steps, -1))
    return np.concatenate(shares, axis=1)


@pytest.mark.parametrize("world_size", [2, 4, 8])
def test_every_step_takes_the_same_samples_at_any_world_size(world_size):
    alone = global_batches(103, 16, 1, seed=7, epoch=3)
    together = global_batches(103, 16, world_size, seed=7, epoch=3)
    assert (np.sort(alone, axis=1) == np.sort(together, axis=1)).all()


def test_no_sample_twice_in_an_epoch_and_each_epoch_its_own_order():
    first, second = (global_batches(103, 16, 2, seed=0, epoch=epoch).ravel() for epoch in (0, 1))
    assert len(set(first)) == len(first) == 96
    assert not (first == second).all()


def test_seed_changes_the_order():
    assert not (global_batches(64, 8, 1, 0, 0) == global_batches(64, 8, 1, 1, 0)).all()


def test_resuming_gives_the_rest_of_the_epoch_once():
    order = TrainingOrder(100, 10, 2, rank=1, seed=0)
    order.set_epoch(4)
    whole = list(order)
    order.resume(4, consumed=30)
    assert list(order) == whole[15:]
    assert list(order) == whole


def test_resuming_leaves_other_epochs_whole():
    order = TrainingOrder(100, 10, 1, rank=0, seed=0)
    order.resume(4, consumed=30)
    order.set_epoch(5)
    assert len(list(order)) == 100


def test_fewer_samples_than_a_batch_are_refused():
    with pytest.raises(ConvoyError, match="20 samples, less than one global batch of 64"):
        TrainingOrder(20, 64, 2, 0, 0)


@pytest.mark.parametrize(("samples", "world_size"), [(10, 4), (3, 8), (8, 2), (1, 1)])
def test_validation_takes_every_sample_once_and_ranks_equally_long(samples, world_size):
    orders = [ValidationOrder(samples, world_size, rank) for rank in range(world_size)]
    own = [index for order in orders for index in list(order)[: order.own_samples]]
    assert sorted(own) == list(range(samples))
    assert len({len(list(order)) for order in orders}) == 1
