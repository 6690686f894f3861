"""An agent as scoring asks it: the poses of one scene."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from convoy.errors import ConvoyError
from convoy.navsim import tree
from convoy.navsim.importing import make_importable
from convoy.navsim.scenes import read_yaml
from convoy.navsim.split_scenes import no_sensors

INTERVAL = 0.5  # seconds between the poses of an agent that does not say otherwise
KEY = "trajectory"  # of the poses among an agent's predictions


class Planner:
    """Any agent: NAVSIM's own way where the agent has it, else its builders and its forward."""

    def __init__(self, agent: Any) -> None:
        make_importable()
        self.agent = agent
        self._navsim_way = callable(getattr(agent, "compute_trajectory", None))
        if not self._navsim_way:
            agent.eval()

    @property
    def sensor_config(self) -> Any:
        """The sensors that the agent's input needs."""
        if callable(getattr(self.agent, "get_sensor_config", None)):
            return self.agent.get_sensor_config()
        return transfuser_sensors()

    def poses(self, scenes: Any, token: str) -> tuple[np.ndarray, float]:
        """(poses, 3) in the ego frame and the seconds between them.

        Raises whatever the agent raises.
        """
        agent_input = scenes.agent_input(token)
        if not self._navsim_way:
            return self._forward(agent_input), interval_of(self.agent)
        if getattr(self.agent, "requires_scene", False):
            trajectory = self.agent.compute_trajectory(agent_input, scenes.scene(token))
        else:
            trajectory = self.agent.compute_trajectory(agent_input)
        return trajectory.poses, trajectory.trajectory_sampling.interval_length

    def features(self, agent_input: Any) -> dict[str, Any]:
        """What the agent's feature builders make of a scene, without a batch dimension."""
        features: dict[str, Any] = {}
        for builder in scene_builders(self.agent.get_feature_builders()):
            features |= builder.compute_features(agent_input)
        return features

    def _forward(self, agent_input: Any) -> np.ndarray:
        import torch

        features = {name: value[None] for name, value in self.features(agent_input).items()}
        with torch.no_grad():
            return self.agent.forward(features)[KEY][0].numpy()


def require_sensors(folder: Path, agent: Any) -> None:
    """Raise ConvoyError where the agent's input needs sensor data and `folder` is not there."""
    if Planner(agent).sensor_config != no_sensors() and not folder.is_dir():
        raise ConvoyError(
            f"original_sensor_path={folder} is not a directory on this machine, and "
            f"{type(agent).__name__} needs pictures or points. Is the file system mounted? "
            "Features that are there already are read with --shards DIR."
        )


def has_own_way(agent: Any) -> bool:
    """Whether the agent's trajectories come from more than its builders and its forward: from a
    `compute_trajectory` that is not NAVSIM's."""
    way = getattr(type(agent), "compute_trajectory", None)
    if way is None:
        return False
    make_importable()
    from navsim.agents.abstract_agent import AbstractAgent

    return way is not AbstractAgent.compute_trajectory or bool(
        getattr(agent, "requires_scene", False)
    )


def interval_of(agent: Any) -> float:
    """Seconds between the poses of an agent's trajectory."""
    sampling = getattr(agent, "_trajectory_sampling", None)
    return float(getattr(sampling, "interval_length", INTERVAL))


def rule_based(name: str) -> dict[str, Any]:
    """The Hydra node of one of NAVSIM's agents without weights: human_agent,
    constant_velocity_agent."""
    folder = tree.config_directory()
    assert folder is not None
    return read_yaml(folder / "agent" / f"{name}.yaml")


def scene_builders(builders: Sequence[Any]) -> list[Any]:
    """The builders, with NAVSIM's own in place of those that only name a file of TransFuser's
    cache."""
    from convoy.agents.bev_fusion import CacheOnlyBuilder

    if not any(isinstance(builder, CacheOnlyBuilder) for builder in builders):
        return list(builders)
    from navsim.agents.transfuser.transfuser_config import TransfuserConfig
    from navsim.agents.transfuser.transfuser_features import TransfuserFeatureBuilder

    known: Mapping[str, Any] = {
        builder.get_unique_name(): builder
        for builder in [TransfuserFeatureBuilder(TransfuserConfig())]
    }
    chosen = []
    for builder in builders:
        name = builder.get_unique_name()
        if isinstance(builder, CacheOnlyBuilder) and name not in known:
            raise ConvoyError(f"No builder of NAVSIM's makes {name} from raw data.")
        chosen.append(known[name] if isinstance(builder, CacheOnlyBuilder) else builder)
    return chosen


def transfuser_sensors() -> Any:
    """The sensors of TransFuser's features at the current frame."""
    from navsim.common.dataclasses import SensorConfig

    now = [3]
    return SensorConfig(
        cam_f0=now,
        cam_l0=now,
        cam_l1=False,
        cam_l2=False,
        cam_r0=now,
        cam_r1=False,
        cam_r2=False,
        cam_b0=False,
        lidar_pc=now,
    )
