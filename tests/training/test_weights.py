import logging

import pytest
import torch
from omegaconf import OmegaConf

from convoy.errors import ConvoyError
from convoy.training.weights import load_weights
from tests.agents import habits


class Loads(habits.Plain):
    """Loads as NAVSIM's agents do."""

    def __init__(self, path):
        super().__init__()
        self.path = path

    def initialize(self):
        state = torch.load(self.path, map_location="cpu")["state_dict"]
        self.load_state_dict({name.replace("agent.", ""): value for name, value in state.items()})


def saved(path, agent, **more):
    state = {f"agent.{name}": value for name, value in agent.state_dict().items()}
    torch.save({"state_dict": state, **more}, path)
    return OmegaConf.create({"checkpoint_path": str(path)})


def test_the_agents_own_initialize_loads_and_the_log_says_how_much(tmp_path, caplog):
    source, agent = habits.Plain(), Loads(tmp_path / "a.ckpt")
    with caplog.at_level(logging.INFO):
        load_weights(agent, saved(tmp_path / "a.ckpt", source))
    for name, value in agent.state_dict().items():
        assert torch.equal(value, source.state_dict()[name])
    assert f"{tmp_path}/a.ckpt: initialize() changed 4 of the agent's 9 tensors" in caplog.text


def test_without_a_path_nothing_is_loaded():
    load_weights(habits.Plain(), OmegaConf.create({"checkpoint_path": None}))
    load_weights(habits.Plain(), OmegaConf.create({}))


class Anything:
    pass


def test_what_cannot_be_loaded(tmp_path):
    path = tmp_path / "a.ckpt"
    config = saved(path, torch.nn.Linear(2, 2))
    with pytest.raises(ConvoyError, match="Plain has no initialize"):
        load_weights(habits.Plain(), config)
    with pytest.raises(ConvoyError, match=r"cannot load .*a.ckpt: RuntimeError: .*Missing key"):
        load_weights(Loads(path), config)
    config = saved(path, habits.Plain(), extra=Anything())
    with pytest.raises(ConvoyError, match="holds more than tensors.*NO_WEIGHTS_ONLY_LOAD=1"):
        load_weights(Loads(path), config)
