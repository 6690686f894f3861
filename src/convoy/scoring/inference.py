"""Trajectories in batches, before anything is simulated: on a GPU, from packed shards, or both.

The agent is NAVSIM's `compute_trajectory` less its batch of one: builders, `eval()`, `forward`.
Figures of a batch differ from those of single scenes in their last digits, as do those of a GPU.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from convoy.data.cache import Builders
from convoy.data.prefetch import DevicePrefetcher
from convoy.data.shard_loader import ShardLoader
from convoy.data.shard_reader import ShardReader
from convoy.data.shard_split import ShardSplit, split_of
from convoy.data.shards import load_manifest
from convoy.errors import ConvoyError
from convoy.navsim.planner import KEY, interval_of
from convoy.run.score_layout import ScoreDirectory
from convoy.scoring.parts import Trajectories
from convoy.scoring.plan import Unit

BATCH = 64
READ_AHEAD = 4  # batches
MOST_THREADS = 16  # that read shards
DTYPES = {"32": None, "bf16": torch.bfloat16}


class BatchPredictor:
    """An agent on a device; `precision` is "32" or "bf16" (autocast)."""

    def __init__(self, agent: Any, device: torch.device, precision: str = "32") -> None:
        self._agent = agent.to(device).eval()
        self._device, self._dtype = device, DTYPES[precision]
        if device.type == "cuda":
            self._agent.to(memory_format=torch.channels_last)
            torch.backends.cudnn.benchmark = True

    def poses(self, batches: Iterable[Mapping[str, Any]]) -> Iterator[np.ndarray]:
        """Poses (batch, poses, 3), float32, of each batch of features; host or device.

        The next batch is begun before the last one's poses are waited for.
        """
        waiting: Tensor | None = None
        for features in batches:
            begun = self._forward(features)
            if waiting is not None:
                yield waiting.cpu().numpy()
            waiting = begun
        if waiting is not None:
            yield waiting.cpu().numpy()

    @torch.inference_mode()
    def _forward(self, features: Mapping[str, Any]) -> Tensor:
        moved = {name: self._moved(value) for name, value in features.items()}
        cast = (
            nullcontext() if self._dtype is None else torch.autocast(self._device.type, self._dtype)
        )
        with cast:
            poses: Tensor = self._agent.forward(moved)[KEY]
        return poses.float()

    def _moved(self, value: Any) -> Any:
        return value.to(self._device, non_blocking=True) if isinstance(value, Tensor) else value


def feature_batches(
    split: ShardSplit,
    agent: Any,
    samples: Sequence[str],
    device: torch.device,
    batch_size: int,
    threads: int,
) -> Iterator[Mapping[str, Any]]:
    """Features of `samples` (`<log>/<token>`, all of them in `split`), in their order."""
    builders = Builders(
        tuple(builder.get_unique_name() for builder in agent.get_feature_builders()), ()
    )
    place = {sample: index for index, sample in enumerate(split.samples)}
    order = [place[sample] for sample in samples]
    on_gpu = device.type == "cuda"
    reader = ShardReader(min(threads, MOST_THREADS), pinned=on_gpu)
    loader = ShardLoader(split, builders, order, batch_size, reader, READ_AHEAD)
    try:
        for batch in DevicePrefetcher(loader, device) if on_gpu else loader:
            if isinstance(batch, ConvoyError):
                raise batch
            yield batch[0]
    finally:
        reader.close()


def predict_from_shards(
    agent: Any,
    directory: ScoreDirectory,
    units: Sequence[Unit],
    shards: Path,
    device: torch.device,
    precision: str,
    threads: int,
) -> list[Unit]:
    """Write the trajectories of those of `units` whose scenes are all in `shards`; returns the
    others, which have to be computed from raw data."""
    split = split_of(load_manifest(shards), shards, sorted({unit.log for unit in units}))
    held = set(split.samples)
    ready = [unit for unit in units if all(name in held for name in samples_of(unit))]
    predictor = BatchPredictor(agent, device, precision)
    samples = [sample for unit in ready for sample in samples_of(unit)]
    batches = feature_batches(split, agent, samples, device, BATCH, threads)
    waiting = iter(ready)
    rows: list[np.ndarray] = []
    unit = next(waiting, None)
    for poses in predictor.poses(batches) if samples else ():
        rows += list(poses)
        while unit is not None and len(rows) >= unit.weight:
            found, rows = rows[: unit.weight], rows[unit.weight :]
            write(directory, unit, found, interval_of(agent))
            unit = next(waiting, None)
    return [unit for unit in units if unit not in set(ready)]


def predict_features(
    predictor: BatchPredictor,
    directory: ScoreDirectory,
    unit: Unit,
    features: Sequence[Mapping[str, np.ndarray] | str],
    interval: float,
) -> None:
    """Write the trajectories of a unit from its scenes' features, or the reasons why some have
    none."""
    good = [entry for entry in features if not isinstance(entry, str)]
    poses: Iterator[np.ndarray] = iter(())
    if good:
        batch = {name: torch.from_numpy(np.stack([e[name] for e in good])) for name in good[0]}
        (computed,) = predictor.poses([batch])
        poses = iter(computed)
    found = [entry if isinstance(entry, str) else next(poses) for entry in features]
    write(directory, unit, found, interval)


def write(
    directory: ScoreDirectory, unit: Unit, found: Sequence[np.ndarray | str], interval: float
) -> None:
    Trajectories.of(unit.tokens, found, interval).write(directory.trajectories_of(unit.name))


def samples_of(unit: Unit) -> list[str]:
    return [f"{unit.log}/{token}" for token in unit.tokens]
