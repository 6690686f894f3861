"""The file that NAVSIM's leaderboards take, as its run_create_submission_pickle.py writes it."""

import pickle
from collections.abc import Mapping
from typing import Any

import numpy as np

from convoy.navsim.importing import make_importable

Poses = Mapping[str, tuple[np.ndarray, float]]  # token -> (poses, 3), seconds between them


def submission(who: Mapping[str, str], first: Poses, second: Poses) -> bytes:
    """`who` has team_name, authors, email, institution and country. `first` and `second` are the
    stages; the second is empty for a split of one stage."""
    make_importable()
    content: dict[str, Any] = {
        name: who[name] for name in ("team_name", "authors", "email", "institution")
    }
    content |= {
        "country / region": who["country"],
        "first_stage_predictions": [_trajectories(first)],
        "second_stage_predictions": [_trajectories(second)],
    }
    return pickle.dumps(content)


def _trajectories(poses: Poses) -> dict[str, Any]:
    from navsim.common.dataclasses import Trajectory
    from nuplan.planning.simulation.trajectory.trajectory_sampling import TrajectorySampling

    return {
        token: Trajectory(value, TrajectorySampling(num_poses=len(value), interval_length=interval))
        for token, (value, interval) in poses.items()
    }
