"""A spinning LiDAR in a synthetic scene: rays against boxes, kerbs and the ground."""

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from convoy.synthetic.shapes import Array, Box

RANGE = 70.0  # metres
_MOUNT = np.array([1.2, 0.0, 1.8])  # metres in the ego frame
# One per ring.
_ELEVATIONS = np.radians(np.concatenate([np.linspace(-24.0, -6.0, 14), np.linspace(-5.0, 3.0, 14)]))
_AZIMUTHS = np.radians(np.arange(0.0, 360.0, 0.4))
_KERB_HEIGHT = 0.35
_NOISE = 0.02  # metres

POINT = np.dtype(
    [
        ("x", "<f4"),
        ("y", "<f4"),
        ("z", "<f4"),
        ("intensity", "<f4"),
        ("lidar_info", "u1"),
        ("ring", "u1"),
    ]
)


def scan(boxes: Iterable[Box], kerbs: Array, rng: np.random.Generator) -> NDArray[np.void]:
    """Returns of one turn in the ego frame, (N,) of `POINT`; `kerbs` are segments (M, 2, 2) in the
    ego frame.

    A ray returns from the nearest thing that it meets, so what stands behind something else is not
    seen.
    """
    segments, heights, intensities = _walls(boxes, kerbs)
    azimuth, wall, distance = _crossings(segments)
    slopes = np.tan(_ELEVATIONS)
    with np.errstate(divide="ignore"):
        to_ground = np.where(slopes < 0, -_MOUNT[2] / slopes, np.inf)
    returns = []
    for ring, slope in enumerate(slopes):
        height = _MOUNT[2] + distance * slope
        hit = (height > 0.0) & (height < heights[wall])
        nearest = np.full(len(_AZIMUTHS), min(to_ground[ring], RANGE))
        np.minimum.at(nearest, azimuth[hit], distance[hit])
        brightness = np.full(len(_AZIMUTHS), 12.0)
        closest = hit & (distance <= nearest[azimuth])
        brightness[azimuth[closest]] = intensities[wall[closest]]
        seen = nearest < RANGE
        length = nearest[seen] + rng.normal(0.0, _NOISE, int(seen.sum()))
        points = np.zeros(len(length), dtype=POINT)
        points["x"] = _MOUNT[0] + length * np.cos(_AZIMUTHS[seen])
        points["y"] = _MOUNT[1] + length * np.sin(_AZIMUTHS[seen])
        points["z"] = _MOUNT[2] + nearest[seen] * slope
        points["intensity"], points["ring"] = brightness[seen], ring
        returns.append(points)
    return np.concatenate(returns)


def _walls(boxes: Iterable[Box], kerbs: Array) -> tuple[Array, Array, Array]:
    """Upright faces: their feet relative to the scanner (N, 2, 2), heights and intensities (N,)."""
    feet, heights, intensities = (
        [kerbs],
        [np.full(len(kerbs), _KERB_HEIGHT)],
        [np.full(len(kerbs), 30.0)],
    )
    for box in boxes:
        corners = box.corners()
        feet.append(np.stack([corners, np.roll(corners, -1, axis=0)], axis=1))
        heights.append(np.full(4, box.height))
        intensities.append(np.full(4, sum(box.colour) / 3))
    return np.concatenate(feet) - _MOUNT[:2], np.concatenate(heights), np.concatenate(intensities)


def _crossings(segments: Array) -> tuple[NDArray[np.intp], NDArray[np.intp], Array]:
    """Azimuth index, segment index and distance wherever a ray seen from above meets a segment,
    (K,) each."""
    near = np.hypot(*segments.mean(axis=1).T) < RANGE
    index, (a, b) = np.flatnonzero(near), segments[near].transpose(1, 0, 2)
    along = b - a
    ray = np.stack([np.cos(_AZIMUTHS), np.sin(_AZIMUTHS)], axis=1)
    denominator = ray[:, :1] * along[:, 1] - ray[:, 1:] * along[:, 0]  # (azimuths, segments)
    with np.errstate(divide="ignore", invalid="ignore"):
        distance = (a[:, 0] * along[:, 1] - a[:, 1] * along[:, 0]) / denominator
        share = (a[:, 0] * ray[:, 1:] - a[:, 1] * ray[:, :1]) / denominator
        meets = (distance > 0.0) & (share >= 0.0) & (share <= 1.0)
    azimuth, wall = np.nonzero(meets)
    return azimuth, index[wall], distance[meets]


def encode_pcd(points: NDArray[np.void]) -> bytes:
    """A binary PCD file, version 0.7, with the fields of nuPlan's merged point clouds."""
    kinds = {"f": "F", "u": "U"}
    types = [POINT[name] for name in POINT.names or ()]
    header = [
        "# .PCD v0.7 - Point Cloud Data file format",
        "VERSION 0.7",
        f"FIELDS {' '.join(POINT.names or ())}",
        f"SIZE {' '.join(str(kind.itemsize) for kind in types)}",
        f"TYPE {' '.join(kinds[kind.kind] for kind in types)}",
        f"COUNT {' '.join('1' for _ in types)}",
        f"WIDTH {len(points)}",
        "HEIGHT 1",
        "VIEWPOINT 0 0 0 1 0 0 0",
        f"POINTS {len(points)}",
        "DATA binary",
    ]
    return ("\n".join(header) + "\n").encode() + points.tobytes()
