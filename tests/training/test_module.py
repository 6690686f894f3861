from types import SimpleNamespace

import pytest

import convoy.navsim.torchvision_cpu  # noqa: F401  # before Lightning, which imports torchvision

# isort: split
from convoy.errors import ConvoyError
from convoy.training.module import NavsimMetricNames


def trainer(monitor, interval="step", world_size=2):
    scheduler = SimpleNamespace(interval=interval, reduce_on_plateau=True, monitor=monitor)
    return SimpleNamespace(world_size=world_size, lr_scheduler_configs=[scheduler])


def test_a_scheduler_that_would_part_the_ranks_is_refused():
    start = NavsimMetricNames().on_train_start
    with pytest.raises(ConvoyError, match="follows train/loss at every step.*interval=epoch"):
        start(trainer("train/loss"), None)
    start(trainer("train/loss_epoch", interval="epoch"), None)
    start(trainer("train/loss_epoch"), None)
    start(trainer("val/loss"), None)
    start(trainer("train/loss", world_size=1), None)
