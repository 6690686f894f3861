"""Displacement errors in metres, and the guess that every planner must beat: going on at constant
velocity."""

import torch
from torch import Tensor

INTERVAL = 0.5  # seconds between the poses of a NAVSIM trajectory


def displacement_errors(trajectory: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Average and final displacement error of each sample, in metres; float64 (batch,) each.

    Both arguments are (batch, poses, 2 or more) with x and y in metres first.
    """
    distance = torch.linalg.vector_norm(
        trajectory[..., :2].double() - target[..., :2].double(), dim=-1
    )
    return distance.mean(dim=-1), distance[:, -1]


def ego_velocity(features: dict[str, Tensor]) -> Tensor | None:
    """Velocity (batch, 2) in m/s in the ego frame, as NAVSIM's builders store it, or None when they
    did not.

    TransFuser's `status_feature` is command 4, velocity 2, acceleration 2; EgoStatusMLP's
    `ego_status` is velocity 2, acceleration 2, command 4.
    """
    if "status_feature" in features:
        return features["status_feature"][:, 4:6]
    if "ego_status" in features:
        return features["ego_status"][:, 0:2]
    return None


def constant_velocity_trajectory(velocity: Tensor, poses: int) -> Tensor:
    """Trajectory (batch, poses, 3) that keeps `velocity` (batch, 2) and heading, a pose every half
    second."""
    times = INTERVAL * torch.arange(1, poses + 1, dtype=velocity.dtype, device=velocity.device)
    positions = velocity[:, None, :] * times[None, :, None]
    return torch.cat([positions, torch.zeros_like(positions[..., :1])], dim=-1)
