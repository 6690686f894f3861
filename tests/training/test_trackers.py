"""Loggers beside TensorBoard and CSV, with the real packages where they are installed."""

from importlib.util import find_spec

import convoy.navsim.torchvision_cpu  # noqa: F401  # before Lightning, which imports torchvision

# isort: split
import pytest
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger

from convoy.errors import ConvoyError
from convoy.run.layout import RunDirectory
from convoy.training import trackers


def test_without_a_tracker(tmp_path):
    first, second = trackers.loggers(RunDirectory(tmp_path), None)
    assert isinstance(first, TensorBoardLogger) and isinstance(second, CSVLogger)


@pytest.mark.parametrize("tracker", ["wandb", "mlflow"])
def test_a_tracker_that_is_not_installed(tmp_path, monkeypatch, tracker):
    monkeypatch.setattr(trackers, "find_spec", lambda name: None)
    with pytest.raises(ConvoyError, match=f"tracker={tracker} needs the package {tracker}"):
        trackers.loggers(RunDirectory(tmp_path), tracker)


@pytest.mark.parametrize("tracker", ["wandb", "mlflow"])
def test_it_writes_below_the_run_without_a_network(tmp_path, monkeypatch, tracker):
    if find_spec(tracker) is None:
        pytest.skip(f"{tracker} is not installed; pip install {tracker} into .venv enables this")
    run = RunDirectory(tmp_path / "first" / "12")
    logger = trackers.loggers(run, tracker)[-1]
    logger.log_metrics({"train/loss": 1.0}, step=1)
    logger.finalize("success")
    assert any(run.tracker.rglob("*"))
