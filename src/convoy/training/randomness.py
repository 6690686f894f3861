"""Randomness as a function of (seed, epoch, place in the epoch's order), never of history.

Dropout, drop path and whatever else an agent draws while it trains is then the same whether a run
was interrupted or not. The place is that of a batch's first sample among all ranks' samples: every
rank draws its own numbers, and two ranks draw what one rank with two accumulated batches does.
"""

import hashlib
import random
import struct
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch

from convoy.global_batch import BatchPlan
from convoy.topology import Topology

_TRAINING, _VALIDATION = range(2)


class Randomness(pl.Callback):
    """Seeds the generators of Python, numpy and torch (host and device) before each batch."""

    def __init__(self, seed: int, batches: BatchPlan, topology: Topology) -> None:
        self._seed, self._batches, self._rank = seed, batches, topology.rank

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        place = place_of(batch_idx, self._batches, self._rank)
        seed_generators(derive(self._seed, _TRAINING, trainer.current_epoch, place))

    def on_validation_batch_start(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        place = batch_idx * self._batches.world_size + self._rank
        seed_generators(derive(self._seed, _VALIDATION, trainer.global_step, place))


def place_of(batch_index: int, batches: BatchPlan, rank: int) -> int:
    """Place, in the epoch's order over all ranks, of the first sample of a rank's batch."""
    step, accumulated = divmod(batch_index, batches.accumulation)
    share = rank * batches.rank_samples_per_step + accumulated * batches.rank_batch
    return step * batches.global_batch + share


def derive(*key: int) -> int:
    """A seed of 64 bits; neighbouring keys give unrelated ones."""
    digest = hashlib.blake2b(struct.pack(f"<{len(key)}q", *key), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def seed_generators(seed: int) -> None:
    """Takes about 12 microseconds and does not wait for the device."""
    random.seed(seed)
    np.random.seed(seed & 0xFFFFFFFF)
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed(seed)
