"""The built-in agent without eyes: what the ego status alone can tell."""

import torch
from torch import Tensor

from convoy.agents.bev_fusion import BevFusionAgent


class BlindAgent(BevFusionAgent):
    """Sees an all-black camera and an empty LiDAR histogram; otherwise the same model, loss and
    optimiser."""

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        blank = {
            name: torch.zeros_like(features[name]) for name in ("camera_feature", "lidar_feature")
        }
        return super().forward(features | blank)
