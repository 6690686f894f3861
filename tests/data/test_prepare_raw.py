"""`convoy prepare` from raw logs, through NAVSIM's own loader and builders; NAVSIM's own caching is
the reference."""

import json
import os
import pickle
import shutil
import subprocess
import sys

import pytest
import torch

from convoy.commands.__main__ import main
from convoy.data.cache import Builders, CacheDataset, CacheSplit, collate, logs_in, scan
from convoy.data.prepare.inputs import RawInput
from convoy.data.prepare.run import Options, prepare
from convoy.data.shard_loader import ShardLoader
from convoy.data.shard_reader import ShardReader
from convoy.data.shard_split import split_of
from convoy.data.shards import load_manifest
from convoy.errors import ConvoyError
from convoy.navsim.importing import make_importable
from convoy.navsim.scenes import open_log, scene_split
from convoy.topology import Task

TRANSFUSER = Builders(("transfuser_feature",), ("transfuser_target",))
SPLIT = ("train_test_split=mini", "train_test_split.scene_filter.frame_interval=1")


@pytest.fixture
def environment(navsim_tree, raw_data, monkeypatch):
    for name, value in raw_data.environment.items():
        monkeypatch.setenv(name, value)
    make_importable()
    import navsim.common.dataclasses as dataclasses  # it reads NUPLAN_MAPS_ROOT when it is imported

    monkeypatch.setattr(dataclasses, "NUPLAN_MAPS_ROOT", raw_data.environment["NUPLAN_MAPS_ROOT"])
    return raw_data


def transfuser_builders():
    from navsim.agents.transfuser.transfuser_config import TransfuserConfig
    from navsim.agents.transfuser.transfuser_features import (
        TransfuserFeatureBuilder,
        TransfuserTargetBuilder,
    )
    from navsim.common.dataclasses import SensorConfig
    from nuplan.planning.simulation.trajectory.trajectory_sampling import TrajectorySampling

    config = TransfuserConfig()
    target = TransfuserTargetBuilder(
        TrajectorySampling(time_horizon=4, interval_length=0.5), config
    )
    sensors = SensorConfig(
        cam_f0=[3],
        cam_l0=[3],
        cam_r0=[3],
        lidar_pc=[3],
        cam_l1=False,
        cam_l2=False,
        cam_r1=False,
        cam_r2=False,
        cam_b0=False,
    )
    return (TransfuserFeatureBuilder(config),), (target,), sensors


def raw_input(root, features=None, **scene_filter):
    given, targets, sensors = transfuser_builders()
    chosen = scene_split("mini", SPLIT[1:])["scene_filter"] | scene_filter
    logs, blobs = root / "navsim_logs/mini", root / "sensor_blobs/mini"
    return RawInput(logs, blobs, "mini", chosen, features or given, targets, sensors)


def pack(root, out, **options):
    source = options.pop("source", None) or raw_input(root)
    return prepare(source, out, Options(workers=1, **options), Task("only")).manifest


@pytest.fixture(scope="module")
def navsim_cache(navsim_tree, raw_data, tmp_path_factory):
    """What NAVSIM's own caching writes for the same scenes."""
    make_importable()
    import navsim.common.dataclasses as dataclasses
    from navsim.planning.training.dataset import Dataset

    before, dataclasses.NUPLAN_MAPS_ROOT = (
        dataclasses.NUPLAN_MAPS_ROOT,
        raw_data.environment["NUPLAN_MAPS_ROOT"],
    )
    cache = tmp_path_factory.mktemp("navsim-cache")
    features, targets, sensors = transfuser_builders()
    chosen = scene_split("mini", SPLIT[1:])["scene_filter"]
    for path in sorted((raw_data.root / "navsim_logs/mini").glob("*.pkl")):
        loader = open_log(
            path.stem, path.parent, raw_data.root / "sensor_blobs/mini", chosen, sensors
        )
        Dataset(loader, list(features), list(targets), str(cache), force_cache_computation=True)
    dataclasses.NUPLAN_MAPS_ROOT = before
    return cache


def test_the_same_bits_as_navsims_own_caching(environment, navsim_cache, tmp_path):
    manifest = pack(environment.root, tmp_path)
    split = split_of(manifest, tmp_path, manifest.logs)
    samples = scan(navsim_cache, logs_in(navsim_cache), TRANSFUSER).samples
    assert split.samples == samples and len(samples) == environment.samples
    theirs = CacheDataset(CacheSplit(navsim_cache, samples), TRANSFUSER)
    order = list(range(len(samples)))
    (ours,) = ShardLoader(split, TRANSFUSER, order, len(order), ShardReader(2, False), 1)
    for mine, other in zip(ours, collate([theirs[index] for index in order]), strict=True):
        assert list(mine) == list(other)
        assert all(
            torch.equal(mine[name], other[name]) and mine[name].dtype == other[name].dtype
            for name in other
        )
    packed = {field.name: (field.packed, field.divisor) for field in manifest.layouts[0].fields}
    assert packed["camera_feature"] == ("uint8", 255) and packed["lidar_feature"] == ("uint8", 5)
    assert packed["bev_semantic_map"] == ("uint8", 1)


def test_the_manifest_says_how_it_was_made(environment, tmp_path):
    manifest = pack(environment.root, tmp_path)
    feature, target = manifest.builders
    assert (feature.name, feature.role, target.role) == ("transfuser_feature", "feature", "target")
    assert feature.cls == "navsim.agents.transfuser.transfuser_features.TransfuserFeatureBuilder"
    assert feature.config["_config"]["lidar_max_x"] == 32
    assert (
        manifest.origin["train_test_split"] == "mini"
        and len(manifest.origin["navsim_commit"]) >= 40
    )
    assert load_manifest(tmp_path) == manifest
    for shard in manifest.shards:
        assert shard.seconds["builders"] > 0 and shard.seconds["scenes"] > 0


def test_the_command_with_navsims_names(environment, tmp_path, capsys):
    arguments = [
        "prepare",
        str(tmp_path),
        "agent=ego_status_mlp_agent",
        "--workers=2",
        "--json",
        *SPLIT,
    ]
    assert main(arguments) == 0
    record = json.loads(capsys.readouterr().out)
    assert (record["samples"], record["failed"], record["logs"]) == (
        environment.samples,
        [],
        environment.logs,
    )
    assert {builder.name for builder in load_manifest(tmp_path).builders} == {
        "ego_status_feature",
        "trajectory_target",
    }


def test_scene_filters_choose(environment, tmp_path):
    everything = pack(environment.root, tmp_path / "all")
    log, token = everything.shards[0].log, everything.shards[0].tokens[1]
    one = pack(
        environment.root, tmp_path / "one", source=raw_input(environment.root, tokens=[token])
    )
    assert [shard.tokens for shard in one.shards if shard.tokens] == [(token,)]
    of_log = pack(
        environment.root, tmp_path / "log", source=raw_input(environment.root, log_names=[log])
    )
    assert of_log.logs == (log,)


def copied(environment, tmp_path):
    root = tmp_path / "raw"
    shutil.copytree(environment.root, root)
    logs = sorted(path.stem for path in (root / "navsim_logs/mini").glob("*.pkl"))
    return root, logs


def test_a_log_without_its_sensors_is_reported_and_the_rest_is_done(environment, tmp_path):
    root, logs = copied(environment, tmp_path)
    shutil.rmtree(root / "sensor_blobs/mini" / logs[0])
    manifest = pack(root, tmp_path / "out")
    assert manifest.samples == environment.samples // 2
    assert {failure.log for failure in manifest.failures} == {logs[0]}
    assert all(
        "FileNotFoundError" in failure.reason and logs[0] in failure.reason
        for failure in manifest.failures
    )


def test_a_missing_picture_costs_its_sample_only(environment, tmp_path):
    root, logs = copied(environment, tmp_path)
    frames = pickle.loads((root / f"navsim_logs/mini/{logs[1]}.pkl").read_bytes())
    (root / "sensor_blobs/mini" / frames[3]["cams"]["CAM_F0"]["data_path"]).unlink()
    manifest = pack(root, tmp_path / "out")
    (failure,) = manifest.failures
    assert failure.token == frames[3]["token"] and "FileNotFoundError" in failure.reason


def test_a_map_location_that_is_missing_is_reported(environment, tmp_path):
    root, logs = copied(environment, tmp_path)
    path = root / f"navsim_logs/mini/{logs[0]}.pkl"
    frames = pickle.loads(path.read_bytes())
    path.write_bytes(pickle.dumps([frame | {"map_location": "atlantis"} for frame in frames]))
    manifest = pack(root, tmp_path / "out")
    assert {failure.log for failure in manifest.failures} == {logs[0]}
    assert all("map name atlantis is invalid" in failure.reason for failure in manifest.failures)
    assert manifest.samples == environment.samples // 2


def test_a_log_that_cannot_be_read_is_reported(environment, tmp_path):
    root, logs = copied(environment, tmp_path)
    path = root / f"navsim_logs/mini/{logs[0]}.pkl"
    path.write_bytes(path.read_bytes()[:500])
    manifest = pack(root, tmp_path / "out")
    (failure,) = manifest.failures
    assert (failure.log, failure.token) == (logs[0], "*") and "UnpicklingError" in failure.reason


class Careless:
    """A builder that raises for some scenes and gives NaN for others."""

    def __init__(self, builder, raises, nans):
        self.builder, self.raises, self.nans = builder, raises, nans
        self.calls = 0

    def get_unique_name(self):
        return self.builder.get_unique_name()

    def compute_features(self, agent_input):
        self.calls += 1
        if self.calls in self.raises:
            raise ZeroDivisionError("no lanes here")
        features = self.builder.compute_features(agent_input)
        if self.calls in self.nans:
            features["status_feature"][2] = float("nan")
        return features


def test_a_builder_that_raises_or_gives_nan_is_reported_with_the_token(environment, tmp_path):
    builder = Careless(transfuser_builders()[0][0], raises={4}, nans={6})
    manifest = pack(
        environment.root, tmp_path, source=raw_input(environment.root, features=(builder,))
    )
    reasons = sorted(failure.reason for failure in manifest.failures)
    assert reasons == [
        "ZeroDivisionError: no lanes here",
        "transfuser_feature.status_feature has values that are not finite",
    ]
    tokens = {token for shard in manifest.shards for token in shard.tokens}
    assert len(tokens) == environment.samples - 2 and not tokens & {
        failure.token for failure in manifest.failures
    }


def test_builders_that_cannot_be_sent_to_processes_are_told(environment):
    builder = transfuser_builders()[0][0]
    builder.scale = lambda value: value
    with pytest.raises(ConvoyError, match="builders cannot be sent to worker processes"):
        raw_input(environment.root, features=(builder,))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["train_test_split=navtran"], "Unknown train_test_split 'navtran'. Found in .*navtrain"),
        ([*SPLIT, "navsim_log_path=/nowhere"], "navsim_log_path=/nowhere is not a directory"),
        (
            [SPLIT[0], "train_test_split.scene_filter.frames=1"],
            "no setting 'train_test_split.scene_filter.frames'",
        ),
        ([SPLIT[0], "train_test_split.scene_filter.max_scenes=3"], "asks for max_scenes"),
        (
            [SPLIT[0], "train_test_split.scene_filter.log_names=[gone]"],
            "holds no <log>.pkl of the 1 logs",
        ),
    ],
)
def test_mistakes_are_told_before_any_work(environment, tmp_path, capsys, overrides, message):
    import re

    assert main(["prepare", str(tmp_path / "out"), "agent=ego_status_mlp_agent", *overrides]) == 1
    assert re.search(message, capsys.readouterr().err)
    assert not list((tmp_path / "out").glob("*.json"))


def test_no_maps(environment, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("NUPLAN_MAPS_ROOT", str(tmp_path))
    assert main(["prepare", str(tmp_path / "out"), "agent=ego_status_mlp_agent", *SPLIT]) == 1
    assert f"NUPLAN_MAPS_ROOT={tmp_path} holds no nuplan-maps-v1.0.json" in capsys.readouterr().err


def test_a_tree_of_navsim_1(navsim_tree, raw_data, tmp_path):
    """Its loader has another name for the folder of the sensors; no weights are at hand."""
    fork = tmp_path / "fork"
    shutil.copytree(navsim_tree / "navsim", fork / "navsim")
    loader = fork / "navsim/common/dataloader.py"
    first = loader.read_text().replace("original_sensor_path: Path", "sensor_blobs_path: Path")
    first = first.replace("= original_sensor_path", "= sensor_blobs_path")
    assert "sensor_blobs_path: Path," in first and first != loader.read_text()
    loader.write_text(first)
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "convoy.commands",
            "prepare",
            str(tmp_path / "out"),
            "agent=transfuser_agent",
            f"sensor_blobs_path={raw_data.root}/sensor_blobs/mini",
            "--workers=1",
            *SPLIT,
        ],
        env=os.environ
        | raw_data.environment
        | {"NAVSIM_DEVKIT_ROOT": str(fork), "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)},
        text=True,
        capture_output=True,
    )
    assert done.returncode == 0, done.stderr
    assert "the agent itself cannot be built here" in done.stderr
    assert load_manifest(tmp_path / "out").samples == raw_data.samples
