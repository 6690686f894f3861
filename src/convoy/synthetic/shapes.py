"""What synthetic scenes are made of: lanes and boxes on flat ground, in the ego frame."""

from dataclasses import dataclass, replace
from enum import Enum
from typing import Self

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

    @classmethod
    def through(cls, points: Array) -> "Lane":
        """Resample a polyline (N, 2) to points about half a metre apart, stations from 0."""
        length = np.concatenate([[0.0], np.cumsum(np.hypot(*np.diff(points, axis=0).T))])
        station = np.linspace(0.0, length[-1], max(3, round(length[-1] / STEP) + 1))
        points = np.stack([np.interp(station, length, points[:, axis]) for axis in (0, 1)], axis=1)
        along = np.gradient(points, axis=0)
        return cls(station, points, np.unwrap(np.arctan2(along[:, 1], along[:, 0])))

    @property
    def length(self) -> float:
        return float(self.station[-1] - self.station[0])

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

    def touches(self, other: "Box") -> bool:
        """Whether the two footprints overlap: no side of either separates them."""
        a, b = self.corners(), other.corners()
        for axis in (
            self.heading,
            self.heading + np.pi / 2,
            other.heading,
            other.heading + np.pi / 2,
        ):
            along = np.array([np.cos(axis), np.sin(axis)])
            p, q = a @ along, b @ along
            if p.max() < q.min() or q.max() < p.min():
                return False
        return True

    def seen_from(self, pose: tuple[float, float, float]) -> Self:
        """The same box in the frame of an observer at `pose` (x, y, heading)."""
        x, y = seen_from(pose, np.array([self.x, self.y]))
        return replace(self, x=float(x), y=float(y), heading=self.heading - pose[2])


@dataclass(frozen=True)
class Vehicle(Box):
    """A car; `braking` shows in its tail lights."""

    braking: bool = False


@dataclass(frozen=True)
class Pedestrian(Box):
    """A person."""


@dataclass(frozen=True)
class Cone(Box):
    """A traffic cone."""


class Light(Enum):
    """What a traffic light shows."""

    RED = "red"
    RED_AMBER = "red and amber"
    GREEN = "green"
    AMBER = "amber"

    @property
    def is_red(self) -> bool:
        return self in (Light.RED, Light.RED_AMBER)


@dataclass(frozen=True)
class SignalPost(Box):
    """A post with a traffic light at its top, which looks along the heading."""

    light: Light = Light.RED


def seen_from(pose: tuple[float, float, float], points: Array) -> Array:
    """Points (..., 2) in the frame of an observer at `pose` (x, y, heading)."""
    c, s = np.cos(pose[2]), np.sin(pose[2])
    return (points - pose[:2]) @ np.array([[c, -s], [s, c]])
