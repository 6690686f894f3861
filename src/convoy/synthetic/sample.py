"""One synthetic sample: the dicts of tensors that NAVSIM's builders would cache, and their bytes.

Keys, shapes and dtypes are those of NAVSIM's `TransfuserFeatureBuilder`, `TransfuserTargetBuilder`,
`EgoStatusFeatureBuilder` and `TrajectoryTargetBuilder`; a cache file is a pickled dict of tensors,
gzipped at level 1.
"""

import copyreg
import gzip
import io
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from convoy.synthetic.bev import agent_boxes, lidar_histogram, semantic_map
from convoy.synthetic.camera import Look, render_camera
from convoy.synthetic.scene import sample_scene


def build_sample(index: int, log: int, seed: int) -> dict[str, dict[str, Tensor]]:
    """Builder name -> dict of tensors of sample `index`, a pure function of the arguments.

    - transfuser_feature: camera_feature (3, 256, 1024) f32 = uint8 / 255, lidar_feature (1, 256,
    256) f32 =
      k / 5, status_feature (8,) f32: command one-hot (4), velocity (2), acceleration (2)
    - transfuser_target: trajectory (8, 3) f64, agent_states (30, 5) f32, agent_labels (30,) bool,
      bev_semantic_map (128, 256) f32
    - ego_status_feature: ego_status (8,) f32: velocity (2), acceleration (2), command one-hot (4)
    - trajectory_target: trajectory (8, 3) f64
    """
    rng = np.random.default_rng([seed, 0, index])
    look = Look.sample(np.random.default_rng([seed, 1, log]))
    scene = sample_scene(rng)
    camera = render_camera(scene, look).transpose(2, 0, 1)
    states, valid = agent_boxes(scene)
    command = np.eye(4, dtype=np.float32)[scene.command]
    velocity = np.array([scene.speed, 0.0], dtype=np.float32)
    acceleration = scene.acceleration.astype(np.float32)
    return {
        "transfuser_feature": {
            "camera_feature": torch.from_numpy(np.ascontiguousarray(camera))
            .to(torch.float32)
            .div(255),
            "lidar_feature": torch.from_numpy(lidar_histogram(scene, rng)),
            "status_feature": torch.from_numpy(np.concatenate([command, velocity, acceleration])),
        },
        "transfuser_target": {
            "trajectory": torch.from_numpy(scene.trajectory),
            "agent_states": torch.from_numpy(states),
            "agent_labels": torch.from_numpy(valid),
            "bev_semantic_map": torch.from_numpy(semantic_map(scene)),
        },
        "ego_status_feature": {
            "ego_status": torch.from_numpy(np.concatenate([velocity, acceleration, command])),
        },
        "trajectory_target": {"trajectory": torch.from_numpy(scene.trajectory)},
    }


def encode(tensors: dict[str, Tensor]) -> bytes:
    """The bytes of a cache file; equal tensors give equal bytes, in any process."""
    buffer = io.BytesIO()
    _Pickler(buffer).dump(tensors)
    return gzip.compress(buffer.getvalue(), compresslevel=1, mtime=0)


def _reduce_storage(
    storage: torch.storage.TypedStorage,
) -> tuple[Callable[[bytes], Any], tuple[bytes]]:
    """As torch reduces a storage, but in its zip format: the one torch pickles holds memory
    addresses."""
    buffer = io.BytesIO()
    torch.save(storage, buffer)
    return torch.storage._load_from_bytes, (buffer.getvalue(),)


class _Pickler(pickle.Pickler):
    dispatch_table = copyreg.dispatch_table | {torch.storage.TypedStorage: _reduce_storage}
