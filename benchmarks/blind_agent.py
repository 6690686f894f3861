"""The built-in agent without eyes: what the ego status alone can tell."""

import torch
from torch import Tensor

from convoy.agents.bev_fusion import BevFusionAgent


class BlindAgent(BevFusionAgent):
    """The same model, loss and optimiser, with a black camera and an empty LiDAR histogram."""

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        blank = {
            name: torch.zeros_like(features[name]) for name in ("camera_feature", "lidar_feature")
        }
        return super().forward(features | blank)
