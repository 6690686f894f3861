"""Pedestrians: some cross the road at a zebra crossing, some walk along it."""

from dataclasses import dataclass

import numpy as np

from convoy.synthetic.scene import ROAD_HALF_WIDTH
from convoy.synthetic.shapes import Pedestrian
from convoy.synthetic.signals import STEP
from convoy.synthetic.town import Road

WALK = 1.4  # m/s


@dataclass
class Crossing:
    """A pedestrian at a zebra crossing: waits back from the kerb, steps up to it, and crosses when
    it is clear."""

    road: Road
    shape: Pedestrian
    across: float  # metres to the left of the road's centre
    side: int  # that it heads for
    pause: float  # seconds until it wants to cross
    speed: float = 0.0

    BACK, KERB = ROAD_HALF_WIDTH + 1.3, ROAD_HALF_WIDTH + 0.3

    @property
    def wanted(self) -> bool:
        """Whether drivers must let it cross."""
        return self.pause <= 0.0 and self.side * self.across < ROAD_HALF_WIDTH

    def step(self, rng: np.random.Generator, clear: bool) -> None:
        self.pause -= STEP
        self.speed = 0.0
        if self.pause > 0.0:
            return
        ahead = self.side * self.across
        # The last metre before the kerb tells drivers; from there on the road must be clear.
        if ahead < -self.KERB or ahead > -self.KERB + 0.2 or (clear and self.pause < -2.0):
            self.speed = self.side * WALK
            self.across += self.speed * STEP
        if self.side * self.across >= self.BACK:
            self.side, self.pause = -self.side, rng.uniform(5.0, 18.0)


@dataclass(frozen=True)
class Walker:
    """A pedestrian who walks up and down along a road."""

    road: Road
    shape: Pedestrian
    left: float
    start: float
    speed: float

    def state(self, time: float) -> tuple[float, float, float, float]:
        """x, y, heading and signed speed along the heading."""
        length = self.road.centre.length
        phase = (self.start + self.speed * time) % (2 * length)
        back = phase > length
        x, y, heading = self.road.centre.pose(2 * length - phase if back else phase, self.left)
        return x, y, heading + (np.pi if back else 0.0), self.speed
