"""Training in this process: an agent that draws numbers wherever it can, stopped anywhere."""

import logging
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

# Dropout, batch statistics, numbers from all three generators, in validation too, and a scheduler
# that reads the validation: whatever of it depends on history shows in the weights.
RESTLESS_AGENT = """
import os
import random
import signal

import numpy
import pytorch_lightning as pl
import torch


class Builder:
    def __init__(self, name):
        self.name = name

    def get_unique_name(self):
        return self.name


class Diary(pl.Callback):
    '''One line per batch, with a training batch's samples; a signal where INTERRUPT says.'''

    def _at(self, kind, trainer, batch_idx):
        if os.environ.get("INTERRUPT") == f"{kind} {trainer.current_epoch} {batch_idx}":
            os.kill(os.getpid(), signal.SIGUSR1)

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        samples = batch[0]["ego_status"][:, 0].tolist()
        with open(os.environ["DIARY"], "a") as file:
            print(trainer.global_step, trainer.current_epoch, batch_idx, samples, file=file)
        self._at("train", trainer, batch_idx)

    def on_validation_batch_start(self, trainer, module, batch, batch_idx, dataloader_idx=0):
        self._at("validate", trainer, batch_idx)

    def on_validation_end(self, trainer, module):
        with open(os.environ["DIARY"], "a") as file:
            print(trainer.global_step, trainer.current_epoch, "validated", [], file=file)


class RestlessAgent(torch.nn.Module):
    def __init__(self, lr, plateau):
        super().__init__()
        self.lr, self.plateau = lr, plateau
        self.mlp = torch.nn.Sequential(
            torch.nn.Linear(8, 16), torch.nn.BatchNorm1d(16), torch.nn.Dropout(0.3),
            torch.nn.Linear(16, 24),
        )

    def get_feature_builders(self):
        return [Builder("ego_status_feature")]

    def get_target_builders(self):
        return [Builder("trajectory_target")]

    def forward(self, features):
        noise = torch.randn(24) * (1 + random.random() + numpy.random.random())
        return {"trajectory": (self.mlp(features["ego_status"].float()) + noise).reshape(-1, 8, 3)}

    def compute_loss(self, features, targets, predictions):
        return torch.nn.functional.l1_loss(predictions["trajectory"], targets["trajectory"].float())

    def get_optimizers(self):
        optimizer = torch.optim.Adam(self.parameters(), lr=self.lr)
        if not self.plateau:
            return optimizer
        plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0, threshold=0.5)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": plateau, "interval": "epoch", "monitor": "val/loss"},
        }

    def get_training_callbacks(self):
        return [Diary()]
"""

RESTLESS_YAML = """
_target_: navsim.agents.restless.RestlessAgent
_convert_: all
lr: 0.01
plateau: true
"""


def navsim_modules() -> list[str]:
    return [name for name in sys.modules if name.partition(".")[0] == "navsim"]


@pytest.fixture
def restless_tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A fork with that agent; its package takes the place of NAVSIM's own in this process."""
    for name in navsim_modules():
        monkeypatch.delitem(sys.modules, name)
    root = tmp_path / "fork"
    agents = root / "navsim" / "agents"
    agents.mkdir(parents=True)
    for package in (agents.parent, agents):
        (package / "__init__.py").touch()
    (agents / "restless.py").write_text(RESTLESS_AGENT)
    group = root / "navsim/planning/script/config/common/agent"
    group.mkdir(parents=True)
    (group / "restless_agent.yaml").write_text(RESTLESS_YAML)
    monkeypatch.setenv("NAVSIM_DEVKIT_ROOT", str(root))
    yield root
    for name in navsim_modules():
        del sys.modules[name]


@pytest.fixture
def in_process() -> Iterator[Callable[..., None]]:
    """Train with these settings on the CPU in this process, one thread; raises what training does.

    `request` is who may ask it to stop; without one, signals are taken over.
    """
    import torch

    from convoy import config
    from convoy.navsim import tree
    from convoy.run.stop_request import SIGNALS, StopRequest
    from convoy.topology import Topology
    from convoy.training.run import train

    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    signals = {number: signal.getsignal(number) for number in SIGNALS}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)

    def run(*overrides: str, request: StopRequest | None = None) -> None:
        settings = (
            "trainer.params.accelerator=cpu",
            "trainer.params.precision=32-true",
            "trainer.params.deterministic=true",
            "trainer.params.log_every_n_steps=1",
            "dataloader.params.num_workers=0",
        )
        topology = Topology()
        try:
            loaded = config.load([*settings, *overrides], topology, tree.config_directory())
            train(loaded, topology, request or StopRequest().install())
        finally:
            # A training tries its agent out before it turns this on, as in a process of its own.
            torch.use_deterministic_algorithms(False)
            for number, handler in signals.items():
                signal.signal(number, handler)
            root.handlers[:] = handlers
            root.setLevel(level)
            logging.captureWarnings(False)

    yield run
    torch.set_num_threads(threads)


@pytest.fixture
def train_here(
    in_process: Callable[..., None],
    restless_tree: Path,
    ego_cache: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[..., None]:
    """Train the restless agent `in_process`; `interrupt` is where it signals itself."""
    monkeypatch.setenv("DIARY", str(tmp_path / "diary.txt"))

    def run(run_dir: Path, *overrides: str, interrupt: str = "") -> None:
        monkeypatch.setenv("INTERRUPT", interrupt)
        in_process(
            "agent=restless_agent",
            f"cache_path={ego_cache}",
            f"run_dir={run_dir}",
            "data.val_fraction=0.25",
            "global_batch=8",
            "trainer.params.max_epochs=3",
            *overrides,
        )

    return run
