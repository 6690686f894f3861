"""What synthetic scenes are made of: lanes and boxes on flat ground, in the ego frame."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

STEP = 0.5  # metres between the points of a lane


@dataclass(frozen=True)
class Lane:
    """A polyline with points every half metre; `station` is the arc length, 0 where the ego is."""

    station: Array  # (N,)
    points: Array  # (N, 2)
    heading: Array  # (N,)

    @classmethod
    def from_curvature(cls, curvature: Array, station: Array) -> "Lane":
        """Integrate a curvature (1/m) given at each station; the lane passes the origin along x."""
        heading = np.concatenate([[0.0], np.cumsum((curvature[1:] + curvature[:-1]) / 2 * STEP)])
        origin = int(np.argmin(np.abs(station)))
        heading -= heading[origin]
        middle = (heading[1:] + heading[:-1]) / 2
        steps = np.stack([np.cos(middle), np.sin(middle)], axis=1) * STEP
        points = np.concatenate([np.zeros((1, 2)), np.cumsum(steps, axis=0)])
        return cls(station, points - points[origin], heading)

    def offset(self, distance: float | Array) -> Array:
        """Points at `distance` to the left of the lane, (N, 2)."""
        normal = np.stack([-np.sin(self.heading), np.cos(self.heading)], axis=1)
        return self.points + normal * np.reshape(distance, (-1, 1))

    def pose(self, station: float, left: float = 0.0) -> tuple[float, float, float]:
        """x, y and heading at a station, `left` metres to the side."""
        x = np.interp(station, self.station, self.points[:, 0])
        y = np.interp(station, self.station, self.points[:, 1])
        heading = float(np.interp(station, self.station, self.heading))
        return float(x - left * np.sin(heading)), float(y + left * np.cos(heading)), heading

    def strip(self, right: float, left: float) -> Array:
        """Polygon between two offsets, (2N, 2)."""
        return np.concatenate([self.offset(left), self.offset(right)[::-1]])


@dataclass(frozen=True)
class Box:
    """An upright cuboid on the ground, its centre at (x, y)."""

    x: float
    y: float
    heading: float
    length: float
    width: float
    height: float
    colour: tuple[int, int, int]

    def corners(self) -> Array:
        """Footprint counter-clockwise from front left, (4, 2)."""
        c, s = np.cos(self.heading), np.sin(self.heading)
        half = np.array([[1, 1], [-1, 1], [-1, -1], [1, -1]]) / 2 * (self.length, self.width)
        return half @ np.array([[c, s], [-s, c]]) + (self.x, self.y)


@dataclass(frozen=True)
class Vehicle(Box):
    """A car; `braking` shows in its tail lights."""

    braking: bool = False
