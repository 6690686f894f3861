"""Synthetic driving scenes: road, traffic, ego motion.

All geometry is in the ego frame that NAVSIM uses: origin at the ego's rear axle, x ahead, y left,
metres, radians; traffic drives on the right. What the ego will do follows from what its sensors
show now:

- the road's curvature bends the path, and a sharp curve slows the ego down;
- at a junction the driving command picks the arm, and the junction's distance says when to turn;
- a lead vehicle is followed (Intelligent Driver Model): its gap tells its speed, its brake lights
that it
  stops.

The ego status holds speed and command only: the ego has not yet reacted, so its acceleration is
noise.
"""

from dataclasses import dataclass, field
from enum import IntEnum

import numpy as np

from convoy.synthetic.driver import ACCELERATION, follow, speed_limit
from convoy.synthetic.shapes import STEP, Array, Box, Lane, Vehicle

NUM_POSES = 8
POSE_INTERVAL = 0.5  # seconds
LANE_WIDTH = 3.5
ROAD_HALF_WIDTH = 4.0
WALKWAY_WIDTH = 2.0
EGO_FRONT = 4.0  # front bumper ahead of the rear axle
RIGHT_TURN_RADIUS = 6.0
LEFT_TURN_RADIUS = 10.0

_BEHIND, _AHEAD = 36.0, 100.0
_ROLLOUT_STEP = 0.1  # seconds


class Command(IntEnum):
    """Index of NAVSIM's one-hot driving command."""

    LEFT = 0
    STRAIGHT = 1
    RIGHT = 2
    UNKNOWN = 3


@dataclass(frozen=True)
class Scene:
    """One frame, with what the ego does in the 4 s after it."""

    speed: float  # m/s
    acceleration: Array  # (2,) m/s^2, uninformative
    command: Command
    roads: tuple[Lane, ...]  # centre lines of two-lane roads: the ego's, then the crossing one
    lanes: tuple[Lane, ...]  # lane centres
    junction: tuple[float, float] | None  # where the centre lines cross
    vehicles: tuple[Vehicle, ...]
    buildings: tuple[Box, ...]
    trajectory: Array = field(repr=False)  # (8, 3) x, y, heading every 0.5 s


def sample_scene(rng: np.random.Generator) -> Scene:
    """Draw a scene; the same generator state gives the same scene."""
    lateral = rng.uniform(-0.4, 0.4)  # of the ego in its lane
    to_junction = rng.uniform(14.0, 30.0) if rng.random() < 0.35 else None
    if to_junction is None:
        command = Command.UNKNOWN if rng.random() < 0.1 else Command.STRAIGHT
        curvature = _curve(rng)
        lane = route = _shifted(Lane.from_curvature(curvature, _stations()), -lateral)
    else:
        command = Command(rng.choice([Command.LEFT, Command.STRAIGHT, Command.RIGHT]))
        curvature = _turn(command, to_junction)
        lane = _shifted(Lane.from_curvature(np.zeros(len(curvature)), _stations()), -lateral)
        route = _shifted(Lane.from_curvature(curvature, _stations()), -lateral)

    limit = speed_limit(curvature)
    speed = min(rng.uniform(2.0, 15.0), float(np.interp(0.0, route.station, limit)))
    lead, gap, lead_speed = None, np.inf, 0.0
    if rng.random() < 0.5:
        lead, gap, lead_speed = _lead(rng, route)
        # Never so fast that following calls for more than hard braking.
        speed = min(speed, lead_speed + np.sqrt(6.0 * gap))

    road = Lane(lane.station, lane.offset(LANE_WIDTH / 2), lane.heading)
    roads, lanes, junction = (
        [road],
        [lane, Lane(lane.station, lane.offset(LANE_WIDTH), lane.heading)],
        None,
    )
    if to_junction is not None:
        junction = (to_junction, float(lane.points[0, 1]) + LANE_WIDTH / 2)
        cross = _cross_road(*junction)
        roads.append(cross)
        lanes += [
            Lane(cross.station, cross.offset(side * LANE_WIDTH / 2), cross.heading)
            for side in (-1, 1)
        ]
        if route is not lane and command != Command.STRAIGHT:
            lanes.append(route)

    driven = _drive(route, speed, limit, gap, lead_speed, lead is not None and lead.braking)
    driven = driven * (1 + rng.normal(0, 0.01))
    vehicles = ([lead] if lead else []) + _traffic(rng, lane, junction)
    return Scene(
        speed=speed,
        acceleration=rng.normal(0, 0.15, 2),
        command=command,
        roads=tuple(roads),
        lanes=tuple(lanes),
        junction=junction,
        vehicles=tuple(vehicles),
        buildings=tuple(_buildings(rng, road, junction)),
        trajectory=_trajectory(rng, route, driven, lateral),
    )


def _stations() -> Array:
    return np.arange(-_BEHIND, _AHEAD + STEP / 2, STEP)


def _shifted(lane: Lane, left: float) -> Lane:
    return Lane(lane.station, lane.points + (0.0, left), lane.heading)


def _curve(rng: np.random.Generator) -> Array:
    """Curvature per station: straight, then a curve of at most 80 degrees, radius 28 m or more."""
    station = _stations()
    if rng.random() < 0.2:
        return np.zeros_like(station)
    peak = rng.uniform(0.006, 1 / 28) * rng.choice([-1, 1])
    start = rng.uniform(0.0, 8.0)
    end = start + np.radians(80) / abs(peak)
    return peak * np.clip((station - start) / 4, 0, 1) * np.clip((end - station) / 4, 0, 1)


def _turn(command: Command, to_junction: float) -> Array:
    """Curvature per station of the quarter circle to the right lane of the arm."""
    station = _stations()
    if command == Command.STRAIGHT:
        return np.zeros_like(station)
    left = command == Command.LEFT
    radius = LEFT_TURN_RADIUS if left else RIGHT_TURN_RADIUS
    # The lane entered lies beyond the crossing road's centre after a left turn, before it after a
    # right turn.
    start = to_junction + (LANE_WIDTH / 2 if left else -LANE_WIDTH / 2) - radius
    end = start + radius * np.pi / 2
    # The share of each half-metre cell that lies in the arc, so that the turn is 90 degrees at any
    # phase.
    inside = np.clip(
        np.minimum(station + STEP / 2, end) - np.maximum(station - STEP / 2, start), 0, STEP
    )
    return (1 if left else -1) / radius * inside / STEP


def _cross_road(x: float, y: float) -> Lane:
    station = np.arange(-80.0, 80.0 + STEP / 2, STEP)
    points = np.stack([np.full_like(station, x), y + station], axis=1)
    return Lane(station, points, np.full_like(station, np.pi / 2))


def _paint(rng: np.random.Generator) -> tuple[int, int, int]:
    paints = [
        (200, 200, 205),
        (235, 235, 235),
        (45, 45, 50),
        (70, 105, 80),
        (40, 65, 120),
        (95, 100, 105),
    ]
    return paints[rng.integers(len(paints))]


def sample_vehicle(
    rng: np.random.Generator, pose: tuple[float, float, float], braking: bool = False
) -> Vehicle:
    length, width, height = rng.uniform(4.2, 5.2), rng.uniform(1.8, 2.05), rng.uniform(1.45, 1.8)
    return Vehicle(*pose, length, width, height, _paint(rng), braking)


def _lead(rng: np.random.Generator, route: Lane) -> tuple[Vehicle, float, float]:
    """Lead vehicle, gap to it in metres and its speed, which the gap tells: it keeps a 1.6 s
    headway."""
    gap = rng.uniform(4.0, 28.0)
    braking = bool(rng.random() < 0.4)
    speed = float(np.clip((gap - 3.0) / 1.6 + rng.normal(0, 0.2), 0.0, 14.0))
    vehicle = sample_vehicle(rng, route.pose(EGO_FRONT + gap + 2.4), braking)
    return vehicle, gap, speed


def _drive(
    route: Lane, speed: float, limit: Array, gap: float, lead_speed: float, lead_brakes: bool
) -> Array:
    """Distance driven at each of the 8 poses, (8,); the speed at the start is the desired one."""
    desired, driven, distances = max(speed, 0.1), 0.0, []
    per_pose = round(POSE_INTERVAL / _ROLLOUT_STEP)
    for step in range(1, NUM_POSES * per_pose + 1):
        change = follow(speed, desired, gap, lead_speed)
        allowed = float(np.interp(driven, route.station, limit))
        following = max(0.0, speed + float(np.clip(change, -7.0, ACCELERATION)) * _ROLLOUT_STEP)
        speed = min(following, allowed)
        if lead_brakes:
            lead_speed = max(0.0, lead_speed - 3.0 * _ROLLOUT_STEP)
        driven += speed * _ROLLOUT_STEP
        gap += (lead_speed - speed) * _ROLLOUT_STEP
        if step % per_pose == 0:
            distances.append(driven)
    return np.array(distances)


def _trajectory(rng: np.random.Generator, route: Lane, driven: Array, lateral: float) -> Array:
    """Poses along the route while the ego drifts from its lateral offset to the lane's centre."""
    offset = lateral * np.exp(-((np.maximum(route.station, 0) / 15) ** 2))
    path = route.offset(offset)
    x, y = (np.interp(driven, route.station, path[:, axis]) for axis in (0, 1))
    slope = np.gradient(offset, STEP)
    heading = np.interp(driven, route.station, route.heading + slope)
    poses = np.stack([x, y, heading], axis=1)
    poses[:, :2] += rng.normal(0, 0.02, (len(driven), 2))
    poses[:, 2] += rng.normal(0, 0.003, len(driven))
    return poses


def _traffic(
    rng: np.random.Generator, lane: Lane, junction: tuple[float, float] | None
) -> list[Vehicle]:
    """Vehicles that the ego ignores: oncoming, behind, parked, waiting at the junction."""
    vehicles = []
    clear = junction[0] + 12.0 if junction else 0.0
    for station in np.arange(12.0, 70.0, 16.0):
        if rng.random() < 0.3 and station > clear:
            x, y, heading = lane.pose(station + rng.uniform(0, 6), LANE_WIDTH)
            vehicles.append(sample_vehicle(rng, (x, y, heading - np.pi)))
    if rng.random() < 0.4:
        vehicles.append(sample_vehicle(rng, lane.pose(rng.uniform(-26.0, -9.0))))
    for station in np.arange(-24.0, 60.0, 9.0):
        near_junction = junction is not None and abs(station - junction[0]) < 14.0
        if rng.random() < 0.15 and not near_junction:
            vehicles.append(sample_vehicle(rng, lane.pose(station, -LANE_WIDTH / 2 - 1.9)))
    if junction:
        x, y = junction
        for side in (-1, 1):
            if rng.random() < 0.4:
                distance = ROAD_HALF_WIDTH + rng.uniform(4.0, 9.0)
                pose = (x - side * LANE_WIDTH / 2, y + side * distance, -side * np.pi / 2)
                vehicles.append(sample_vehicle(rng, pose))
    return vehicles


def _buildings(
    rng: np.random.Generator, road: Lane, junction: tuple[float, float] | None
) -> list[Box]:
    buildings = []
    for side in (-1, 1):
        for station in np.arange(-30.0, 90.0, 17.0):
            if rng.random() < 0.4 or (junction is not None and abs(station - junction[0]) < 18.0):
                continue
            length, depth, height = rng.uniform(8, 14), rng.uniform(5, 8), rng.uniform(3.5, 9.0)
            pose = road.pose(station, side * (ROAD_HALF_WIDTH + WALKWAY_WIDTH + 1.5 + depth / 2))
            grey = int(rng.integers(105, 185))
            buildings.append(Box(*pose, length, depth, height, (grey + 15, grey, grey - 15)))
    return buildings
