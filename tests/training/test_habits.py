"""Whole runs of agents that have the habits of public forks (tests/agents/habits.py)."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from convoy.commands.__main__ import main
from tests.agents import habits
from tests.conftest import write_sample

RUN = ("trainer.params.log_every_n_steps=1", "global_batch=8", "data.val_fraction=0.25")


@pytest.fixture
def habits_tree(foreign_tree):
    shutil.copy(habits.__file__, foreign_tree / "navsim/agents/habits.py")
    group = foreign_tree / "navsim/planning/script/config/common/agent"
    (group / "likegtrs.yaml").write_text("_target_: navsim.agents.habits.LikeGtrs\nlr: 0.01\n")
    return foreign_tree


@pytest.fixture
def shards(tmp_path):
    """Four logs of seven samples, so that the ranks' shares of the validation differ; a code in
    each by which its token is known."""
    cache = tmp_path / "cache"
    for log in range(4):
        for number in range(7):
            token = f"{log:04x}{number:04x}"
            ego = torch.tensor([5.0 + number, 0, number / 7, 0, 0, 1, 0, 0])
            trajectory = torch.arange(1, 9)[:, None] * torch.tensor([2.5 + number / 2, 0.1, 0])
            write_sample(
                cache / f"log-{log}" / token,
                ego_status_feature={
                    "ego_status": ego,
                    "code": torch.tensor(int(token, 16)),
                    "history": [ego[:2], {"pose": np.array([number, 0.5]), "name": token}],
                },
                trajectory_target={"trajectory_gt": trajectory},
            )
    assert main(["prepare", str(tmp_path / "shards"), "--from-cache", str(cache)]) == 0
    return tmp_path / "shards"


def test_an_agent_with_the_habits_of_gtrs(habits_tree, shards, train, tmp_path):
    """The agent itself holds the tokens against the samples, and its callback NAVSIM's metric names
    and the loaders against what they should be."""
    run = [
        *RUN,
        "agent=likegtrs",
        f"cache_path={shards}",
        f"run_dir={tmp_path / 'run'}",
        "metrics.prediction=imi",
        "metrics.target=trajectory_gt",
    ]
    done = train(*run, "trainer.params.max_epochs=2", processes=2)
    assert done.returncode == 0, done.stdout
    results = json.loads((tmp_path / "run/results.json").read_text())
    assert {"loss", "x_loss", "y_loss", "ade", "fde"} <= results.keys()
    assert not {"loss_step", "loss_epoch"} & results.keys()
    with (tmp_path / "run/metrics/version_0/metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {"train/loss", "train/x_loss", "train/y_loss", "val/x_loss"} <= rows[0].keys()
    assert sorted(path.name for path in Path(tmp_path / "exp").glob("gtrs-*")) == [
        "gtrs-epoch=00.ckpt",
        "gtrs-epoch=01.ckpt",
    ]
