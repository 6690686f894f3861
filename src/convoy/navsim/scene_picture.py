"""Scenes as a person looks at them: the front camera, and the planned trajectory beside the human
one from above. Drawn by NAVSIM's own visualization."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np

from convoy.navsim.importing import make_importable

QUALITY = 80  # of the JPEG file: a report holds it
COLUMNS = 3  # scenes beside each other
PLANNED, HUMAN = "agent", "human"  # of NAVSIM's TRAJECTORY_CONFIG


@dataclass(frozen=True)
class Drawn:
    """A scene with its sensors (NAVSIM's Scene), the planned `poses` (n, 3) in the ego frame, and
    what is to be read above it."""

    scene: Any
    poses: np.ndarray
    interval: float
    title: str


def front_camera() -> Any:
    """The sensors that `write` needs: the front camera at the current frame."""
    make_importable()
    from navsim.common.dataclasses import SensorConfig

    names = "cam_l0 cam_l1 cam_l2 cam_r0 cam_r1 cam_r2 cam_b0 lidar_pc".split()
    return SensorConfig(cam_f0=[3], **dict.fromkeys(names, False))


def write(file: BinaryIO, scenes: Sequence[Drawn]) -> None:
    """One JPEG of all scenes into `file`. Raises what NAVSIM raises without camera or map."""
    import matplotlib

    matplotlib.use("Agg")
    make_importable()
    from matplotlib import pyplot
    from navsim.visualization.plots import configure_ax, configure_bev_ax

    columns = min(COLUMNS, len(scenes))
    rows = -(-len(scenes) // columns)
    figure = pyplot.figure(figsize=(4.2 * columns, 6.6 * rows), layout="constrained")
    panels = figure.subfigures(rows, columns, squeeze=False).flat
    try:
        for drawn, panel in zip(scenes, panels, strict=False):  # the last row may not be full
            camera, bev = panel.subplots(2, 1, height_ratios=(9, 16))
            panel.suptitle(drawn.title, fontsize=9)
            _draw(drawn, camera, bev)
            configure_bev_ax(bev)
            configure_ax(camera)
            configure_ax(bev)
        figure.savefig(file, dpi=75, format="jpeg", pil_kwargs={"quality": QUALITY})
    finally:
        pyplot.close(figure)


def _draw(drawn: Drawn, camera: Any, bev: Any) -> None:
    from navsim.common.dataclasses import Trajectory
    from navsim.visualization.bev import add_configured_bev_on_ax, add_trajectory_to_bev_ax
    from navsim.visualization.camera import add_camera_ax
    from navsim.visualization.config import TRAJECTORY_CONFIG
    from nuplan.planning.simulation.trajectory.trajectory_sampling import TrajectorySampling

    scene = drawn.scene
    frame = scene.frames[scene.scene_metadata.num_history_frames - 1]
    add_camera_ax(camera, frame.cameras.cam_f0)
    add_configured_bev_on_ax(bev, scene.map_api, frame)
    sampling = TrajectorySampling(num_poses=len(drawn.poses), interval_length=drawn.interval)
    add_trajectory_to_bev_ax(bev, scene.get_future_trajectory(), TRAJECTORY_CONFIG[HUMAN])
    add_trajectory_to_bev_ax(bev, Trajectory(drawn.poses, sampling), TRAJECTORY_CONFIG[PLANNED])
    for name, label in ((PLANNED, "planned"), (HUMAN, "human")):
        bev.plot([], [], color=TRAJECTORY_CONFIG[name]["line_color"], label=label)
    bev.legend(loc="lower right", fontsize=7)
