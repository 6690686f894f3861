import csv
import resource

import pytest
import torch

from convoy.training.metric_files import CsvFile, TensorBoardFile


@pytest.fixture
def disk():
    """`disk(n)`: no file grows past n bytes; `disk(None)`: there is room again."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def limit(size):
        soft = before[0] if size is None else size
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, before[1]))

    yield limit
    limit(None)


def test_rows_wait_for_room_and_none_is_torn(tmp_path, disk, caplog):
    log = CsvFile(tmp_path, name="metrics", flush_logs_every_n_steps=1)
    log.log_metrics({"train/loss": 1.0}, 1)
    log.save()
    path = tmp_path / "metrics/version_0/metrics.csv"
    disk(path.stat().st_size + 5)
    for step in (2, 3):
        log.log_metrics({"train/loss": float(step)}, step)
        log.save()
    assert caplog.text.count("The training continues") == 1
    assert [row["step"] for row in csv.DictReader(path.open())] == ["1"]
    disk(None)
    log.log_metrics({"train/loss": 4.0}, 4)
    log.save()
    assert [row["step"] for row in csv.DictReader(path.open())] == ["1", "2", "3", "4"]


def test_a_new_column_without_room_damages_no_row_before(tmp_path, disk):
    log = CsvFile(tmp_path, name="metrics", flush_logs_every_n_steps=1)
    path = tmp_path / "metrics/version_0/metrics.csv"
    disk(0)
    log.log_metrics({"train/loss": 1.0}, 1)
    log.save()  # not even the header finds room
    disk(None)
    log.log_metrics({"train/loss": 2.0}, 2)
    log.save()
    before = path.read_bytes()
    disk(len(before) + 1)
    log.log_metrics({"val/loss": 3.0}, 3)
    log.save()
    assert path.read_bytes() == before
    disk(None)
    log.log_metrics({"train/loss": 4.0, "val/loss": 5.0}, 4)
    log.save()
    rows = [
        (row["step"], row["train/loss"], row["val/loss"]) for row in csv.DictReader(path.open())
    ]
    assert rows == [("1", "1.0", ""), ("2", "2.0", ""), ("3", "", "3.0"), ("4", "4.0", "5.0")]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_tensorboard_without_room_ends_nothing(tmp_path, disk, caplog):
    log = TensorBoardFile(tmp_path, name="tensorboard", version="")
    log.log_metrics({"train/loss": 1.0}, 1)
    log.save()
    disk(100)
    for step in range(2, 6):
        log.log_metrics({"train/loss": 1.0}, step)
        log.experiment.add_image("map", torch.rand(3, 64, 64), step)
        log.experiment.flush()
    log.finalize("success")
    assert caplog.text.count("The training continues") == 1
