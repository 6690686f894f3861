"""`convoy check --multirun`: a sweep's points, each checked. And `--flops`."""

import itertools
import json

import pytest
import torch

from convoy.commands.__main__ import main
from convoy.run import cost
from convoy.run.ownership import open_run
from tests.conftest import write_sample


def check(cache, *words, sweep=None):
    folder = [f"--sweep={sweep}"] if sweep else []
    fixed = ["agent=bev_fusion_agent", f"cache_path={cache}"]
    return main(["check", "--multirun", "--processes-per-node=2", *folder, "--", *fixed, *words])


def test_points_as_json(ego_cache, capsys):
    assert check(ego_cache, "seed=0,1", "global_batch=8,16") == 0
    points = json.loads(capsys.readouterr().out)
    assert [point["name"] for point in points] == [
        f"global_batch={batch},seed={seed}" for seed in (0, 1) for batch in (8, 16)
    ]
    assert points[1]["chosen"] == {"seed=0,1": "seed=0", "global_batch=8,16": "global_batch=16"}


def test_a_sentence_for_each_bad_point(ego_cache, capsys):
    assert check(ego_cache, "seed=0,1", "global_batch=8,7") == 1
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 2
    assert said[0].startswith("convoy: global_batch=7,seed=0: global_batch=7 cannot be split")
    assert said[1].startswith("global_batch=7,seed=1: global_batch=7 cannot be split")


def test_a_fault_of_all_points_is_said_once(ego_cache, capsys):
    assert check(ego_cache, "seed=0,1,2", "seeds=3") == 1
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1 and said[0].startswith("convoy: There is no setting 'seeds'")


def test_a_point_whose_folder_has_another_configuration(ego_cache, tmp_path, capsys):
    from convoy import config
    from convoy.topology import Topology

    words = ["agent=bev_fusion_agent", f"cache_path={ego_cache}", "seed=7"]
    other = config.load(words, Topology.planned(1, 2), None).config
    open_run(tmp_path / "seed=1", other)
    assert check(ego_cache, "seed=0,1", sweep=tmp_path) == 1
    said = capsys.readouterr().err
    assert said.startswith("convoy: seed=1: The run directory") and "seed: 7 -> 1" in said
    assert check(ego_cache, "seed=0,2", sweep=tmp_path) == 0


def test_flops_are_shown_and_kept_for_the_plan(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("NAVSIM_EXP_ROOT", str(tmp_path / "exp"))
    features = {
        "camera_feature": torch.zeros(3, 256, 1024),
        "lidar_feature": torch.zeros(1, 256, 256),
        "status_feature": torch.zeros(8),
    }
    for log, token in itertools.product("ab", "01"):
        write_sample(
            tmp_path / "cache" / log / f"{token:>016}",
            transfuser_feature=features,
            transfuser_target={"trajectory": torch.zeros(8, 3)},
        )
    words = ["agent=bev_fusion_agent", f"cache_path={tmp_path / 'cache'}", "global_batch=2"]
    assert main(["check", "--flops", "--", *words, "data.val_fraction=0.5"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("bev_fusion_agent: 0.173 GFLOP a sample, forward and backward (0.062 ")
    found = cost.kept(tmp_path / "exp", "bev_fusion_agent")
    assert found is not None and found.parameters == pytest.approx(0.869, rel=1e-3)
