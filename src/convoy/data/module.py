"""The Lightning data module over a feature cache."""

from typing import Any

import convoy.torchvision_cpu  # noqa: F401  # before Lightning, which imports torchvision

# isort: split
import pytorch_lightning as pl
from omegaconf import DictConfig
from torch.utils.data import DataLoader

from convoy.data.cache import Builders, CacheDataset, Sample, Split, collate
from convoy.data.order import TrainingOrder, ValidationOrder
from convoy.errors import ConvoyError
from convoy.global_batch import BatchPlan
from convoy.rundir import RunDirectory
from convoy.topology import Topology


class CacheDataModule(pl.LightningDataModule):
    """Loaders of the two splits; keeps in the checkpoint how far the epoch's order has been consumed."""

    def __init__(
        self,
        train: Split,
        val: Split,
        builders: Builders,
        config: DictConfig,
        batches: BatchPlan,
        topology: Topology,
        run: RunDirectory,
    ) -> None:
        super().__init__()
        skipped_log = run.skipped_samples if config.data.skip_bad else None
        self.train_data = CacheDataset(train, builders, skipped_log)
        self.val_data = CacheDataset(val, builders, skipped_log)
        self.batches = batches
        self.train_order = TrainingOrder(
            len(train.samples), batches.global_batch, topology.world_size, topology.rank, config.seed
        )
        self.val_order = ValidationOrder(len(val.samples), topology.world_size, topology.rank)
        self._loader_options = _loader_options(config)

    def train_dataloader(self) -> DataLoader[Sample | ConvoyError]:
        return self._loader(self.train_data, self.train_order)

    def val_dataloader(self) -> DataLoader[Sample | ConvoyError]:
        return self._loader(self.val_data, self.val_order)

    def _loader(self, data: CacheDataset, order: TrainingOrder | ValidationOrder) -> DataLoader[Sample | ConvoyError]:
        return DataLoader(
            data, batch_size=self.batches.rank_batch, sampler=order, collate_fn=collate, **self._loader_options
        )

    def on_before_batch_transfer(self, batch: Sample | ConvoyError, dataloader_idx: int) -> Sample:
        """Raise here, in the main process, what a loader could not read."""
        if isinstance(batch, ConvoyError):
            raise batch
        return batch

    def own_validation_samples(self, batch_index: int) -> int:
        """How many samples at the head of this rank's validation batch are not repeats of other ranks' samples."""
        left = self.val_order.own_samples - batch_index * self.batches.rank_batch
        return max(0, min(left, self.batches.rank_batch))

    def training_tokens(self, epoch: int, batch_index: int) -> list[str]:
        """`<log>/<token>` of this rank's training batch, recomputed from the order."""
        start = batch_index * self.batches.rank_batch
        indices = self.train_order.rank_order(epoch)[start : start + self.batches.rank_batch]
        return [self.train_data.split.samples[index] for index in indices]

    def state_dict(self) -> dict[str, Any]:
        assert self.trainer is not None
        progress = self.trainer.fit_loop.epoch_loop.batch_progress.current
        consumed = progress.ready * self.batches.rank_batch * self.batches.world_size
        return {"epoch": self.trainer.current_epoch, "consumed": consumed, "samples": len(self.train_data)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if state_dict["samples"] != len(self.train_data):
            raise ConvoyError(
                f"The checkpoint was trained on {state_dict['samples']} samples; the training split now has "
                f"{len(self.train_data)}. Go on with the cache and logs of its start, or give a new run_dir."
            )
        self.train_order.resume(state_dict["epoch"], state_dict["consumed"])


def _loader_options(config: DictConfig) -> dict[str, Any]:
    """DataLoader arguments from NAVSIM's `dataloader.params`, less what needs worker processes when there are none."""
    params = config.dataloader.params
    options: dict[str, Any] = {
        "num_workers": params.num_workers,
        "pin_memory": params.pin_memory and config.trainer.params.accelerator != "cpu",
    }
    if params.num_workers > 0:
        options |= {"prefetch_factor": params.prefetch_factor, "persistent_workers": True}
    return options
