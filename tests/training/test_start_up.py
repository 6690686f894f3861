"""Where a start's time goes, in a real training loop."""

import gc
import logging
import re
import subprocess
import sys
import time

import convoy.navsim.torchvision_cpu  # noqa: F401  # before Lightning, which imports torchvision

# isort: split
import pytest
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader

from convoy.run import garbage
from convoy.training.start_up import StartUp, _age


class Slow(pl.LightningModule):
    """Its first step takes half a second, its third a quarter."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(2, 1)

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        time.sleep({0: 0.5, 2: 0.25}.get(batch_idx, 0.0))
        return self.layer(batch).sum()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.parametrize("last_step", [1, 4])
def test_parts_follow_one_another_and_are_told_once(caplog, last_step):
    told = []
    garbage.look_rarely()
    start_up = StartUp()
    start_up.reached("imports")
    time.sleep(0.2)
    start_up.reached("agent")
    start_up.tell(lambda kind, **facts: told.append((kind, facts)), last_step)
    trainer = pl.Trainer(
        max_epochs=2,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[start_up],
    )
    with caplog.at_level(logging.INFO, "convoy"):
        trainer.fit(Slow(), DataLoader(torch.ones(6, 2)))
    [(kind, facts)] = told
    parts = facts["parts"]
    assert kind == "first_step" and facts["step"] == last_step
    assert list(parts)[:4] == ["imports", "agent", "trainer", "first step"]
    assert parts["agent"] >= 0.2 and parts["first step"] >= 0.5
    assert list(parts)[4:] == (["steps 2 to 4"] if last_step == 4 else [])
    assert parts.get("steps 2 to 4", 0.25) >= 0.25
    assert facts["seconds"] == pytest.approx(sum(parts.values()), abs=0.05)
    [line] = [entry.getMessage() for entry in caplog.records if "after" in entry.getMessage()]
    said = re.match(rf"step {last_step} after ([\d.]+) s: imports ", line)
    assert gc.get_threshold() == garbage.USUAL
    assert said and float(said[1]) == pytest.approx(facts["seconds"], abs=0.06)  # each is rounded


def test_time_counts_from_the_start_of_the_process():
    program = (
        "import os, time\n"
        "time.sleep(1)\n"
        "from convoy.training.start_up import _age\n"
        "own = _age()\n"
        "if not os.fork():\n"
        "    print(own, _age(), flush=True)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], stdout=subprocess.PIPE, check=True)
    own, forked = map(float, done.stdout.split())
    assert own >= 1 > forked >= 0 and _age() >= own
