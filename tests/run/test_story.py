"""Runs are read whatever state their files are in."""

import json
from pathlib import Path

from convoy.run import story
from convoy.run.story import Point

CONFIG = """\
agent:
  _target_: convoy.agents.bev_fusion.BevFusionAgent
  lr: 0.001
experiment_name: train
cache_path: /data/a cache
train_logs:
- log-1
- log-2
seed: 0
output_dir: null
trainer:
  params:
    max_epochs: 40
    precision: 16-mixed
empty: {}
"""


def metrics(root: Path, version: int, *rows: str) -> None:
    folder = root / "metrics" / f"version_{version}"
    folder.mkdir(parents=True)
    (folder / "metrics.csv").write_text("epoch,step,train/loss,val/ade\n" + "\n".join(rows) + "\n")


def test_no_files_at_all(tmp_path):
    run = story.read(tmp_path / "nothing")
    assert not run.is_finished and run.agent == "unknown" and not run.metrics


def test_damaged_files(tmp_path):
    (tmp_path / "progress.json").write_text('{"step": 3')
    (tmp_path / "results.json").write_text("[1, 2]")
    (tmp_path / "events.jsonl").write_text('{"kind": "start", "time": 1}\n{"kind": "che')
    metrics(tmp_path, 0, "0,9,1.5,", "0,x,1,", "0,19,nan,0.7", "0")
    run = story.read(tmp_path)
    assert not run.progress and not run.results and [e["kind"] for e in run.events] == ["start"]
    assert run.metrics["train/loss"] == (Point(9, 1.5, 0),)
    assert run.metrics["val/ade"] == (Point(19, 0.7, 0),)


def test_starts_follow_each_other_by_number(tmp_path):
    metrics(tmp_path, 10, "3,40,0.5,")
    metrics(tmp_path, 2, "1,20,0.8,")
    points = story.read(tmp_path).metrics["train/loss"]
    assert [(point.step, point.start) for point in points] == [(20, 0), (40, 1)]


def test_configuration_without_a_yaml_library(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(CONFIG)
    found = story.read_config(path)
    assert found["agent.lr"] == "0.001" and found["cache_path"] == "/data/a cache"
    assert found["train_logs"] == "log-1, log-2" and found["output_dir"] == "null"
    assert found["trainer.params.precision"] == "16-mixed" and found["empty"] == "{}"
    assert "trainer" not in found and story.read(tmp_path).agent == "BevFusionAgent"


def test_it_reads_what_the_real_configuration_is_saved_as(tmp_path):
    from omegaconf import OmegaConf

    from convoy.config import compose

    config = compose(["cache_path=/x", "+note='a: b, c #d'", "+long=" + "word" * 40], None)
    OmegaConf.save(config, tmp_path / "config.yaml")
    found = story.read_config(tmp_path / "config.yaml")
    assert found["dataloader.params.batch_size"] == "64" and found["note"] == "a: b, c #d"
    assert found["data.val_fraction"] == "0.1" and found["long"] == "word" * 40
    assert found["global_batch"] == "null" and found["checkpoint.every_minutes"]


def test_the_last_word_of_the_command_line(tmp_path):
    starts = [{"overrides": ["agent=a", "seed=1"]}, {"overrides": ["agent=b"]}]
    (tmp_path / "launches.jsonl").write_text("".join(json.dumps(start) + "\n" for start in starts))
    run = story.read(tmp_path)
    assert run.agent == "b" and run.override("seed") == "1" and run.override("x") is None


def test_finding_runs(tmp_path):
    for name in ("first/12", "second/20260105-090000", "second/empty"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "first/12/config.yaml").touch()
    (tmp_path / "second/20260105-090000/launches.jsonl").touch()
    found = {str(path.relative_to(tmp_path)) for path in story.find(tmp_path)}
    assert found == {"first/12", "second/20260105-090000"}
