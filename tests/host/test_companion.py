"""The job that scores beside a training: how it is submitted, and when it ends, with SLURM's
commands replaced."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from convoy.host import companion
from convoy.host.site import Site
from convoy.host.submission import Submission

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (["score.every_epochs=5"], True),
        (["++score.every_epochs=5", "score.split=mini"], True),
        (["score.every_epochs=5", "score.every_epochs=null"], False),
        (["score.split=mini"], False),
    ],
)
def test_it_is_started_where_it_is_asked_for(words, wanted):
    assert companion.is_wanted(words) == wanted


def test_it_waits_for_the_training_and_takes_none_of_its_gpus():
    options = {"nodes": "4", "gpus-per-node": "8", "account": "vision", "time": "1:00:00"}
    training = Submission(Site(ROOT, {}), 4, options, ["score.every_epochs=5"])
    assert companion.command(training, "12") == [
        "sbatch",
        "--dependency=after:12",
        "--account=vision",
        str(ROOT / "slurm" / "score_waiting.slurm"),
        "12",
    ]


@pytest.fixture
def beside(tmp_path):
    """Start slurm/score_waiting.sh for job 12; each round is a line in `rounds`. `squeue` is the
    script of that command, which may count its calls in $calls."""

    def start(squeue):
        scripts = {
            "squeue": f"calls=$(cat {tmp_path}/n); echo $((calls + 1)) > {tmp_path}/n\n{squeue}",
            "srun": f'echo "${{@: -2}}" >> {tmp_path}/rounds',
            "scontrol": f'echo "$@" >> {tmp_path}/requeued',
            "apptainer": "",
        }
        for name, script in scripts.items():
            (tmp_path / name).write_text(f"#!/bin/bash\n{script}\n")
            (tmp_path / name).chmod(0o755)
        (tmp_path / "n").write_text("0")
        (tmp_path / "site.conf").write_text("")
        environment = {
            "PATH": f"{tmp_path}:{os.environ['PATH']}",
            "SLURM_JOB_ID": "13",
            "SLURM_JOB_NODELIST": "gl001",
            "SLURM_JOB_CPUS_PER_NODE": "16(x1)",
            "NAVSIM_EXP_ROOT": str(tmp_path / "exp"),
            "CONVOY_IMAGE": str(tmp_path / "apptainer"),
            "CONVOY_SITE": str(tmp_path / "site.conf"),
            "CONVOY_SCORE_EVERY": "0.1",
        }
        command = [ROOT / "slurm" / "score_waiting.sh", "12"]
        return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)

    return start


def rounds(tmp_path):
    path = tmp_path / "rounds"
    return path.read_text().splitlines() if path.exists() else []


def test_it_ends_with_the_training_after_one_more_round(beside, tmp_path):
    """Job 12 is in the queue at the first call, the controller is silent at the second; 112 is
    another job."""
    script = "case $calls in 0) echo 12;; 1) exit 1;; esac; echo 112"
    process = beside(script)
    assert process.communicate(timeout=20)[1] == "" and process.returncode == 0
    assert rounds(tmp_path) == ["score-waiting 12"] * 3


def test_its_time_limit_requeues_it(beside, tmp_path):
    process = beside("echo 12")
    deadline = time.monotonic() + 20
    while len(rounds(tmp_path)) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGUSR1)
    process.communicate(timeout=20)
    assert (tmp_path / "requeued").read_text() == "requeue 13\n"


def test_a_scoring_that_fails_ends_it_with_its_code(beside, tmp_path):
    process = beside("echo 12")
    (tmp_path / "srun").write_text("#!/bin/bash\necho no maps >&2; exit 1\n")
    said = process.communicate(timeout=20)[1]
    assert process.returncode == 1 and "no maps" in said
