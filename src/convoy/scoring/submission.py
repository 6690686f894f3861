"""A scoring's trajectories as a file for NAVSIM's leaderboards."""

from pathlib import Path

import numpy as np

from convoy.errors import ConvoyError
from convoy.navsim.submission import submission
from convoy.run.atomic import replacing
from convoy.run.score_layout import ScoreDirectory
from convoy.scoring.parts import Trajectories
from convoy.scoring.plan import read_plan

WHO = ("team_name", "authors", "email", "institution", "country")  # NAVSIM's names


def take_who(overrides: list[str]) -> dict[str, str]:
    """Who submits, taken out of a command line's overrides. Raises ConvoyError, naming what is
    missing."""
    found = {}
    for word in list(overrides):
        key, _, value = word.partition("=")
        if key in WHO:
            found[key] = value
            overrides.remove(word)
    missing = [name for name in WHO if not found.get(name)]
    if missing:
        raise ConvoyError(
            f"A submission says who made it: {' '.join(f'{name}=…' for name in missing)} is "
            "missing."
        )
    return found


def write_submission(directory: ScoreDirectory, path: Path, who: dict[str, str]) -> list[str]:
    """Write the file; returns the tokens without a trajectory, which the leaderboard will miss.

    Raises ConvoyError where a trajectory is still to be computed, or `path` cannot be written.
    """
    stages: tuple[dict[str, tuple[np.ndarray, float]], ...] = ({}, {})
    failed: list[str] = []
    for unit in read_plan(directory).units:
        held = Trajectories.read(directory.trajectories_of(unit.name))
        stage = stages[1] if unit.files else stages[0]
        for token, poses, reason in zip(held.tokens, held.poses, held.reasons, strict=True):
            if reason:
                failed.append(token)
            else:
                stage[token] = (poses, held.interval)
    try:
        with replacing(path.absolute()) as file:
            file.write(submission(who, *stages))
    except OSError as error:
        raise ConvoyError(
            f"{path} cannot be written: {error.strerror}. Name another file with --submission."
        ) from error
    return failed
