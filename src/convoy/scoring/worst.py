"""The scenes with the lowest scores, in one picture beside them."""

from collections.abc import Mapping

import numpy as np

from convoy.navsim.scene_picture import Drawn, front_camera, write
from convoy.navsim.split_scenes import SceneSource
from convoy.run.atomic import replacing
from convoy.run.score_layout import ScoreDirectory
from convoy.scoring.parts import Trajectories
from convoy.scoring.plan import read_plan
from convoy.scoring.summary import SCORE, Table

COUNT = 6
# What a scene can lose its whole score by, and what it is called in the picture.
GATES: Mapping[str, str] = {
    "no_at_fault_collisions": "collision",
    "drivable_area_compliance": "off the road",
    "driving_direction_compliance": "wrong direction",
    "traffic_light_compliance": "red light",
    "time_to_collision_within_bound": "close call",
}


def draw_worst(directory: ScoreDirectory, source: SceneSource, count: int = COUNT) -> str | None:
    """Write the picture of a finished scoring; returns why there is none, in a few words.

    Scenes of a second stage are not shown: nobody drove there.
    """
    table = Table.parse(directory.table.read_bytes())
    units = {
        token: unit
        for unit in read_plan(directory).units
        if not unit.files
        for token in unit.tokens
    }
    scores = dict(zip(table.tokens, table.column(SCORE), strict=True))
    found = sorted(
        (score, token) for token, score in scores.items() if token in units and np.isfinite(score)
    )[:count]
    if not found:
        return "no scene of the first stage has a score of its own"
    drawn = []
    try:
        for score, token in found:
            unit = units[token]
            held = Trajectories.read(directory.trajectories_of(unit.name))
            scene = source.open(unit.log, [token], front_camera()).scene(token)
            place = held.tokens.index(token)
            title = f"{token}\n{100 * score:.1f}{_lost(table, token)}"
            drawn.append(Drawn(scene, held.poses[place], held.interval, title))
        with replacing(directory.worst) as file:
            write(file, drawn)
    except Exception as error:  # pictures or maps that NAVSIM cannot open
        return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    return None


def _lost(table: Table, token: str) -> str:
    """`: collision, red light`, of what the scene failed in."""
    row = table.tokens.index(token)
    failed = [
        words
        for name, words in GATES.items()
        if name in table.columns and table.values[row, table.columns.index(name)] < 1
    ]
    return f": {', '.join(failed)}" if failed else ""
