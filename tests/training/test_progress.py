"""Reports of a training: what a log says, what the loggers get, how long it will take."""

import logging
from types import SimpleNamespace

import pytest
import torch

from convoy.global_batch import BatchPlan
from convoy.run.layout import RunDirectory
from convoy.run.progress import ProgressFile, read_progress
from convoy.topology import Topology
from convoy.training import progress
from convoy.training.means import Means, Sums
from convoy.training.module import AgentModule
from convoy.training.process_group import HostGroup
from convoy.training.progress import LATER, ProgressReport
from convoy.training.rehearsal import Rehearsal
from convoy.training.stopping import StoppedEarly


class Sink:
    def __init__(self) -> None:
        self.rows: list[tuple[int, dict[str, float]]] = []

    def log_metrics(self, metrics: dict[str, float], step: int) -> None:
        self.rows.append((step, metrics))


@pytest.fixture
def module():
    """What the report reads of a module: the names that its agent logs."""
    made = AgentModule.__new__(AgentModule)
    object.__setattr__(made, "rehearsal", Rehearsal(("loss",), ("loss",), True, None))
    return made


@pytest.fixture
def trainer():
    return SimpleNamespace(
        is_global_zero=True,
        world_size=1,
        global_step=0,
        current_epoch=3,
        log_every_n_steps=2,
        estimated_stepping_batches=10,
        loggers=[Sink()],
        state=SimpleNamespace(fn="fit"),
        sanity_checking=False,
        callback_metrics={},
    )


@pytest.fixture
def report(tmp_path, trainer, module, monkeypatch):
    """A training whose steps take a second each, two samples in each of them."""
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock.now)
    topology = Topology(start="12-0")
    made = ProgressReport(
        BatchPlan(2, 1, 2, 1), HostGroup(topology, None), ProgressFile(RunDirectory(tmp_path))
    )
    made.on_train_start(trainer, module)

    def step(loss: float | torch.Tensor) -> None:
        clock.now += 1.0
        trainer.global_step += 1
        made.on_train_batch_end(trainer, module, {"loss": torch.as_tensor(loss)}, None, 0)

    made.step = step
    return made


def test_the_mean_loss_and_the_rate_of_each_window(report, trainer, caplog, tmp_path):
    with caplog.at_level(logging.INFO, "convoy"):
        for loss in (1.0, 3.0, 5.0, 7.0):
            report.step(loss)
    rows = trainer.loggers[0].rows
    assert [(step, row["train/loss"]) for step, row in rows] == [(2, 2.0), (4, 6.0)]
    assert {row["train/samples_per_s"] for _, row in rows} == {2.0}
    assert "epoch 3  step 4/10  loss 6.0000  2.0 samples/s  ETA 0:00:06" in caplog.text
    assert report.samples_per_second == 2.0


def test_the_file_tells_host_tools_the_same(report, trainer, tmp_path):
    for loss in (1.0, 3.0):
        report.step(loss)
    told = read_progress(RunDirectory(tmp_path))
    assert (told.start, told.step, told.steps, told.epoch) == ("12-0", 2, 10, 3)
    assert (told.loss, told.samples_per_s, told.seconds_left) == (2.0, 2.0, 8.0)


def test_an_accumulation_is_one_step(report, trainer, module):
    """Batches between two optimiser steps make no report."""
    report.step(1.0)
    report.on_train_batch_end(trainer, module, {"loss": torch.tensor(9.0)}, None, 0)
    assert trainer.loggers[0].rows == []


def test_validation_is_not_counted_as_training(report, trainer, module):
    report.step(1.0)
    report.on_validation_start(trainer, module)
    assert [step for step, _ in trainer.loggers[0].rows] == [1]
    report.on_validation_end(trainer, module)
    for loss in (1.0, 1.0, 1.0):
        report.step(loss)
    assert report.samples_per_second == 2.0


class Event:
    """Of sums that are on their way: who reads them waits."""

    def __init__(self, waited: list[int], trainer: SimpleNamespace) -> None:
        self._waited, self._trainer = waited, trainer

    def synchronize(self) -> None:
        self._waited.append(self._trainer.global_step)


@pytest.fixture
def waited(monkeypatch, trainer):
    """The steps after which somebody waited for a GPU, whose sums are these."""
    steps: list[int] = []
    send = Means.send

    def sent(means: Means) -> Sums:
        sums = send(means)
        return Sums(sums.names, sums.sums, sums.weights, Event(steps, trainer))

    monkeypatch.setattr(Means, "send", sent)
    return steps


def test_a_gpu_has_other_steps_to_do_while_a_window_is_read(report, trainer, waited):
    trainer.log_every_n_steps = 10
    for step in range(24):
        report.step(float(step))
    assert waited == [10 + LATER, 20 + LATER]
    rows = trainer.loggers[0].rows
    assert [(step, row["train/loss"]) for step, row in rows] == [(10, 4.5), (20, 14.5)]
    assert {row["train/samples_per_s"] for _, row in rows} == {2.0}


def test_a_window_is_read_before_the_next_one_ends(report, trainer, waited):
    for loss in (1.0, 3.0, 5.0, 7.0, 9.0):
        report.step(loss)
    assert waited == [4]
    assert [(step, row["train/loss"]) for step, row in trainer.loggers[0].rows] == [(2, 2.0)]


@pytest.mark.parametrize("end", ["epoch", "validation", "training", "stop"])
def test_nothing_is_left_unread(report, trainer, module, waited, end):
    for loss in (1.0, 3.0):
        report.step(loss)
    assert trainer.loggers[0].rows == []
    if end == "epoch":
        report.on_train_epoch_end(trainer, module)
    elif end == "validation":
        report.on_validation_start(trainer, module)
    elif end == "training":
        report.on_train_end(trainer, module)
    else:
        report.on_exception(trainer, module, StoppedEarly("stopped"))
    assert [step for step, _ in trainer.loggers[0].rows] == [2]


def test_a_rank_that_fails_waits_for_nobody(report, trainer, module, waited):
    for loss in (1.0, 3.0):
        report.step(loss)
    report.on_exception(trainer, module, RuntimeError("its own"))
    assert trainer.loggers[0].rows == [] and waited == []


def test_no_step_waits_for_a_gpu(report, trainer, module, cuda):
    trainer.log_every_n_steps = 10
    losses = torch.arange(200.0, device=cuda)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for loss in losses:
            report.step(loss)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    report.on_train_end(trainer, module)
    means = [row["train/loss"] for _, row in trainer.loggers[0].rows]
    assert means == [10 * number + 4.5 for number in range(20)]
