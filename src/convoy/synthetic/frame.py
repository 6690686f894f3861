"""What one frame of a log says: OpenScene's metadata of the ego, cameras and boxes."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from convoy.synthetic.camera import FOCAL, MOUNT
from convoy.synthetic.maps import LOCATIONS, Location, block_id, edge_id
from convoy.synthetic.moment import Moment
from convoy.synthetic.raw_plan import FRAME_INTERVAL, HEIGHT, WIDTH, YAWS, RawPlan, town_of
from convoy.synthetic.scene import Command
from convoy.synthetic.shapes import Array, Cone, Pedestrian, Vehicle, seen_from


def frame(plan: RawPlan, log: int, index: int, moment: Moment) -> dict[str, Any]:
    location = LOCATIONS[log % len(LOCATIONS)]
    token, last = plan.token(log, index), plan.frames(log) - 1
    ego_to_global = _ego_to_global(location, moment)
    heading = moment.pose[2]
    town = town_of(plan.seed, log % len(LOCATIONS))
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
        "lidar_path": plan.cloud_path(log, token),
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
    return np.array(
        [[c, -s, 0, x + location.east], [s, c, 0, y + location.north], [0, 0, 1, 0], [0, 0, 0, 1.0]]
    )


def _camera(plan: RawPlan, log: int, camera: str, token: str) -> dict[str, Any]:
    yaw = np.radians(YAWS[camera])
    c, s = np.cos(yaw), np.sin(yaw)
    return {
        "data_path": plan.camera_path(log, camera, token),
        # Columns: the picture's right, its down and the camera's axis.
        "sensor2lidar_rotation": np.array([[s, 0.0, c], [-c, 0.0, s], [0.0, -1.0, 0.0]]),
        "sensor2lidar_translation": MOUNT.copy(),
        "cam_intrinsic": np.array([[FOCAL, 0, WIDTH / 2], [0, FOCAL, HEIGHT / 2], [0, 0, 1.0]]),
        "distortion": np.zeros(5),
    }


def _annotations(plan: RawPlan, log: int, index: int, moment: Moment) -> dict[str, Any]:
    x, y, _ = moment.pose
    near = [
        track for track in moment.tracks if np.hypot(track.box.x - x, track.box.y - y) < _ANNOTATED
    ]
    boxes = [track.box.seen_from(moment.pose) for track in near]
    turn = (0.0, 0.0, moment.pose[2])
    velocities: list[NDArray[np.float64]] = [
        np.append(seen_from(turn, track.velocity), 0.0) for track in near
    ]
    return {
        "gt_boxes": np.array(
            [
                [
                    b.x,
                    b.y,
                    b.height / 2,
                    b.length,
                    b.width,
                    b.height,
                    np.arctan2(np.sin(b.heading), np.cos(b.heading)),
                ]
                for b in boxes
            ]
        ).reshape(-1, 7),
        "gt_names": np.array(
            ["pedestrian" if isinstance(box, Pedestrian) else "vehicle" for box in boxes],
            dtype="<U16",
        ),
        "gt_velocity_3d": np.array(velocities).reshape(-1, 3),
        "instance_tokens": [plan.token(log, index, track.identity) for track in near],
        "track_tokens": [plan.token(log, "track", track.identity) for track in near],
    }


def driving_command(moment: Moment) -> Command:
    """The turn at a junction up to 45 m ahead, else where the route leads within 20 m.

    The latter is OpenScene's rule (`process_data/helpers/driving_command.py`): 2 m or more to a
    side. With it alone the ego would brake for a turn that nothing announces yet.
    """
    if moment.next_turn is not None and moment.next_turn[0] < 45.0 and moment.next_turn[1] != 0:
        return Command.LEFT if moment.next_turn[1] > 0 else Command.RIGHT
    points = seen_from(moment.pose, moment.route_ahead)
    travelled = np.cumsum(np.hypot(*np.diff(points, axis=0).T))
    y = points[1:][np.searchsorted(travelled, 20.0), 1]
    return Command.LEFT if y >= 2.0 else Command.RIGHT if y <= -2.0 else Command.STRAIGHT


_ANNOTATED = 80.0  # metres


_START_TIME = 1_620_000_000_000_000  # microseconds


_NAMES = {Vehicle: "vehicle", Pedestrian: "pedestrian", Cone: "traffic_cone"}
