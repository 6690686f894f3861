"""Trajectories in batches, and those of an agent that is not NAVSIM's."""

import json

import numpy as np
import pytest
import torch

from convoy.commands.__main__ import main
from convoy.scoring.inference import BatchPredictor
from convoy.scoring.parts import Trajectories

ONE_LOG = "train_test_split.scene_filter.log_names=[synthetic-mini-2-000]"


def trajectories(out):
    (path,) = (out / "trajectories").iterdir()
    return Trajectories.read(path)


@pytest.fixture
def shards(score, tmp_path):
    """Packed shards of EgoStatusMLP's features; `score` has set NAVSIM's variables."""
    split = ["train_test_split=mini", "train_test_split.scene_filter.frame_interval=1"]
    words = [str(tmp_path / "shards"), "agent=ego_status_mlp_agent", *split, "--workers=1"]
    assert main(["prepare", *words, "--no-verify"]) == 0
    return tmp_path / "shards"


def test_trajectories_from_shards_are_those_of_single_scenes(score, checkpoint, shards, tmp_path):
    words, file = checkpoint("ego_status_mlp_agent")
    words = [file, *words, ONE_LOG, "--no-baselines", "--device=cpu"]
    code, out = score(*words, f"--shards={shards}", out=tmp_path / "batches")
    assert code == 0
    code, other = score(*words, out=tmp_path / "single")
    assert code == 0
    batch, single = trajectories(out), trajectories(other)
    assert batch.tokens == single.tokens and batch.interval == single.interval == 0.5
    np.testing.assert_allclose(batch.poses, single.poses, atol=1e-5)
    means = [json.loads((d / "summary.json").read_text())["score"] for d in (out, other)]
    assert means[0] == pytest.approx(means[1], abs=1e-4)


def test_the_built_in_agent_is_scored_from_raw_data(score, tmp_path):
    from convoy.agents.bev_fusion import BevFusionAgent

    torch.manual_seed(0)
    state = {f"agent.{name}": value for name, value in BevFusionAgent().state_dict().items()}
    torch.save({"state_dict": state}, tmp_path / "own.ckpt")
    two = [ONE_LOG, "train_test_split.scene_filter.max_scenes=2", "--no-baselines"]
    code, out = score(tmp_path / "own.ckpt", "agent=bev_fusion_agent", *two, "--device=cpu")
    assert code == 0
    found = trajectories(out)
    assert found.reasons == ("", "") and found.poses.shape == (2, 8, 3)
    # Untrained, it keeps its speed and goes straight on.
    steps = np.diff(found.poses[:, :, 0], axis=1)
    assert np.allclose(steps, steps[:, :1], atol=1e-3) and (steps > 0).all()
    assert np.allclose(found.poses[:, :, 1:], 0, atol=1e-5)


def test_poses_come_in_the_order_of_the_batches():
    class Agent(torch.nn.Module):
        def forward(self, features):
            return {"trajectory": features["x"][:, None, None].expand(-1, 8, 3)}

    predictor = BatchPredictor(Agent(), torch.device("cpu"))
    batches = [{"x": torch.arange(start, start + 3.0)} for start in (0, 3, 6)]
    found = np.concatenate(list(predictor.poses(batches)))
    assert found.shape == (9, 8, 3) and (found[:, 0, 0] == np.arange(9)).all()
    assert list(predictor.poses([])) == []
