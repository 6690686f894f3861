"""Scorings that are interrupted, shared, or asked for what is not there."""

import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from convoy.data.prepare.tasks import TaskBoard
from convoy.scoring.parts import Trajectories
from convoy.topology import Task

SPLIT = "train_test_split.scene_filter.frame_interval=1"
ROOT = Path(__file__).parents[2]


def summary(out):
    return json.loads((out / "summary.json").read_text())


@pytest.fixture
def command(raw_data, metric_cache, tmp_path):
    """Start `convoy score` as a process; task `number` of `count` of an srun step."""

    def start(*words, number=0, count=1, job="1", out=tmp_path / "scores"):
        step = {
            "SLURM_JOB_ID": job,
            "SLURM_STEP_ID": "0",
            "SLURM_STEP_NUM_TASKS": str(count),
            "SLURM_PROCID": str(number),
        }
        where = ["--split", "mini", "--out", str(out), f"metric_cache_path={metric_cache}"]
        return subprocess.Popen(
            [
                sys.executable,
                "-m",
                "convoy.commands",
                "score",
                *words,
                *where,
                SPLIT,
            ],
            env=os.environ | raw_data.environment | step | {"PYTHONPATH": str(ROOT / "src")},
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )

    return start


def test_two_tasks_share_and_a_third_start_has_nothing_to_do(command, score, tmp_path):
    out = tmp_path / "scores"
    tasks = [command("agent=human_agent", "--workers=1", number=n, count=2) for n in range(2)]
    said = [task.communicate(timeout=300)[0] for task in tasks]
    assert [task.returncode for task in tasks] == [0, 0], said
    assert "task 0 of 2: 4 scenes scored" in said[0] and "task 1 of 2: 4 scenes" in said[1]
    whole = (out / "scores.csv").read_bytes()
    found = summary(out)
    assert found["tokens"] == 8 and found["failed"] == []
    human = found["baselines"]["human_agent"]
    assert human["metrics"] == found["metrics"]
    assert found["baselines"]["constant_velocity_agent"]["metrics"]["score"]["mean"] < 0.9
    (out / "scores.csv").unlink()
    code, _ = score("agent=human_agent", out=out)
    assert code == 0 and (out / "scores.csv").read_bytes() == whole


def test_a_killed_scoring_continues_where_it_was(command, score, tmp_path):
    """Its second log cannot be read before the first one's rows are there."""
    out = tmp_path / "scores"
    assert score("agent=constant_velocity_agent", "--no-baselines", out=out)[0] == 0
    expected = (out / "scores.csv").read_bytes()
    rows = sorted((out / "rows").iterdir())
    (out / "scores.csv").unlink()
    for path in [*rows[1:], out / "trajectories" / rows[1].name]:
        path.unlink()
    kept = rows[0].stat().st_mtime_ns
    fifo = out / "trajectories" / rows[1].name
    os.mkfifo(fifo)  # whoever reads it waits
    process = command("agent=constant_velocity_agent", "--no-baselines", "--workers=1", out=out)
    deadline = time.monotonic() + 120
    while not list((out / ".starts").glob("*/missing.json")) and time.monotonic() < deadline:
        time.sleep(0.1)
    time.sleep(1)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (out / "scores.csv").exists()
    fifo.unlink()
    code, _ = score("agent=constant_velocity_agent", "--no-baselines", out=out)
    assert code == 0 and (out / "scores.csv").read_bytes() == expected
    assert rows[0].stat().st_mtime_ns == kept, "what was finished is not done again"


def test_a_half_written_metric_cache_is_made_again(score, metric_cache, tmp_path):
    assert score("agent=human_agent", "--no-baselines", out=tmp_path / "a")[0] == 0
    cache = tmp_path / "metric_cache"
    shutil.copytree(metric_cache, cache)
    for path in sorted(cache.glob("*/unknown/*/metric_cache.pkl"))[:2]:
        path.write_bytes(path.read_bytes()[:1000])
    code, out = score("agent=human_agent", "--no-baselines", out=tmp_path / "b", cache=cache)
    assert code == 0
    assert (out / "scores.csv").read_bytes() == (tmp_path / "a" / "scores.csv").read_bytes()


def test_a_metric_cache_of_another_commit_is_refused(score, tmp_path, capsys):
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "convoy.json").write_text(
        json.dumps({"navsim_commit": "0123abc", "proposal_sampling": {}})
    )
    code, _ = score("agent=human_agent", cache=tmp_path / "cache")
    said = capsys.readouterr().err
    assert code == 1 and "was computed with something else (navsim_commit: 0123abc ->" in said


def test_a_checkpoint_of_another_configuration_is_named_by_its_tensors(
    score, checkpoint, tmp_path, capsys
):
    words, file = checkpoint("ego_status_mlp_agent")
    code, _ = score(file, *words, "agent.hidden_layer_dim=64")
    said = capsys.readouterr().err
    assert code == 1 and f"{file} does not fit EgoStatusMLPAgent: shapes differ: _mlp.0." in said
    state = {f"agent.other.{n}": torch.zeros(1) for n in range(5)}
    torch.save({"state_dict": state}, tmp_path / "other.ckpt")
    code, _ = score(tmp_path / "other.ckpt", *words)
    said = capsys.readouterr().err
    assert "the checkpoint lacks _mlp.0.bias, _mlp.0.weight" in said
    assert "the agent has no other.0, other.1, other.2 and 2 more" in said


def test_nan_trajectories_and_scenes_that_raise_are_rows(score, checkpoint, tmp_path, capsys):
    """A scene fails; NAVSIM's table has a row for it, and the others' scores are the same."""
    words, file = checkpoint("ego_status_mlp_agent")
    code, out = score(file, *words, "--no-baselines", "--device=cpu")
    assert code == 0
    whole = (out / "scores.csv").read_text().splitlines()
    part = sorted((out / "trajectories").iterdir())[0]
    held = Trajectories.read(part)
    poses = list(held.poses)
    poses[0][2, 0] = float("nan")
    Trajectories.of(held.tokens, poses, held.interval).write(part)
    (out / "rows" / part.name).unlink()
    capsys.readouterr()
    code, _ = score(file, *words, "--no-baselines", "--device=cpu")
    said = capsys.readouterr().out
    assert code == 0 and "1 of 8 scenes failed" in said
    found = summary(out)
    assert [entry["token"] for entry in found["failed"]] == [held.tokens[0]]
    assert "not finite" in found["failed"][0]["reason"]
    rows = {line.split(",")[1]: line.split(",")[2:] for line in whole}
    again = [line.split(",") for line in (out / "scores.csv").read_text().splitlines()]
    assert [line[1] for line in again if line[2] == "False"] == [
        held.tokens[0],
        "average_all_frames",
    ]
    # The scene after it has lost its neighbour: its two-frame comfort and its score may differ.
    same = [line[2:] == rows[line[1]] for line in again[1:-1] if line[1] not in held.tokens]
    assert len(same) == 4 and all(same)
    # Trying again computes the trajectory anew.
    code, _ = score(file, *words, "--no-baselines", "--device=cpu", "--retry-failed")
    assert code == 0 and (out / "scores.csv").read_text().splitlines() == whole


def test_two_scorings_into_one_directory(score, checkpoint, command, tmp_path, capsys):
    words, file = checkpoint("ego_status_mlp_agent")
    code, out = score("agent=human_agent", "--no-baselines")
    assert code == 0
    code, _ = score(file, *words, "--no-baselines")
    said = capsys.readouterr().err
    assert code == 1 and "belongs to another scoring: agent: " in said
    board = TaskBoard(out, Task("another-start", job="2"), "convoy score")
    board.open()
    try:
        said = command("agent=human_agent", "--no-baselines").communicate(timeout=120)[0]
    finally:
        board.close("stopped")
    assert "Another `convoy score` is writing" in said and "job 2" in said


def test_a_scene_that_raises_is_a_row_with_its_reason(score, raw_data, tmp_path, capsys):
    """Its route leads over a block that is not on the map."""
    log = "synthetic-mini-2-000.pkl"
    frames = pickle.loads((raw_data.root / "navsim_logs/mini" / log).read_bytes())
    frames[5]["roadblock_ids"] = ["nowhere"]
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / log).write_bytes(pickle.dumps(frames))
    words = ["agent=constant_velocity_agent", f"navsim_log_path={tmp_path / 'logs'}"]
    code, out = score(*words, "--no-baselines", cache=tmp_path / "cache")
    (failed,) = summary(out)["failed"]
    assert code == 0 and failed["token"] == frames[5]["token"]
    assert failed["reason"].startswith("its metric cache could not be made: AttributeError")
    assert f"failed: {failed['log']}/{failed['token']}: its metric" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train_test_split.scene_filter.tokens=[nothing]"], "with one of the 1 tokens that it"),
        (["train_test_split.scene_filter.log_names=[a]"], "1 of the 1 logs of mini are not in"),
        (["navsim_log_path=/nowhere"], "navsim_log_path=/nowhere is not a directory"),
        (["train_test_split.scene_filter.max_scenes=3"], "max_scenes=3 over several logs"),
        (["nothing=1"], "An override cannot be used: Could not override 'nothing'"),
        (["--device=cuda"], "torch sees no GPU here"),
        (["--precision=bf16"], "--precision bf16 is for batches"),
        (["--shards=/nowhere"], "--shards /nowhere holds no packed shards"),
        (["--checkpoint=best"], "--checkpoint best: best is not a file"),
    ],
)
def test_what_is_not_there_is_said(score, capsys, words, message):
    code, out = score("agent=human_agent", *words)
    assert code == 1 and message in capsys.readouterr().err
    assert not (out / "scores.csv").exists()


def test_missing_maps_are_said(score, capsys, monkeypatch):
    monkeypatch.setenv("NUPLAN_MAPS_ROOT", "/nowhere")
    code, _ = score("agent=human_agent")
    assert code == 1 and "NUPLAN_MAPS_ROOT=/nowhere holds no" in capsys.readouterr().err
