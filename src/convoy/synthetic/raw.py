"""Write a synthetic raw data set that NAVSIM's own loaders read: logs, camera pictures, point
clouds and maps.

    <out>/navsim_logs/<split>/<log>.pkl             frames at 2 Hz, as OpenScene's metadata
    <out>/sensor_blobs/<split>/<log>/CAM_F0/*.jpg   1920 x 1080
    <out>/sensor_blobs/<split>/<log>/MergedPointCloud/*.pcd
    <out>/maps/                                     nuPlan maps of all four cities

`<out>` is NAVSIM's OPENSCENE_DATA_ROOT, and `<out>/maps` its NUPLAN_MAPS_ROOT. Formats: NAVSIM's
`common/dataclasses.py` and OpenScene's `DriveEngine/process_data/create_openscene_metadata.py`.
"""

import io
import json
import pickle
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image

from convoy.data import pool
from convoy.errors import ConvoyError
from convoy.synthetic.camera import FOCAL, Look, View, render
from convoy.synthetic.frame import frame
from convoy.synthetic.ground import Ground
from convoy.synthetic.lidar import encode_pcd, scan
from convoy.synthetic.maps import LOCATIONS, write_index, write_map
from convoy.synthetic.moment import Moment
from convoy.synthetic.raw_plan import (
    FRAME_INTERVAL,
    FRONT,
    FUTURE_FRAMES,
    HEIGHT,
    HISTORY_FRAMES,
    VERSION,
    WIDTH,
    YAWS,
    RawPlan,
    town_of,
)
from convoy.synthetic.scene import EGO_FRONT
from convoy.synthetic.shapes import Box, seen_from
from convoy.synthetic.signals import STEP
from convoy.synthetic.traffic import EGO_REAR, EGO_WIDTH, SIGHT, Traffic
from convoy.synthetic.write import check_numbers

_DRAWN = 2  # pictures are drawn at a half of their size
_JPEG_QUALITY = 85
_WARM_UP = 6.0  # seconds of traffic before a log begins
_FRAMES_PER_TASK = 8
# Streams of random numbers; 0 and 1 are those of the feature cache.
_DRIVE, _LOOK, _SCAN = 3, 4, 5


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
    """Write `logs` logs of a split that together hold `samples` samples; the files' bytes depend on
    the seed only.

    A sample is a frame with 3 frames before and 10 after it, so that a log is 13 frames longer than
    it has samples; NAVSIM finds all of them with `train_test_split.scene_filter.frame_interval=1`.
    Without `all_cameras` the pictures of CAM_F0, CAM_L0 and CAM_R0 only are written. An interrupted
    call is completed by calling again. `workers` processes are used, by default one per available
    CPU; 1 works in this process. `progress` is called with the number of frames just done,
    `frame_count` in all.

    Raises `ConvoyError` for numbers out of range, an `out` made with other settings, or a failed
    write.
    """
    started = time.monotonic()
    _check(samples, logs, seed, split, workers)
    plan = RawPlan(Path(out), split, samples, logs, seed, tuple(YAWS) if all_cameras else FRONT)
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
    return RawSummary(
        plan.out,
        split,
        samples,
        logs,
        frame_count(samples, logs),
        total,
        time.monotonic() - started,
    )


def frame_count(samples: int, logs: int) -> int:
    """Frames of a data set, in all of its logs."""
    return samples + logs * (HISTORY_FRAMES + FUTURE_FRAMES)


def _check(samples: int, logs: int, seed: int, split: str, workers: int | None) -> None:
    check_numbers(samples, logs, seed, workers)
    if not split.replace("_", "").isalnum():
        raise ConvoyError(
            f"The split's name may hold letters, digits and underscores, got {split!r}."
        )


def _claim(plan: RawPlan) -> None:
    """Note the settings; refuse a directory that was made with others, or otherwise."""
    if plan.out.exists() and not plan.out.is_dir():
        raise ConvoyError(
            f"{plan.out} is a file; the data set needs a directory that is new or empty."
        )
    note = plan.out / f"synthetic-{plan.split}.json"
    settings = {"version": VERSION} | {k: v for k, v in asdict(plan).items() if k != "out"}
    text = json.dumps(settings, indent=1) + "\n"
    others = sorted(plan.out.glob("synthetic-*.json"))
    if not others and plan.out.is_dir() and any(plan.out.iterdir()):
        raise ConvoyError(
            f"{plan.out} holds {next(plan.out.iterdir()).name}, which is not part of a synthetic "
            "data set.\nChoose another directory, or remove this one first."
        )
    for other in others:
        found = json.loads(other.read_text())
        same = ("version", "seed") if other != note else tuple(settings)
        differing = [key for key in same if found.get(key) != json.loads(text)[key]]
        if differing:
            asked = ", ".join(
                f"{key}={found.get(key)} instead of {settings[key]}" for key in differing
            )
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


def _write_maps(plan: RawPlan) -> int:
    root = plan.out / "maps"
    root.mkdir(exist_ok=True)
    total = 0
    for index, location in enumerate(LOCATIONS):
        path = root / location.name / location.version / "map.gpkg"
        if not path.is_file():
            write_map(root, location, town_of(plan.seed, index))
        total += path.stat().st_size
    write_index(root)
    return total


@lru_cache(maxsize=len(LOCATIONS))
def _ground(seed: int, location: int) -> Ground:
    return Ground(town_of(seed, location))


@lru_cache(maxsize=2)
def _drive(plan: RawPlan, log: int) -> tuple[Moment, ...]:
    """The log's frames. A drive in which something touches the ego is drawn anew."""
    for attempt in range(100):
        traffic = Traffic(town_of(plan.seed, log % len(LOCATIONS)), plan.rng(_DRIVE, log, attempt))
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
        x + ahead * np.cos(heading),
        y + ahead * np.sin(heading),
        heading,
        EGO_FRONT + EGO_REAR,
        EGO_WIDTH,
        0,
        (0, 0, 0),
    )
    return any(ego.touches(track.box) for track in moment.tracks)


def _write_sensors(plan: RawPlan, task: tuple[int, int, int]) -> int:
    """Write the pictures and point clouds of some frames of a log that are not there yet; bytes of
    all of them."""
    log, first, last = task
    total = 0
    for index in range(first, last):
        token = plan.token(log, index)
        paths = {
            camera: plan.blobs() / plan.camera_path(log, camera, token) for camera in plan.cameras
        }
        cloud = plan.blobs() / plan.cloud_path(log, token)
        if not all(path.is_file() for path in (*paths.values(), cloud)):
            moment = _drive(plan, log)[index]
            boxes = _boxes_around(plan, log, moment)
            look = Look.sample(plan.rng(_LOOK, log))
            for camera, path in paths.items():
                _write(path, _picture(plan, log, moment, boxes, look, camera))
            kerbs = seen_from(moment.pose, town_of(plan.seed, log % len(LOCATIONS)).kerbs)
            _write(cloud, encode_pcd(scan(boxes, kerbs, plan.rng(_SCAN, log, index))))
        total += sum(path.stat().st_size for path in (*paths.values(), cloud))
    return total


def _size(plan: RawPlan, log: int) -> int:
    """Bytes of a log and its sensor data."""
    files = (plan.blobs() / plan.log_name(log)).glob("*/*")
    return plan.log_path(log).stat().st_size + sum(path.stat().st_size for path in files)


def _boxes_around(plan: RawPlan, log: int, moment: Moment) -> list[Box]:
    """All that stands on the ground near the ego, in its frame."""
    x, y, _ = moment.pose
    buildings = town_of(plan.seed, log % len(LOCATIONS)).buildings
    near = [box for box in buildings if np.hypot(box.x - x, box.y - y) < SIGHT]
    return [
        box.seen_from(moment.pose)
        for box in (*near, *moment.posts, *(track.box for track in moment.tracks))
    ]


def _picture(
    plan: RawPlan, log: int, moment: Moment, boxes: list[Box], look: Look, camera: str
) -> bytes:
    view = View(np.radians(YAWS[camera]), WIDTH // _DRAWN, HEIGHT // _DRAWN, FOCAL / _DRAWN)
    surfaces = _ground(plan.seed, log % len(LOCATIONS)).surfaces(view, moment.pose)
    image = Image.fromarray(render(view, look, surfaces, boxes))
    file = io.BytesIO()
    image.resize((WIDTH, HEIGHT), Image.Resampling.NEAREST).save(
        file, "JPEG", quality=_JPEG_QUALITY
    )
    return file.getvalue()


def _write_log(plan: RawPlan, log: int) -> int:
    path = plan.log_path(log)
    if not path.is_file():
        moments = _drive(plan, log)
        frames = [frame(plan, log, index, moment) for index, moment in enumerate(moments)]
        # NAVSIM reads whatever lies beside the logs, so an unfinished one must lie elsewhere.
        _write(path, pickle.dumps(frames, protocol=4), temporary=plan.blobs() / f"{path.name}.tmp")
    return path.stat().st_size
