"""A run whose steps are one piece: nothing of Convoy's own stands against it."""

import json
import os

import pytest
import torch

from convoy.config.settings import SPEED_SWITCHES
from convoy.errors import ConvoyError
from convoy.training import run
from convoy.training.speed.recipe import Recipe, Switch


def test_a_run_takes_its_steps_in_one_piece_and_the_same_ones(train_here, tmp_path, monkeypatch):
    train_here(tmp_path / "plain")

    def only_the_graph(config, world_size):
        return Recipe("max", {name: Switch(name == "graph", "") for name in SPEED_SWITCHES})

    monkeypatch.setattr(run, "choose_recipe", only_the_graph)
    train_here(tmp_path / "whole")
    assert json.loads((tmp_path / "plain/manifest.json").read_text())["cost"]["gflop"] > 0
    record = json.loads((tmp_path / "whole/speed.json").read_text())
    assert record["switches"]["graph"]["on"]
    plain, whole = (
        torch.load(tmp_path / name / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
        for name in ("plain", "whole")
    )
    for name in plain:
        assert plain[name].equal(whole[name]), name


def test_cublas_finds_its_deterministic_setting_before_an_agent_uses_it(
    train_here, tmp_path, monkeypatch
):
    name, seen = "CUBLAS_WORKSPACE_CONFIG", []
    monkeypatch.setenv(name, "")  # put back afterwards
    monkeypatch.delenv(name)

    def build(config):
        seen.append(os.environ.get(name))
        raise ConvoyError("that is enough")

    monkeypatch.setattr(run, "build_agent", build)
    for deterministic in ("true", "false"):
        with pytest.raises(ConvoyError, match="enough"):
            train_here(tmp_path / deterministic, f"trainer.params.deterministic={deterministic}")
        monkeypatch.delenv(name, raising=False)
    assert seen == [":4096:8", None]
