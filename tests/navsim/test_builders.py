"""Builders without the agent's weights."""

import pytest
from omegaconf import OmegaConf

from convoy.config import compose
from convoy.errors import ConvoyError
from convoy.navsim import tree
from convoy.navsim.builders import builders_of

AGENTS = """
import torch

class Builder:
    def __init__(self, name):
        self.name = name

    def get_unique_name(self):
        return self.name


class Heavy(torch.nn.Module):
    def __init__(self, config, weights):
        super().__init__()
        self.config = config
        self.model = torch.load(weights)

    def get_feature_builders(self):
        return [Builder(self.config["feature"])]

    def get_target_builders(self):
        return [Builder("trajectory_target")]

    def get_sensor_config(self):
        return "all"


class Entangled(Heavy):
    def get_feature_builders(self):
        return [Builder(self.model.name)]


def made(**arguments):
    return Heavy(**arguments)
"""


@pytest.fixture
def node(tmp_path, monkeypatch):
    (tmp_path / "heavy_agents.py").write_text(AGENTS)
    monkeypatch.syspath_prepend(tmp_path)

    def of(name):
        target = f"heavy_agents.{name}"
        weights = str(tmp_path / "gone.ckpt")
        return OmegaConf.create(
            {"_target_": target, "config": {"feature": "cameras"}, "weights": weights}
        )

    return of


def names(builders):
    return [builder.get_unique_name() for builder in builders]


def test_an_agent_whose_weights_are_not_here_gives_its_builders(node):
    builders = builders_of(node("Heavy"))
    assert names(builders.features) == ["cameras"]
    assert names(builders.targets) == ["trajectory_target"] and builders.sensor_config == "all"
    assert "FileNotFoundError" in builders.unbuilt and "gone.ckpt" in builders.unbuilt


@pytest.mark.parametrize("name", ["Entangled", "made"])
def test_builders_that_need_the_model_end_with_the_reason(node, name):
    with pytest.raises(ConvoyError, match="could not be built.*gone.ckpt"):
        builders_of(node(name))


def test_a_class_that_is_not_there():
    with pytest.raises(ConvoyError, match="nowhere.Agent could not be built"):
        builders_of(OmegaConf.create({"_target_": "nowhere.Agent"}))


def test_transfuser_needs_no_hub(navsim_tree, monkeypatch, tmp_path):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    config = compose(["agent=transfuser_agent", "cache_path=x"], tree.config_directory())
    builders = builders_of(config.agent)
    assert builders.unbuilt is not None
    assert names(builders.features) == ["transfuser_feature"]
    assert builders.sensor_config.cam_f0
