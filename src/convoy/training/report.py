"""The report that a run leaves of itself at its end."""

import logging
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from convoy.run import picture, report, story
from convoy.run.layout import RunDirectory
from convoy.training.plot import plot_trajectories

logger = logging.getLogger("convoy")

DRAWN = 8  # held-out samples
SEEN = ("lidar_feature", "status_feature", "ego_status")  # what a drawing shows of the features


@dataclass(frozen=True)
class DrawnSamples:
    """A few held-out samples on the CPU: features, true and predicted trajectories."""

    features: dict[str, Tensor]
    target: Tensor
    prediction: Tensor

    @classmethod
    def of(cls, features: dict[str, Any], prediction: Tensor, target: Tensor) -> "DrawnSamples":
        """The first of a batch; trajectories are (batch, poses, 2 or more) in metres."""
        seen = {name: features[name] for name in SEEN if isinstance(features.get(name), Tensor)}
        return cls(
            {name: value[:DRAWN].detach().cpu() for name, value in seen.items()},
            target[:DRAWN].detach().cpu(),
            prediction[:DRAWN].detach().float().cpu(),
        )


def write_report(run: RunDirectory, samples: DrawnSamples | None) -> None:
    """Write report.html and report.png into the run directory, on rank 0.

    Whatever goes wrong here is logged and no more: the run itself is finished.
    """
    try:
        if samples is not None:
            plot_trajectories(
                run.trajectories,
                samples.features,
                {"trajectory": samples.target},
                {"trajectory": samples.prediction},
            )
        told = story.read(run.root)
        report.write(run.report, [told])
        picture.write(run.report_picture, [told])
    except Exception:
        logger.warning("no report was written; convoy report makes one", exc_info=True)
    else:
        logger.info("report: %s", run.report)
