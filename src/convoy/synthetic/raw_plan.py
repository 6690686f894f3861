"""What a raw data set holds: its logs, names, tokens, streams of random numbers, towns."""

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from convoy.synthetic.maps import LOCATIONS
from convoy.synthetic.town import Town

HISTORY_FRAMES, FUTURE_FRAMES = 3, 10  # around each sample, as NAVSIM's scene filters ask for
WIDTH, HEIGHT = 1920, 1080  # pixels of a picture
TOWN_STREAM = 2  # of random numbers; 0 and 1 are those of the feature cache
FRAME_INTERVAL = 0.5  # seconds


# Degrees to the left.
YAWS = {
    "F0": 0,
    "L0": 55,
    "L1": 110,
    "L2": 148,
    "R0": -55,
    "R1": -110,
    "R2": -148,
    "B0": 180,
}


FRONT = ("F0", "L0", "R0")


# Part of each token. To be raised when the generator changes, so that a directory never mixes two
# versions.
VERSION = 1


@dataclass(frozen=True)
class RawPlan:
    out: Path
    split: str
    samples: int
    logs: int
    seed: int
    cameras: tuple[str, ...]

    def log_name(self, log: int) -> str:
        return f"synthetic-{self.split}-{self.seed}-{log:03d}"

    def frames(self, log: int) -> int:
        samples = self.samples // self.logs + (log < self.samples % self.logs)
        return samples + HISTORY_FRAMES + FUTURE_FRAMES

    def log_path(self, log: int) -> Path:
        return self.out / "navsim_logs" / self.split / f"{self.log_name(log)}.pkl"

    def blobs(self) -> Path:
        return self.out / "sensor_blobs" / self.split

    def token(self, *parts: object) -> str:
        key = "/".join(
            str(part) for part in ("convoy-synthetic-raw", VERSION, self.split, self.seed, *parts)
        )
        return hashlib.sha256(key.encode()).hexdigest()[:16]

    def rng(self, stream: int, *parts: int) -> np.random.Generator:
        split = int.from_bytes(hashlib.sha256(self.split.encode()).digest()[:4], "big")
        return np.random.default_rng([self.seed, stream, split, *parts])

    def camera_path(self, log: int, camera: str, token: str) -> str:
        return f"{self.log_name(log)}/CAM_{camera}/{token}.jpg"

    def cloud_path(self, log: int, token: str) -> str:
        return f"{self.log_name(log)}/MergedPointCloud/{token}.pcd"


@lru_cache(maxsize=len(LOCATIONS))
def town_of(seed: int, location: int) -> Town:
    return Town.sample(np.random.default_rng([seed, TOWN_STREAM, location]))
