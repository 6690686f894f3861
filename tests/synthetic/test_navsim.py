"""The acceptance test of synthetic raw data: NAVSIM's own scripts run on it, unedited."""

import csv
import gzip
import os
import pickle
import subprocess
import sys

import numpy as np
import pytest

from convoy.navsim.weights import write_random_backbone

SPLIT = (
    "train_test_split=mini",
    "train_test_split.scene_filter.frame_interval=1",
    "worker=sequential",
)
# Runs a script as it is, beside a CPU build of torch too.
RUN = ("-m", "convoy.navsim.torchvision_cpu")


@pytest.fixture(scope="module")
def navsim(navsim_tree, raw_data, tmp_path_factory):
    """Run one of NAVSIM's scripts on the data.

    Results go below the returned function's `results`.
    """
    results = tmp_path_factory.mktemp("exp")

    def run(script, *overrides):
        command = [
            sys.executable,
            *RUN,
            navsim_tree / "navsim/planning/script" / script,
            *SPLIT,
            *overrides,
        ]
        environment = (
            os.environ
            | raw_data.environment
            | {"NAVSIM_EXP_ROOT": str(results), "OMP_NUM_THREADS": "1"}
        )
        result = subprocess.run(
            command,
            env=environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=300,
        )
        assert result.returncode == 0, result.stdout[-4000:]
        return result.stdout

    run.results = results
    return run


@pytest.fixture(scope="module")
def feature_cache(navsim, tmp_path_factory):
    backbone = write_random_backbone("resnet34", tmp_path_factory.mktemp("backbone"))
    weights = f"+agent.config.image_architecture='local-dir:{backbone}'"
    navsim("run_dataset_caching.py", "experiment_name=cache", "agent=transfuser_agent", weights)
    return navsim.results / "training_cache"


def test_dataset_caching_makes_transfusers_features_and_targets(feature_cache, raw_data):
    tokens = sorted(feature_cache.glob("*/*"))
    assert (
        len(tokens) == raw_data.samples and len({token.parent for token in tokens}) == raw_data.logs
    )
    for token in tokens:
        read = {
            path.stem: pickle.loads(gzip.decompress(path.read_bytes()))
            for path in token.glob("*.gz")
        }
        feature, target = read["transfuser_feature"], read["transfuser_target"]
        assert (
            feature["camera_feature"].shape == (3, 256, 1024)
            and feature["camera_feature"].std() > 0.1
        )
        assert (feature["lidar_feature"] > 0).sum() > 100
        assert feature["status_feature"][:4].sum() == 1
        assert target["agent_labels"].any()
        assert {0, 1, 2, 3, 5} <= set(target["bev_semantic_map"].unique().tolist())
        # The way driven lies on the road of the map, in the same frame.
        x, y = target["trajectory"][:, :2].T
        seen = (x >= 0) & (x < 31.5) & (y.abs() < 31.5)
        classes = target["bev_semantic_map"][(x[seen] * 4).long(), (y[seen] * 4 + 128).long()]
        assert set(classes.tolist()) <= {1, 3, 5}


def test_boxes_lie_where_the_lidar_has_points(feature_cache):
    near = 0
    for path in feature_cache.glob("*/*/transfuser_target.gz"):
        target = pickle.loads(gzip.decompress(path.read_bytes()))
        feature = pickle.loads(
            gzip.decompress(path.with_name("transfuser_feature.gz").read_bytes())
        )
        for x, y, _, length, _ in target["agent_states"][target["agent_labels"]].tolist():
            if np.hypot(x, y) < 20 and abs(x) > 4:
                row, column, reach = int((x + 32) * 4), int((y + 32) * 4), int(length * 2) + 2
                around = feature["lidar_feature"][
                    0, row - reach : row + reach, column - reach : column + reach
                ]
                assert (around > 0).sum() >= 3
                near += 1
    assert near >= 3


def test_scoring_finds_the_human_good_and_constant_velocity_worse(navsim, raw_data):
    output = navsim("run_metric_caching.py")
    assert f"All {raw_data.samples} features and targets were cached successfully" in output
    scores = {}
    for agent in ("human_agent", "constant_velocity_agent"):
        navsim("run_pdm_score_one_stage.py", f"experiment_name={agent}", f"agent={agent}")
        (path,) = navsim.results.glob(f"{agent}/*/*.csv")
        rows = list(csv.DictReader(path.open()))
        assert len(rows) == raw_data.samples + 1 and all(row["valid"] == "True" for row in rows)
        scores[agent] = float(rows[-1]["score"])
    assert scores["human_agent"] > 0.9 > scores["constant_velocity_agent"]
