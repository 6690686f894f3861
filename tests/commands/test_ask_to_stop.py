"""A request to stop is for one start of a run."""

import signal

from convoy.commands.__main__ import main
from convoy.run import stop_request
from convoy.run.layout import RunDirectory
from convoy.topology import Agreement


def test_the_launch_asks_its_own_start(tmp_path, capsys):
    agreement = Agreement("8-0.1", "gl001:61000", str(tmp_path), "gl001:61001", "/data").to_text()
    assert main(["ask-to-stop", "--signal=TERM", agreement]) == 0
    assert capsys.readouterr().out == "launch: SIGTERM: the ranks were asked to save and stop\n"
    run = RunDirectory(tmp_path)
    assert stop_request.read(run, "8-0.1", since=0) == signal.SIGTERM
    assert stop_request.read(run, "8-1", since=0) == 0


def test_a_directory_that_cannot_be_written_is_said(tmp_path, capsys):
    (tmp_path / "file").touch()
    agreement = Agreement(
        "8-0", "gl001:61000", str(tmp_path / "file"), "gl001:61001", "/data"
    ).to_text()
    assert main(["ask-to-stop", agreement]) == 1
    assert "could not be asked to save and stop" in capsys.readouterr().err


def test_without_a_name_it_is_for_the_start_that_runs(tmp_path):
    run = RunDirectory(tmp_path)
    assert stop_request.read(run, "8-0", since=0) == 0
    stop_request.ask(run)
    assert stop_request.read(run, "8-0", since=0) == signal.SIGUSR1
    assert stop_request.read(run, "8-1", since=9e9) == 0  # it began after somebody asked
