import io
import json
import pickle
import shutil
import sys

import numpy as np
import pytest
from PIL import Image

from convoy.errors import ConvoyError
from convoy.synthetic import raw, raw_plan
from convoy.synthetic.camera import FOCAL, GRASS, MOUNT, Look, View, render
from convoy.synthetic.frame import driving_command
from convoy.synthetic.lidar import encode_pcd, scan
from convoy.synthetic.raw import write_raw
from convoy.synthetic.raw_plan import FUTURE_FRAMES, HISTORY_FRAMES
from convoy.synthetic.scene import EGO_FRONT, Command
from convoy.synthetic.shapes import Box, Light, Pedestrian, SignalPost, Vehicle, seen_from
from convoy.synthetic.town import JUNCTION_HALF_WIDTH, Town
from convoy.synthetic.traffic import EGO_REAR, Traffic

KEYS = {
    *(
        "token",
        "timestamp",
        "log_name",
        "scene_token",
        "map_location",
        "roadblock_ids",
        "traffic_lights",
    ),
    *(
        "ego2global_translation",
        "ego2global_rotation",
        "ego_dynamic_state",
        "driving_command",
        "lidar_path",
    ),
    *("cams", "anns"),
}
EIGHT = {f"CAM_{name}" for name in ("F0", "L0", "L1", "L2", "R0", "R1", "R2", "B0")}


def contents(root):
    files = (path for path in root.rglob("*") if path.is_file())
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in files}


def read_logs(raw_data):
    paths = sorted((raw_data.root / "navsim_logs" / "mini").iterdir())
    return [pickle.loads(path.read_bytes()) for path in paths]


@pytest.fixture(scope="module")
def logs(raw_data):
    return read_logs(raw_data)


@pytest.fixture(scope="module")
def town():
    return Town.sample(np.random.default_rng([0, 1]))


# Logs and files


def test_frames_have_what_navsim_reads(raw_data, logs):
    assert len(logs) == raw_data.logs
    assert all(
        len(frames) == raw_data.samples // raw_data.logs + HISTORY_FRAMES + FUTURE_FRAMES
        for frames in logs
    )
    frames = [frame for log in logs for frame in log]
    assert all(KEYS <= frame.keys() and frame["cams"].keys() == EIGHT for frame in frames)
    assert len({frame["token"] for frame in frames}) == len(frames)
    assert all(len(frame["token"]) == 16 and int(frame["token"], 16) for frame in frames)
    for log in logs:
        assert {frame["log_name"] for frame in log} == {log[0]["log_name"]}
        assert set(np.diff([frame["timestamp"] for frame in log]).tolist()) == {500_000}
    assert len({log[0]["map_location"] for log in logs}) == 2


def test_sensor_files_lie_where_the_logs_say(raw_data, logs):
    blobs = raw_data.root / "sensor_blobs" / "mini"
    for frame in (frame for log in logs for frame in log):
        for camera in ("CAM_F0", "CAM_L0", "CAM_R0"):
            with Image.open(blobs / frame["cams"][camera]["data_path"]) as image:
                assert (image.format, image.size, image.mode) == ("JPEG", (1920, 1080), "RGB")
        header, points = (blobs / frame["lidar_path"]).read_bytes().split(b"DATA binary\n", 1)
        assert b"FIELDS x y z intensity lidar_info ring\n" in header
        assert f"POINTS {len(points) // 18}\n".encode() in header and len(points) > 18 * 5000


def test_nothing_lies_beside_the_logs(raw_data):
    assert {path.suffix for path in (raw_data.root / "navsim_logs" / "mini").iterdir()} == {".pkl"}
    assert not list(raw_data.root.rglob("*.tmp*"))


def test_the_ego_moves_as_its_status_says(logs):
    for log in logs:
        xy = np.array([frame["ego2global_translation"][:2] for frame in log])
        quaternions = np.array([frame["ego2global_rotation"] for frame in log])
        heading = np.unwrap(2 * np.arctan2(quaternions[:, 3], quaternions[:, 0]), period=2 * np.pi)
        speed, acceleration = np.array(
            [(f["ego_dynamic_state"][0], f["ego_dynamic_state"][2]) for f in log]
        ).T
        steps = np.diff(xy, axis=0)
        assert np.abs(np.hypot(*steps.T) - (speed[1:] + speed[:-1]) / 2 * 0.5).max() < 0.15
        assert np.abs(np.diff(speed) - (acceleration[1:] + acceleration[:-1]) / 2 * 0.5).max() < 0.5
        moving = np.hypot(*steps.T) > 1.0
        direction = np.arctan2(steps[:, 1], steps[:, 0]) - (heading[1:] + heading[:-1]) / 2
        assert np.abs(np.sin(direction))[moving].max(initial=0.0) < 0.05


def test_boxes_move_as_their_velocities_say_and_keep_their_tokens(logs):
    followed = 0
    for log in logs:
        for now, later in zip(log, log[1:], strict=False):
            here, there = in_town(now), in_town(later)
            for token in here.keys() & there.keys():
                (xy, velocity, name), (xy_later, velocity_later, _) = here[token], there[token]
                if name == "vehicle":
                    assert np.hypot(*(xy_later - xy - (velocity + velocity_later) / 2 * 0.5)) < 0.3
                    followed += np.hypot(*velocity) > 1.0
    assert followed > 20


def in_town(frame):
    """Track token -> position and velocity in the global frame, and name."""
    rotation, origin = frame["ego2global"][:2, :2], frame["ego2global"][:2, 3]
    anns = frame["anns"]
    return {
        token: (rotation @ box[:2] + origin, rotation @ velocity[:2], name)
        for token, box, velocity, name in zip(
            anns["track_tokens"],
            anns["gt_boxes"],
            anns["gt_velocity_3d"],
            anns["gt_names"],
            strict=True,
        )
    }


def test_commands_name_the_turn_that_follows(logs):
    turns = 0
    for log in logs:
        rotation = np.array([frame["ego2global_rotation"] for frame in log])
        heading = np.unwrap(2 * np.arctan2(rotation[:, 3], rotation[:, 0]), period=2 * np.pi)
        for index, frame in enumerate(log[:-8]):
            turned = heading[index + 8] - heading[index]
            if abs(turned) > 0.8:
                assert frame["driving_command"].argmax() == (
                    Command.LEFT if turned > 0 else Command.RIGHT
                )
                turns += 1
    assert turns > 4


# Writing


def test_same_bytes_by_other_processes_and_after_an_interruption(tmp_path, raw_data):
    whole = contents(raw_data.root)
    shutil.copytree(raw_data.root, tmp_path, dirs_exist_ok=True)
    blobs = sorted((tmp_path / "sensor_blobs" / "mini").glob("*/*/*"))
    for path in (
        *blobs[::3],
        *(tmp_path / "navsim_logs" / "mini").iterdir(),
        *tmp_path.glob("maps/us-ma-*/*/*"),
    ):
        path.unlink()
    done = []
    summary = write_raw(
        tmp_path, samples=8, logs=2, seed=2, all_cameras=False, workers=2, progress=done.append
    )
    assert contents(tmp_path) == whole
    assert sum(done) == summary.frames == 34
    note = len(whole["synthetic-mini.json"]) + len(whole["maps/nuplan-maps-v1.0.json"])
    assert summary.bytes == sum(map(len, whole.values())) - note


def test_a_finished_data_set_is_left_as_it_is(tmp_path, raw_data, monkeypatch):
    shutil.copytree(raw_data.root, tmp_path, dirs_exist_ok=True)
    monkeypatch.setattr(raw, "_picture", None)
    done = []
    summary = write_raw(
        tmp_path, samples=8, logs=2, seed=2, all_cameras=False, progress=done.append
    )
    assert done == [34]
    assert summary.bytes == write_raw(tmp_path, samples=8, logs=2, seed=2, all_cameras=False).bytes


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"samples": 9}, "samples=8 instead of 9"),
        ({"logs": 1}, "logs=2 instead of 1"),
        ({"all_cameras": True}, "cameras="),
        ({"seed": 8}, "seed=2 instead of 8"),
        ({"split": "test", "seed": 8}, "seed=2 instead of 8"),
    ],
)
def test_a_directory_made_with_other_settings_is_refused(tmp_path, raw_data, settings, message):
    shutil.copy(raw_data.root / "synthetic-mini.json", tmp_path)
    with pytest.raises(ConvoyError, match=message):
        write_raw(
            tmp_path, **{"samples": 8, "logs": 2, "seed": 2, "all_cameras": False, **settings}
        )
    assert [path.name for path in tmp_path.iterdir()] == ["synthetic-mini.json"]


def test_a_foreign_directory_or_file_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ConvoyError, match=r"notes\.txt"):
        write_raw(tmp_path, samples=1, logs=1, seed=0)
    with pytest.raises(ConvoyError, match="is a file"):
        write_raw(tmp_path / "notes.txt", samples=1, logs=1, seed=0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"samples": 0}, "samples=0"),
        ({"samples": 2, "logs": 3}, "samples=2 is less than logs=3"),
        ({"seed": -1}, "-1"),
        ({"workers": 0}, "workers"),
        ({"split": "../test"}, "split's name"),
    ],
)
def test_bad_settings_are_refused(tmp_path, settings, message):
    with pytest.raises(ConvoyError, match=message):
        write_raw(tmp_path / "raw", **{"samples": 4, "logs": 2, "seed": 1, **settings})
    assert not (tmp_path / "raw").exists()


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyogrio", None)
    with pytest.raises(ConvoyError, match="needs pyogrio.*\n?.*navsim extra"):
        write_raw(tmp_path / "raw", samples=1, logs=1, seed=0, workers=1)


def test_an_unwritable_directory_is_an_error_that_names_it(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConvoyError, match="Can't write the data set: .*file"):
        write_raw(tmp_path / "file" / "raw", samples=1, logs=1, seed=0, workers=1)


def test_the_note_tells_the_settings(raw_data):
    note = json.loads((raw_data.root / "synthetic-mini.json").read_text())
    assert (note["samples"], note["logs"], note["seed"], note["split"]) == (8, 2, 2, "mini")


# The town and its traffic


def test_edges_join_without_a_step_or_a_kink(town):
    for edge in town.edges:
        assert edge.following
        for after in (town.edges[index] for index in edge.following):
            assert np.hypot(*(after.path.points[0] - edge.path.points[-1])) < 0.01
            assert abs(np.sin(after.path.heading[0] - edge.path.heading[-1])) < 0.03
            assert after.is_connector != edge.is_connector
            assert not after.is_connector or (after.junction, after.arm) == (
                edge.junction,
                edge.arm,
            )


def test_there_are_straights_curves_and_junctions(town):
    curvature = [np.abs(np.gradient(edge.path.heading, edge.path.station)) for edge in town.edges]
    lanes = [c for c, edge in zip(curvature, town.edges, strict=True) if not edge.is_connector]
    assert all(c.max() < 1 / 25 for c in lanes) and sum(c.max() > 1 / 50 for c in lanes) >= 8
    assert np.mean(np.concatenate(lanes) < 1e-3) > 0.3
    assert sorted(len(junction.arms) for junction in town.junctions) == [3, 3, 3, 3, 4]


def test_buildings_stand_clear_of_the_roads(town):
    for building in town.buildings:
        corners = building.corners()[:, None]
        assert min(np.hypot(*(corners - road.centre.points).T).min() for road in town.roads) > 6.0
        assert (
            min(np.hypot(*(corners - j.centre).T).min() for j in town.junctions)
            > JUNCTION_HALF_WIDTH
        )


@pytest.fixture(scope="module")
def drives(town):
    """Two drives of 60 s: the traffic and its moments, one every half a second."""
    drives = []
    for seed in (0, 1):
        traffic, moments = Traffic(town, np.random.default_rng(seed)), []
        for step in range(600):
            traffic.step()
            if step % 5 == 0:
                moments.append(traffic.moment())
        drives.append(moments)
    return drives


def test_nothing_touches(drives):
    for moment in (moment for moments in drives for moment in moments):
        cars = [track.box for track in moment.tracks if isinstance(track.box, Vehicle)]
        for index, car in enumerate(cars):
            near = [c for c in cars[index + 1 :] if np.hypot(c.x - car.x, c.y - car.y) < 6]
            assert not any(car.touches(other) for other in near)
        people = [track.box for track in moment.tracks if isinstance(track.box, Pedestrian)]
        moving = [
            t.box
            for t in moment.tracks
            if isinstance(t.box, Vehicle) and np.hypot(*t.velocity) > 0.5
        ]
        assert not any(car.touches(person) for car in moving for person in people)
        x, y, heading = moment.pose
        c, s = np.cos(heading), np.sin(heading)
        ahead = (EGO_FRONT - EGO_REAR) / 2
        ego = Box(x + ahead * c, y + ahead * s, heading, EGO_FRONT + EGO_REAR, 2.3, 0, (0, 0, 0))
        assert not any(ego.touches(track.box) for track in moment.tracks)


def test_the_ego_drives_comfortably_and_stops_at_times(drives):
    ahead, aside = np.array([moment.acceleration for moments in drives for moment in moments]).T
    assert ahead.min() > -4.0 and ahead.max() < 2.4 and np.abs(aside).max() < 4.0
    assert any(moment.speed < 0.1 for moments in drives for moment in moments)


def test_one_arm_of_a_junction_has_green_at_a_time(drives):
    seen = set()
    for moment in (moment for moments in drives for moment in moments):
        for junction in range(5):
            lights = [light for (j, _), light in moment.lights.items() if j == junction]
            assert sum(not light.is_red for light in lights) <= 1
            seen |= set(lights)
    assert seen == set(Light)


def test_the_ego_is_never_on_a_junction_at_red(drives, town):
    crossed = 0
    for moment in (moment for moments in drives for moment in moments):
        current = town.edges[
            moment.route[1] if len(moment.route) > 1 and moment.next_turn else moment.route[0]
        ]
        if moment.next_turn and moment.next_turn[0] == 0.0 and current.is_connector:
            assert not moment.lights[current.junction, current.arm].is_red
            crossed += 1
    assert crossed > 5


def test_vehicles_wait_for_pedestrians_at_the_kerb(town):
    waited = crossed = 0
    for seed in range(3):
        traffic = Traffic(town, np.random.default_rng([3, seed]))
        for _ in range(600):
            traffic.step()
            for crossing in traffic._crossings:
                on_road = abs(crossing.across) < 4.0
                crossed += on_road
                for lane in crossing.road.lanes:
                    line = traffic._zebra[lane]
                    for car in traffic._queues.get(lane, ()):
                        front = car.at + car.front
                        assert not (on_road and line + 1.0 < front < line + 3.0 and car.speed > 1.0)
                        waited += crossing.wanted and car.speed < 0.2 and abs(line - front) < 2.0
    assert crossed > 100 and waited > 20


def test_the_route_leads_on_and_the_command_follows_it(drives):
    for moment in (moment for moments in drives for moment in moments):
        assert len(moment.route_ahead) * 0.45 > 60
        ahead = seen_from(moment.pose, moment.route_ahead[6:12])
        assert (ahead[:, 0] > 0).all() and np.abs(ahead[:, 1]).max() < 2.5
        command = driving_command(moment)
        if moment.next_turn and moment.next_turn[0] < 40.0 and moment.next_turn[1]:
            assert command == (Command.LEFT if moment.next_turn[1] > 0 else Command.RIGHT)


# Sensors


def test_what_stands_behind_something_is_not_scanned():
    near = Box(12.0, 0.0, 0.0, 4.0, 6.0, 3.0, (200, 200, 200))
    far = Box(25.0, 0.0, 0.0, 4.0, 2.0, 1.5, (200, 200, 200))
    kerbs = np.empty((0, 2, 2))
    alone = scan([far], kerbs, np.random.default_rng(0))
    both = scan([near, far], kerbs, np.random.default_rng(0))
    assert on(far, alone) > 30 and on(far, both) == 0 and on(near, both) > 300
    assert np.abs(both["z"][(both["x"] < -5)]).max() < 0.01, "the ground behind the ego is flat"


def on(box, points):
    xy = np.stack([points["x"], points["y"]], axis=1)
    half = np.array([box.length, box.width]) / 2 + 0.2
    return int(((np.abs(xy - (box.x, box.y)) < half).all(axis=1) & (points["z"] > 0.2)).sum())


def test_a_point_cloud_survives_its_file():
    points = scan(
        [Box(8.0, 3.0, 0.3, 4.0, 2.0, 1.5, (90, 90, 90))],
        np.empty((0, 2, 2)),
        np.random.default_rng(1),
    )
    read = np.frombuffer(encode_pcd(points).split(b"DATA binary\n", 1)[1], points.dtype)
    assert np.array_equal(read, points)


@pytest.mark.parametrize(
    ("light", "lit"),
    [(Light.RED, "r"), (Light.AMBER, "a"), (Light.GREEN, "g"), (Light.RED_AMBER, "ra")],
)
def test_a_traffic_light_shows_its_colour(light, lit):
    view = View(0.0, 960, 540, FOCAL / 2)
    look = Look.sample(np.random.default_rng(0))
    surfaces = np.full((270, 960), GRASS, dtype=np.uint8)
    post = SignalPost(22.0, 3.0, np.pi, 0.25, 0.25, 5.4, (70, 75, 70), light)
    picture = render(view, look, surfaces, [post]).astype(int)
    for name, height in (("r", 4.9), ("a", 4.25), ("g", 3.6)):
        depth = post.x - 0.2 - MOUNT[0]
        column, row = (
            480 - post.y / depth * FOCAL / 2,
            270 - (height - MOUNT[2]) / depth * FOCAL / 2,
        )
        assert (picture[round(row), round(column)].max() > 180) == (name in lit), name


def test_cameras_around_the_ego_see_what_stands_there(raw_data):
    plan = raw_plan.RawPlan(raw_data.root, "mini", 8, 2, 2, tuple(raw_plan.YAWS))
    moment = raw._drive(plan, 0)[0]
    look = Look.sample(np.random.default_rng(0))
    for camera, yaw in raw_plan.YAWS.items():
        c, s = np.cos(np.radians(yaw)), np.sin(np.radians(yaw))
        box = Vehicle(MOUNT[0] + 9 * c, 9 * s, np.radians(yaw), 4.0, 2.0, 1.5, (240, 0, 0))
        with Image.open(io.BytesIO(raw._picture(plan, 0, moment, [box], look, camera))) as picture:
            red, green, _ = np.asarray(picture)[760, 960].astype(int)
        assert red > 2 * green, camera
