"""Write a synthetic raw data set that NAVSIM's own loaders read: logs, camera pictures, point clouds and maps.

    <out>/navsim_logs/<split>/<log>.pkl             frames at 2 Hz, dicts with the keys of OpenScene's metadata
    <out>/sensor_blobs/<split>/<log>/CAM_F0/*.jpg   1920 x 1080
    <out>/sensor_blobs/<split>/<log>/MergedPointCloud/*.pcd
    <out>/maps/                                     nuPlan maps of all four cities

`<out>` is NAVSIM's OPENSCENE_DATA_ROOT, and `<out>/maps` its NUPLAN_MAPS_ROOT. Formats: NAVSIM's
`common/dataclasses.py` and OpenScene's `DriveEngine/process_data/create_openscene_metadata.py`.
"""

import hashlib
import io
import json
import pickle
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from convoy.data import pool
from convoy.data.synthetic.camera import FOCAL, MOUNT, Look, View, render
from convoy.data.synthetic.ground import Ground
from convoy.data.synthetic.lidar import encode_pcd, scan
from convoy.data.synthetic.maps import LOCATIONS, Location, block_id, edge_id, write_index, write_map
from convoy.data.synthetic.scene import EGO_FRONT, Command
from convoy.data.synthetic.shapes import Array, Box, Cone, Pedestrian, Vehicle, seen_from
from convoy.data.synthetic.town import Town
from convoy.data.synthetic.traffic import EGO_REAR, EGO_WIDTH, SIGHT, STEP, Moment, Traffic
from convoy.errors import ConvoyError

HISTORY_FRAMES, FUTURE_FRAMES = 3, 10  # around each sample, as NAVSIM's scene filters ask for
FRAME_INTERVAL = 0.5  # seconds
YAWS = {"F0": 0, "L0": 55, "L1": 110, "L2": 148, "R0": -55, "R1": -110, "R2": -148, "B0": 180}  # degrees to the left
FRONT = ("F0", "L0", "R0")

# Part of each token. To be raised when the generator changes, so that a directory never mixes two versions.
_VERSION = 1
_WIDTH, _HEIGHT = 1920, 1080
_DRAWN = 2  # pictures are drawn at a half of their size
_JPEG_QUALITY = 85
_WARM_UP = 6.0  # seconds of traffic before a log begins
_ANNOTATED = 80.0  # metres
_FRAMES_PER_TASK = 8
_START_TIME = 1_620_000_000_000_000  # microseconds
_NAMES = {Vehicle: "vehicle", Pedestrian: "pedestrian", Cone: "traffic_cone"}
# Streams of random numbers; 0 and 1 are those of the feature cache.
_TOWN, _DRIVE, _LOOK, _SCAN = 2, 3, 4, 5


@dataclass(frozen=True)
class RawSummary:
    """What `write_raw` made; `frames` and `bytes` include what an earlier run had written."""

    path: Path
    split: str
    samples: int
    logs: int
    frames: int
    bytes: int
    seconds: float


@dataclass(frozen=True)
class _Plan:
    out: Path
    split: str
    samples: int
    logs: int
    seed: int
    cameras: tuple[str, ...]

    def log_name(self, log: int) -> str:
        return f"synthetic-{self.split}-{self.seed}-{log:03d}"

    def frames(self, log: int) -> int:
        samples = self.samples // self.logs + (log < self.samples % self.logs)
        return samples + HISTORY_FRAMES + FUTURE_FRAMES

    def log_path(self, log: int) -> Path:
        return self.out / "navsim_logs" / self.split / f"{self.log_name(log)}.pkl"

    def blobs(self) -> Path:
        return self.out / "sensor_blobs" / self.split

    def token(self, *parts: object) -> str:
        key = "/".join(str(part) for part in ("convoy-synthetic-raw", _VERSION, self.split, self.seed, *parts))
        return hashlib.sha256(key.encode()).hexdigest()[:16]

    def rng(self, stream: int, *parts: int) -> np.random.Generator:
        split = int.from_bytes(hashlib.sha256(self.split.encode()).digest()[:4], "big")
        return np.random.default_rng([self.seed, stream, split, *parts])


def write_raw(
    out: Path,
    samples: int,
    logs: int,
    seed: int,
    split: str = "mini",
    all_cameras: bool = True,
    workers: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> RawSummary:
    """Write `logs` logs of a split that together hold `samples` samples; the files' bytes depend on the seed only.

    A sample is a frame with 3 frames before and 10 after it, so that a log is 13 frames longer than it has samples;
    NAVSIM finds all of them with `train_test_split.scene_filter.frame_interval=1`. Without `all_cameras` the
    pictures of CAM_F0, CAM_L0 and CAM_R0 only are written. An interrupted call is completed by calling again.
    `workers` processes are used, by default one per available CPU; 1 works in this process. `progress` is called
    with the number of frames just done, `frame_count` in all.

    Raises `ConvoyError` for numbers out of range, an `out` made with other settings, or a failed write.
    """
    started = time.monotonic()
    _check(samples, logs, seed, split, workers)
    plan = _Plan(Path(out), split, samples, logs, seed, tuple(YAWS) if all_cameras else FRONT)
    try:
        _claim(plan)
        total = _write_maps(plan)
        # A log is written last, so one that is there has all of its sensor data.
        missing = [log for log in range(logs) if not plan.log_path(log).is_file()]
        tasks = [
            (log, first, min(first + _FRAMES_PER_TASK, plan.frames(log)))
            for log in missing
            for first in range(0, plan.frames(log), _FRAMES_PER_TASK)
        ]
        finished = frame_count(samples, logs) - sum(last - first for _, first, last in tasks)
        if progress and finished:
            progress(finished)
        for (_, first, last), size in pool.run(_write_sensors, plan, tasks, workers):
            total += size
            if progress:
                progress(last - first)
        total += sum(size for _, size in pool.run(_write_log, plan, missing, workers))
        total += sum(_size(plan, log) for log in set(range(logs)) - set(missing))
    except OSError as error:
        raise ConvoyError(f"Can't write the data set: {error}. Finished files are kept.") from error
    return RawSummary(plan.out, split, samples, logs, frame_count(samples, logs), total, time.monotonic() - started)


def frame_count(samples: int, logs: int) -> int:
    """Frames of a data set, in all of its logs."""
    return samples + logs * (HISTORY_FRAMES + FUTURE_FRAMES)


def _check(samples: int, logs: int, seed: int, split: str, workers: int | None) -> None:
    if samples < 1 or logs < 1:
        raise ConvoyError(f"samples and logs must be at least 1, got samples={samples} and logs={logs}.")
    if samples < logs:
        raise ConvoyError(f"Each log needs a sample: samples={samples} is less than logs={logs}.")
    if seed < 0:
        raise ConvoyError(f"The seed must be 0 or more, got {seed}.")
    if not split.replace("_", "").isalnum():
        raise ConvoyError(f"The split's name may hold letters, digits and underscores, got {split!r}.")
    pool.check_workers(workers)


def _claim(plan: _Plan) -> None:
    """Leave a note of the settings; refuse a directory that was made with others, or by something else."""
    if plan.out.exists() and not plan.out.is_dir():
        raise ConvoyError(f"{plan.out} is a file; the data set needs a directory that is new or empty.")
    note = plan.out / f"synthetic-{plan.split}.json"
    settings = {"version": _VERSION} | {k: v for k, v in asdict(plan).items() if k != "out"}
    text = json.dumps(settings, indent=1) + "\n"
    others = sorted(plan.out.glob("synthetic-*.json"))
    if not others and plan.out.is_dir() and any(plan.out.iterdir()):
        raise ConvoyError(
            f"{plan.out} holds {next(plan.out.iterdir()).name}, which is not part of a synthetic data set.\n"
            "Choose another directory, or remove this one first."
        )
    for other in others:
        found = json.loads(other.read_text())
        same = ("version", "seed") if other != note else tuple(settings)
        differing = [key for key in same if found.get(key) != json.loads(text)[key]]
        if differing:
            asked = ", ".join(f"{key}={found.get(key)} instead of {settings[key]}" for key in differing)
            raise ConvoyError(
                f"{plan.out} was made with other settings ({other.name}: {asked}).\n"
                "Choose another directory, or remove this one first."
            )
    plan.out.mkdir(parents=True, exist_ok=True)
    _write(note, text.encode())


def _write(path: Path, content: bytes, temporary: Path | None = None) -> int:
    """Write a file that is whole once it has its name; its size."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary or path.with_name(f"{path.name}.tmp")
    temporary.write_bytes(content)
    temporary.replace(path)
    return len(content)


def _write_maps(plan: _Plan) -> int:
    root = plan.out / "maps"
    root.mkdir(exist_ok=True)
    total = 0
    for index, location in enumerate(LOCATIONS):
        path = root / location.name / location.version / "map.gpkg"
        if not path.is_file():
            write_map(root, location, _town(plan.seed, index))
        total += path.stat().st_size
    write_index(root)
    return total


@lru_cache(maxsize=len(LOCATIONS))
def _town(seed: int, location: int) -> Town:
    return Town.sample(np.random.default_rng([seed, _TOWN, location]))


@lru_cache(maxsize=len(LOCATIONS))
def _ground(seed: int, location: int) -> Ground:
    return Ground(_town(seed, location))


@lru_cache(maxsize=2)
def _drive(plan: _Plan, log: int) -> tuple[Moment, ...]:
    """The log's frames. A drive in which something touches the ego is drawn anew."""
    for attempt in range(100):
        traffic = Traffic(_town(plan.seed, log % len(LOCATIONS)), plan.rng(_DRIVE, log, attempt))
        for _ in range(round(_WARM_UP / STEP)):
            traffic.step()
        moments = []
        for _ in range(plan.frames(log)):
            moments.append(traffic.moment())
            for _ in range(round(FRAME_INTERVAL / STEP)):
                traffic.step()
        if not any(_is_touched(moment) for moment in moments):
            return tuple(moments)
    raise AssertionError(f"log {log} of seed {plan.seed}: every drive of 100 ends in contact")


def _is_touched(moment: Moment) -> bool:
    x, y, heading = moment.pose
    ahead = (EGO_FRONT - EGO_REAR) / 2
    ego = Box(
        x + ahead * np.cos(heading), y + ahead * np.sin(heading), heading, EGO_FRONT + EGO_REAR, EGO_WIDTH, 0, (0, 0, 0)
    )
    return any(ego.touches(track.box) for track in moment.tracks)


def _write_sensors(plan: _Plan, task: tuple[int, int, int]) -> int:
    """Write the pictures and point clouds of some frames of a log that are not there yet; bytes of all of them."""
    log, first, last = task
    total = 0
    for frame in range(first, last):
        token = plan.token(log, frame)
        paths = {camera: plan.blobs() / _camera_path(plan, log, camera, token) for camera in plan.cameras}
        cloud = plan.blobs() / _cloud_path(plan, log, token)
        if not all(path.is_file() for path in (*paths.values(), cloud)):
            moment = _drive(plan, log)[frame]
            boxes = _boxes_around(plan, log, moment)
            look = Look.sample(plan.rng(_LOOK, log))
            for camera, path in paths.items():
                _write(path, _picture(plan, log, moment, boxes, look, camera))
            kerbs = seen_from(moment.pose, _town(plan.seed, log % len(LOCATIONS)).kerbs)
            _write(cloud, encode_pcd(scan(boxes, kerbs, plan.rng(_SCAN, log, frame))))
        total += sum(path.stat().st_size for path in (*paths.values(), cloud))
    return total


def _size(plan: _Plan, log: int) -> int:
    """Bytes of a log and its sensor data."""
    files = (plan.blobs() / plan.log_name(log)).glob("*/*")
    return plan.log_path(log).stat().st_size + sum(path.stat().st_size for path in files)


def _camera_path(plan: _Plan, log: int, camera: str, token: str) -> str:
    return f"{plan.log_name(log)}/CAM_{camera}/{token}.jpg"


def _cloud_path(plan: _Plan, log: int, token: str) -> str:
    return f"{plan.log_name(log)}/MergedPointCloud/{token}.pcd"


def _boxes_around(plan: _Plan, log: int, moment: Moment) -> list[Box]:
    """All that stands on the ground near the ego, in its frame."""
    x, y, _ = moment.pose
    buildings = _town(plan.seed, log % len(LOCATIONS)).buildings
    near = [box for box in buildings if np.hypot(box.x - x, box.y - y) < SIGHT]
    return [box.seen_from(moment.pose) for box in (*near, *moment.posts, *(track.box for track in moment.tracks))]


def _picture(plan: _Plan, log: int, moment: Moment, boxes: list[Box], look: Look, camera: str) -> bytes:
    view = View(np.radians(YAWS[camera]), _WIDTH // _DRAWN, _HEIGHT // _DRAWN, FOCAL / _DRAWN)
    surfaces = _ground(plan.seed, log % len(LOCATIONS)).surfaces(view, moment.pose)
    image = Image.fromarray(render(view, look, surfaces, boxes))
    file = io.BytesIO()
    image.resize((_WIDTH, _HEIGHT), Image.Resampling.NEAREST).save(file, "JPEG", quality=_JPEG_QUALITY)
    return file.getvalue()


def _write_log(plan: _Plan, log: int) -> int:
    path = plan.log_path(log)
    if not path.is_file():
        moments = _drive(plan, log)
        frames = [_frame(plan, log, index, moment) for index, moment in enumerate(moments)]
        # NAVSIM reads whatever lies beside the logs, so an unfinished one must lie elsewhere.
        _write(path, pickle.dumps(frames, protocol=4), temporary=plan.blobs() / f"{path.name}.tmp")
    return path.stat().st_size


def _frame(plan: _Plan, log: int, index: int, moment: Moment) -> dict[str, Any]:
    location = LOCATIONS[log % len(LOCATIONS)]
    token, last = plan.token(log, index), plan.frames(log) - 1
    ego_to_global = _ego_to_global(location, moment)
    heading = moment.pose[2]
    town = _town(plan.seed, log % len(LOCATIONS))
    return {
        "token": token,
        "frame_idx": index,
        "timestamp": _START_TIME + log * 10**10 + round(index * FRAME_INTERVAL * 1e6),
        "log_name": plan.log_name(log),
        "log_token": plan.token(log),
        "scene_name": plan.log_name(log),
        "scene_token": plan.token(log, "scene"),
        "map_location": location.name,
        "roadblock_ids": [str(block_id(edge)) for edge in moment.route],
        "vehicle_name": "synthetic",
        "lidar_path": _cloud_path(plan, log, token),
        "lidar2ego_translation": np.zeros(3),
        "lidar2ego_rotation": [1.0, 0.0, 0.0, 0.0],
        "lidar2ego": np.eye(4),
        "lidar2global": ego_to_global,
        "ego2global": ego_to_global,
        "ego2global_translation": ego_to_global[:3, 3],
        "ego2global_rotation": np.array([np.cos(heading / 2), 0.0, 0.0, np.sin(heading / 2)]),
        "ego_dynamic_state": [moment.speed, 0.0, *moment.acceleration.tolist()],
        "traffic_lights": [
            (edge_id(edge.index), moment.lights[edge.junction, edge.arm].is_red)
            for edge in town.edges
            if edge.is_connector
        ],
        "driving_command": np.eye(4, dtype=int)[driving_command(moment)],
        "cams": {f"CAM_{camera}": _camera(plan, log, camera, token) for camera in YAWS},
        "sample_prev": plan.token(log, index - 1) if index > 0 else None,
        "sample_next": plan.token(log, index + 1) if index < last else None,
        "anns": _annotations(plan, log, index, moment),
    }


def _ego_to_global(location: Location, moment: Moment) -> Array:
    x, y, heading = moment.pose
    c, s = np.cos(heading), np.sin(heading)
    return np.array([[c, -s, 0, x + location.east], [s, c, 0, y + location.north], [0, 0, 1, 0], [0, 0, 0, 1.0]])


def _camera(plan: _Plan, log: int, camera: str, token: str) -> dict[str, Any]:
    yaw = np.radians(YAWS[camera])
    c, s = np.cos(yaw), np.sin(yaw)
    return {
        "data_path": _camera_path(plan, log, camera, token),
        # Columns: the picture's right, its down and the camera's axis.
        "sensor2lidar_rotation": np.array([[s, 0.0, c], [-c, 0.0, s], [0.0, -1.0, 0.0]]),
        "sensor2lidar_translation": MOUNT.copy(),
        "cam_intrinsic": np.array([[FOCAL, 0, _WIDTH / 2], [0, FOCAL, _HEIGHT / 2], [0, 0, 1.0]]),
        "distortion": np.zeros(5),
    }


def _annotations(plan: _Plan, log: int, index: int, moment: Moment) -> dict[str, Any]:
    x, y, _ = moment.pose
    near = [track for track in moment.tracks if np.hypot(track.box.x - x, track.box.y - y) < _ANNOTATED]
    boxes = [track.box.seen_from(moment.pose) for track in near]
    turn = (0.0, 0.0, moment.pose[2])
    velocities: list[NDArray[np.float64]] = [np.append(seen_from(turn, track.velocity), 0.0) for track in near]
    return {
        "gt_boxes": np.array(
            [
                [b.x, b.y, b.height / 2, b.length, b.width, b.height, np.arctan2(np.sin(b.heading), np.cos(b.heading))]
                for b in boxes
            ]
        ).reshape(-1, 7),
        "gt_names": np.array(
            ["pedestrian" if isinstance(box, Pedestrian) else "vehicle" for box in boxes], dtype="<U16"
        ),
        "gt_velocity_3d": np.array(velocities).reshape(-1, 3),
        "instance_tokens": [plan.token(log, index, track.identity) for track in near],
        "track_tokens": [plan.token(log, "track", track.identity) for track in near],
    }


def driving_command(moment: Moment) -> Command:
    """The turn at a junction up to 45 m ahead, else where the route leads within 20 m.

    The latter is OpenScene's rule (`process_data/helpers/driving_command.py`): 2 m or more to a side. With it alone the
    ego would brake for a turn that nothing tells of yet.
    """
    if moment.next_turn is not None and moment.next_turn[0] < 45.0 and moment.next_turn[1] != 0:
        return Command.LEFT if moment.next_turn[1] > 0 else Command.RIGHT
    points = seen_from(moment.pose, moment.route_ahead)
    travelled = np.cumsum(np.hypot(*np.diff(points, axis=0).T))
    y = points[1:][np.searchsorted(travelled, 20.0), 1]
    return Command.LEFT if y >= 2.0 else Command.RIGHT if y <= -2.0 else Command.STRAIGHT
