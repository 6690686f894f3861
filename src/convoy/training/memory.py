"""Host and GPU memory of a training: a forecast before it is too late, and words for when it is."""

import logging
import multiprocessing
import re
import time
from collections.abc import Callable
from typing import Any

import pytorch_lightning as pl
import torch
from omegaconf import DictConfig

from convoy.errors import ConvoyError
from convoy.health.memory import GIB, Memory, private_bytes, read_memory
from convoy.topology import Topology

logger = logging.getLogger("convoy")

SETTLED = 30.0  # seconds until the loaders' workers have grown to their size
TIGHT = 0.95  # of the limit


class MemoryForecast(pl.Callback):
    """Once per start, well before the first validation: what the node uses, and what it will when
    the validation's loader starts as many workers as the training's has."""

    def __init__(
        self,
        topology: Topology,
        record: Callable[..., None],
        read: Callable[[], Memory] = read_memory,
        settled: float = SETTLED,
    ) -> None:
        self._topology, self._record, self._read, self._settled = topology, record, read, settled
        self._since: float | None = None if topology.local_rank else time.monotonic()

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        if self._since is None or time.monotonic() - self._since < self._settled:
            return
        self._since = None
        now = self._read()
        workers = [child.pid for child in multiprocessing.active_children() if child.pid]
        more = sum(map(private_bytes, workers)) * self._topology.local_world_size
        message, tight = forecast(now, more, len(workers) * self._topology.local_world_size)
        logger.log(logging.WARNING if tight else logging.INFO, "%s", message)
        self._record("memory", used=now.used, limit=now.limit, validation=more, tight=tight)


def forecast(now: Memory, more: int, workers: int) -> tuple[str, bool]:
    """In words, and whether it will not fit: `more` bytes are those of the validation's workers."""
    tight = now.used + more > TIGHT * now.limit
    message = f"host memory of this node: {now.described}"
    if more:
        message += f"; the validation's {workers} workers will need about {more / GIB:.1f} GiB more"
    if tight:
        message += (
            ". That does not fit, and the kernel would kill a rank. Lower dataloader.params."
            "num_workers or prefetch_factor, ask for more memory (--mem), or train from packed "
            "shards, whose loader has threads instead of workers"
        )
    return message, tight


def explain(error: BaseException, config: DictConfig, topology: Topology) -> ConvoyError | None:
    """What to tell of an error that says that memory ran out; None for any other."""
    where = f"rank {topology.rank} on {topology.host}"
    if isinstance(error, torch.cuda.OutOfMemoryError):
        asked = re.search(r"Tried to allocate (\S+ \w+)", str(error))
        total = re.search(r"total capacity of (\S+ \w+)", str(error))
        return ConvoyError(
            f"Out of GPU memory on {where}"
            + (f": {asked.group(1)} more were asked for" if asked else "")
            + (f" of {total.group(1)}" if total else "")
            + f". Lower dataloader.params.batch_size ({config.dataloader.params.batch_size} now); "
            "with global_batch given, the steps stay the same."
        )
    if re.search(r"DataLoader worker .*(killed by signal: Killed|exited unexpectedly)", str(error)):
        now = read_memory()
        return ConvoyError(
            f"A data loader's worker of {where} was killed, most likely by the kernel for lack of "
            f"host memory ({now.described} in use{_kills(now)}). Lower dataloader.params."
            f"num_workers ({config.dataloader.params.num_workers} now, for each rank), or ask for "
            "more memory (--mem)."
        )
    return None


def _kills(now: Memory) -> str:
    return f", {now.kills} processes killed at that limit so far" if now.kills else ""
