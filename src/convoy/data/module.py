"""The Lightning data module over a gzip cache or packed shards."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

import convoy.navsim.torchvision_cpu  # noqa: F401  # before Lightning, which imports torchvision

# isort: split
import pytorch_lightning as pl
import torch
from omegaconf import DictConfig
from torch.utils.data import DataLoader

from convoy.data.cache import Builders, CacheDataset, Sample, collate
from convoy.data.order import TrainingOrder, ValidationOrder
from convoy.data.packed_batch import PackedBatch
from convoy.data.prefetch import DeviceBatch, DevicePrefetcher
from convoy.data.shard_loader import ShardLoader
from convoy.data.shard_reader import ShardReader
from convoy.data.shard_split import ShardSplit
from convoy.data.source import Split
from convoy.data.staging import StagedShards, Staging, staged_folder
from convoy.errors import ConvoyError
from convoy.global_batch import BatchPlan
from convoy.run.layout import RunDirectory
from convoy.topology import Topology

Batch = Sample | PackedBatch | ConvoyError
Order = TrainingOrder | ValidationOrder


class DataModule(pl.LightningDataModule):
    """Loaders of both splits; the checkpoint keeps how far the epoch's order was consumed."""

    def __init__(
        self,
        train: Split,
        val: Split,
        builders: Builders,
        config: DictConfig,
        batches: BatchPlan,
        topology: Topology,
        run: RunDirectory,
        to_device_ahead: bool = False,
    ) -> None:
        """`to_device_ahead`: training batches are brought to the GPU one step before their turn.

        Raises ConvoyError when the data cannot be staged as asked.
        """
        super().__init__()
        self._to_device_ahead = to_device_ahead
        self.train_split, self.val_split = train, val
        self.batches = batches
        self.train_order = TrainingOrder(
            len(train.samples),
            batches.global_batch,
            topology.world_size,
            topology.rank,
            config.seed,
        )
        self.val_order = ValidationOrder(len(val.samples), topology.world_size, topology.rank)
        self._rank_order: tuple[int, Any] = (-1, None)  # epoch, and this rank's order in it
        if isinstance(train, ShardSplit) and isinstance(val, ShardSplit):
            self._loaders: _Loaders = _ShardLoaders([train, val], builders, config, topology)
        else:
            self._loaders = _CacheLoaders(builders, config, run)

    def train_dataloader(self) -> Iterable[Batch]:
        loader = self._loaders.open(self.train_split, self.train_order, self.batches.rank_batch)
        if not self._to_device_ahead:
            return loader
        assert self.trainer is not None
        return DevicePrefetcher(loader, self.trainer.strategy.root_device)

    def val_dataloader(self) -> Iterable[Batch]:
        return self._loaders.open(self.val_split, self.val_order, self.batches.rank_batch)

    def teardown(self, stage: str) -> None:
        self._loaders.close()

    def on_before_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Sample | PackedBatch:
        """Raise here, in the main process, what a loader could not read."""
        if isinstance(batch, ConvoyError):
            raise batch
        return batch

    def transfer_batch_to_device(
        self, batch: Sample | PackedBatch, device: torch.device, dataloader_idx: int
    ) -> Sample:
        """A packed batch crosses in its packed bytes and is decoded on the other side."""
        if isinstance(batch, DeviceBatch):
            return batch
        if isinstance(batch, PackedBatch):
            return batch.to(device).decode()
        return super().transfer_batch_to_device(batch, device, dataloader_idx)

    def own_validation_samples(self, batch_index: int) -> int:
        """How many samples at the head of this rank's validation batch are not repeats of other
        ranks' samples."""
        left = self.val_order.own_samples - batch_index * self.batches.rank_batch
        return max(0, min(left, self.batches.rank_batch))

    def training_samples(self, epoch: int, batch_index: int) -> list[str]:
        """`<log>/<token>` of this rank's training batch, recomputed from the order."""
        if self._rank_order[0] != epoch:
            self._rank_order = (epoch, self.train_order.rank_order(epoch))
        start = batch_index * self.batches.rank_batch
        indices = self._rank_order[1][start : start + self.batches.rank_batch]
        return [self.train_split.samples[index] for index in indices]

    def validation_tokens(self, batch_index: int, own: int) -> list[str]:
        """Tokens of the first `own` samples of this rank's validation batch; of all for 0."""
        size = self.batches.rank_batch
        indices = list(self.val_order)[batch_index * size : (batch_index + 1) * size]
        samples = [self.val_split.samples[index] for index in indices[: own or size]]
        return [sample.rpartition("/")[2] for sample in samples]

    def first_samples(self, count: int, device: torch.device) -> tuple[Sample, list[str]]:
        """The training split's first samples as a batch on `device`, and their tokens; reads
        nothing else and stages nothing."""
        indices = range(min(count, self.batches.rank_batch))
        batch = self.on_before_batch_transfer(self._loaders.read(self.train_split, indices), 0)
        tokens = [self.train_split.samples[index].rpartition("/")[2] for index in indices]
        return self.transfer_batch_to_device(batch, device, 0), tokens

    def state_dict(self) -> dict[str, Any]:
        assert self.trainer is not None
        fit = self.trainer.fit_loop
        over = fit.epoch_progress.current.completed == fit.epoch_progress.current.ready
        batches = 0 if over else fit.epoch_loop.batch_progress.current.ready
        consumed = batches * self.batches.rank_batch * self.batches.world_size
        return {
            "epoch": self.trainer.current_epoch,
            "consumed": consumed,
            "samples": len(self.train_split.samples),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if state_dict["samples"] != len(self.train_split.samples):
            raise ConvoyError(
                f"The checkpoint was trained on {state_dict['samples']} samples; the training "
                f"split now has {len(self.train_split.samples)}. Continue with the cache and logs "
                "that it started with, or give a new run_dir."
            )
        self.train_order.resume(state_dict["epoch"], state_dict["consumed"])


class _Loaders(Protocol):
    def open(self, split: Any, order: Order, batch_size: int) -> Iterable[Batch]: ...

    def read(self, split: Any, indices: Sequence[int]) -> Batch: ...

    def close(self) -> None: ...


class _CacheLoaders:
    """DataLoaders over the gzip cache, with NAVSIM's `dataloader.params`."""

    def __init__(self, builders: Builders, config: DictConfig, run: RunDirectory) -> None:
        self._builders = builders
        self._skipped_log = run.skipped_samples if config.data.skip_bad else None
        self._trusted = config.data.trust_cache
        params = config.dataloader.params
        # With a generator of its own a DataLoader leaves torch's alone: an agent's dropout is the
        # same with any number of workers, and from packed shards.
        self._options: dict[str, Any] = {
            "num_workers": params.num_workers,
            "pin_memory": _pins(config),
            "generator": torch.Generator(),
        }
        if params.num_workers > 0:
            self._options |= {
                "prefetch_factor": params.prefetch_factor,
                "persistent_workers": params.get("persistent_workers", True),
            }

    def open(self, split: Any, order: Order, batch_size: int) -> Iterable[Batch]:
        data = CacheDataset(split, self._builders, self._skipped_log, self._trusted)
        return DataLoader(
            data, batch_size=batch_size, sampler=order, collate_fn=collate, **self._options
        )

    def read(self, split: Any, indices: Sequence[int]) -> Batch:
        data = CacheDataset(split, self._builders, self._skipped_log, self._trusted)
        return collate([data[index] for index in indices])

    def close(self) -> None:
        pass


class _ShardLoaders:
    """Loaders over packed shards: one reader for both splits, and the staged copies where
    data.stage asks for them.

    `dataloader.params.num_workers` are its threads, `prefetch_factor` the batches that are read
    ahead.
    """

    def __init__(
        self, splits: list[ShardSplit], builders: Builders, config: DictConfig, topology: Topology
    ) -> None:
        self._builders = builders
        self._staging: Staging | None = None
        staged = None
        if config.data.stage is not None:
            shards = [shard for split in splits for shard in split.shards]
            folder = staged_folder(Path(config.data.stage), shards)
            staged = StagedShards(folder)
            if topology.local_rank == 0:
                limit = config.data.stage_gb
                self._staging = Staging(
                    splits[0].root, shards, folder, None if limit is None else limit * 1e9
                )
        params = config.dataloader.params
        self._reader = ShardReader(params.num_workers, _pins(config), staged)
        self._prefetch = params.prefetch_factor or 1

    def open(self, split: Any, order: Order, batch_size: int) -> Iterable[Batch]:
        if self._staging is not None:
            self._staging.start()
        check = self._staging.check if self._staging is not None else None
        return ShardLoader(
            split, self._builders, order, batch_size, self._reader, self._prefetch, check
        )

    def read(self, split: Any, indices: Sequence[int]) -> Batch:
        loader = ShardLoader(split, self._builders, indices, len(indices), self._reader, 1)
        return loader.read(indices)

    def close(self) -> None:
        if self._staging is not None:
            self._staging.close()
        self._reader.close()


def _pins(config: DictConfig) -> bool:
    return bool(config.dataloader.params.pin_memory and config.trainer.params.accelerator != "cpu")
