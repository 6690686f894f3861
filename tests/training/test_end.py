"""The end of a run: its last weights, its figures, and what the same command does afterwards."""

import json
import logging

import torch


def step_of(run_dir):
    checkpoint = torch.load(run_dir / "checkpoints/last.ckpt", weights_only=True)
    return checkpoint["global_step"]


def test_the_last_weights_are_saved_and_the_figures_say_whose_they_are(
    train_here, tmp_path, caplog
):
    """Three steps an epoch. Ended between two validations, without any, and then gone on with."""
    caplog.set_level(logging.INFO, logger="convoy")
    run_dir = tmp_path / "run"
    rare = ("agent.plateau=false", "checkpoint.every_minutes=1000")
    train_here(run_dir, *rare, "+trainer.params.max_steps=4")
    results = json.loads((run_dir / "results.json").read_text())
    assert step_of(run_dir) == results["step"] == 4 and results["validated_step"] == 3
    assert "the figures are those of step 3; the last weights are of step 4" in caplog.text

    before = (run_dir / "results.json").read_bytes()
    train_here(run_dir, *rare, "+trainer.params.max_steps=4")
    assert (run_dir / "results.json").read_bytes() == before and step_of(run_dir) == 4
    assert "finished before" in caplog.text

    train_here(run_dir, *rare, "+trainer.params.max_steps=6")
    results = json.loads((run_dir / "results.json").read_text())
    assert step_of(run_dir) == results["step"] == results["validated_step"] == 6

    train_here(
        tmp_path / "blind",
        *rare,
        "trainer.params.limit_val_batches=0",
        "trainer.params.max_epochs=1",
    )
    results = json.loads((tmp_path / "blind/results.json").read_text())
    assert step_of(tmp_path / "blind") == results["step"] == 3
    assert results["validated_step"] is None and "ade" not in results


def test_the_last_weights_are_saved_where_the_last_epoch_is_not_validated(train_here, tmp_path):
    run_dir = tmp_path / "run"
    rare = ("agent.plateau=false", "checkpoint.every_minutes=1000")
    every_other = "trainer.params.check_val_every_n_epoch=2"
    train_here(run_dir, *rare, every_other, "trainer.params.max_epochs=3")
    results = json.loads((run_dir / "results.json").read_text())
    assert step_of(run_dir) == results["step"] == 9 and results["validated_step"] == 6


def test_the_last_weights_are_saved_where_the_time_is_up(train_here, tmp_path):
    run_dir = tmp_path / "run"
    train_here(
        run_dir,
        "agent.plateau=false",
        "checkpoint.every_minutes=1000",
        "trainer.params.check_val_every_n_epoch=100000",
        "trainer.params.max_epochs=100000",
        "+trainer.params.max_time=00:00:00:01",
    )
    results = json.loads((run_dir / "results.json").read_text())
    assert step_of(run_dir) == results["step"] > 0 and results["validated_step"] is None
