"""What the data benchmarks read: a gzip cache of TransFuser samples that compress like real ones,
and NAVSIM's dataset.

A real TransFuser sample takes 971 kB gzipped; those of `convoy synth` are drawn and take 57 kB.
Here the camera is a smooth picture with noise, so that reading and decompressing cost what they
cost on real data.
"""

import gzip
import importlib.util
import os
import pickle
import sys
import types
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch

FEATURE, TARGET = "transfuser_feature", "transfuser_target"
NOISE = 7.0  # standard deviation in grey values, of 255; chosen so that a sample has 970 kB
DISTINCT = 48  # samples; the others are copies of these under names of their own


def sample(number: int) -> dict[str, dict[str, torch.Tensor]]:
    """Names, shapes, dtypes and value grids of NAVSIM's TransFuser builders.

    Pure function of `number`.
    """
    rng = np.random.default_rng(number)
    rows, columns = np.mgrid[0:256, 0:1024] / np.array([256, 1024])[:, None, None]
    smooth = np.stack(
        [110 + 60 * np.sin(6 * (rows * a + columns * b)) for a, b in rng.uniform(-1, 1, (3, 2))]
    )
    camera = np.clip(smooth + rng.normal(0, NOISE, smooth.shape), 0, 255).astype(np.uint8)
    lidar = np.minimum(rng.poisson(0.12, (1, 256, 256)), 5).astype(np.float32) / 5
    classes = np.kron(rng.integers(0, 7, (16, 32)), np.ones((8, 8))).astype(np.float32)
    return {
        FEATURE: {
            "camera_feature": torch.from_numpy(camera).float().div(255),
            "lidar_feature": torch.from_numpy(lidar),
            "status_feature": torch.from_numpy(rng.normal(size=8).astype(np.float32)),
        },
        TARGET: {
            "trajectory": torch.from_numpy(rng.normal(size=(8, 3))),
            "agent_states": torch.from_numpy(rng.normal(size=(30, 5)).astype(np.float32)),
            "agent_labels": torch.from_numpy(rng.random(30) < 0.4),
            "bev_semantic_map": torch.from_numpy(classes),
        },
    }


def write_cache(root: Path, samples: int, logs: int) -> int:
    """Write `samples` samples over `logs` logs in NAVSIM's format; returns all their bytes."""
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        files = list(pool.map(_encode, range(min(DISTINCT, samples))))
        return sum(
            pool.map(
                lambda number: _write(root, number, logs, files[number % len(files)]),
                range(samples),
            )
        )


def _encode(number: int) -> dict[str, bytes]:
    return {
        name: gzip.compress(pickle.dumps(tensors), 1) for name, tensors in sample(number).items()
    }


def _write(root: Path, number: int, logs: int, files: dict[str, bytes]) -> int:
    folder = root / f"log-{number % logs:04d}" / f"{number:016x}"
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / f"{name}.gz").write_bytes(content)
    return sum(map(len, files.values()))


class NamedBuilder:
    """All that a dataset over a cache asks of a builder."""

    def __init__(self, name: str) -> None:
        self._name = name

    def get_unique_name(self) -> str:
        return self._name


def navsim_dataset(cache: Path, logs: Sequence[str]) -> Any:
    """NAVSIM's own CacheOnlyDataset over `cache`, from its own unedited file."""
    dataset = navsim_module().CacheOnlyDataset
    return dataset(str(cache), [NamedBuilder(FEATURE)], [NamedBuilder(TARGET)], list(logs))


def navsim_module() -> types.ModuleType:
    """navsim/planning/training/dataset.py, by itself: the names that it imports for its other class
    (SceneLoader and the builders' base classes) are empty stand-ins, so that NAVSIM's many
    dependencies need not be there."""
    if (loaded := sys.modules.get("navsim_dataset")) is not None:
        return loaded
    stand_ins: list[str] = []
    for name, held in (
        ("navsim.common.dataloader", ["SceneLoader"]),
        (
            "navsim.planning.training.abstract_feature_target_builder",
            ["AbstractFeatureBuilder", "AbstractTargetBuilder"],
        ),
    ):
        parts = name.split(".")
        for end in range(1, len(parts) + 1):
            name_so_far = ".".join(parts[:end])
            if name_so_far not in sys.modules:
                stand_ins.append(name_so_far)
                sys.modules[name_so_far] = types.ModuleType(name_so_far)
        for attribute in held:
            setattr(sys.modules[name], attribute, object)
    path = Path(__file__).parents[1] / "build/navsim/navsim/planning/training/dataset.py"
    spec = importlib.util.spec_from_file_location("navsim_dataset", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["navsim_dataset"] = module
    spec.loader.exec_module(module)
    for name in stand_ins:  # who looks for NAVSIM later must not find them
        del sys.modules[name]
    return module
