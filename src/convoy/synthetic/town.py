"""A synthetic town: the roads that raw logs are driven on, in metres, x east, y north.

Two by two blocks between two-lane roads. The corners of the ring are curves, the middles of its
sides T-junctions, and the centre is a crossing; every junction has traffic lights. Roads between
junctions are straight or winding.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from convoy.synthetic.scene import LANE_WIDTH, ROAD_HALF_WIDTH, WALKWAY_WIDTH
from convoy.synthetic.shapes import Array, Box, Lane

JUNCTION_HALF_WIDTH = 12.0  # from a junction's centre to where its lanes end
CROSSWALK_WIDTH = 3.0
SPEED_LIMIT = 12.0  # m/s

_RAMP = 0.25  # share of a bend over which its curvature rises, and falls again
_MARGIN = 70.0  # metres of ground around the outermost roads


@dataclass(frozen=True)
class Edge:
    """What a vehicle drives along: a lane between two junctions, or a connector across one."""

    index: int
    path: Lane  # from its start, station 0
    junction: int  # a lane's: the one it leads to
    arm: int  # by which the junction is entered: 0 to 3, east, north, west, south of it
    exit_arm: int | None  # a connector's; None for a lane
    road: int | None  # a lane's; None for a connector
    following: tuple[int, ...]  # indices of the edges after it

    @property
    def is_connector(self) -> bool:
        return self.exit_arm is not None


@dataclass(frozen=True)
class Junction:
    centre: tuple[float, float]
    arms: tuple[int, ...]

    @cached_property
    def polygon(self) -> Array:
        """Paved area counter-clockwise, (N, 2): its arms' ends, their corners cut."""
        end = np.array(
            [(JUNCTION_HALF_WIDTH, -ROAD_HALF_WIDTH), (JUNCTION_HALF_WIDTH, ROAD_HALF_WIDTH)]
        )
        return np.concatenate([turned(end, arm) for arm in self.arms]) + self.centre

    def corners(self) -> list[Array]:
        """Walkways between neighbouring arms, and along the side where an arm is missing."""
        inner, outer, reach = ROAD_HALF_WIDTH, ROAD_HALF_WIDTH + WALKWAY_WIDTH, JUNCTION_HALF_WIDTH
        strips = []
        for arm in range(4):
            if arm in self.arms and (arm + 1) % 4 in self.arms:
                quad = [(reach, inner), (inner, reach), (outer, reach), (reach, outer)]
            elif arm not in self.arms:
                quad = [(inner, reach), (inner, -reach), (outer, -reach), (outer, reach)]
            else:
                continue
            strips.append(np.array([turned(np.array(point), arm) for point in quad]) + self.centre)
        return strips

    def post(self, arm: int) -> tuple[float, float, float]:
        """Where the traffic light of an arm stands, beyond the junction, and where it looks:
        towards those who come."""
        opposite = (arm + 2) % 4
        if opposite in self.arms:
            place = np.array([JUNCTION_HALF_WIDTH + 1.0, ROAD_HALF_WIDTH + 1.2])
        else:
            place = np.array([ROAD_HALF_WIDTH + WALKWAY_WIDTH + 0.3, LANE_WIDTH / 2])
        x, y = turned(place * (1, -1), opposite) + self.centre
        return float(x), float(y), arm * np.pi / 2


@dataclass(frozen=True)
class Road:
    """A two-lane road; its first lane leads along the centre line, its second one back."""

    centre: Lane
    lanes: tuple[int, int]
    crosswalk: float  # station of the zebra crossing's middle

    def crossing(self) -> Array:
        """Where the zebra crossing lies, (4, 2)."""
        x, y, heading = self.centre.pose(self.crosswalk)
        return Box(x, y, heading, CROSSWALK_WIDTH, 2 * ROAD_HALF_WIDTH, 0.0, (0, 0, 0)).corners()


@dataclass(frozen=True)
class Town:
    junctions: tuple[Junction, ...]
    roads: tuple[Road, ...]
    edges: tuple[Edge, ...]
    buildings: tuple[Box, ...]

    @classmethod
    def sample(cls, rng: np.random.Generator) -> "Town":
        """Draw a town; the same generator state gives the same town."""
        # From the crossing to the middle of each side of the ring.
        blocks = rng.uniform(160.0, 190.0, 4)
        middle = Junction((0.0, 0.0), (0, 1, 2, 3))
        sides = [
            Junction(
                tuple((block * _direction(arm)).tolist()), tuple(a for a in range(4) if a != arm)
            )
            for arm, block in enumerate(blocks)
        ]
        junctions = (middle, *sides)
        # Of each road: centre line, its zebra crossing, junction and arm at both of its ends.
        links = []
        for arm in range(4):
            clear = blocks[arm] - 2 * JUNCTION_HALF_WIDTH
            bends = _to_and_fro(rng)
            straight = (clear - _path(*bends)[-1, 0]) / 2
            line = _placed(middle, arm, _path(straight, *bends, straight))
            links.append((line, 0.6 * straight, (0, arm), (1 + arm, (arm + 2) % 4)))
        for arm in range(4):
            after = (arm + 1) % 4
            corner, bends = (np.pi / 2, rng.uniform(28.0, 36.0)), _to_and_fro(rng)
            first, last = (
                np.array([blocks[after], blocks[arm]]) - JUNCTION_HALF_WIDTH - _path(corner)[-1, 0]
            )
            straight = (last - _path(*bends)[-1, 0]) / 2
            line = _placed(sides[arm], after, _path(first, corner, straight, *bends, straight))
            links.append((line, first / 2, (1 + arm, after), (1 + after, arm)))
        roads = tuple(
            Road(Lane.through(line), (2 * i, 2 * i + 1), float(zebra))
            for i, (line, zebra, _, _) in enumerate(links)
        )
        edges = _edges(roads, [(start, end) for _, _, start, end in links], junctions)
        return cls(junctions, roads, edges, _buildings(rng, roads, junctions))

    @cached_property
    def extent(self) -> tuple[float, float, float, float]:
        """Lowest x and y, highest x and y of the ground."""
        points = np.concatenate([road.centre.points for road in self.roads])
        return (*(points.min(axis=0) - _MARGIN).tolist(), *(points.max(axis=0) + _MARGIN).tolist())

    @cached_property
    def kerbs(self) -> Array:
        """Segments along the edges of all that is paved, (N, 2, 2)."""
        lines = [
            np.concatenate([line[::6], line[-1:]])
            for road in self.roads
            for line in (road.centre.offset(side * (ROAD_HALF_WIDTH + 0.1)) for side in (-1, 1))
        ]
        segments = [np.stack([line[:-1], line[1:]], axis=1) for line in lines]
        corners = [corner[:2] for junction in self.junctions for corner in junction.corners()]
        return np.concatenate([*segments, np.array(corners)])


def turned(points: Array, quarters: int) -> Array:
    """Points (..., 2) rotated counter-clockwise about the origin by quarter turns."""
    for _ in range(quarters % 4):
        points = np.stack([-points[..., 1], points[..., 0]], axis=-1)
    return points


def _direction(arm: int) -> Array:
    return turned(np.array([1.0, 0.0]), arm)


def _bend(angle: float, radius: float) -> Array:
    """Points of a bend that leaves the origin along x, (N, 2); its curvature rises to 1 / radius
    and falls again."""
    length = abs(angle) * radius / (1 - _RAMP)
    station = np.linspace(0.0, length, 121)
    share = np.clip(np.minimum(station, length - station) / (_RAMP * length), 0.0, 1.0)
    heading = np.concatenate([[0.0], np.cumsum((share[1:] + share[:-1]) / 2)])
    heading *= angle / heading[-1]
    middle = (heading[1:] + heading[:-1]) / 2
    steps = np.stack([np.cos(middle), np.sin(middle)], axis=1) * (length / 120)
    return np.concatenate([np.zeros((1, 2)), np.cumsum(steps, axis=0)])


def _path(*pieces: float | tuple[float, float]) -> Array:
    """Points from the origin along x, (N, 2), through straights (length) and bends (angle,
    radius)."""
    points, heading = np.zeros((1, 2)), 0.0
    for piece in pieces:
        if isinstance(piece, tuple):
            shape, angle = _bend(*piece), piece[0]
        else:
            shape, angle = np.array([[0.0, 0.0], [piece, 0.0]]), 0.0
        c, s = np.cos(heading), np.sin(heading)
        points = np.concatenate([points, shape[1:] @ np.array([[c, s], [-s, c]]) + points[-1]])
        heading += angle
    return points


def _to_and_fro(rng: np.random.Generator) -> list[tuple[float, float]]:
    """Bends after which a road goes on along the line that it came on.

    None for a quarter of the roads.
    """
    angle, radius = rng.uniform(0.25, 0.42) * rng.choice([-1, 1]), rng.uniform(28.0, 36.0)
    return [(angle, radius), (-2 * angle, radius), (angle, radius)] if rng.random() < 0.75 else []


def _placed(junction: Junction, arm: int, points: Array) -> Array:
    """A line from the origin along x, moved to leave a junction by an arm."""
    return turned(points + (JUNCTION_HALF_WIDTH, 0.0), arm) + junction.centre


def _edges(
    roads: tuple[Road, ...],
    ends: list[tuple[tuple[int, int], tuple[int, int]]],
    junctions: tuple[Junction, ...],
) -> tuple[Edge, ...]:
    """Lanes, then connectors.

    `ends` has each road's (junction, arm) at its start and at its end.
    """
    crossings = [
        (index, arm, exit_arm)
        for index, junction in enumerate(junctions)
        for arm in junction.arms
        for exit_arm in junction.arms
        if exit_arm != arm
    ]
    first = 2 * len(roads)
    edges: list[Edge] = []
    leaving: dict[tuple[int, int], int] = {}
    for index, (road, (start, end)) in enumerate(zip(roads, ends, strict=True)):
        there = road.centre.offset(-LANE_WIDTH / 2)
        back = road.centre.offset(LANE_WIDTH / 2)[::-1]
        for points, entered, left in ((there, end, start), (back, start, end)):
            following = tuple(
                first + i for i, crossing in enumerate(crossings) if crossing[:2] == entered
            )
            leaving[left] = len(edges)
            edges.append(Edge(len(edges), Lane.through(points), *entered, None, index, following))
    for index, arm, exit_arm in crossings:
        path = Lane.through(_across(junctions[index], arm, exit_arm))
        edges.append(
            Edge(len(edges), path, index, arm, exit_arm, None, (leaving[index, exit_arm],))
        )
    return tuple(edges)


def _across(junction: Junction, arm: int, exit_arm: int) -> Array:
    """Points of the way across a junction, as if it were entered from the west and then turned to
    its arm."""
    turn = (exit_arm - arm + 2) % 4  # 0 straight on, 1 left, 3 right
    start = np.array([-JUNCTION_HALF_WIDTH, -LANE_WIDTH / 2])
    if turn == 0:
        points = np.array([start, -start * (1, -1)])
    else:
        sign = 1 if turn == 1 else -1
        shape = _bend(sign * np.pi / 2, 1.0)
        points = start + shape * ((JUNCTION_HALF_WIDTH + sign * LANE_WIDTH / 2) / shape[-1, 0])
    return turned(points, arm - 2) + junction.centre


def _buildings(
    rng: np.random.Generator, roads: tuple[Road, ...], junctions: tuple[Junction, ...]
) -> tuple[Box, ...]:
    paved = np.concatenate([road.centre.points for road in roads])
    centres = np.array([junction.centre for junction in junctions])
    clearance = ROAD_HALF_WIDTH + WALKWAY_WIDTH + 1.0
    buildings: list[Box] = []
    for road in roads:
        for side in (-1, 1):
            for station in np.arange(8.0, road.centre.length - 8.0, 16.0):
                length, depth, height = (
                    rng.uniform(8, 14),
                    rng.uniform(6, 10),
                    rng.uniform(3.5, 11.0),
                )
                x, y, heading = road.centre.pose(
                    station, side * (clearance + rng.uniform(0.5, 4.0) + depth / 2)
                )
                grey = int(rng.integers(105, 185))
                box = Box(x, y, heading, length, depth, height, (grey + 15, grey, grey - 15))
                corners = box.corners()
                near_road = np.hypot(*(corners[:, None] - paved).T).min() < clearance
                near_junction = (
                    np.hypot(*(corners[:, None] - centres).T).min() < JUNCTION_HALF_WIDTH + 6
                )
                near_other = any(
                    np.hypot(x - b.x, y - b.y) < (length + b.length) / 2 + 1 for b in buildings
                )
                if rng.random() < 0.75 and not (near_road or near_junction or near_other):
                    buildings.append(box)
    return tuple(buildings)
