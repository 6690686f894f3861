import copy

import pytest
import torch

from convoy.agents.calls import AgentCalls
from convoy.errors import ConvoyError
from convoy.training.metrics import TrajectoryKeys
from convoy.training.rehearsal import rehearse
from tests.agents import habits

EGO = torch.randn(2, 8)
FEATURES = {
    "ego_status": EGO,
    "code": torch.arange(2),
    "history": [EGO[:, :2], {"name": ["0", "1"], "pose": torch.zeros(2, 3).double()}],
}
TARGETS = {"trajectory": torch.zeros(2, 8, 3), "trajectory_gt": torch.zeros(2, 8, 3)}


def dry_pass(agent, **keys):
    calls = AgentCalls(agent)
    return rehearse(agent, calls, (FEATURES, TARGETS), ["0", "1"], TrajectoryKeys(**keys))


def test_the_agent_and_the_random_numbers_stay_as_they_were():
    agent = habits.Plain()
    before, weights = copy.deepcopy(vars(agent)), copy.deepcopy(agent.state_dict())
    state = torch.random.get_rng_state()
    shown = dry_pass(agent)
    assert (shown.train, shown.val, shown.monitor) == (("loss",), ("loss",), "val/ade")
    assert agent.calls == before["calls"] == 0 and agent.training
    assert agent.state_dict().keys() == weights.keys()
    for name, value in agent.state_dict().items():
        assert torch.equal(value, weights[name]), name
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(parameter.grad is None for parameter in agent.parameters())


def test_what_an_agent_makes_in_its_first_forward_stays():
    agent = habits.Lazy()
    dry_pass(agent)
    assert "encoder.weight" in agent.state_dict()


def test_names_of_the_parts():
    assert dry_pass(habits.LikeDiffusionDrive()).train == ("loss", "half_loss", "weight")


def test_trajectories_under_other_names():
    without = dry_pass(habits.LikeGtrs())
    assert without.monitor == "val/loss"
    assert "predictions: imi, vocabulary; targets: trajectory, trajectory_gt" in without.note
    named = dry_pass(habits.LikeGtrs(), prediction="imi", target="trajectory_gt")
    assert named.monitor == "val/ade" and named.note is None
    with pytest.raises(ConvoyError, match="metrics.prediction=nowhere is not among"):
        dry_pass(habits.LikeGtrs(), prediction="nowhere")


def test_every_fifth_pose_of_a_finer_prediction():
    target = torch.arange(1, 9).reshape(1, 8, 1).expand(1, 8, 3).float()
    fine = torch.arange(1, 41).reshape(1, 40, 1).expand(1, 40, 3) / 5.0
    predicted, _ = TrajectoryKeys().pair({"trajectory": fine}, {"trajectory": target})
    torch.testing.assert_close(predicted, target)
    assert TrajectoryKeys().pair({"trajectory": fine[:, :39]}, {"trajectory": target}) is None


@pytest.mark.parametrize(
    ("agent", "message"),
    [
        (habits.Lost(), "Lost.compute_loss returned a dict of 'ori', 'aug'; expected is"),
        (habits.Detached(), "The loss of Detached depends on no parameter"),
    ],
)
def test_a_loss_that_cannot_be_trained(agent, message):
    with pytest.raises(ConvoyError, match=message):
        dry_pass(agent)
    assert agent.training and agent.calls == 0
