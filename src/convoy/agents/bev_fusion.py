"""Convoy's own agent: camera, LiDAR histogram and ego status to a trajectory, about 1 M parameters.

It trains from a cache made for NAVSIM's TransFuser and needs no NAVSIM. It is small enough for a
CPU; that is its purpose. It holds nothing that depends on the batch (no BatchNorm, no dropout): the
same global batch gives the same step whatever the number of processes.
"""

from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from convoy.errors import ConvoyError

NUM_POSES = 8
INTERVAL = 0.5  # seconds between poses
HEADING_WEIGHT = 2.0  # one radian of heading error costs as much as two metres of position error

_SPEED_SCALE = 10.0  # m/s, brings the status into the range of the other inputs
_ACCELERATION_SCALE = 3.0  # m/s^2 per unit of the head's output
_CURVATURE_SCALE = 0.05  # 1/m per unit of the head's output


class CacheOnlyBuilder:
    """Names a file that one of NAVSIM's TransFuser builders writes."""

    def __init__(self, name: str) -> None:
        self._name = name

    def get_unique_name(self) -> str:
        return self._name

    def compute_features(self, agent_input: Any) -> NoReturn:
        self._refuse()

    def compute_targets(self, scene: Any) -> NoReturn:
        self._refuse()

    def _refuse(self) -> NoReturn:
        raise ConvoyError(
            f"The built-in agent computes no {self._name} from raw data: it reads the cache that "
            "NAVSIM's TransFuser builders make.\nBuild it with agent=transfuser_agent, or write "
            "one with `convoy synth`."
        )


class BevFusionAgent(nn.Module):
    """Satisfies `convoy.agents.contract.TrainableAgent`.

    Features: camera_feature (B, 3, 256, 1024) in 0..1, lidar_feature (B, 1, 256, 256) in 0..1 and
    status_feature (B, 8): command 4, velocity 2, acceleration 2. Target and prediction: trajectory
    (B, 8, 3).
    """

    def __init__(self, lr: float = 1e-3, weight_decay: float = 1e-2, width: int = 256) -> None:
        """`lr` and `weight_decay` are AdamW's; `width` is that of the fused feature."""
        super().__init__()
        self._lr = lr
        self._weight_decay = weight_decay
        self.camera = _Encoder(3, kernel=(4, 16), width=width)
        self.lidar = _Encoder(1, kernel=(8, 8), width=width)
        self.status = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, width))
        self.fusion = nn.Sequential(nn.LayerNorm(3 * width), nn.Linear(3 * width, width), nn.ReLU())
        self.head = nn.Linear(width, 2 * NUM_POSES)
        # The untrained agent goes on at constant velocity.
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def get_feature_builders(self) -> list[CacheOnlyBuilder]:
        return [CacheOnlyBuilder("transfuser_feature")]

    def get_target_builders(self) -> list[CacheOnlyBuilder]:
        return [CacheOnlyBuilder("transfuser_target")]

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        camera = F.avg_pool2d(features["camera_feature"], 4) - 0.5
        lidar = F.max_pool2d(features["lidar_feature"], 2)
        status = features["status_feature"]
        command, velocity, acceleration = status.split((4, 2, 2), dim=1)
        scaled = torch.cat([command, velocity / _SPEED_SCALE, acceleration], dim=1)
        encoded = [self.camera(camera), self.lidar(lidar), self.status(scaled)]
        controls = self.head(self.fusion(torch.cat(encoded, dim=1)))
        controls = controls.to(torch.promote_types(controls.dtype, torch.float32))
        return {"trajectory": _drive(status[:, 4], *controls.chunk(2, dim=1))}

    def compute_loss(
        self,
        features: dict[str, Tensor],
        targets: dict[str, Tensor],
        predictions: dict[str, Tensor],
    ) -> Tensor:
        """Mean L1 of x and y in metres plus `HEADING_WEIGHT` times that of the heading in
        radians."""
        trajectory = predictions["trajectory"]
        error = (trajectory - targets["trajectory"].to(trajectory.dtype)).abs()
        return error[..., :2].mean() + HEADING_WEIGHT * error[..., 2].mean()

    def get_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=self._lr, weight_decay=self._weight_decay)

    def get_training_callbacks(self) -> list[Any]:
        return []


class _Encoder(nn.Module):
    """Strided convolutions, then a linear layer over all positions: where things are is what
    matters."""

    def __init__(self, channels: int, kernel: tuple[int, int], width: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for index, wider in enumerate((16, 32, 64, 64)):
            size = 5 if index == 0 else 3
            layers += [
                nn.Conv2d(channels, wider, size, stride=2, padding=size // 2, bias=False),
                nn.GroupNorm(8, wider),
                nn.ReLU(),
            ]
            channels = wider
        self.convolutions = nn.Sequential(*layers)
        self.reduce = nn.Conv2d(channels, 16, 1)
        self.project = nn.Linear(16 * kernel[0] * kernel[1], width)

    def forward(self, image: Tensor) -> Tensor:
        return self.project(self.reduce(self.convolutions(image)).flatten(1))


def _drive(speed: Tensor, acceleration: Tensor, curvature: Tensor) -> Tensor:
    """Poses (B, 8, 3) of a vehicle that starts at `speed` (B,), from controls (B, 8) per half
    second.

    A kinematic decoder (Cui et al., Deep Kinematic Models, 2019): whatever the controls, the poses
    are of one drive, and curvature, unlike the lateral position, does not depend on the speed.
    """
    change = torch.cumsum(_ACCELERATION_SCALE * INTERVAL * acceleration, dim=1)
    speeds = F.softplus(speed[:, None] + change, beta=4)
    steps = speeds * INTERVAL
    turns = _CURVATURE_SCALE * curvature * steps
    heading = torch.cumsum(turns, dim=1)
    middle = heading - turns / 2
    x = torch.cumsum(steps * torch.cos(middle), dim=1)
    y = torch.cumsum(steps * torch.sin(middle), dim=1)
    return torch.stack([x, y, heading], dim=-1)
