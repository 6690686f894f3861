"""Whole training runs through the entrypoint: real torchrun, real processes, real files."""

import csv
import json
import os
import re
import shutil
import signal
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from convoy.run.layout import RunDirectory
from convoy.training.watchdog import read_states

EGO = (
    "agent=foreign_agent",
    "data.val_fraction=0.25",
    "trainer.params.log_every_n_steps=1",
    "global_batch=8",
)


@pytest.fixture
def settings(ego_cache, foreign_tree, tmp_path):
    return [*EGO, f"cache_path={ego_cache}", f"run_dir={tmp_path / 'run'}"]


def weights(run_dir, name="last"):
    return torch.load(run_dir / f"checkpoints/{name}.ckpt", weights_only=False)["state_dict"]


def losses(run_dir):
    """Loss by step, over all starts."""
    rows = [
        row
        for path in sorted(run_dir.glob("metrics/version_*/metrics.csv"))
        for row in csv.DictReader(path.open())
    ]
    return {int(row["step"]): float(row["train/loss"]) for row in rows if row.get("train/loss")}


def one_line(output):
    """The user's message; torchrun says more after a rank's failure, Convoy does not."""
    lines = [line for line in output.splitlines() if line.startswith("convoy")]
    assert len(lines) >= 1, output
    return lines[0]


def test_a_foreign_agent_trains_on_two_ranks(settings, train, tmp_path):
    done = train(*settings, "trainer.params.max_epochs=8", "validate_first=true", processes=2)
    assert done.returncode == 0, done.stdout
    run = tmp_path / "run"
    results = json.loads((run / "results.json").read_text())
    assert results["world_size"] == 2
    assert results["ade"] < 0.9 * results["ade_before"]
    assert results["ade_constant_velocity"] > 0
    assert OmegaConf.load(run / "config.yaml").trainer.params.devices == 2
    assert (run / "checkpoints/best.ckpt").is_file()
    assert sorted(path.name for path in (run / "logs").glob("rank-*")) == [
        "rank-000.log",
        "rank-001.log",
    ]
    metrics = (run / "metrics/version_0/metrics.csv").read_text()
    assert {"train/loss", "train/samples_per_s", "val/ade", "val/fde"} <= set(
        metrics.splitlines()[0].split(",")
    )
    assert list((run / "tensorboard").glob("events*"))
    assert re.search(r"epoch \d+  step \d+/24  loss [\d.]+  [\d.]+ samples/s  ETA \d", done.stdout)


def test_world_size_does_not_change_what_is_learned(settings, train, tmp_path):
    """The same global batches in the same order: one rank, two ranks, and one rank with
    accumulation agree."""
    runs = {
        "one": ([], 1),
        "two": ([], 2),
        "accumulated": (["dataloader.params.batch_size=2"], 1),
    }
    for name, (overrides, processes) in runs.items():
        mine = [f"run_dir={tmp_path / name}", "trainer.params.max_epochs=2", *overrides]
        done = train(*settings[:-1], *mine, processes=processes)
        assert done.returncode == 0, done.stdout
    assert (
        OmegaConf.load(tmp_path / "accumulated/config.yaml").trainer.params.accumulate_grad_batches
        == 4
    )
    reference = weights(tmp_path / "one")
    for name in ("two", "accumulated"):
        for key, value in weights(tmp_path / name).items():
            torch.testing.assert_close(
                value, reference[key], rtol=1e-4, atol=1e-6, msg=f"{name}: {key}"
            )


def test_nodes_with_different_arguments_are_refused(settings, train, tmp_path):
    """Two agents of one rendezvous, one with another seed: reported on both, before anything is
    trained."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    by_hand = ("--nodes=2", f"--rendezvous=127.0.0.1:{port}", "--start=differing")
    with ThreadPoolExecutor(2) as background:
        nodes = [
            background.submit(
                train,
                *settings,
                f"seed={node}",
                by_hand=(*by_hand, f"--node-rank={node}"),
            )
            for node in range(2)
        ]
    for node in nodes:
        assert node.result().returncode == 1
        assert "The configuration differs" in one_line(node.result().stdout)
        assert "seed" in one_line(node.result().stdout)
    assert (
        not (tmp_path / "run/config.yaml").exists() and not (tmp_path / "run/checkpoints").exists()
    )


def test_going_on_with_another_number_of_ranks(settings, train, tmp_path):
    """Stop by the step limit in the second epoch; two ranks take the same samples a step after."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    often = ["trainer.params.check_val_every_n_epoch=100", "trainer.params.max_epochs=3"]
    assert train(*settings[:-1], f"run_dir={whole}", *often).returncode == 0
    limited = ["+trainer.params.max_steps=4"]
    assert train(*settings[:-1], f"run_dir={parts}", *often, *limited).returncode == 0
    config = parts / "config.yaml"
    config.write_text(config.read_text().replace("    max_steps: 4\n", ""))
    done = train(*settings[:-1], f"run_dir={parts}", *often, processes=2)
    assert done.returncode == 0, done.stdout
    assert "step 5/9" in done.stdout and "step 4/9" not in done.stdout
    reference = losses(whole)
    assert sorted(reference) == list(range(1, 10))
    for step, loss in losses(parts).items():
        assert loss == pytest.approx(reference[step], rel=1e-5), step


def test_mistakes_are_told_before_torchrun_starts(settings, train):
    done = train(*settings, "trainer.params.max_epoch=3")
    assert done.returncode == 1
    assert done.stdout.strip().startswith("convoy: There is no setting 'trainer.params.max_epoch'")
    assert "Traceback" not in done.stdout


def test_a_cache_without_the_builders_files(settings, train, ego_cache):
    for path in ego_cache.glob("*/*/trajectory_target.gz"):
        path.unlink()
    done = train(*settings, processes=2)
    assert done.returncode == 1
    assert "builder 'trajectory_target': " in one_line(done.stdout)


def test_an_unreadable_file_is_named_or_skipped(settings, train, ego_cache, tmp_path):
    config = OmegaConf.create(
        {
            "cache_path": str(ego_cache),
            "train_logs": None,
            "val_logs": None,
            "data": {"val_fraction": 0.25},
        }
    )
    from convoy.data.cache import logs_in
    from convoy.data.split import choose_logs

    log = choose_logs(config, logs_in(ego_cache)).train[0]
    bad = sorted((ego_cache / log).iterdir())[0] / "ego_status_feature.gz"
    bad.write_bytes(bad.read_bytes()[:30])
    done = train(*settings, "trainer.params.max_epochs=1", "dataloader.params.num_workers=1")
    assert done.returncode == 1
    assert str(bad) in one_line(done.stdout)
    shutil.rmtree(tmp_path / "run")
    done = train(
        *settings,
        "trainer.params.max_epochs=1",
        "data.skip_bad=true",
        "dataloader.params.num_workers=1",
    )
    assert done.returncode == 0, done.stdout
    assert "1 unreadable samples were replaced" in done.stdout
    assert json.loads((tmp_path / "run/results.json").read_text())["skipped_samples"] == 1


def test_a_non_finite_loss_stops_the_run_and_names_the_batch(settings, train, ego_cache, tmp_path):
    done = train(*settings, "+agent.poison=5", "trainer.params.max_epochs=4", processes=2)
    assert done.returncode == 1
    records = sorted((tmp_path / "run").glob("non-finite-rank-*.json"))
    assert records, done.stdout
    record = json.loads(records[0].read_text())
    assert (record["epoch"], record["batch"], len(record["samples"])) == (1, 1, 4)
    assert all((ego_cache / sample).is_dir() for sample in record["samples"])
    assert "The loss became nan" in done.stdout
    assert all(value.isfinite().all() for value in weights(tmp_path / "run").values())


def test_another_configuration_does_not_touch_the_run(settings, train, tmp_path):
    assert train(*settings, "trainer.params.max_epochs=1").returncode == 0
    before = (tmp_path / "run/checkpoints/last.ckpt").read_bytes()
    done = train(*settings, "trainer.params.max_epochs=1", "agent.lr=0.5")
    assert done.returncode == 1
    assert (
        "belongs to another configuration" in done.stdout and "agent.lr: 0.01 -> 0.5" in done.stdout
    )
    assert (tmp_path / "run/checkpoints/last.ckpt").read_bytes() == before


def test_a_gpu_that_is_not_there_is_no_silent_cpu_run(settings, train):
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU; run without one to see the refusal")
    done = train(*settings, "trainer.params.accelerator=gpu")
    assert done.returncode == 1
    assert "need a GPU each, and torch sees 0" in one_line(done.stdout)


def test_a_killed_rank_ends_the_run_and_the_same_command_finishes_it(settings, train, tmp_path):
    """SIGKILL one of two ranks in mid-training, as an out-of-memory killer does; then start the
    same command again."""
    endless = ["trainer.params.max_epochs=100000", "checkpoint.every_minutes=0"]
    last = tmp_path / "run/checkpoints/last.ckpt"
    with ThreadPoolExecutor(1) as background:
        running = background.submit(train, *settings, *endless, processes=2)
        deadline = time.monotonic() + 300
        while not last.is_file():
            assert time.monotonic() < deadline and not running.done(), running.result().stdout
            time.sleep(0.2)
        os.kill(read_states(RunDirectory(tmp_path / "run"), 2)[1].pid, signal.SIGKILL)
        done = running.result()
    assert done.returncode == 1
    assert re.search(
        r"^convoy: rank 1 on \S+ failed first: it was killed by SIGKILL", done.stdout, re.MULTILINE
    ), done.stdout
    assert not any(
        f"run_dir={tmp_path / 'run'}" in _command_line(process)
        for process in Path("/proc").glob("[0-9]*")
    )
    reached = torch.load(last, weights_only=False)["epoch"]
    done = train(
        *settings,
        f"trainer.params.max_epochs={reached + 2}",
        "checkpoint.every_minutes=0",
        processes=2,
    )
    assert done.returncode == 0, done.stdout
    assert "going on from" in done.stdout


def _command_line(process):
    try:
        return (process / "cmdline").read_bytes().replace(b"\0", b" ").decode()
    except OSError:
        return ""


def test_navsims_ego_status_mlp_trains_unedited(navsim_tree, ego_cache, train, tmp_path):
    done = train(
        "agent=ego_status_mlp_agent",
        f"cache_path={ego_cache}",
        f"run_dir={tmp_path / 'run'}",
        "data.val_fraction=0.25",
        "global_batch=8",
        "trainer.params.max_epochs=2",
        processes=2,
    )
    assert done.returncode == 0, done.stdout
    assert json.loads((tmp_path / "run/results.json").read_text())["world_size"] == 2
