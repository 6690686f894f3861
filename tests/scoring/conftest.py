"""Agents with fixed weights, and what scoring them needs."""

import os

import pytest
import torch

from convoy.config import compose
from convoy.navsim import tree
from convoy.navsim.agents import build_agent
from convoy.navsim.importing import make_importable
from convoy.navsim.weights import write_random_backbone

SPLIT = "train_test_split.scene_filter.frame_interval=1"


@pytest.fixture(scope="session")
def checkpoint(navsim_tree, tmp_path_factory):
    """Write a checkpoint of an agent with weights from a fixed seed; returns its overrides and the
    file."""

    def write(agent):
        folder = tmp_path_factory.mktemp(agent)
        words = [f"agent={agent}"]
        torch.manual_seed(0)
        if agent == "transfuser_agent":
            backbone = write_random_backbone("resnet34", folder / "backbone")
            words.append(f"+agent.config.image_architecture='local-dir:{backbone}'")
        built = build_agent(compose([*words, "cache_path=x"], tree.config_directory()).agent)
        state = {f"agent.{name}": value for name, value in built.state_dict().items()}
        torch.save({"state_dict": state}, folder / "fixed.ckpt")
        return words, folder / "fixed.ckpt"

    return write


@pytest.fixture(scope="session")
def metric_cache(tmp_path_factory):
    """One for all tests: computing it is what takes longest."""
    return tmp_path_factory.mktemp("exp") / "metric_cache"


@pytest.fixture
def score(navsim_tree, raw_data, metric_cache, monkeypatch, tmp_path, capsys):
    """Run `convoy score` in this process; returns exit code and the directory of the scores."""
    from convoy.commands.__main__ import main

    for name, value in raw_data.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("NAVSIM_EXP_ROOT", raising=False)
    make_importable()
    import navsim.common.dataclasses

    # Read when NAVSIM was imported, maybe by another test.
    monkeypatch.setattr(
        navsim.common.dataclasses, "NUPLAN_MAPS_ROOT", raw_data.environment["NUPLAN_MAPS_ROOT"]
    )
    torch_threads = torch.get_num_threads()
    torch.set_num_threads(2)  # of which the scores must not depend

    def run(*words, out=tmp_path / "scores", cache=metric_cache):
        where = ["--split", "mini", "--out", str(out), f"metric_cache_path={cache}"]
        return main(["score", *map(str, words), *where, "--workers", "1", SPLIT]), out

    yield run
    torch.set_num_threads(torch_threads)
    os.environ.pop("TQDM_DISABLE", None)
