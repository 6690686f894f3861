import dataclasses
import json

from convoy.run.layout import RunDirectory
from convoy.run.progress import ProgressFile, RunProgress, read_progress

REPORT = RunProgress("12-0", 10, 100, 1, 0.5, 300.0, 60.0, 1e9)


def test_what_was_written_is_read(tmp_path):
    run = RunDirectory(tmp_path)
    assert read_progress(run) is None
    ProgressFile(run).write(REPORT)
    assert read_progress(run) == REPORT
    assert [path.name for path in tmp_path.iterdir()] == ["progress.json"]


def test_it_is_not_written_at_every_step_but_at_the_end(tmp_path):
    run, later = RunDirectory(tmp_path), dataclasses.replace(REPORT, step=11)
    file = ProgressFile(run)
    file.write(REPORT)
    file.write(later)
    assert read_progress(run) == REPORT
    file.write(later, at_once=True)
    assert read_progress(run) == later


def test_a_damaged_file_is_no_progress_and_a_lost_directory_ends_no_run(tmp_path):
    run = RunDirectory(tmp_path)
    run.progress.write_text("{")
    assert read_progress(run) is None
    run.progress.write_text(json.dumps({"step": 1}))
    assert read_progress(run) is None
    ProgressFile(RunDirectory(tmp_path / "gone")).write(REPORT)
