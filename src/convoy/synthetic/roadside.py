"""What stands or walks beside the roads: parked vehicles, cones, people."""

import numpy as np

from convoy.synthetic.scene import LANE_WIDTH, ROAD_HALF_WIDTH, sample_vehicle
from convoy.synthetic.shapes import Cone, Pedestrian, Vehicle
from convoy.synthetic.town import Town


def park(town: Town, rng: np.random.Generator) -> list[Vehicle]:
    parked = []
    for road in town.roads:
        for side in (-1, 1):
            for station in np.arange(14.0, road.centre.length - 14.0, 9.0):
                near_zebra = abs(station - road.crosswalk) < 10.0
                if rng.random() < 0.15 and not near_zebra:
                    x, y, heading = road.centre.pose(station, side * (LANE_WIDTH + 1.9))
                    parked.append(
                        sample_vehicle(rng, (x, y, heading + (np.pi if side > 0 else 0.0)))
                    )
    return parked


def put_cones(town: Town, rng: np.random.Generator) -> list[Cone]:
    """A row of cones along the kerb of every second road."""
    cones = []
    for road in town.roads:
        first, side = rng.uniform(20.0, road.centre.length - 30.0), rng.choice([-1, 1])
        if rng.random() < 0.5:
            poses = [
                road.centre.pose(first + 2.5 * i, side * (ROAD_HALF_WIDTH + 0.4)) for i in range(4)
            ]
            cones += [Cone(*pose, 0.35, 0.35, 0.75, (225, 95, 25)) for pose in poses]
    return cones


def sample_person(rng: np.random.Generator) -> Pedestrian:
    red, green, blue = (int(c) for c in rng.integers(30, 200, 3))
    size = rng.uniform(0.45, 0.6), rng.uniform(0.5, 0.7), rng.uniform(1.55, 1.9)
    return Pedestrian(0.0, 0.0, 0.0, *size, (red, green, blue))
