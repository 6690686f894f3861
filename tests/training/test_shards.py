"""Whole training runs from packed shards: the same losses as from the gzip cache, step by step."""

import csv
import json
import os

import pytest
import torch

from convoy.commands.__main__ import main

RUN = (
    "agent=foreign_agent",
    "data.val_fraction=0.25",
    "trainer.params.log_every_n_steps=1",
    "global_batch=8",
    "trainer.params.max_epochs=2",
    "validate_first=true",
)


@pytest.fixture
def shards(ego_cache, tmp_path):
    out = tmp_path / "shards"
    assert (
        main(
            [
                "prepare",
                str(out),
                "--from-cache",
                str(ego_cache),
                "--workers=1",
                "--samples-per-shard=3",
            ]
        )
        == 0
    )
    return out


def metrics(run):
    """Every logged value by name and step, as it stands in the file; the rate is left out."""
    values = {}
    for version in sorted((run / "metrics").iterdir()):
        with (version / "metrics.csv").open() as file:
            for row in csv.DictReader(file):
                values |= {
                    (name, row["step"]): text
                    for name, text in row.items()
                    if text and "samples_per_s" not in name
                }
    return values


def weights(run):
    return torch.load(run / "checkpoints/last.ckpt", weights_only=False)["state_dict"]


def require_same(ours, reference):
    assert metrics(ours) == metrics(reference)
    assert sum(name == "train/loss" for name, _ in metrics(ours)) == 6
    mine, theirs = weights(ours), weights(reference)
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)


def test_the_same_losses_step_by_step_as_from_the_gzip_cache(
    foreign_tree, ego_cache, shards, train, tmp_path
):
    # With dropout: the loaders may not touch torch's generator.
    agent = foreign_tree / "navsim/agents/foreign_agent.py"
    agent.write_text(
        agent.read_text().replace("torch.nn.ReLU(),", "torch.nn.ReLU(), torch.nn.Dropout(0.2),")
    )

    def run(name, *overrides, processes):
        done = train(*RUN, f"run_dir={tmp_path / name}", *overrides, processes=processes)
        assert done.returncode == 0, done.stdout
        return tmp_path / name

    reference = run("gzip", f"cache_path={ego_cache}", processes=2)
    ours = run("packed", f"cache_path={shards}", "dataloader.params.num_workers=2", processes=2)
    require_same(ours, reference)
    staged = run("staged", f"cache_path={shards}", f"data.stage={tmp_path / 'node'}", processes=2)
    require_same(staged, reference)
    assert len(list((tmp_path / "node").glob("convoy-*/*/*.safetensors"))) == 12


def test_going_on_in_the_middle_of_an_epoch(foreign_tree, shards, train, tmp_path):
    def run(name, *overrides):
        done = train(*RUN, f"cache_path={shards}", f"run_dir={tmp_path / name}", *overrides)
        assert done.returncode == 0, done.stdout

    run("whole")
    run("parts", "+trainer.params.max_steps=4", "checkpoint.every_minutes=0")
    config = tmp_path / "parts/config.yaml"
    config.write_text(config.read_text().replace("    max_steps: 4\n", ""))
    run("parts", "dataloader.params.num_workers=2")
    theirs = weights(tmp_path / "whole")
    assert all(
        torch.equal(value, theirs[name]) for name, value in weights(tmp_path / "parts").items()
    )


def test_a_truncated_shard_is_told_or_left_out(foreign_tree, shards, train, tmp_path):
    path = shards / "shards/log-1-000.safetensors"
    size, lost = (
        path.stat().st_size,
        len(json.loads(path.with_suffix(".json").read_text())["tokens"]),
    )
    os.truncate(path, 100)
    arguments = (*RUN, f"cache_path={shards}", f"run_dir={tmp_path / 'run'}")
    logs = ("train_logs=[log-1,log-2]", "val_logs=[log-3]")
    done = train(*arguments, *logs)
    assert done.returncode == 1
    (line,) = [
        line for line in done.stdout.splitlines() if line.startswith("convoy") and "damaged" in line
    ]
    assert f"{path} has 100 bytes, the manifest says {size}" in line
    done = train(*arguments, *logs, "data.skip_bad=true", f"run_dir={tmp_path / 'skipped'}")
    assert done.returncode == 0, done.stdout
    assert (
        "1 damaged shards left out" in done.stdout
        and f"{16 - lost} training samples" in done.stdout
    )
    assert json.loads((tmp_path / "skipped/results.json").read_text())["world_size"] == 1


@pytest.mark.parametrize("mistake", ["unfinished", "builders", "stage-of-a-cache"])
def test_mistakes(foreign_tree, shards, ego_cache, train, tmp_path, mistake):
    overrides = [*RUN, f"cache_path={shards}"]
    if mistake == "unfinished":
        (shards / "manifest.json").unlink()
        expected = "its preparation was not finished (12 shards are)"
    elif mistake == "builders":
        overrides += ["agent=bev_fusion_agent"]
        expected = "hold nothing of the builder(s) transfuser_feature, transfuser_target"
    else:
        overrides += [f"cache_path={ego_cache}", f"data.stage={tmp_path}"]
        expected = f"Pack it first: convoy prepare DIR --from-cache {ego_cache}"
    done = train(*overrides)
    assert done.returncode == 1 and expected in done.stdout
