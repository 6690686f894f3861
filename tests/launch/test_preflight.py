"""A node that is unfit is found before the ranks start, and named."""

import os
import socket
import sys

import pytest

from convoy.errors import ExitCode
from convoy.health.finding import Status
from convoy.launch import node, preflight
from convoy.run import events, node_state
from convoy.run.layout import RunDirectory
from convoy.topology import Agreement, Launch

GIB = 1 << 30
HERE = socket.gethostname()
LAUNCH = Launch("job", 1, 2, "here", "7-0", (HERE,), HERE)


@pytest.mark.parametrize(
    ("free", "speed", "away", "status", "said"),
    [
        (100 * GIB, 300e6, 0.0, Status.OK, "100.0 GiB free, 300 MB/s"),
        (GIB / 2, 300e6, 0.0, Status.WARN, "too little for checkpoints"),
        (100 * GIB, 1e6, 0.0, Status.WARN, "each checkpoint will take long"),
        (100 * GIB, 300e6, 3600.0, Status.FAIL, "clock is wrong"),
    ],
)
def test_a_run_directory(free, speed, away, status, said):
    judged = preflight.judge_run_directory(free, speed, away)
    assert judged[0] is status and said in judged[1]


def test_a_fit_node_leaves_its_figures_and_no_file(tmp_path):
    run = RunDirectory(tmp_path)
    assert preflight.preflight(run, LAUNCH, tmp_path, None) == {}
    (entry,) = events.read(run)
    assert entry["kind"] == "preflight" and entry["problems"] == []
    assert "MB/s" in entry["found"]["run directory"] and entry["seconds"] < 20
    assert "GiB" in entry["found"]["/dev/shm"]
    assert [path.name for path in tmp_path.iterdir()] == ["events.jsonl"]


@pytest.fixture
def gpus(monkeypatch, tmp_path):
    """Two GPUs are promised, and a driver is there; `said` is the process that looks at them."""
    monkeypatch.setenv("SLURM_GPUS_ON_NODE", "2")
    (tmp_path / "version").touch()
    monkeypatch.setattr(preflight.compat, "DRIVER", tmp_path / "version")

    def looks(script: str) -> None:
        program = tmp_path / "python"
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(program))

    return looks


def test_gpus_that_do_not_answer(gpus, tmp_path, monkeypatch):
    gpus("exec sleep 60")
    monkeypatch.setattr(preflight, "PATIENCE", 0.2)
    problems = preflight.preflight(RunDirectory(tmp_path), LAUNCH, tmp_path, None)
    assert "GPUs: they did not answer within" in problems[HERE][-1]


def test_an_unfit_node_starts_no_rank(gpus, tmp_path):
    gpus('echo "memory: GPU 1: another process holds 20 GiB of its memory"; exit 1')
    run = RunDirectory(tmp_path / "run")
    run.root.mkdir()
    agreed = Agreement("7-0", "127.0.0.1:1", str(run.root), "127.0.0.1:2", str(tmp_path))
    assert node.Part(run, LAUNCH).take("127.0.0.1", [], agreed) == ExitCode.PREFLIGHT
    state = node_state.read(run, "7-0")[HERE]
    assert state.exit_code == ExitCode.PREFLIGHT
    assert state.problem.endswith("GPU 1: another process holds 20 GiB of its memory")


def test_the_process_that_looks_at_gpus_says_what_is_missing(capsys):
    if os.path.exists("/proc/driver/nvidia/version"):
        pytest.skip("this machine has GPUs")
    assert preflight.main(expected=2) == 1
    assert "driver: " in capsys.readouterr().out
