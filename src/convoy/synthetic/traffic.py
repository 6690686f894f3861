"""A synthetic town in motion: vehicles, traffic lights and pedestrians, in steps of 0.1 s.

What the ego will do follows from what its sensors show now: it keeps to its lane, slows down ahead
of curves, follows its leader (Intelligent Driver Model), stops at lights and for pedestrians who
stand at the kerb of a zebra crossing. All drivers do. A junction's arms have green one after the
other, so that no two ways across it meet.
"""

from dataclasses import dataclass, replace

import numpy as np

from convoy.synthetic.driver import ACCELERATION, STANDSTILL, follow, speed_limit
from convoy.synthetic.moment import Moment, Track
from convoy.synthetic.pedestrians import Crossing, Walker
from convoy.synthetic.roadside import park, put_cones, sample_person
from convoy.synthetic.scene import EGO_FRONT, ROAD_HALF_WIDTH, sample_vehicle
from convoy.synthetic.shapes import Array, Box, Cone, Lane, Light, Pedestrian, SignalPost, Vehicle
from convoy.synthetic.signals import GREEN, STEP, Signal
from convoy.synthetic.town import CROSSWALK_WIDTH, SPEED_LIMIT, Edge, Road, Town

EGO_REAR = 1.1  # rear bumper behind the rear axle
EGO_WIDTH = 2.3

SIGHT = 120.0  # metres around the ego that a moment describes

_VEHICLES = 22
_AHEAD = 70.0  # metres that drivers look ahead
_STOP_LINE = 1.0  # metres before a lane's end or a zebra crossing
_ANTICIPATION = 0.8  # seconds
_MILD = 1.5  # m/s^2, braking ahead of curves
_FIRM = 2.0  # m/s^2, the hardest braking that a driver chooses where going on is an alternative
_HARD = 4.0  # m/s^2, beyond which braking is sudden
_JERK = 2.5  # m/s^3


@dataclass
class _Car:
    """A vehicle on its way.

    `at` is where its reference point is, along the first edge of `plan`.
    """

    shape: Vehicle
    front: float  # metres from the reference point to the bumpers
    rear: float
    desired: float
    plan: list[int]
    at: float
    speed: float
    acceleration: float = 0.0
    came_from: int | None = None  # edge before the first of `plan`


class Traffic:
    """The traffic of one drive; the same town and generator state give the same drive."""

    def __init__(self, town: Town, rng: np.random.Generator) -> None:
        self._town, self._rng = town, rng
        self._limits = [_speed_limits(edge) for edge in town.edges]
        self._signals = [
            Signal(junction.arms, int(rng.choice(junction.arms)), since=rng.uniform(0, GREEN))
            for junction in town.junctions
        ]
        self._zebra = {
            lane: _stop_at_zebra(town, road, lane) for road in town.roads for lane in road.lanes
        }
        self._crossings = [self._new_crossing(road) for road in town.roads]
        self._walkers = [
            self._new_walker(road, side)
            for road in town.roads
            for side in (-1, 1)
            for _ in range(3)
        ]
        self._parked = park(town, rng)
        self._cones = put_cones(town, rng)
        self._cars = self._start()
        self._time = 0.0

    # Who is there

    def _start(self) -> list[_Car]:
        """The ego first, then the others; every second ego has a leader."""
        rng, lanes = self._rng, [edge for edge in self._town.edges if not edge.is_connector]
        lane = lanes[rng.integers(len(lanes))]
        body = sample_vehicle(rng, (0.0, 0.0, 0.0))
        shape = replace(body, length=EGO_FRONT + EGO_REAR, width=EGO_WIDTH)
        at = rng.uniform(5.0, lane.path.length - 40.0)
        cars = [_Car(shape, EGO_FRONT, EGO_REAR, rng.uniform(10.0, 11.5), [lane.index], at, 6.0)]
        if rng.random() < 0.5:
            cars.append(self._new_car(lane.index, at + rng.uniform(14.0, 30.0)))
        while len(cars) < _VEHICLES:
            lane = lanes[rng.integers(len(lanes))]
            at = rng.uniform(5.0, lane.path.length - 8.0)
            if all(car.plan[0] != lane.index or abs(car.at - at) > 14.0 for car in cars):
                cars.append(self._new_car(lane.index, at))
        return cars

    def _new_car(self, lane: int, at: float) -> _Car:
        shape = sample_vehicle(self._rng, (0.0, 0.0, 0.0))
        half = shape.length / 2
        return _Car(shape, half, half, self._rng.uniform(7.0, 11.0), [lane], at, 5.0)

    def _new_crossing(self, road: Road) -> Crossing:
        side = int(self._rng.choice([-1, 1]))
        return Crossing(
            road,
            sample_person(self._rng),
            -side * Crossing.BACK,
            side,
            self._rng.uniform(0.0, 15.0),
        )

    def _new_walker(self, road: Road, side: int) -> Walker:
        left = side * (ROAD_HALF_WIDTH + self._rng.uniform(0.7, 1.6))
        start = self._rng.uniform(0.0, 2 * road.centre.length)
        return Walker(road, sample_person(self._rng), left, start, self._rng.uniform(0.9, 1.6))

    # How it goes on

    def step(self) -> None:
        """Let 0.1 s pass."""
        for index, car in enumerate(self._cars):
            self._extend_plan(car, 150.0 if index == 0 else _AHEAD)
        self._queues = self._sort()
        wishes = [self._wish(car) for car in self._cars]
        self._step_crossings()
        self._step_signals()
        for car, wish in zip(self._cars, wishes, strict=True):
            self._move(car, wish)
        self._time += STEP

    def _extend_plan(self, car: _Car, reach: float) -> None:
        edges = self._town.edges
        ahead = sum(edges[e].path.length for e in car.plan) - car.at
        while ahead < reach or edges[car.plan[-1]].is_connector:
            following = edges[car.plan[-1]].following
            car.plan.append(int(following[self._rng.integers(len(following))]))
            ahead += edges[car.plan[-1]].path.length

    def _sort(self) -> dict[int, list[_Car]]:
        """Cars of each edge, the last one first."""
        queues: dict[int, list[_Car]] = {}
        for car in self._cars:
            queues.setdefault(car.plan[0], []).append(car)
        for queue in queues.values():
            queue.sort(key=lambda car: car.at)
        return queues

    def _wish(self, car: _Car) -> float:
        """Acceleration that the driver wants, m/s^2."""
        edges, limits = self._town.edges, self._limits
        here = edges[car.plan[0]]
        # Braking sets in gently, so it has to set in early.
        reached = car.at + _ANTICIPATION * car.speed
        allowed = min(car.desired, float(np.interp(reached, here.path.station, limits[here.index])))
        start = here.path.length
        for index in car.plan[1:]:
            if start - car.at > _AHEAD:
                break
            within = np.interp(reached - start, edges[index].path.station, limits[index])
            allowed = min(
                allowed, float(np.sqrt(within**2 + 2 * _MILD * max(0.0, start - reached)))
            )
            start += edges[index].path.length
        # At most firm braking: the further a speed is above the desired one, the harder the model
        # brakes.
        desired = max(allowed, 0.82 * car.speed, 0.1)
        gap, lead_speed = self._leader(car)
        wish = follow(car.speed, desired, gap, lead_speed)
        for distance in self._stops(car):
            wish = min(wish, follow(car.speed, desired, distance + STANDSTILL - 0.5, 0.0))
        return float(np.clip(wish, -7.0, ACCELERATION))

    def _leader(self, car: _Car) -> tuple[float, float]:
        """Gap between bumpers and speed of the car ahead; on a junction also of one that has just
        turned off."""
        start = -car.at - car.front
        for position, index in enumerate(car.plan):
            if start > _AHEAD:
                break
            found = [
                (start + c.at - c.rear, c.speed)
                for c in self._queues.get(index, ())
                if position or c.at > car.at
            ]
            edge = self._town.edges[index]
            if edge.is_connector:
                before = car.plan[position - 1] if position else car.came_from
                siblings = self._town.edges[before].following if before is not None else ()
                found += [
                    (start + c.at - c.rear, c.speed)
                    for sibling in siblings
                    if sibling != index
                    for c in self._queues.get(sibling, ())
                    if c.at - c.rear < 7.0 and (position or c.at > car.at)
                ]
            if found:
                return min(found)
            start += edge.path.length
        return np.inf, 0.0

    def _stops(self, car: _Car) -> list[float]:
        """Metres from the front bumper to the lines at which the car has to stop."""
        lane, stops = self._town.edges[car.plan[0]], []
        for position, index in enumerate(car.plan[:2]):
            edge = self._town.edges[index]
            if edge.is_connector:
                continue
            offset = (0.0 if position == 0 else lane.path.length) - car.at - car.front
            zebra = self._zebra[index] + offset
            if (
                0.0 < zebra < _AHEAD
                and edge.road is not None
                and self._crossings[edge.road].wanted
                and _can_stop(car.speed, zebra)
            ):
                stops.append(zebra)
        line = lane.path.length - _STOP_LINE - car.at - car.front
        if not lane.is_connector and 0.0 < line < _AHEAD:
            light = self._signals[lane.junction].light(lane.arm)
            if (
                light.is_red
                or (light is Light.AMBER and _can_stop(car.speed, line))
                or self._exit_is_blocked(car)
            ):
                stops.append(line)
        return stops

    def _exit_is_blocked(self, car: _Car) -> bool:
        """Whether there is no room behind the last car of the lane after the junction."""
        queue = self._queues.get(car.plan[2]) if len(car.plan) > 2 else None
        if not queue:
            return False
        last = queue[0]
        return last.at - last.rear < car.front + car.rear + 3.0 and last.speed < 3.0

    def _move(self, car: _Car, wish: float) -> None:
        change = np.clip(wish - car.acceleration, -_JERK * STEP, _JERK * STEP)
        wanted = wish if wish < -_HARD else car.acceleration + change
        speed = max(0.0, car.speed + wanted * STEP)
        car.acceleration = (speed - car.speed) / STEP
        car.at += (car.speed + speed) / 2 * STEP
        car.speed = speed
        while car.at > self._town.edges[car.plan[0]].path.length:
            car.came_from = car.plan.pop(0)
            car.at -= self._town.edges[car.came_from].path.length

    def _step_crossings(self) -> None:
        for crossing in self._crossings:
            crossing.step(
                self._rng, all(self._is_clear(crossing, lane) for lane in crossing.road.lanes)
            )

    def _is_clear(self, crossing: Crossing, lane: int) -> bool:
        for car in self._queues.get(lane, ()):
            line = self._zebra[lane] - car.at - car.front
            passed = line < -(_STOP_LINE + CROSSWALK_WIDTH + car.front + car.rear)
            if not passed and (line <= 0.0 or not _can_stop(car.speed, line)):
                return False
        return True

    def _step_signals(self) -> None:
        edges = self._town.edges
        for index, signal in enumerate(self._signals):
            demand, occupied = set(), False
            for car in self._cars:
                edge = edges[car.plan[0]]
                to_line = edge.path.length - _STOP_LINE - car.at - car.front
                if edge.is_connector:
                    occupied |= edge.junction == index and edge.arm == signal.arm
                elif edge.junction == index and to_line < 50.0:
                    demand.add(edge.arm)
                    occupied |= edge.arm == signal.arm and to_line < 0.0
                if car.came_from is not None and car.at < car.rear + 0.5:
                    left = edges[car.came_from]
                    occupied |= (
                        left.is_connector and left.junction == index and left.arm == signal.arm
                    )
            signal.step(demand, occupied)

    # What it looks like

    def moment(self) -> Moment:
        edges, ego = self._town.edges, self._cars[0]
        here = edges[ego.plan[0]]
        curvature = np.interp(
            ego.at, here.path.station, np.gradient(here.path.heading, here.path.station)
        )
        before = (ego.came_from,) if ego.came_from is not None else ()
        lights = {
            (i, arm): signal.light(arm)
            for i, signal in enumerate(self._signals)
            for arm in signal.arms
        }
        ego_pose = here.path.pose(ego.at)
        return Moment(
            pose=ego_pose,
            speed=ego.speed,
            acceleration=np.array([ego.acceleration, ego.speed**2 * curvature]),
            route=(*before, *ego.plan),
            route_ahead=self._route_ahead(),
            next_turn=self._next_turn(),
            tracks=tuple(track for track in self._tracks() if _is_near(track.box, ego_pose)),
            posts=tuple(post for post in self._posts(lights) if _is_near(post, ego_pose)),
            lights=lights,
        )

    def _posts(self, lights: dict[tuple[int, int], Light]) -> list[SignalPost]:
        return [
            SignalPost(
                *self._town.junctions[junction].post(arm), 0.25, 0.25, 5.4, (70, 75, 70), light
            )
            for (junction, arm), light in lights.items()
        ]

    def _route_ahead(self) -> Array:
        ego = self._cars[0]
        paths = [self._town.edges[index].path for index in ego.plan]
        own = paths[0].points[paths[0].station > ego.at]
        start = np.array([paths[0].pose(ego.at)[:2]])
        return np.concatenate([start, own, *(path.points for path in paths[1:])])

    def _next_turn(self) -> tuple[float, int] | None:
        ego, distance = self._cars[0], -self._cars[0].at
        for index in ego.plan:
            edge = self._town.edges[index]
            if edge.is_connector:
                return float(max(distance, 0.0)), turn_of(edge)
            distance += edge.path.length
        return None

    def _tracks(self) -> list[Track]:
        tracks: list[Track] = []

        def add(
            shape: Vehicle | Pedestrian | Cone, x: float, y: float, heading: float, speed: float
        ) -> None:
            velocity = speed * np.array([np.cos(heading), np.sin(heading)])
            there = replace(shape, x=x, y=y, heading=heading)
            tracks.append(Track(len(tracks), there, velocity))

        for car in self._cars[1:]:
            pose = self._town.edges[car.plan[0]].path.pose(car.at)
            braking = car.acceleration < -0.4 or car.speed < 0.1
            add(replace(car.shape, braking=braking), *pose, car.speed)
        for parked in self._parked:
            add(parked, parked.x, parked.y, parked.heading, 0.0)
        for cone in self._cones:
            add(cone, cone.x, cone.y, cone.heading, 0.0)
        for crossing in self._crossings:
            x, y, heading = crossing.road.centre.pose(crossing.road.crosswalk, crossing.across)
            add(crossing.shape, x, y, heading + crossing.side * np.pi / 2, abs(crossing.speed))
        for walker in self._walkers:
            add(walker.shape, *walker.state(self._time))
        return tracks


def turn_of(connector: Edge) -> int:
    """1 left, 0 straight on, -1 right."""
    assert connector.exit_arm is not None
    return {0: 0, 1: 1, 3: -1}[(connector.exit_arm - connector.arm + 2) % 4]


def _can_stop(speed: float, distance: float) -> bool:
    return speed**2 / (2 * max(distance, 0.01)) <= _FIRM


def _is_near(box: Box, pose: tuple[float, float, float]) -> bool:
    return bool(np.hypot(box.x - pose[0], box.y - pose[1]) < SIGHT)


def _speed_limits(edge: Edge) -> Array:
    return np.minimum(
        speed_limit(np.gradient(edge.path.heading, edge.path.station), _MILD), SPEED_LIMIT
    )


def _stop_at_zebra(town: Town, road: Road, lane: int) -> float:
    """Station of a lane's stop line before its zebra crossing."""
    path: Lane = town.edges[lane].path
    middle = road.centre.pose(road.crosswalk)[:2]
    nearest = int(np.argmin(np.hypot(*(path.points - middle).T)))
    return float(path.station[nearest]) - CROSSWALK_WIDTH / 2 - _STOP_LINE
