"""The ground of a synthetic town, seen from above: what cameras look up below the horizon."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from convoy.synthetic.camera import BEYOND, GRASS, KERB, MARK, ROAD, WALKWAY, View, ground_points
from convoy.synthetic.scene import LANE_WIDTH, ROAD_HALF_WIDTH, WALKWAY_WIDTH
from convoy.synthetic.shapes import Array, Lane
from convoy.synthetic.town import CROSSWALK_WIDTH, Town

_PIXEL = 0.1  # metres


class Ground:
    """Surfaces of a town in cells of 0.1 m, one byte each."""

    def __init__(self, town: Town) -> None:
        self._left, self._bottom, right, top = town.extent
        size = (int((right - self._left) / _PIXEL), int((top - self._bottom) / _PIXEL))
        image = Image.new("L", size, GRASS)
        self._draw = ImageDraw.Draw(image)
        self._paint(town)
        self._cells = np.asarray(image)  # [y, x]

    def surfaces(self, view: View, pose: tuple[float, float, float]) -> NDArray[np.uint8]:
        """Surface that each pixel below the horizon shows from `pose`, (rows / 2, columns)."""
        x, y, _ = ground_points(view)
        c, s = np.cos(pose[2]), np.sin(pose[2])
        rows, columns = self._cells.shape
        column = ((c * x - s * y + (pose[0] - self._left)) / _PIXEL).astype(np.int32)
        row = ((s * x + c * y + (pose[1] - self._bottom)) / _PIXEL).astype(np.int32)
        inside = (column >= 0) & (column < columns) & (row >= 0) & (row < rows)
        cell = np.where(inside, row * columns + column, 0)
        return np.where(inside, self._cells.ravel()[cell], np.uint8(BEYOND))

    def _paint(self, town: Town) -> None:
        outer = ROAD_HALF_WIDTH + WALKWAY_WIDTH
        for road in town.roads:
            self._fill(road.centre.strip(-outer, outer), WALKWAY)
        for corner in (corner for junction in town.junctions for corner in junction.corners()):
            self._fill(corner, WALKWAY)
        # Each surface over all roads before the next, so that the roads open the kerbs where they
        # meet junctions.
        for road in town.roads:
            self._fill(road.centre.strip(-ROAD_HALF_WIDTH - 0.25, ROAD_HALF_WIDTH + 0.25), KERB)
        for junction in town.junctions:
            self._fill((junction.polygon - junction.centre) * 1.02 + junction.centre, KERB)
        for road in town.roads:
            self._fill(road.centre.strip(-ROAD_HALF_WIDTH, ROAD_HALF_WIDTH), ROAD)
        for junction in town.junctions:
            self._fill(junction.polygon, ROAD)
        for road in town.roads:
            self._mark(road.centre, road.crosswalk)
        for lane in (edge.path for edge in town.edges if not edge.is_connector):
            end = lane.station > lane.length - 0.8
            self._fill(_part(lane, end).strip(-LANE_WIDTH / 2, LANE_WIDTH / 2), MARK)

    def _mark(self, road: Lane, zebra: float) -> None:
        clear = np.abs(road.station - zebra) > CROSSWALK_WIDTH / 2 + 1.0
        for part in (
            _part(road, clear & (road.station < zebra)),
            _part(road, clear & (road.station > zebra)),
        ):
            for offset in (-LANE_WIDTH - 0.1, LANE_WIDTH + 0.1):
                self._fill(part.strip(offset - 0.09, offset + 0.09), MARK)
            for start in range(0, len(part.station) - 7, 18):
                self._fill(_part(part, slice(start, start + 7)).strip(-0.09, 0.09), MARK)
        stripes = _part(road, np.abs(road.station - zebra) <= CROSSWALK_WIDTH / 2)
        for left in np.arange(-ROAD_HALF_WIDTH + 0.25, ROAD_HALF_WIDTH - 0.25, 1.0):
            self._fill(stripes.strip(left, left + 0.5), MARK)

    def _fill(self, polygon: Array, surface: int) -> None:
        pixels = (polygon - (self._left, self._bottom)) / _PIXEL
        self._draw.polygon(pixels.ravel().tolist(), fill=surface)


def _part(lane: Lane, which: slice | NDArray[np.bool_]) -> Lane:
    return Lane(lane.station[which], lane.points[which], lane.heading[which])
