"""The hooks that do something are called as Lightning calls them, in the same order."""

import convoy.navsim.torchvision_cpu  # noqa: F401  # before Lightning, which imports torchvision

# isort: split
from contextlib import nullcontext

import pytorch_lightning as pl
import torch
from pytorch_lightning.trainer import call
from torch.utils.data import DataLoader

from convoy.training.lean_hooks import lean_hooks


class Module(pl.LightningModule):
    def __init__(self, diary: list[str]) -> None:
        super().__init__()
        self.layer, self.diary = torch.nn.Linear(2, 1), diary

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        self.diary.append(f"step {batch_idx} of {len(batch)}")
        return self.layer(batch).sum()

    def on_after_backward(self) -> None:
        self.diary.append("module on_after_backward")

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Diary(pl.Callback):
    def __init__(self, diary: list[str]) -> None:
        self.diary = diary

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        self.diary.append(f"{pl_module._current_fx_name} {batch_idx}")

    def on_train_epoch_end(self, trainer, pl_module) -> None:
        pl_module.log("logged", 1.0)  # which asks where it is called from


def fit(lean: bool) -> tuple[list[str], dict]:
    diary: list[str] = []
    own = pl.Callback()
    own.on_train_batch_end = lambda *args: diary.append(f"own {args[-1]}")  # as LambdaCallback
    trainer = pl.Trainer(
        max_epochs=2,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[pl.Callback(), Diary(diary), own],
    )
    module = Module(diary)
    with lean_hooks(trainer, module) if lean else nullcontext():
        trainer.fit(module, DataLoader(torch.ones(6, 2), batch_size=2))
    return diary, dict(trainer.callback_metrics)


def test_the_same_calls_and_none_for_nothing():
    before = call._call_callback_hooks, call._call_lightning_module_hook
    theirs, ours = fit(lean=False), fit(lean=True)
    assert ours == theirs
    assert len(ours[0]) == 2 * 3 * 4 and "logged" in ours[1]
    assert (call._call_callback_hooks, call._call_lightning_module_hook) == before
