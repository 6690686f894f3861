"""The agent of `make chaos`: so small that a step costs nothing, and it writes down which samples
each step took, and which weights it began with.

Momentum and dropout make its weights depend on all of its history: a step lost, taken twice or
with other random numbers is seen in them.
"""

import hashlib
import os
import time
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn


class Builder:
    def __init__(self, name: str) -> None:
        self._name = name

    def get_unique_name(self) -> str:
        return self._name


class Steps(pl.Callback):
    """Tells the agent which step it is in."""

    def __init__(self, agent: "Agent") -> None:
        self._agent = agent

    def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        self._agent.step = trainer.global_step


class Agent(nn.Module):
    """`record` is the folder for `rank-<rank>.log`: a line per batch with the start, the host, the
    step, the time, a digest of the weights that it began with, the loss and the tokens. A step
    takes as many seconds as the file `pace` there says, so that a fault can hit it."""

    def __init__(self, record: str, dropout: float) -> None:
        super().__init__()
        self.step: int | None = None  # none in the rehearsal
        self._record = Path(record)
        self._start = f"{os.environ.get('TORCHELASTIC_RUN_ID')} {os.uname().nodename}"
        self.layers = nn.Sequential(
            nn.Linear(8, 64), nn.ReLU(), nn.Dropout(dropout), nn.Linear(64, 24)
        )

    def get_feature_builders(self) -> list[Builder]:
        return [Builder("state_feature")]

    def get_target_builders(self) -> list[Builder]:
        return [Builder("trajectory_target")]

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"trajectory": self.layers(features["state"]).reshape(-1, 8, 3)}

    def compute_loss(
        self,
        features: dict[str, Tensor],
        targets: dict[str, Tensor],
        predictions: dict[str, Tensor],
        tokens: list[str],
    ) -> Tensor:
        loss = nn.functional.l1_loss(predictions["trajectory"], targets["trajectory"])
        if self.training and self.step is not None:
            weights = hashlib.sha256()
            for parameter in self.parameters():
                weights.update(parameter.detach().numpy().tobytes())
            began = f"{self._start} {self.step} {time.time():.3f} {weights.hexdigest()[:16]}"
            with (self._record / f"rank-{os.environ.get('RANK', '0')}.log").open("a") as file:
                file.write(f"{began} {loss.item()!r} {' '.join(tokens)}\n")
            time.sleep(float((self._record / "pace").read_text()))
        return loss

    def get_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=0.01)

    def get_training_callbacks(self) -> list[Any]:
        return [Steps(self)]
