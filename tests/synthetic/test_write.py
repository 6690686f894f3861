import gzip
import pickle
import re

import numpy as np
import pytest
import torch

from convoy.errors import ConvoyError
from convoy.synthetic import log_names, write_cache
from convoy.synthetic.bev import CELL, RANGE, SemanticClass
from convoy.synthetic.sample import build_sample, encode
from convoy.synthetic.scene import Command, sample_scene

LAYOUT = {
    "transfuser_feature": {
        "camera_feature": ((3, 256, 1024), torch.float32),
        "lidar_feature": ((1, 256, 256), torch.float32),
        "status_feature": ((8,), torch.float32),
    },
    "transfuser_target": {
        "trajectory": ((8, 3), torch.float64),
        "agent_states": ((30, 5), torch.float32),
        "agent_labels": ((30,), torch.bool),
        "bev_semantic_map": ((128, 256), torch.float32),
    },
    "ego_status_feature": {"ego_status": ((8,), torch.float32)},
    "trajectory_target": {"trajectory": ((8, 3), torch.float64)},
}


def contents(root):
    files = (path for path in root.rglob("*") if path.is_file())
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in files}


def scenes(count, wanted=lambda scene: True):
    drawn = (sample_scene(np.random.default_rng([5, i])) for i in range(400))
    chosen = [scene for scene in drawn if wanted(scene)]
    assert len(chosen) >= count
    return chosen[:count]


@pytest.fixture(scope="module")
def samples():
    return [build_sample(index, log=0, seed=3) for index in range(6)]


def test_layout_is_that_of_navsims_builders(samples):
    for sample in samples:
        layout = {
            builder: {key: (tuple(tensor.shape), tensor.dtype) for key, tensor in tensors.items()}
            for builder, tensors in sample.items()
        }
        assert layout == LAYOUT


def test_value_grids(samples):
    for sample in samples:
        camera, lidar, _ = sample["transfuser_feature"].values()
        levels = (camera * 255).round().to(torch.uint8)
        assert torch.equal(camera, levels.float() / 255)
        points = (lidar * 5).round()
        assert torch.equal(lidar, (points.double() / 5).float())
        assert 0 <= points.min() and points.max() <= 5 and points.sum() > 100
        assert set(sample["transfuser_target"]["bev_semantic_map"].unique().tolist()) <= {
            0,
            1,
            2,
            3,
            5,
        }


def test_both_ego_status_layouts_agree(samples):
    for sample in samples:
        status = sample["transfuser_feature"]["status_feature"]
        command, velocity, acceleration = status[:4], status[4:6], status[6:]
        assert command.sum() == 1 and velocity[0] > 0
        ego_status = sample["ego_status_feature"]["ego_status"]
        assert torch.equal(ego_status, torch.cat([velocity, acceleration, command]))


def test_boxes_lidar_and_semantic_map_show_the_same_vehicles(samples):
    seen = 0
    for sample in samples:
        target = sample["transfuser_target"]
        lidar, semantic = (
            sample["transfuser_feature"]["lidar_feature"][0],
            target["bev_semantic_map"],
        )
        for x, y, _, length, width in target["agent_states"][target["agent_labels"]].tolist():
            if x < 1 or np.hypot(x, y) > RANGE - 4:
                continue
            assert semantic[int(x / CELL), int((y + RANGE) / CELL)] == SemanticClass.VEHICLE
            reach = int(np.hypot(length, width) / 2 / CELL) + 1
            row, column = int((x + RANGE) / CELL), int((y + RANGE) / CELL)
            around = lidar[
                max(row - reach, 0) : row + reach, max(column - reach, 0) : column + reach
            ]
            assert (around > 0).sum() >= 5
            seen += 1
    assert seen >= 3


def test_trajectory_stays_on_the_road(samples):
    for sample in samples:
        target = sample["transfuser_target"]
        x, y = target["trajectory"][:, :2].T
        near = (x >= 0) & (x < RANGE) & (y.abs() < RANGE)
        cells = (x[near] / CELL).long(), ((y[near] + RANGE) / CELL).long()
        classes = set(target["bev_semantic_map"][cells].tolist())
        assert classes <= {SemanticClass.ROAD, SemanticClass.CENTERLINE, SemanticClass.VEHICLE}


def test_command_decides_the_arm_of_a_junction():
    for command, sign in ((Command.LEFT, 1), (Command.RIGHT, -1)):
        turns = scenes(5, lambda scene, command=command: scene.command == command)
        assert all(sign * scene.trajectory[-1, 2] > -0.02 for scene in turns)
        assert max(sign * scene.trajectory[-1, 2] for scene in turns) > 0.5


def test_heading_is_that_of_the_motion():
    for scene in scenes(30, lambda scene: scene.trajectory[-1, 0] > 15):
        steps = np.diff(scene.trajectory, axis=0)
        moved = np.hypot(steps[:, 0], steps[:, 1]) > 2
        direction = np.arctan2(steps[:, 1], steps[:, 0])
        middle = (scene.trajectory[1:, 2] + scene.trajectory[:-1, 2]) / 2
        assert np.abs(direction - middle)[moved].max(initial=0) < 0.25


def test_ego_does_not_hit_what_it_follows():
    for scene in scenes(60, lambda scene: any(vehicle.braking for vehicle in scene.vehicles)):
        lead = next(vehicle for vehicle in scene.vehicles if vehicle.braking)
        # A braking lead moves on, so the ego may pass where it was, but not while it stands.
        travelled = np.hypot(*scene.trajectory[0, :2])
        assert travelled < np.hypot(lead.x, lead.y)
    standing = [scene for scene in scenes(300) if scene.vehicles and scene.vehicles[0].braking]
    assert any(np.hypot(*scene.trajectory[-1, :2]) < 2 * scene.speed for scene in standing)


def test_acceleration_does_not_tell_the_curve():
    drawn = scenes(300)
    lateral = np.array([scene.acceleration[1] for scene in drawn])
    turned = np.array([scene.trajectory[-1, 2] for scene in drawn])
    assert abs(np.corrcoef(lateral, turned)[0, 1]) < 0.2


def test_seed_and_index_decide_the_sample():
    same = encode(build_sample(4, log=1, seed=3)["transfuser_feature"])
    assert encode(build_sample(4, log=1, seed=3)["transfuser_feature"]) == same
    assert encode(build_sample(5, log=1, seed=3)["transfuser_feature"]) != same
    assert encode(build_sample(4, log=1, seed=4)["transfuser_feature"]) != same


def test_a_file_is_a_gzipped_pickle_of_tensors(samples):
    for tensors in samples[0].values():
        loaded = pickle.loads(gzip.decompress(encode(tensors)))
        assert loaded.keys() == tensors.keys()
        for key, tensor in tensors.items():
            assert loaded[key].dtype == tensor.dtype and torch.equal(loaded[key], tensor)


def test_cache_layout_and_no_other_file(tmp_path):
    summary = write_cache(tmp_path / "cache", samples=5, logs=2, seed=1, workers=1)
    assert sorted(path.name for path in (tmp_path / "cache").iterdir()) == log_names(logs=2, seed=1)
    paths = contents(tmp_path / "cache")
    pattern = re.compile(r"synthetic-1-\d{3}/[0-9a-f]{16}/(" + "|".join(LAYOUT) + r")\.gz")
    assert len(paths) == 5 * len(LAYOUT) and all(pattern.fullmatch(path) for path in paths)
    assert (summary.samples, summary.logs, summary.bytes) == (5, 2, sum(map(len, paths.values())))


def test_same_bytes_whatever_the_number_of_processes(tmp_path):
    done = []
    write_cache(tmp_path / "one", samples=10, logs=3, seed=2, workers=1)
    write_cache(tmp_path / "two", samples=10, logs=3, seed=2, workers=2, progress=done.append)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    assert sum(done) == 10


def test_an_interrupted_run_is_completed(tmp_path):
    write_cache(tmp_path / "whole", samples=4, logs=2, seed=1, workers=1)
    write_cache(tmp_path / "cut", samples=4, logs=2, seed=1, workers=1)
    victim = next((tmp_path / "cut").rglob("transfuser_feature.gz"))
    victim.with_suffix(".gz.tmp").write_bytes(victim.read_bytes()[:100])
    victim.unlink()
    write_cache(tmp_path / "cut", samples=4, logs=2, seed=1, workers=1)
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")


def test_more_samples_are_added_to_the_same_logs(tmp_path):
    write_cache(tmp_path, samples=2, logs=2, seed=1, workers=1)
    before = contents(tmp_path)
    write_cache(tmp_path, samples=4, logs=2, seed=1, workers=1)
    after = contents(tmp_path)
    assert len(after) == 2 * len(before) and before.items() <= after.items()


@pytest.mark.parametrize("settings", [{"seed": 2}, {"logs": 1}, {"samples": 1, "logs": 1}])
def test_a_directory_made_with_other_settings_is_refused(tmp_path, settings):
    write_cache(tmp_path, samples=2, logs=2, seed=1, workers=1)
    before = contents(tmp_path)
    with pytest.raises(ConvoyError, match="does not make"):
        write_cache(tmp_path, **{"samples": 2, "logs": 2, "seed": 1, **settings})
    assert contents(tmp_path) == before


def test_a_foreign_file_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ConvoyError, match=r"notes\.txt"):
        write_cache(tmp_path, samples=2, logs=2, seed=1)
    with pytest.raises(ConvoyError, match="is a file"):
        write_cache(tmp_path / "notes.txt", samples=2, logs=2, seed=1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"samples": 0}, "samples=0"),
        ({"logs": 0}, "logs=0"),
        ({"samples": 2, "logs": 3}, "samples=2 is less than logs=3"),
        ({"seed": -1}, "-1"),
        ({"workers": 0}, "workers"),
    ],
)
def test_bad_numbers_are_refused(tmp_path, settings, message):
    with pytest.raises(ConvoyError, match=message):
        write_cache(tmp_path / "cache", **{"samples": 4, "logs": 2, "seed": 1, **settings})
    assert not (tmp_path / "cache").exists()


def test_an_unwritable_directory_is_an_error_that_names_it(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConvoyError, match="Can't write the cache: .*file"):
        write_cache(tmp_path / "file" / "cache", samples=1, logs=1, seed=1, workers=1)
