"""A scoring is a directory: every file of it is named here, once. Standard library only.

A run's scorings are `<run>/scores/<split>/<checkpoint>`; the baselines that all scorings of the
same scenes share lie in `<metric_cache_path>/baselines`, and are scorings of the same form.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from convoy.run.layout import RunDirectory


@dataclass(frozen=True)
class ScoreDirectory:
    """Paths of one scoring; a unit is a part of a log, at most sixteen scenes."""

    root: Path

    @property
    def plan(self) -> Path:
        """What is scored and in which units, as JSON; the scoring belongs to it."""
        return self.root / "scoring.json"

    @property
    def trajectories(self) -> Path:
        """One `<log>-<part>.npz` per unit: `tokens` (n,), `poses` (n, poses, 3) in the ego frame (x
        and y in metres, heading in radians), `interval` in seconds, `reasons` (n,), empty where
        there is a trajectory."""
        return self.root / "trajectories"

    @property
    def rows(self) -> Path:
        """One `<log>-<part>.npz` per unit: the columns of its scenes before NAVSIM's script puts
        them together (convoy.scoring.parts)."""
        return self.root / "rows"

    def trajectories_of(self, unit: str) -> Path:
        return self.trajectories / f"{unit}.npz"

    def rows_of(self, unit: str) -> Path:
        return self.rows / f"{unit}.npz"

    @property
    def table(self) -> Path:
        """NAVSIM's CSV: a row per token, and the average at the end. There when all is scored."""
        return self.root / "scores.csv"

    @property
    def worst(self) -> Path:
        """A picture of the scenes with the lowest scores."""
        return self.root / "worst.jpg"

    @property
    def summary(self) -> Path:
        """Means with confidence intervals, those of the baselines too, and what failed, as JSON."""
        return self.root / "summary.json"


def scoring_of_run(run: RunDirectory, split: str, checkpoint: str) -> ScoreDirectory:
    """Where a run keeps the scores of a checkpoint, named by its file's stem (step-000001200)."""
    return ScoreDirectory(run.scores / split / checkpoint)


def baseline_of(metric_cache: Path, agent: str, identity: Mapping[str, Any]) -> ScoreDirectory:
    """Where the scores of an agent without weights lie, for all that score the same scenes."""
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:12]
    return ScoreDirectory(metric_cache / "baselines" / f"{agent}-{digest}")
