"""Whether an agent's trajectories come in batches, and making them so."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from convoy.data import pool
from convoy.data.shards import is_shard_directory
from convoy.errors import ConvoyError
from convoy.navsim.planner import has_own_way, interval_of
from convoy.scoring.inference import BatchPredictor, predict_features, predict_from_shards
from convoy.scoring.plan import Unit
from convoy.scoring.work import Work, start_worker, unit_features


@dataclass(frozen=True)
class Inference:
    """Where trajectories are computed. `device` is "cpu", "cuda", or "auto": a GPU where torch sees
    one. `precision` is "32" or "bf16" (autocast). `shards` have features that are there already."""

    device: str = "auto"
    precision: str = "32"
    shards: Path | None = None

    def check(self) -> None:
        """Raise ConvoyError for a GPU or shards that are not there, and for what has no effect."""
        if self.device == "cuda" and not torch.cuda.is_available():
            raise ConvoyError(
                "--device cuda: torch sees no GPU here. Check nvidia-smi and the job's --gpus, or "
                "leave it out."
            )
        if self.shards is not None and not is_shard_directory(self.shards):
            raise ConvoyError(
                f"--shards {self.shards} holds no packed shards. Make them: convoy prepare DIR "
                "agent=… train_test_split=…"
            )
        if self.precision != "32" and not self._in_batches:
            raise ConvoyError(
                f"--precision {self.precision} is for batches, on a GPU or from --shards; scene by "
                "scene the agent computes as NAVSIM's script lets it."
            )

    @property
    def torch_device(self) -> torch.device:
        on_gpu = self.device == "cuda" or (self.device == "auto" and torch.cuda.is_available())
        return torch.device("cuda", 0) if on_gpu else torch.device("cpu")

    @property
    def _in_batches(self) -> bool:
        return self.shards is not None or self.torch_device.type == "cuda"

    def batches(self, agent: Any) -> bool:
        """Whether this agent's trajectories are computed in batches, before the simulation."""
        return self._in_batches and not has_own_way(agent)


def predict(
    work: Work, units: Sequence[Unit], inference: Inference, agent: Any, workers: int | None
) -> None:
    """Write the trajectories of those of `units` that lack them, of the first entrant of `work`.

    From shards where all scenes of a unit are there, else from raw data: processes build the
    features of a unit while the device computes another's.
    """
    directory = work.entrants[0].directory
    lacking = [unit for unit in units if not directory.trajectories_of(unit.name).exists()]
    threads = workers or pool.available()
    torch.set_num_threads(threads)  # this process may have scored before, with one
    if inference.shards is not None and lacking:
        lacking = predict_from_shards(
            agent,
            directory,
            lacking,
            inference.shards,
            inference.torch_device,
            inference.precision,
            threads,
        )
    if not lacking:
        return
    predictor = BatchPredictor(agent, inference.torch_device, inference.precision)
    alone = replace(work, entrants=work.entrants[:1])
    for unit, features in pool.run(unit_features, alone, lacking, workers, start_worker):
        predict_features(predictor, directory, unit, features, interval_of(agent))
