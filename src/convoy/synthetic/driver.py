"""How synthetic drivers choose their speed: behind a leader and ahead of curves."""

import numpy as np

from convoy.synthetic.shapes import STEP, Array

ACCELERATION = 1.5  # m/s^2
DECELERATION = 2.5  # m/s^2, comfortable
HEADWAY = 1.5  # seconds
STANDSTILL = 2.5  # metres between bumpers

_TURN_LATERAL_ACCELERATION = 2.2  # m/s^2


def follow(speed: float, desired: float, gap: float, lead_speed: float) -> float:
    """Acceleration in m/s^2, without a lower bound, behind a leader `gap` metres ahead.

    Treiber, Hennecke, Helbing: Congested traffic states in empirical observations and microscopic
    simulations (2000), equations 3 and 4.
    """
    wanted = STANDSTILL + max(
        0.0,
        speed * HEADWAY + speed * (speed - lead_speed) / (2 * np.sqrt(ACCELERATION * DECELERATION)),
    )
    return ACCELERATION * (1 - (speed / desired) ** 4 - (wanted / max(gap, 0.1)) ** 2)


def speed_limit(curvature: Array, deceleration: float = DECELERATION) -> Array:
    """Highest speed per station (half a metre apart) from which each curve ahead is reached at its
    own speed."""
    squared = _TURN_LATERAL_ACCELERATION / np.maximum(np.abs(curvature), 1e-4)
    for i in range(len(squared) - 2, -1, -1):
        squared[i] = min(squared[i], squared[i + 1] + 2 * deceleration * STEP)
    return np.sqrt(squared)
