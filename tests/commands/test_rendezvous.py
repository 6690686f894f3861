import json

import pytest

from convoy.commands.__main__ import main
from convoy.commands.rendezvous import LOST_MARK, MARK
from convoy.topology import Agreement

JOB = {
    "SLURM_JOB_ID": "12",
    "SLURM_JOB_NODELIST": "gl001",
    "SLURM_RESTART_COUNT": "1",
    "SLURMD_NODENAME": "gl001",
    "SLURM_GPUS_ON_NODE": "4",
}


@pytest.fixture
def rendezvous(ego_cache, foreign_tree, tmp_path, monkeypatch):
    for name, value in (JOB | {"NAVSIM_EXP_ROOT": str(tmp_path)}).items():
        monkeypatch.setenv(name, value)

    def run(*arguments: str) -> int:
        options = [word for word in arguments if word.startswith("--")]
        overrides = [word for word in arguments if not word.startswith("--")]
        chosen = ["agent=foreign_agent", f"cache_path={ego_cache}", "global_batch=8"]
        cpu = ["trainer.params.accelerator=cpu", "trainer.params.precision=32-true"]
        return main(["rendezvous", *options, "--", *chosen, *cpu, *overrides])

    return run


def test_the_answers_are_marked_lines(rendezvous, capsys, tmp_path, ego_cache):
    assert rendezvous() == 0
    printed = capsys.readouterr()
    (line,) = [line for line in printed.out.splitlines() if line.startswith(MARK)]
    agreement = Agreement.from_text(line.removeprefix(MARK))
    assert (agreement.start, agreement.run_dir) == ("12-1", str(tmp_path / "train/12"))
    assert agreement.endpoint.startswith("127.0.0.1:6") and agreement.peers.startswith("127.0.0.1:")
    assert agreement.peers != agreement.endpoint and agreement.data == str(ego_cache)
    assert f"{LOST_MARK}{tmp_path}/train/12/logs/nodes-12-1/lost" in printed.out.splitlines()
    assert "launch: run directory" in printed.err


def test_the_start_is_recorded_with_what_changed_since_the_submission(rendezvous, capsys, tmp_path):
    assert rendezvous("--changed=/c/slurm/launch.sh\n/c/build/convoy.sif") == 0
    (line,) = (tmp_path / "train/12/launches.jsonl").read_text().splitlines()
    entry = json.loads(line)
    assert (entry["kind"], entry["job"], entry["nodes"]) == ("job", "12", ["gl001"])
    assert entry["changed_since_submission"] == ["/c/slurm/launch.sh", "/c/build/convoy.sif"]
    assert "was changed after the job was submitted" in capsys.readouterr().err


def test_a_mistake_ends_it_with_one_line(rendezvous, capsys):
    assert rendezvous("global_batch=7") == 1
    printed = capsys.readouterr()
    assert printed.err.startswith("convoy: global_batch=7 cannot be split")
    assert MARK not in printed.out


def test_outside_of_a_job(monkeypatch, capsys):
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    assert main(["rendezvous"]) == 1
    assert "This is not a SLURM job" in capsys.readouterr().err
