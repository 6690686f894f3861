"""Agents of our own that have the habits of agents in public NAVSIM forks, each in one class.

`tests/conftest.py` puts this file into a NAVSIM tree, as `navsim.agents.habits`.
"""

import os

import convoy.navsim.torchvision_cpu  # noqa: F401  # before Lightning, which imports torchvision

# isort: split
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint


class Builder:
    def __init__(self, name):
        self.name = name

    def get_unique_name(self):
        return self.name


class Plain(torch.nn.Module):
    """NAVSIM's own shape: a tensor is returned."""

    def __init__(self, lr=0.01):
        super().__init__()
        self.lr, self.calls = lr, 0
        self.norm = torch.nn.BatchNorm1d(8)
        self.mlp = torch.nn.Sequential(
            torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 24)
        )

    def get_feature_builders(self):
        return [Builder("ego_status_feature")]

    def get_target_builders(self):
        return [Builder("trajectory_target")]

    def forward(self, features):
        self.calls += 1
        return {"trajectory": self.mlp(self.norm(features["ego_status"].float())).reshape(-1, 8, 3)}

    def compute_loss(self, features, targets, predictions):
        return (predictions["trajectory"] - targets["trajectory"].float()).abs().mean()

    def get_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=self.lr)

    def get_training_callbacks(self):
        return []


class LikeDiffusionDrive(Plain):
    """`forward` takes the targets; a dict with `loss` and parts is returned, None among them."""

    def forward(self, features, targets=None):
        assert targets["trajectory"].shape[0] == features["ego_status"].shape[0]
        return super().forward(features)

    def compute_loss(self, features, targets, predictions):
        loss = super().compute_loss(features, targets, predictions)
        return {"loss": loss, "half_loss": loss / 2, "weight": 2.0, "absent": None}


class LikeGtrs(Plain):
    """A tuple of the loss and its parts is returned; `compute_loss` looks things up by token;
    features are nested; the trajectories have other names, the predicted one at 10 Hz; callbacks
    and a scheduler use NAVSIM's metric names and look into the loaders."""

    def forward(self, features):
        coarse = super().forward(features)["trajectory"]
        return {"imi": coarse.repeat_interleave(5, dim=1), "vocabulary": torch.zeros(3, 40, 3)}

    def compute_loss(self, features, targets, predictions, tokens=None):
        assert [int(token, 16) for token in tokens] == features["code"].tolist()
        speed, named = features["history"]
        assert named["name"] == list(tokens) and named["pose"].dtype == torch.float64
        assert torch.equal(speed, features["ego_status"][:, :2])
        error = (predictions["imi"][:, 4::5] - targets["trajectory_gt"].float()).abs()
        return error.mean(), {"x_loss": error[..., 0].mean(), "y_loss": error[..., 1].mean()}

    def get_optimizers(self):
        optimizer = super().get_optimizers()
        scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)
        plateau = {"scheduler": scheduler, "monitor": "train/loss_epoch"}
        return {"optimizer": optimizer, "lr_scheduler": plateau}

    def get_training_callbacks(self):
        root = os.environ["NAVSIM_EXP_ROOT"]
        best = ModelCheckpoint(root, "gtrs-{epoch:02d}", monitor="val/loss_epoch", save_top_k=2)
        return [best, Looks()]


class Looks(pl.Callback):
    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        features, targets = batch
        step = trainer.callback_metrics
        assert step["train/loss_step"] == step["train/loss"] == outputs["loss"]
        assert step["train/x_loss"] == step["train/x_loss_step"]

    def on_train_epoch_end(self, trainer, pl_module):
        assert trainer.callback_metrics["train/loss_epoch"] > 0
        assert trainer.callback_metrics["train/y_loss"] > 0
        loader = trainer.train_dataloader
        features, targets = loader.dataset[0]
        assert features["ego_status"].shape == (8,) and targets["trajectory_gt"].shape == (8, 3)
        assert len(loader.dataset.tokens) == len(loader.dataset)
        assert len(loader) == len(loader.dataset) // (loader.batch_size * trainer.world_size)
        features, targets = next(iter(loader))
        assert features["ego_status"].shape == (loader.batch_size, 8)

    def on_validation_epoch_end(self, trainer, pl_module):
        seen = trainer.callback_metrics
        assert seen["val/loss"] == seen["val/loss_epoch"] > 0
        assert {"val/x_loss", "val/x_loss_epoch", "val/ade", "val/loss_step"} <= seen.keys()


class LikeGtrsAug(Plain):
    """Only a training module of its own can call it."""

    def forward(self, batch):
        features, _, _ = batch
        return super().forward(features)


class Lost(Plain):
    """Returns its parts without saying which is the loss."""

    def compute_loss(self, features, targets, predictions):
        return {"ori": super().compute_loss(features, targets, predictions), "aug": 1.0}


class Detached(Plain):
    def compute_loss(self, features, targets, predictions):
        return super().compute_loss(features, targets, predictions).detach()


class Lazy(Plain):
    """Makes a module in its first forward, as the i-JEPA fork's agent does."""

    def forward(self, features):
        if not hasattr(self, "encoder"):
            self.encoder = torch.nn.Linear(8, 8).requires_grad_(False)
        return super().forward({"ego_status": self.encoder(features["ego_status"].float())})
