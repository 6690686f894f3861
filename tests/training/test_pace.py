"""What a rank measures of itself, in a real training loop."""

import json
import time

import convoy.navsim.torchvision_cpu  # noqa: F401  # before Lightning, which imports torchvision

# isort: split
import pytest
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, Dataset

from convoy.run import story
from convoy.run.layout import RunDirectory
from convoy.topology import Topology
from convoy.training.pace import Pace
from convoy.training.timers import StepTimers


class Samples(Dataset[torch.Tensor]):
    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: int) -> torch.Tensor:
        time.sleep(self.seconds)
        return torch.ones(2)


class Module(pl.LightningModule):
    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.layer, self.seconds = torch.nn.Linear(2, 1), seconds

    def training_step(self, batch: torch.Tensor) -> torch.Tensor:
        time.sleep(self.seconds)
        return self.layer(batch).sum()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.parametrize(("data", "step", "bound"), [(0.06, 0.01, True), (0.0, 0.06, False)])
def test_waiting_for_data_and_own_time(tmp_path, data, step, bound):
    run, timers = RunDirectory(tmp_path), StepTimers()
    trainer = pl.Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[Pace(run, Topology(), timers)],
        profiler=timers,
    )
    trainer.fit(Module(step), DataLoader(Samples(data)))
    pace = json.loads(run.rank_pace(0).read_text())
    assert (pace["data_wait"] > 0.5) is bound
    assert step <= pace["own_s"] < step + 0.1 and pace["step"] == 12
    assert story.read(tmp_path).data_wait == pace["data_wait"]
