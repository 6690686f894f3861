"""PDM scores of given trajectories, by NAVSIM's own simulator and scorer."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from convoy.navsim.importing import make_importable

Row = dict[str, Any]  # one token's columns, as NAVSIM's script has them
STATES = "ego_simulated_states"  # float64 (41, 11), for comfort over two frames


class PdmScorer:
    """Simulates and scores one trajectory after another."""

    def __init__(self, config: Mapping[str, Any], reactive: bool) -> None:
        """`config` has NAVSIM's `simulator`, `scorer` and `traffic_agents_policy`; other traffic
        answers the ego where `reactive`, and drives as it was recorded otherwise."""
        make_importable()
        from hydra.utils import instantiate

        self._simulator = instantiate(config["simulator"])
        self._scorer = instantiate(config["scorer"])
        policy = config["traffic_agents_policy"]["reactive" if reactive else "non_reactive"]
        self._policy = instantiate(policy, self.proposal_sampling)

    @property
    def proposal_sampling(self) -> Any:
        """Of the simulation: nuPlan's TrajectorySampling."""
        return self._simulator.proposal_sampling

    def row(self, token: str, cache: Any, poses: np.ndarray, interval: float) -> Row:
        """The columns of one token, from NAVSIM's metric cache and `poses` (n, 3) every `interval`
        seconds in the ego frame: x and y in metres, heading in radians.

        Raises whatever NAVSIM's code raises.
        """
        from navsim.common.dataclasses import Trajectory
        from navsim.evaluate.pdm_score import pdm_score
        from nuplan.common.actor_state.state_representation import StateSE2
        from nuplan.common.geometry.convert import relative_to_absolute_poses
        from nuplan.planning.simulation.trajectory.trajectory_sampling import TrajectorySampling

        sampling = TrajectorySampling(num_poses=len(poses), interval_length=interval)
        scores, states = pdm_score(
            metric_cache=cache,
            model_trajectory=Trajectory(poses, sampling),
            future_sampling=self.proposal_sampling,
            simulator=self._simulator,
            scorer=self._scorer,
            traffic_agents_policy=self._policy,
        )
        start = cache.ego_state.rear_axle
        end = relative_to_absolute_poses(start, [StateSE2(*poses[-1])])[0]
        return {
            **{column: scores[column].iloc[0] for column in scores.columns},
            "valid": True,
            "log_name": cache.log_name,
            "frame_type": int(cache.scene_type),
            "start_time": cache.timepoint.time_s,
            "endpoint_x": end.x,
            "endpoint_y": end.y,
            "start_point_x": start.x,
            "start_point_y": start.y,
            STATES: states,
            "token": token,
        }
