"""`python chaos_cache.py DIR` writes the cache of chaos_agent.py, the same each time."""

import gzip
import pickle
import sys
from pathlib import Path

import torch

LOGS, SAMPLES_PER_LOG = 4, 16


def write_cache(folder: Path) -> None:
    """Samples that differ, the same in every call."""
    generator = torch.Generator().manual_seed(0)
    for log in range(LOGS):
        for number in range(SAMPLES_PER_LOG):
            sample = folder / f"log-{log}" / f"{log:04x}{number:012x}"
            sample.mkdir(parents=True, exist_ok=True)
            values = {
                "state_feature": {"state": torch.rand(8, generator=generator)},
                "trajectory_target": {"trajectory": torch.rand(8, 3, generator=generator) * number},
            }
            for name, value in values.items():
                with gzip.open(sample / f"{name}.gz", "wb") as file:
                    pickle.dump(value, file)


if __name__ == "__main__":
    write_cache(Path(sys.argv[1]))
