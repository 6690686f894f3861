"""The order of samples: a pure function of (seed, epoch, samples consumed), whatever the world
size.

Training: the epoch's permutation is cut into global batches of consecutive samples; each rank takes
its consecutive share of every global batch. What is left over at the end (less than a global batch)
waits for another epoch's shuffle.
"""

from collections.abc import Iterator

import numpy as np
from torch.utils.data import Sampler

from convoy.errors import ConvoyError


class TrainingOrder(Sampler[int]):
    """Indices of one rank for one epoch; Lightning calls `set_epoch` before each."""

    def __init__(
        self, samples: int, global_batch: int, world_size: int, rank: int, seed: int
    ) -> None:
        """`global_batch` must be a multiple of `world_size`. Raises ConvoyError with fewer samples
        than one batch."""
        if samples < global_batch:
            raise ConvoyError(
                f"The training split has {samples} samples, less than one global batch of "
                f"{global_batch}. Lower global_batch (or dataloader.params.batch_size), or add "
                "logs to train_logs."
            )
        self.samples, self.global_batch, self.world_size, self.rank, self.seed = (
            samples,
            global_batch,
            world_size,
            rank,
            seed,
        )
        self.epoch = 0
        self._resume_at: tuple[int, int] | None = None

    @property
    def steps(self) -> int:
        """Global batches in an epoch."""
        return self.samples // self.global_batch

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def resume(self, epoch: int, consumed: int) -> None:
        """Start the next pass over `epoch` after its first `consumed` samples (over all ranks)."""
        self._resume_at = (epoch, consumed)

    def epoch_order(self, epoch: int) -> np.ndarray:
        """The samples of `epoch` that are trained on, in the order of all ranks together; int64
        (steps * batch,)."""
        # A list of integers seeds numpy's generator with each of them: neighbouring seeds and
        # epochs are unrelated.
        order = np.random.default_rng([self.seed, epoch]).permutation(self.samples)
        return order[: self.steps * self.global_batch]

    def rank_order(self, epoch: int) -> np.ndarray:
        """This rank's share of `epoch_order`; int64 (steps * batch / world size,)."""
        by_rank = self.epoch_order(epoch).reshape(self.steps, self.world_size, -1)
        return by_rank[:, self.rank].reshape(-1)

    def __len__(self) -> int:
        return self.steps * self.global_batch // self.world_size

    def __iter__(self) -> Iterator[int]:
        start = 0
        if self._resume_at is not None and self._resume_at[0] == self.epoch:
            start = self._resume_at[1] // self.world_size
        self._resume_at = None
        return iter(self.rank_order(self.epoch)[start:].tolist())


class ValidationOrder(Sampler[int]):
    """Every sample once over all ranks; the last ranks repeat samples so that all ranks take
    equally many steps.

    (DistributedDataParallel broadcasts buffers in every forward pass, in validation too: unequal
    steps would hang.) `own_samples` says how many of a rank's indices are not such repeats; they
    come first.
    """

    def __init__(self, samples: int, world_size: int, rank: int) -> None:
        self.samples, self.world_size, self.rank = samples, world_size, rank

    @property
    def own_samples(self) -> int:
        return len(range(self.rank, self.samples, self.world_size))

    def __len__(self) -> int:
        return -(-self.samples // self.world_size)

    def __iter__(self) -> Iterator[int]:
        return iter(
            [(self.rank + self.world_size * step) % self.samples for step in range(len(self))]
        )
