"""From a command line to what is scored."""

from argparse import Namespace

import pytest

from convoy.errors import ConvoyError
from convoy.scoring.request import requests


@pytest.fixture
def run_directory(tmp_path, navsim_tree):
    """A run of EgoStatusMLP with three checkpoints."""
    root = tmp_path / "run"
    (root / "checkpoints").mkdir(parents=True)
    (root / "config.yaml").write_text(
        "agent:\n  _target_: navsim.agents.ego_status_mlp_agent.EgoStatusMLPAgent\n"
        "  hidden_layer_dim: 64\n  lr: 0.1\n  checkpoint_path: null\nseed: 0\n"
    )
    for step in (1, 2, 3):
        (root / "checkpoints" / f"step-{step:09d}.ckpt").write_bytes(b"")
    (root / "checkpoints" / "last.ckpt").symlink_to("step-000000003.ckpt")
    return root


def asked(what, *overrides, **changes):
    given = {"what": what and str(what), "overrides": list(overrides), "split": "mini"}
    given |= {"checkpoint": None, "out": None, "workers": 1, "no_baselines": False}
    given |= {"retry_failed": False, "device": "cpu", "precision": "32", "shards": None}
    return Namespace(**given | changes)


def test_a_run_brings_its_agent_and_its_last_checkpoint(run_directory):
    (request,) = requests(asked(run_directory, "agent.lr=0.5"))
    assert request.checkpoint == run_directory / "checkpoints" / "step-000000003.ckpt"
    assert request.out == run_directory / "scores" / "mini" / "step-000000003"
    assert request.config.agent.hidden_layer_dim == 64 and request.config.agent.lr == 0.5


def test_the_best_checkpoint_comes_first_where_there_is_one(run_directory):
    (run_directory / "checkpoints" / "best.ckpt").symlink_to("step-000000002.ckpt")
    (request,) = requests(asked(run_directory))
    assert request.checkpoint.name == "step-000000002.ckpt"
    found = requests(asked(run_directory, checkpoint=["best", "last", "step-000000001", "best"]))
    assert [each.checkpoint.stem[-1] for each in found] == ["2", "3", "1"]


def test_a_checkpoint_of_a_run_is_enough(run_directory):
    file = run_directory / "checkpoints" / "step-000000001.ckpt"
    (request,) = requests(asked(file))
    assert request.config.agent.hidden_layer_dim == 64
    assert request.out == run_directory / "scores" / "mini" / "step-000000001"


def test_navsims_own_words_name_split_and_checkpoint(run_directory, tmp_path):
    file = run_directory / "checkpoints" / "step-000000001.ckpt"
    words = ["agent=ego_status_mlp_agent", f"agent.checkpoint_path={file}"]
    words += ["train_test_split=navmini", "experiment_name=x", "worker=sequential"]
    (request,) = requests(asked(None, *words, out=tmp_path / "out"))
    assert request.checkpoint == file and request.split == "navmini"
    assert len(request.config.train_test_split.scene_filter.tokens) == 396
    (request,) = requests(asked(run_directory, "train_test_split=navmini"))
    assert request.out == run_directory / "scores" / "navmini" / "step-000000003"


@pytest.mark.parametrize(
    ("what", "changes", "message"),
    [
        ("nowhere", {}, "is neither a run directory nor a checkpoint"),
        ("empty", {}, "is not a run: it holds no config.yaml"),
        (None, {}, "Which agent is to be scored?"),
        ("run", {"checkpoint": ["first"]}, "The run has: step-000000003, step-000000002"),
        ("run", {"checkpoint": ["best"]}, "--checkpoint best: .*best.ckpt is not a file"),
        ("run", {"workers": 0}, "workers must be at least 1"),
        ("run", {"split": "nothing"}, "Unknown train_test_split 'nothing'. Found in"),
    ],
)
def test_mistakes_are_said(run_directory, tmp_path, what, changes, message):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConvoyError, match=message):
        requests(asked(what and tmp_path / what, **changes))


def test_out_is_one_directory(run_directory, tmp_path):
    several = {"checkpoint": ["last", "step-000000001"], "out": tmp_path / "out"}
    with pytest.raises(ConvoyError, match="--out is one directory, and 2 checkpoints"):
        requests(asked(run_directory, **several))
    agent = "agent=constant_velocity_agent"
    with pytest.raises(ConvoyError, match="Where should the scores go"):
        requests(asked(None, agent))
