"""`convoy stop` asks the newest start of a run; no other start hears of it."""

import signal

from convoy.commands.__main__ import main
from convoy.run import stop_request
from convoy.run.layout import RunDirectory
from convoy.topology import Agreement


def test_the_newest_start_is_asked(tmp_path, capsys):
    run = RunDirectory(tmp_path)
    lines = [f'{{"start": "7-{number}", "software": {{}}}}\n' for number in range(2)]
    run.launches.write_text("".join(lines))
    assert main(["stop", str(tmp_path)]) == 0
    assert "7-1 was asked to save and stop (SIGUSR1)" in capsys.readouterr().out
    assert stop_request.read(run, "7-1") == signal.SIGUSR1
    assert stop_request.read(run, "7-0") == stop_request.read(run, "7-2") == 0


def test_the_launch_names_the_start(tmp_path):
    agreement = Agreement("8-0.1", "gl001:61000", str(tmp_path)).to_text()
    assert main(["stop", f"--agreement={agreement}", "--signal=TERM"]) == 0
    assert stop_request.read(RunDirectory(tmp_path), "8-0.1") == signal.SIGTERM


def test_a_folder_that_is_not_a_run(tmp_path, capsys):
    assert main(["stop", str(tmp_path)]) == 1
    assert "names no start of a run" in capsys.readouterr().err
    assert main(["stop"]) == 1
