"""A gzip cache of EgoStatusMLP samples in NAVSIM's format, for the benchmarks."""

import gzip
import pickle
from pathlib import Path

import numpy as np
import torch


def write_cache(root: Path, samples: int, logs: int) -> int:
    """Write `samples` samples evenly over `logs` logs; returns the bytes of all."""
    rng = np.random.default_rng(0)
    total = 0
    for number in range(samples):
        folder = root / f"log-{number % logs:04d}" / f"{number:016x}"
        folder.mkdir(parents=True)
        tensors = {
            "ego_status_feature": {"ego_status": torch.from_numpy(rng.normal(size=8))},
            "trajectory_target": {"trajectory": torch.from_numpy(rng.normal(size=(8, 3)))},
        }
        for name, held in tensors.items():
            content = gzip.compress(pickle.dumps(held), 1)
            (folder / f"{name}.gz").write_bytes(content)
            total += len(content)
    return total
