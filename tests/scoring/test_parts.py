import resource

import numpy as np
import pytest

from convoy.errors import ConvoyError
from convoy.scoring.parts import Rows, Trajectories


def test_trajectories_come_back_exactly(tmp_path):
    poses = [np.random.default_rng(n).normal(size=(8, 3)) for n in range(2)]
    Trajectories.of(("a", "b", "c"), [poses[0], "it raised", poses[1]], 0.5).write(tmp_path / "t")
    read = Trajectories.read(tmp_path / "t")
    assert read.tokens == ("a", "b", "c") and read.interval == 0.5
    assert read.reasons == ("", "it raised", "")
    assert read.poses.dtype == np.float64 and np.isnan(read.poses[1]).all()
    assert (read.poses[0] == poses[0]).all() and (read.poses[2] == poses[1]).all()


def test_what_is_not_a_trajectory_is_a_reason():
    good, other = np.zeros((8, 3), np.float32), np.zeros((6, 3), np.float32)
    nan = good.copy()
    nan[3, 1] = np.nan
    found = Trajectories.of(("a", "b", "c"), [good, other, nan], 0.5)
    assert found.reasons == (
        "",
        "the trajectory has the shape (6, 3), others have (8, 3)",
        "the trajectory holds 1 values that are not finite",
    )


def test_rows_come_back_exactly(tmp_path):
    row = {"score": 0.1 + 0.2, "valid": True, "token": "a", "log_name": "log", "frame_type": 0}
    states = np.random.default_rng(0).normal(size=(41, 11))
    Rows(("x", "a"), ("it raised", row | {"states": states})).write(tmp_path / "r")
    read = Rows.read(tmp_path / "r")
    assert read.failures == {"x": "it raised"}
    held = read.rows[1]
    assert (held.pop("states") == states).all()
    assert held == row and [type(value) for value in held.values()] == [float, bool, str, str, int]


def test_a_unit_in_which_all_fails(tmp_path):
    Rows(("a",), ("it raised",)).write(tmp_path / "r")
    assert Rows.read(tmp_path / "r").rows == ("it raised",)
    Trajectories.of(("a",), ["it raised"], 0.0).write(tmp_path / "t")
    assert Trajectories.read(tmp_path / "t").reasons == ("it raised",)


def test_a_damaged_file_is_named(tmp_path):
    Rows(("a",), ("it raised",)).write(tmp_path / "r")
    (tmp_path / "r").write_bytes((tmp_path / "r").read_bytes()[:100])
    with pytest.raises(ConvoyError, match="r cannot be read .*Delete it and run the same command"):
        Rows.read(tmp_path / "r")


def test_what_cannot_be_written_leaves_what_was_there(tmp_path):
    Rows(("a",), ("it raised",)).write(tmp_path / "r")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64, hard))
    try:
        with pytest.raises(ConvoyError, match="could not be written: File too large"):
            Rows(("a",), ("another reason",)).write(tmp_path / "r")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert Rows.read(tmp_path / "r").rows == ("it raised",)
    assert [path.name for path in tmp_path.iterdir()] == ["r"]
