"""Camera panorama of a synthetic scene, as NAVSIM's TransFuser builder stitches it.

NAVSIM crops 1920x1080 images of the left, front and right camera to 1088, 1920 and 1088 columns by
1024 rows, joins them and scales by 1/4: panels of 272, 480 and 272 columns by 256 rows. Each panel
here is a pinhole camera with nuPlan's focal length; the ground is looked up in a raster seen from
above.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from convoy.synthetic.scene import LANE_WIDTH, ROAD_HALF_WIDTH, WALKWAY_WIDTH, Scene
from convoy.synthetic.shapes import Array, Box, Lane, Light, Pedestrian, SignalPost, Vehicle

FOCAL = 1545  # pixels of a 1920 x 1080 image
MOUNT = np.array([1.6, 0.0, 1.6])  # metres in the ego frame
_NEAR = 0.3  # metres; what is nearer to an image plane is cut off
_HAZE = 90.0  # metres at which 63 % of a colour is haze

_RASTER_PIXEL = 0.1  # metres
_RASTER_X, _RASTER_Y = 80.0, 60.0  # covers x in [0, 80), y in [-60, 60)
GRASS, WALKWAY, ROAD, KERB, MARK, BEYOND = range(6)  # surfaces


@dataclass(frozen=True)
class View:
    """A pinhole camera at the mount, its axis level.

    All in pixels, the yaw in radians to the left.
    """

    yaw: float
    columns: int
    rows: int
    focal: float


_PANELS = tuple(
    View(np.radians(yaw), columns, 256, FOCAL / 4)
    for yaw, columns in ((55, 272), (0, 480), (-55, 272))
)


@dataclass(frozen=True)
class Look:
    """Colours that the samples of one log share: the light and the surfaces."""

    ground: Array  # (6, 3) RGB per surface
    haze: Array  # (3,)
    sky: Array  # (3,) at the image's upper edge

    @classmethod
    def sample(cls, rng: np.random.Generator) -> "Look":
        light = rng.uniform(0.7, 1.05)
        surfaces = np.array(
            [
                [92, 118, 70],
                [150, 146, 140],
                [82, 84, 88],
                [175, 172, 165],
                [225, 225, 215],
                [110, 122, 105],
            ],
            dtype=np.float64,
        )
        surfaces += rng.normal(0, 6, (6, 1)) + rng.normal(0, 3, (6, 3))
        haze = np.array([205, 212, 220]) + rng.normal(0, 6, 3)
        sky = np.array([120, 160, 210]) + rng.normal(0, 15, 3)
        return cls(surfaces * light, haze * light, sky * light)


def render_camera(scene: Scene, look: Look) -> NDArray[np.uint8]:
    """RGB panorama, (256, 1024, 3) uint8."""
    raster, boxes = _ground_raster(scene), (*scene.buildings, *scene.vehicles)
    return np.concatenate(
        [render(view, look, raster[_raster_cell(view)], boxes) for view in _PANELS], axis=1
    )


def _ground_raster(scene: Scene) -> NDArray[np.uint8]:
    """Surface class per 0.1 m cell, indexed by y then x; the last cell means "beyond the
    raster"."""
    columns, rows = int(_RASTER_X / _RASTER_PIXEL), int(2 * _RASTER_Y / _RASTER_PIXEL)
    image = Image.new("L", (columns, rows), GRASS)
    draw = ImageDraw.Draw(image)

    def fill(polygon: Array, surface: int) -> None:
        draw.polygon(((polygon + (0.0, _RASTER_Y)) / _RASTER_PIXEL).ravel().tolist(), fill=surface)

    # Each surface over all roads before the next, so that the roads open the kerbs where they
    # cross.
    outer = ROAD_HALF_WIDTH + WALKWAY_WIDTH
    for half_width, surface in (
        (outer, WALKWAY),
        (ROAD_HALF_WIDTH + 0.25, KERB),
        (ROAD_HALF_WIDTH, ROAD),
    ):
        for road in scene.roads:
            fill(road.strip(-half_width, half_width), surface)
    for road in scene.roads:
        for offset in (-LANE_WIDTH - 0.1, LANE_WIDTH + 0.1):
            for piece in _outside_junction(road, scene.junction):
                fill(piece.strip(offset - 0.09, offset + 0.09), MARK)
        for dash in _dashes(road, scene.junction):
            fill(dash.strip(-0.09, 0.09), MARK)
    return np.append(np.asarray(image).ravel(), np.uint8(BEYOND))


def _outside_junction(road: Lane, junction: tuple[float, float] | None) -> list[Lane]:
    """The parts of a road before and after the junction."""
    if junction is None:
        return [road]
    distance = np.hypot(*(road.points - junction).T)
    inside = np.flatnonzero(distance < ROAD_HALF_WIDTH + 0.5)
    parts = (slice(0, inside[0]), slice(inside[-1] + 1, None))
    return [Lane(road.station[part], road.points[part], road.heading[part]) for part in parts]


def _dashes(road: Lane, junction: tuple[float, float] | None) -> list[Lane]:
    """Centre marks, 3 m long with 6 m between them."""
    dashes = []
    for part in _outside_junction(road, junction):
        for start in range(0, len(part.station) - 7, 18):
            piece = slice(start, start + 7)
            dashes.append(Lane(part.station[piece], part.points[piece], part.heading[piece]))
    return dashes


@cache
def ground_points(view: View) -> tuple[Array, Array, NDArray[np.float32]]:
    """x and y in the ego frame of the ground that each pixel below the horizon shows, (rows / 2,
    columns), and the haze share of each row, (rows / 2,)."""
    right, down = np.meshgrid(
        (np.arange(view.columns) + 0.5 - view.columns / 2) / view.focal,
        (np.arange(view.rows // 2) + 0.5) / view.focal,
    )
    depth = MOUNT[2] / down
    x = MOUNT[0] + depth * (np.cos(view.yaw) + right * np.sin(view.yaw))
    y = MOUNT[1] + depth * (np.sin(view.yaw) - right * np.cos(view.yaw))
    return x, y, (1 - np.exp(-depth[:, 0] / _HAZE)).astype(np.float32)


@cache
def _raster_cell(view: View) -> NDArray[np.intp]:
    """Raster cell of each pixel below the horizon, (rows / 2, columns)."""
    x, y, _ = ground_points(view)
    columns_total, rows_total = int(_RASTER_X / _RASTER_PIXEL), int(2 * _RASTER_Y / _RASTER_PIXEL)
    column = np.floor(x / _RASTER_PIXEL).astype(np.intp)
    row = np.floor((y + _RASTER_Y) / _RASTER_PIXEL).astype(np.intp)
    inside = (column >= 0) & (column < columns_total) & (row >= 0) & (row < rows_total)
    return np.where(inside, row * columns_total + column, rows_total * columns_total)


def render(
    view: View, look: Look, surfaces: NDArray[np.uint8], boxes: Iterable[Box]
) -> NDArray[np.uint8]:
    """RGB image, (rows, columns, 3) uint8; `surfaces` holds the ground's surface per pixel below
    the horizon."""
    # The level axis makes the haze a matter of the row, so a pixel's colour one of its row and its
    # surface.
    ground = np.broadcast_to(look.ground.astype(np.float32), (view.rows // 2, *look.ground.shape))
    ground = ground + ground_points(view)[2][:, None, None] * (
        look.haze.astype(np.float32) - ground
    )
    colours = np.clip(ground, 0, 255).astype(np.uint8)
    share = np.linspace(0, 1, view.rows // 2)[:, None, None]
    panel = np.empty((view.rows, view.columns, 3), dtype=np.uint8)
    panel[: view.rows // 2] = np.clip(look.sky + share * (look.haze - look.sky), 0, 255)
    panel[view.rows // 2 :] = colours[np.arange(view.rows // 2)[:, None], surfaces]

    image = Image.fromarray(panel)
    draw = ImageDraw.Draw(image)
    for box in sorted(boxes, key=lambda box: -np.hypot(box.x - MOUNT[0], box.y)):  # far ones first
        _draw_box(draw, box, look, view)
    return np.asarray(image)


def _draw_box(draw: ImageDraw.ImageDraw, box: Box, look: Look, view: View) -> None:
    if not _is_in_sight(box, view):
        return
    haze = 1 - np.exp(-np.hypot(box.x - MOUNT[0], box.y) / _HAZE)

    def polygon(vertices: Array, colour: Array) -> None:
        pixels = _project(vertices, view)
        if len(pixels) >= 3:
            shown = np.clip(colour + haze * (look.haze - colour), 0, 255).astype(int)
            draw.polygon(pixels.ravel().tolist(), fill=tuple(shown.tolist()))

    def cuboid(part: Box, bottom: float, top: float) -> None:
        corners = part.corners()
        for i in range(4):
            a, b = corners[i], corners[(i + 1) % 4]
            outward = np.array([b[1] - a[1], a[0] - b[0]])
            if outward @ (MOUNT[:2] - a) <= 0:
                continue
            # Sides lit from the left of the ego, so that the faces of a box differ.
            shade = 0.75 + 0.2 * outward[1] / np.hypot(*outward)
            face = np.array([[*a, bottom], [*b, bottom], [*b, top], [*a, top]])
            polygon(face, np.array(part.colour) * shade)
        if top < MOUNT[2]:
            polygon(
                np.column_stack([corners, np.full(4, top)]), np.array(part.colour, dtype=np.float64)
            )

    if isinstance(box, SignalPost):
        _draw_signal(polygon, cuboid, box)
        return
    if isinstance(box, Pedestrian):
        _draw_person(cuboid, box)
        return
    if not isinstance(box, Vehicle):
        cuboid(box, 0.0, box.height)
        return
    shadow = Box(box.x, box.y, box.heading, box.length + 0.4, box.width + 0.4, 0.0, (30, 30, 32))
    polygon(
        np.column_stack([shadow.corners(), np.zeros(4)]), np.array(shadow.colour, dtype=np.float64)
    )
    waist = 0.58 * box.height
    cuboid(box, 0.25, waist)
    cabin = Box(
        box.x, box.y, box.heading, 0.6 * box.length, 0.88 * box.width, box.height, (38, 44, 52)
    )
    cuboid(cabin, waist, box.height)
    _draw_lights(polygon, box, waist)


def _is_in_sight(box: Box, view: View) -> bool:
    """False for a box that lies wholly to a side of the view or behind it."""
    c, s = np.cos(view.yaw), np.sin(view.yaw)
    x, y = box.x - MOUNT[0], box.y - MOUNT[1]
    ahead, aside = x * c + y * s, abs(y * c - x * s)
    reach = max(box.length, box.width, 1.0) + 1.0
    edge = np.arctan2(view.columns / 2, view.focal)
    return bool(ahead > -reach and aside * np.cos(edge) - ahead * np.sin(edge) < reach)


def _draw_lights(polygon: Callable[[Array, Array], None], box: Vehicle, waist: float) -> None:
    """Tail lights, bright when braking, and headlights: each where its face looks to the camera."""
    front_left, rear_left, rear_right, front_right = box.corners()
    tail = (255, 40, 25) if box.braking else (95, 22, 22)
    for a, b, colour in ((rear_left, rear_right, tail), (front_right, front_left, (225, 225, 205))):
        outward = np.array([b[1] - a[1], a[0] - b[0]])
        if outward @ (MOUNT[:2] - a) <= 0:
            continue
        for start, end in ((0.0, 0.3), (0.7, 1.0)):
            p, q = a + start * (b - a), a + end * (b - a)
            bottom = waist - 0.35
            light = np.array([[*p, bottom], [*q, bottom], [*q, waist], [*p, waist]])
            polygon(light, np.array(colour, dtype=np.float64))


def _draw_person(cuboid: Callable[[Box, float, float], None], person: Pedestrian) -> None:
    """Legs, coat and head."""
    waist, neck = 0.45 * person.height, 0.85 * person.height
    parts = (
        (0.7, 0.0, waist, (45, 45, 60)),
        (1.0, waist, neck, person.colour),
        (0.5, neck, person.height, (190, 150, 125)),
    )
    for share, bottom, top, colour in parts:
        cuboid(
            replace(
                person, length=share * person.length, width=share * person.width, colour=colour
            ),
            bottom,
            top,
        )


def _draw_signal(
    polygon: Callable[[Array, Array], None],
    cuboid: Callable[[Box, float, float], None],
    post: SignalPost,
) -> None:
    """A post, a dark housing and, on the side that it looks to, three lamps."""
    cuboid(post, 0.0, post.height)
    bottom, width = post.height - 2.1, 0.9
    housing = Box(post.x, post.y, post.heading, 0.4, width, post.height, (28, 30, 30))
    cuboid(housing, bottom, post.height)
    a, _, _, b = housing.corners()
    outward = np.array([b[1] - a[1], a[0] - b[0]])
    if outward @ (MOUNT[:2] - a) >= 0:
        return
    lit = {
        Light.GREEN: (0,),
        Light.AMBER: (1,),
        Light.RED: (2,),
        Light.RED_AMBER: (1, 2),
    }[post.light]
    for lamp, colour in enumerate(((40, 255, 110), (255, 190, 30), (255, 40, 30))):
        p, q = a + 0.2 * (b - a), a + 0.8 * (b - a)
        low, high = bottom + 0.12 + 0.65 * lamp, bottom + 0.68 + 0.65 * lamp
        shape = np.array([[*p, low], [*q, low], [*q, high], [*p, high]])
        polygon(shape, np.array(colour, dtype=np.float64) * (1.0 if lamp in lit else 0.2))


def _project(vertices: Array, view: View) -> Array:
    """Pixels (M, 2) of a polygon (N, 3) in the ego frame, cut at the near plane.

    M is 0 behind it.
    """
    c, s = np.cos(view.yaw), np.sin(view.yaw)
    to_camera = np.array([[c, s, 0], [s, -c, 0], [0, 0, -1]])  # rows: depth, right, down
    points = (vertices - MOUNT) @ to_camera.T
    if points[:, 0].min() < _NEAR:
        points = _cut(points)
    depth, right, down = points.T
    return np.stack(
        [right / depth * view.focal + view.columns / 2, down / depth * view.focal + view.rows / 2],
        axis=1,
    )


def _cut(points: Array) -> Array:
    """What of a polygon (N, 3) lies beyond the near plane, (M, 3)."""
    kept = [np.empty((0, 3))]
    for a, b in zip(points, np.roll(points, -1, axis=0), strict=True):
        if a[0] >= _NEAR:
            kept.append(a[None])
        if (a[0] >= _NEAR) != (b[0] >= _NEAR):
            kept.append((a + (b - a) * (_NEAR - a[0]) / (b[0] - a[0]))[None])
    return np.concatenate(kept)
