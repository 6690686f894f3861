"""Displacement errors in metres, of agents and of constant velocity."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeGuard

import torch
from torch import Tensor

from convoy.errors import ConvoyError

INTERVAL = 0.5  # seconds between the poses of a NAVSIM trajectory


@dataclass(frozen=True)
class TrajectoryKeys:
    """Under which names an agent's predictions and targets hold the trajectories that ADE and FDE
    compare: `metrics.prediction` and `metrics.target`."""

    prediction: str = "trajectory"
    target: str = "trajectory"

    def pair(self, predictions: Any, targets: Mapping[str, Any]) -> tuple[Tensor, Tensor] | None:
        """Both trajectories, (batch, poses, 2 or more) each with as many poses, or None.

        A prediction with n times as many poses as the target over the same time (GTRS: 40 at
        10 Hz, and 8 at 2 Hz) is compared at every n-th.
        """
        if not isinstance(predictions, Mapping):
            return None
        predicted, target = predictions.get(self.prediction), targets.get(self.target)
        if not (_is_trajectory(predicted) and _is_trajectory(target)):
            return None
        times, rest = divmod(predicted.shape[1], target.shape[1])
        if rest or not times or len(predicted) != len(target):
            return None
        return predicted[:, times - 1 :: times], target

    def missing(self, predictions: Any, targets: Mapping[str, Any]) -> str | None:
        """Why there is no pair, or None.

        Raises ConvoyError where a key was configured that is not there.
        """
        if self.pair(predictions, targets) is not None:
            return None
        named = predictions if isinstance(predictions, Mapping) else {}
        sides = (("prediction", self.prediction, named), ("target", self.target, targets))
        found = "; ".join(
            f"{side}s: {', '.join(map(str, entries)) or 'none'}" for side, _, entries in sides
        )
        for side, key, entries in sides:
            if key != "trajectory" and key not in entries:
                raise ConvoyError(f"metrics.{side}={key} is not among the agent's {found}.")
        return (
            f"no ADE and FDE: {self.prediction!r} of the predictions and {self.target!r} of the "
            f"targets are not two trajectories of the same times ({found}). Other names: "
            "metrics.prediction=… metrics.target=…"
        )


def _is_trajectory(value: Any) -> TypeGuard[Tensor]:
    return isinstance(value, Tensor) and value.ndim == 3 and value.shape[-1] >= 2


def displacement_errors(trajectory: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Average and final displacement error of each sample, in metres; float64 (batch,) each.

    Both arguments are (batch, poses, 2 or more) with x and y in metres first.
    """
    distance = torch.linalg.vector_norm(
        trajectory[..., :2].double() - target[..., :2].double(), dim=-1
    )
    return distance.mean(dim=-1), distance[:, -1]


def ego_velocity(features: Mapping[str, Any]) -> Tensor | None:
    """Velocity (batch, 2) in m/s in the ego frame, as NAVSIM's builders store it, or None when they
    did not.

    TransFuser's `status_feature` is command 4, velocity 2, acceleration 2; EgoStatusMLP's
    `ego_status` is velocity 2, acceleration 2, command 4.
    A list of them (GTRS) begins with the present one.
    """
    for name, start in (("status_feature", 4), ("ego_status", 0)):
        status = features.get(name)
        if isinstance(status, (list, tuple)) and status:
            status = status[0]
        if isinstance(status, Tensor) and status.ndim == 2 and status.shape[1] >= start + 2:
            return status[:, start : start + 2]
    return None


def constant_velocity_trajectory(velocity: Tensor, poses: int) -> Tensor:
    """Trajectory (batch, poses, 3) that keeps `velocity` (batch, 2) and heading, a pose every half
    second."""
    times = INTERVAL * torch.arange(1, poses + 1, dtype=velocity.dtype, device=velocity.device)
    positions = velocity[:, None, :] * times[None, :, None]
    return torch.cat([positions, torch.zeros_like(positions[..., :1])], dim=-1)
