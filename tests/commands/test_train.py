import pytest

from convoy.commands.__main__ import main

SEVERAL_TASKS = {
    "SLURM_JOB_ID": "12",
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NUM_TASKS": "2",
    "SLURM_STEP_NUM_NODES": "1",
}


@pytest.mark.parametrize("task", ["0", "1"])
def test_one_task_says_what_all_of_a_step_find(task, monkeypatch, capsys):
    for name, value in (SEVERAL_TASKS | {"SLURM_PROCID": task}).items():
        monkeypatch.setenv(name, value)
    assert main(["train", "agent=a"]) == 1
    said = capsys.readouterr().err
    assert ("srun started 2 tasks on 1 node(s)" in said) == (task == "0")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--nodes=2",), "Several nodes by hand take all of --nodes, --node-rank"),
        (
            ("--nodes=2", "--node-rank=2", "--rendezvous=a:1", "--start=x"),
            "--node-rank=2 must be from 0 to 1",
        ),
        (
            ("--nodes=2", "--node-rank=0", "--rendezvous=a", "--start=x"),
            "--rendezvous=a must be HOST:PORT",
        ),
        (("--agreement=Welcome",), "What the first node agreed on cannot be read"),
    ],
)
def test_a_launch_that_cannot_be(options, message, capsys):
    assert main(["train", *options, "--", "agent=a"]) == 1
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1
