"""Parts of a step in a real training loop, each lengthened by a known time."""

import time
from datetime import timedelta

import convoy.navsim.torchvision_cpu  # noqa: F401  # before Lightning, which imports torchvision

# isort: split
import pytest
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, Dataset

from convoy.training.speed.strategy import MeanStrategy
from convoy.training.timers import FIRST_BATCHES, StepTimers

SLEEPS = {"data_wait": 0.03, "forward": 0.005, "backward": 0.05, "optimizer": 0.07}
LOGGING, VALIDATION = 0.02, 0.4
SLACK = 0.018


class Samples(Dataset[torch.Tensor]):
    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> torch.Tensor:
        time.sleep(SLEEPS["data_wait"])
        return torch.ones(2)


class Module(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(2, 1)

    def training_step(self, batch: torch.Tensor) -> torch.Tensor:
        time.sleep(SLEEPS["forward"])
        return self.layer(batch).sum()

    def backward(self, loss: torch.Tensor) -> None:
        time.sleep(SLEEPS["backward"])
        super().backward(loss)

    def optimizer_step(self, epoch, batch_idx, optimizer, optimizer_closure=None) -> None:
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        time.sleep(SLEEPS["optimizer"])

    def validation_step(self, batch: torch.Tensor) -> None:
        time.sleep(VALIDATION)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Report(pl.Callback):
    def on_train_batch_end(self, *args, **kwargs) -> None:
        time.sleep(LOGGING)


@pytest.fixture
def trained(request):
    timers = StepTimers(one_piece=request.param)
    trainer = pl.Trainer(
        max_epochs=1,
        val_check_interval=4,
        limit_val_batches=1,
        num_sanity_val_steps=0,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[Report()],
        profiler=timers,
    )
    trainer.fit(Module(), DataLoader(Samples()), DataLoader(torch.ones(1, 2)))
    return timers, trainer


@pytest.mark.parametrize("trained", [False], indirect=True)
def test_each_part_has_its_own_time(trained):
    timers, trainer = trained
    times = timers.take(trainer)
    # Neither the first steps count, nor those that a validation or the epoch's end cuts.
    assert times["steps"] == 8 - FIRST_BATCHES - 2
    for part, seconds in SLEEPS.items() | {("logging", LOGGING)}:
        assert seconds <= times["parts_s"][part] < seconds + SLACK, part
    assert sum(times["parts_s"].values()) == pytest.approx(times["step_s"])
    assert 0 <= times["parts_s"]["other"] < SLACK
    assert times["step_s"] < VALIDATION
    assert timers.take(trainer) is None  # means since the last call


@pytest.mark.parametrize("trained", [True], indirect=True)
def test_what_cannot_be_told_apart_is_one_part(trained):
    timers, trainer = trained
    parts = timers.take(trainer)["parts_s"]
    inside = sum(SLEEPS[name] for name in ("forward", "backward", "optimizer"))
    assert inside <= parts["one_piece"] < inside + SLACK
    assert parts.keys() == {"data_wait", "copy", "one_piece", "logging", "checkpoint", "other"}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU; run it where torch sees one")
def test_the_gpus_own_time():
    timers = StepTimers(on_gpu=True)
    layers = torch.nn.Sequential(*[torch.nn.Linear(2048, 2048) for _ in range(8)]).cuda()
    batch = torch.ones(4096, 2048, device="cuda")
    for _ in range(60):
        with timers.profile("[TrainingEpochLoop].train_dataloader_next"):
            pass
        with timers.profile("run_training_batch"):
            with timers.profile("[Strategy]S.batch_to_device"):
                pass
            with timers.profile("[Strategy]S.training_step"):
                loss = layers(batch).sum()
            with timers.profile("[Strategy]S.backward"):
                loss.backward()
    torch.cuda.synchronize()
    timers.step_begins(time.perf_counter())
    device = timers.device.take()
    assert 1.2 < device["backward"] / device["forward"] < 3.5


def test_the_exchange_of_gradients_without_ddp():
    strategy = MeanStrategy(lambda parameters, times: None, timedelta(minutes=1))
    strategy.times = type("T", (), {"seconds": lambda self: (0.25, 0.125)})()
    timers = StepTimers()
    for _ in range(FIRST_BATCHES + 2):
        timers.step_begins(time.perf_counter())
    times = timers.take(type("T", (), {"strategy": strategy}))
    assert (times["communication_s"], times["communication_hidden_s"]) == (0.25, 0.125)


def test_ddp_times_its_all_reduce(tmp_path):
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1
    )
    try:
        model = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(512, 512))
        for _ in range(4):
            model(torch.ones(8, 512)).sum().backward()
        trainer = type("T", (), {"strategy": type("S", (), {"model": model})})
        timers = StepTimers()
        for _ in range(FIRST_BATCHES + 2):
            timers.step_begins(time.perf_counter())
        times = timers.take(trainer)
    finally:
        torch.distributed.destroy_process_group()
    assert 0 <= times["communication_hidden_s"] <= times["communication_s"] < 1
