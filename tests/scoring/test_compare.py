"""Two scorings, scene by scene; and the file for the leaderboards."""

import json
import pickle

import numpy as np
import pytest

from convoy.commands.__main__ import main
from convoy.errors import ConvoyError
from convoy.run.score_layout import ScoreDirectory
from convoy.scoring.compare import compare, scoring_of
from convoy.scoring.parts import Trajectories

WHO = "team_name=us authors=me email=a@b institution=home country=here".split()


@pytest.fixture
def written(tmp_path):
    """A scoring with the given scores of four scenes in two logs."""

    def write(name, scores, **identity):
        directory = ScoreDirectory(tmp_path / name)
        directory.root.mkdir()
        units = [
            {"log": log, "part": 0, "parts": 1, "tokens": [f"{log}0", f"{log}1"], "files": []}
            for log in "ab"
        ]
        content = {"split": "mini", "scene_filter": {}, "agent": name, "checkpoint": None}
        plan = {"version": 1, "identity": content | identity, "units": units}
        directory.plan.write_text(json.dumps(plan))
        tokens = ["a0", "a1", "b0", "b1"]
        rows = [
            f"{n},{token},{value is not None},{'' if value is None else value},1.0"
            for n, (token, value) in enumerate(zip(tokens, scores, strict=True))
        ]
        mean = np.mean([value for value in scores if value is not None])
        rows.append(f"4,average_all_frames,True,{mean},1.0")
        head = ",token,valid,score,ego_progress"
        directory.table.write_text("\n".join([head, *rows]) + "\n")
        return directory

    return write


def test_pairs_cancel_what_scenes_share(written):
    """Scenes differ by 0.8, the agents by 0.1 in each: alone the intervals overlap widely."""
    a = written("a", [0.1, 0.9, 0.1, 0.5])
    b = written("b", [0.2, 1.0, 0.2, 0.6])
    found = compare(a, b)
    score, progress = found.differences
    assert (found.scenes, found.left_out, score.better, score.worse) == (4, 0, 4, 0)
    assert score.mean == pytest.approx(0.1)
    assert score.low == pytest.approx(0.1) and score.high == pytest.approx(0.1)
    assert (progress.mean, progress.better, progress.worse) == (0, 0, 0)


def test_a_scene_that_failed_in_one_is_left_out_of_both(written):
    found = compare(written("a", [None, 0.9, 0.1, 0.5]), written("b", [0.0, 1.0, 0.0, 0.5]))
    score = found.differences[0]
    assert score.first == pytest.approx(0.5) and score.second == pytest.approx(0.5)
    assert (score.better, score.worse) == (1, 1)
    assert score.low < 0 < score.high


def test_what_cannot_be_compared_is_said(written, tmp_path):
    a = written("a", [0.1, 0.2, 0.3, 0.4])
    with pytest.raises(ConvoyError, match='cannot be compared: split: "mini" -> "navtest"'):
        compare(a, written("b", [0.1, 0.2, 0.3, 0.4], split="navtest"))
    a.table.unlink()
    with pytest.raises(ConvoyError, match="is not finished"):
        compare(a, a)
    with pytest.raises(ConvoyError, match="is not a scoring, and as a run it has no single one"):
        scoring_of(tmp_path, "mini")


def test_a_run_stands_for_the_scores_of_its_best_checkpoint(written, tmp_path):
    (tmp_path / "run" / "scores" / "mini").mkdir(parents=True)
    (tmp_path / "run" / "checkpoints").mkdir()
    (tmp_path / "run" / "checkpoints" / "best.ckpt").symlink_to("step-000000002.ckpt")
    for step in (1, 2):
        root = written(f"run/scores/mini/step-{step:09d}", [0.1 * step] * 4).root
    assert scoring_of(tmp_path / "run", "mini").root == root


def test_compare_and_submission_of_real_scorings(score, tmp_path, capsys, raw_data, monkeypatch):
    """The submission is what NAVSIM's own script makes of the same scenes."""
    file = tmp_path / "submission.pkl"
    human = tmp_path / "human"
    assert score("agent=human_agent", "--no-baselines", out=human)[0] == 0
    code, out = score(
        "agent=constant_velocity_agent", "--no-baselines", f"--submission={file}", *WHO
    )
    assert code == 0, capsys.readouterr().err
    capsys.readouterr()
    assert main(["score", "--compare", str(out), str(human), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["scenes"] == 8
    (difference,) = [row for row in found["differences"] if row["column"] == "score"]
    means = [json.loads((root / "summary.json").read_text())["score"] for root in (out, human)]
    assert difference["mean"] == pytest.approx(means[1] - means[0])

    content = pickle.loads(file.read_bytes())
    from navsim.agents.constant_velocity_agent import ConstantVelocityAgent
    from navsim.common.dataclasses import SceneFilter
    from navsim.planning.script import run_create_submission_pickle as script

    # The script wants a second stage; of a split that has none it iterates over None.
    monkeypatch.setattr(script, "tqdm", lambda tokens, desc: tokens or [])

    empty = tmp_path / "empty"
    empty.mkdir()
    scenes = SceneFilter(frame_interval=1, num_history_frames=4, num_future_frames=10)
    first, second = script.run_test_evaluation(
        cfg=None,
        agent=ConstantVelocityAgent(),
        scene_filter=scenes,
        data_path=raw_data.root / "navsim_logs" / "mini",
        synthetic_sensor_path=empty,
        original_sensor_path=raw_data.root / "sensor_blobs" / "mini",
        synthetic_scenes_path=empty,
    )
    (ours,), (two,) = content["first_stage_predictions"], content["second_stage_predictions"]
    assert list(content)[:5] == ["team_name", "authors", "email", "institution", "country / region"]
    assert ours.keys() == first.keys() and two == second == {}
    for token, trajectory in first.items():
        assert np.array_equal(ours[token].poses, trajectory.poses)
        assert ours[token].poses.dtype == trajectory.poses.dtype
        assert ours[token].trajectory_sampling == trajectory.trajectory_sampling


def test_a_submission_names_its_makers(score, tmp_path, capsys):
    code, _ = score("agent=human_agent", f"--submission={tmp_path / 'x.pkl'}", *WHO[:4])
    assert code == 1
    assert "A submission says who made it: country=… is missing." in capsys.readouterr().err


def test_failed_scenes_are_not_submitted(written, tmp_path, navsim_tree):
    from convoy.scoring.submission import WHO as NAMES
    from convoy.scoring.submission import write_submission

    directory = written("a", [0.1, 0.2, 0.3, 0.4])
    for log in "ab":
        poses = [np.zeros((8, 3), np.float32), "no plan" if log == "b" else np.ones((8, 3), "f4")]
        unit = f"{log}-000"
        Trajectories.of([f"{log}0", f"{log}1"], poses, 0.5).write(directory.trajectories_of(unit))
    assert write_submission(directory, tmp_path / "s.pkl", dict.fromkeys(NAMES, "x")) == ["b1"]
    content = pickle.loads((tmp_path / "s.pkl").read_bytes())
    assert content["first_stage_predictions"][0].keys() == {"a0", "a1", "b0"}
