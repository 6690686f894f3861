from pathlib import Path

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf

import convoy
from convoy.agents.bev_fusion import HEADING_WEIGHT, INTERVAL, BevFusionAgent
from convoy.agents.contract import Builder, TrainableAgent
from convoy.errors import ConvoyError
from convoy.synthetic.sample import build_sample
from convoy.training.metrics import constant_velocity_trajectory, displacement_errors


@pytest.fixture(scope="module")
def batch():
    samples = [build_sample(index, log=0, seed=11) for index in range(8)]
    return tuple(
        {
            key: torch.stack([sample[builder][key] for sample in samples])
            for key in samples[0][builder]
        }
        for builder in ("transfuser_feature", "transfuser_target")
    )


@pytest.fixture(autouse=True)
def fixed_seed():
    torch.manual_seed(0)


def train(agent, features, targets, steps):
    optimizer = agent.get_optimizers()
    for _ in range(steps):
        loss = agent.compute_loss(features, targets, agent(features))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def test_satisfies_the_contract():
    agent = BevFusionAgent()
    assert isinstance(agent, TrainableAgent)
    builders = agent.get_feature_builders() + agent.get_target_builders()
    assert all(isinstance(builder, Builder) for builder in builders)
    assert [builder.get_unique_name() for builder in builders] == [
        "transfuser_feature",
        "transfuser_target",
    ]
    assert agent.get_training_callbacks() == []


def test_about_a_million_parameters():
    assert 0.5e6 < sum(parameter.numel() for parameter in BevFusionAgent().parameters()) < 1.5e6


def test_configuration_builds_it():
    path = Path(convoy.__file__).parent / "conf" / "agent" / "bev_fusion_agent.yaml"
    agent = instantiate(OmegaConf.merge(OmegaConf.load(path), {"lr": 0.5}))
    assert isinstance(agent, BevFusionAgent)
    group = agent.get_optimizers().param_groups[0]
    assert (group["lr"], group["weight_decay"]) == (0.5, 0.01)


def test_raw_data_is_refused_with_the_way_to_a_cache():
    agent = BevFusionAgent()
    with pytest.raises(ConvoyError, match="transfuser_feature.*\n.*transfuser_agent.*convoy synth"):
        agent.get_feature_builders()[0].compute_features(None)
    with pytest.raises(ConvoyError, match="transfuser_target"):
        agent.get_target_builders()[0].compute_targets(None)


def test_untrained_it_goes_on_at_constant_velocity(batch):
    features, _ = batch
    trajectory = BevFusionAgent()(features)["trajectory"]
    expected = constant_velocity_trajectory(features["status_feature"][:, 4:6], poses=8)
    assert trajectory.shape == (8, 8, 3) and trajectory.dtype == torch.float32
    torch.testing.assert_close(trajectory, expected, atol=0.02, rtol=0)


def test_loss_of_a_known_error(batch):
    features, targets = batch
    off = targets["trajectory"].float() + torch.tensor([1.0, -3.0, 0.5])
    loss = BevFusionAgent().compute_loss(features, targets, {"trajectory": off})
    assert loss.shape == () and loss.item() == pytest.approx(2.0 + HEADING_WEIGHT * 0.5, abs=1e-5)


def test_learns_a_batch_by_heart(batch):
    features, targets = batch
    agent = BevFusionAgent()
    before = displacement_errors(agent(features)["trajectory"], targets["trajectory"])[0].mean()
    train(agent, features, targets, steps=60)
    after = displacement_errors(agent(features)["trajectory"], targets["trajectory"])[0].mean()
    assert after < 0.4 * before


def test_camera_lidar_and_status_all_count(batch):
    features, targets = batch
    agent = BevFusionAgent()
    train(agent, features, targets, steps=3)
    reference = agent(features)["trajectory"]
    for key in features:
        without = agent({**features, key: torch.zeros_like(features[key])})["trajectory"]
        assert (without - reference).abs().max() > 1e-3, key
    agent.zero_grad()
    agent.compute_loss(features, targets, agent(features)).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in agent.parameters())


def test_a_sample_does_not_depend_on_its_batch(batch):
    features, targets = batch
    agent = BevFusionAgent()
    train(agent, features, targets, steps=3)
    together = agent(features)["trajectory"]
    alone = torch.cat(
        [agent({k: v[i : i + 1] for k, v in features.items()})["trajectory"] for i in range(8)]
    )
    torch.testing.assert_close(alone, together, atol=1e-4, rtol=1e-4)


def controlled(acceleration, curvature, speed):
    """Trajectory of an agent whose head gives the same controls for each pose."""
    agent = BevFusionAgent()
    with torch.no_grad():
        agent.head.bias[:8], agent.head.bias[8:] = acceleration, curvature
    status = torch.zeros(1, 8)
    status[0, 4] = speed
    features = {
        "camera_feature": torch.zeros(1, 3, 256, 1024),
        "lidar_feature": torch.zeros(1, 1, 256, 256),
        "status_feature": status,
    }
    return agent(features)["trajectory"][0].detach()


def test_constant_curvature_is_a_circle_to_the_left():
    poses = controlled(acceleration=0.0, curvature=1.0, speed=10.0)
    radius = 10.0 * INTERVAL / poses[0, 2].item()
    assert (poses[:, 1] > 0).all()
    distance = torch.hypot(poses[:, 0], poses[:, 1] - radius)
    # Chords are as long as their arcs, so the circle is met to within a few centimetres.
    torch.testing.assert_close(distance, torch.full((8,), radius), atol=0.2, rtol=0)
    assert poses[-1, 2].item() == pytest.approx(8 * poses[0, 2].item(), rel=1e-4)


def test_braking_stops_but_never_reverses():
    poses = controlled(acceleration=-5.0, curvature=0.0, speed=6.0)
    steps = torch.diff(poses[:, 0], prepend=torch.zeros(1))
    assert (steps >= 0).all() and steps[-1] < 0.01


@pytest.mark.parametrize(
    ("given", "drawn"), [("bfloat16", "float32"), ("float32", "float32"), ("float64", "float64")]
)
def test_poses_are_drawn_in_float32_at_least(batch, given, drawn):
    dtype = getattr(torch, given)
    features, targets = ({key: value.to(dtype) for key, value in part.items()} for part in batch)
    agent = BevFusionAgent().to(dtype)
    predictions = agent(features)
    assert predictions["trajectory"].dtype == getattr(torch, drawn)
    assert agent.compute_loss(features, targets, predictions).dtype == getattr(torch, drawn)
