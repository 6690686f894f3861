"""LiDAR histogram, semantic map and boxes of a synthetic scene, on the grids of NAVSIM's TransFuser
builder.

Both grids have 0.25 m cells and are indexed [x, y] (ahead, then left): the LiDAR covers x and y
from -32 to 32 m, the semantic map x from 0 to 32 m and y from -32 to 32 m. Row 0 is nearest to the
ego's back, column 0 is farthest to its right.
"""

from enum import IntEnum

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from convoy.synthetic.scene import ROAD_HALF_WIDTH, WALKWAY_WIDTH, Scene
from convoy.synthetic.shapes import Array

RANGE = 32.0  # metres
CELL = 0.25  # metres
MAX_AGENTS = 30
MAX_POINTS_PER_CELL = 5

_POINTS_PER_METRE = 14  # on the outline of a near box


class SemanticClass(IntEnum):
    """Class ids of TransFuser's `bev_semantic_classes` that occur here."""

    ROAD = 1
    WALKWAY = 2
    CENTERLINE = 3
    VEHICLE = 5


def lidar_histogram(scene: Scene, rng: np.random.Generator) -> NDArray[np.float32]:
    """Points above ground per cell, at most 5, divided by 5; (1, 256, 256) float32.

    Points lie on the sides that vehicles and buildings turn to the ego and on the rails along the
    roads' edges, and a few are clutter.
    """
    outlines = [_box_points(box.corners(), rng) for box in (*scene.vehicles, *scene.buildings)]
    rails = [
        _rail_points(scene, index, side, rng)
        for index in range(len(scene.roads))
        for side in (-1, 1)
    ]
    clutter = rng.uniform(-RANGE, RANGE, (60, 2))
    points = np.concatenate([*outlines, *rails, clutter])
    edges = np.linspace(-RANGE, RANGE, int(2 * RANGE / CELL) + 1)
    counts = np.histogram2d(points[:, 0], points[:, 1], bins=(edges, edges))[0]
    # Divided as NAVSIM does, in float64 and then rounded, so that the values are bit-equal to its
    # own.
    shares = np.minimum(counts, MAX_POINTS_PER_CELL) / MAX_POINTS_PER_CELL
    return shares.astype(np.float32)[None]


def _box_points(corners: Array, rng: np.random.Generator) -> Array:
    sides = []
    for i in range(4):
        a, b = corners[i], corners[(i + 1) % 4]
        outward = np.array([b[1] - a[1], a[0] - b[0]])
        if outward @ a < 0:  # turned to the ego, which is at the origin
            length = np.hypot(*(b - a))
            # Point density falls with distance, as a scanner's beams spread.
            nearness = min(1.0, 12.0 / np.hypot(*((a + b) / 2)))
            along = rng.random((int(length * _POINTS_PER_METRE * nearness) + 1, 1))
            sides.append(a + along * (b - a) + rng.normal(0, 0.04, (len(along), 2)))
    return np.concatenate(sides) if sides else np.empty((0, 2))


def _rail_points(scene: Scene, index: int, side: int, rng: np.random.Generator) -> Array:
    road = scene.roads[index]
    edge = road.offset(side * (ROAD_HALF_WIDTH + 0.2))
    points = np.concatenate(
        [edge[:-1] + share * np.diff(edge, axis=0) for share in (0, 1 / 3, 2 / 3)]
    )
    if scene.junction is not None:
        axis = index  # the first road runs along x, the crossing one along y
        points = points[np.abs(points[:, axis] - scene.junction[axis]) > ROAD_HALF_WIDTH + 0.5]
    points = points[rng.random(len(points)) < 0.75]
    return points + rng.normal(0, 0.06, points.shape)


def semantic_map(scene: Scene) -> NDArray[np.float32]:
    """Class id per cell, (128, 256) float32."""
    classes = np.zeros((int(RANGE / CELL), int(2 * RANGE / CELL)), dtype=np.float32)
    outer = ROAD_HALF_WIDTH + WALKWAY_WIDTH
    road = _mask([lane.strip(-ROAD_HALF_WIDTH, ROAD_HALF_WIDTH) for lane in scene.roads])
    walkway = _mask([lane.strip(-outer, outer) for lane in scene.roads])
    classes[walkway] = SemanticClass.WALKWAY
    classes[road] = SemanticClass.ROAD
    classes[_mask([lane.points for lane in scene.lanes], line=True)] = SemanticClass.CENTERLINE
    classes[_mask([vehicle.corners() for vehicle in scene.vehicles])] = SemanticClass.VEHICLE
    return classes


def _mask(shapes: list[Array], line: bool = False) -> NDArray[np.bool_]:
    """Cells that polygons (or lines, two cells wide) cover, (128, 256) bool."""
    rows, columns = int(RANGE / CELL), int(2 * RANGE / CELL)
    image = Image.new("1", (rows, columns))
    draw = ImageDraw.Draw(image)
    for shape in shapes:
        pixels = ((shape + (0.0, RANGE)) / CELL).astype(np.int32).ravel().tolist()
        if line:
            draw.line(pixels, fill=1, width=2)
        else:
            draw.polygon(pixels, fill=1, outline=1)
    return np.asarray(image).T


def agent_boxes(scene: Scene) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Vehicles within LiDAR range, nearest first: (30, 5) x, y, heading, length, width and (30,)
    valid."""
    states = np.zeros((MAX_AGENTS, 5), dtype=np.float32)
    valid = np.zeros(MAX_AGENTS, dtype=np.bool_)
    seen = [v for v in scene.vehicles if abs(v.x) <= RANGE and abs(v.y) <= RANGE]
    seen.sort(key=lambda v: np.hypot(v.x, v.y))
    for row, v in enumerate(seen[:MAX_AGENTS]):
        states[row] = (v.x, v.y, v.heading, v.length, v.width)
        valid[row] = True
    return states, valid
