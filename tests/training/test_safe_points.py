"""When a checkpoint is due."""

from types import SimpleNamespace

import pytest

from convoy.topology import Topology
from convoy.training import safe_points
from convoy.training.process_group import HostGroup
from convoy.training.safe_points import SafePoints


@pytest.fixture
def training(monkeypatch):
    """Half a minute between checkpoints; `step(seconds)` ends a step that took so long."""
    clock = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(safe_points.time, "monotonic", lambda: clock.now)
    monkeypatch.setattr(safe_points.position, "went_on", lambda trainer: None)
    points = SafePoints(
        None,
        SimpleNamespace(busy=False, refusal=None),
        HostGroup(Topology(), None),
        SimpleNamespace(number=0),
        lambda *args, **facts: None,
        "val/loss",
        every_minutes=0.5,
        keep=3,
    )
    trainer = SimpleNamespace(
        accumulate_grad_batches=1, is_last_batch=False, global_step=0, max_steps=-1
    )
    saved: list[int] = []

    def save(trainer, moment):
        saved.append(trainer.global_step)
        points._saved_at = clock.now

    monkeypatch.setattr(points, "_save", save)
    points.on_train_start(trainer, None)

    def step(seconds: float) -> None:
        clock.now += seconds
        trainer.global_step += 1
        points.on_train_batch_end(trainer, None, None, None, 0)

    return SimpleNamespace(step=step, saved=saved)


def test_the_interval_begins_with_the_first_step_however_long_that_took(training):
    for seconds in (170.0, *[1.0] * 29):
        training.step(seconds)
    assert training.saved == []
    training.step(1.0)
    assert training.saved == [31]


def test_then_it_comes_every_half_minute(training):
    for _ in range(100):
        training.step(1.0)
    assert training.saved == [31, 61, 91]
