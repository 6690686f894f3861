"""Pictures of trajectories, for people."""

from pathlib import Path

from torch import Tensor

from convoy.training.metrics import constant_velocity_trajectory, ego_velocity

METRES = 32  # NAVSIM's LiDAR histogram reaches 32 m to each side


def plot_trajectories(
    path: Path,
    features: dict[str, Tensor],
    targets: dict[str, Tensor],
    predictions: dict[str, Tensor],
) -> None:
    """Write a PNG with one bird's-eye panel per sample: true, predicted and constant-velocity
    trajectory.

    They lie over the LiDAR histogram (`lidar_feature`: batch x 1 x 256 x 256, x ahead in rows, y
    left in columns) where there is one.

    `trajectory` of `targets` and `predictions` is (batch, poses, 3) in metres.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    count = len(targets["trajectory"])
    columns = min(4, count)
    rows = -(-count // columns)
    figure, axes = pyplot.subplots(
        rows, columns, figsize=(3.2 * columns, 3.4 * rows), squeeze=False
    )
    velocity = ego_velocity(features)
    guess = (
        constant_velocity_trajectory(velocity, targets["trajectory"].shape[1])
        if velocity is not None
        else None
    )
    for index, axis in enumerate(axes.flat):
        if index >= count:
            axis.axis("off")
            continue
        if "lidar_feature" in features:
            axis.imshow(
                features["lidar_feature"][index, 0],
                origin="lower",
                cmap="Greys",
                vmax=2,
                extent=(-METRES, METRES, -METRES, METRES),
            )
        for name, trajectories, style in (
            ("constant velocity", guess, "C7--"),
            ("true", targets["trajectory"], "C2o-"),
            ("predicted", predictions["trajectory"], "C3.-"),
        ):
            if trajectories is not None:
                axis.plot(
                    trajectories[index, :, 1],
                    trajectories[index, :, 0],
                    style,
                    label=name,
                    markersize=4,
                )
        # Left is left, as the driver sees it.
        axis.set(xlim=(METRES, -METRES), ylim=(-8, 2 * METRES - 8), aspect="equal")
        axis.tick_params(labelsize=7)
    axes[0, 0].legend(fontsize=7, loc="upper left")
    figure.supxlabel("y in metres (left is positive)", fontsize=9)
    figure.supylabel("x in metres (ahead)", fontsize=9)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
