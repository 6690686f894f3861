"""torchrun's command line for each kind of launch, against a golden file."""

from pathlib import Path

import pytest

from convoy.launch.torchrun import torchrun_arguments
from convoy.topology import Agreement, Launch, agreed_launch

GOLDEN = Path(__file__).parent / "golden"
STEP = {
    "SLURM_JOB_ID": "12",
    "SLURM_STEP_ID": "1",
    "SLURM_STEP_NUM_NODES": "2",
    "SLURM_STEP_NUM_TASKS": "2",
    "SLURM_STEP_NODELIST": "gl[001,006]",
    "SLURM_JOB_NODELIST": "gl[001,006]",
    "SLURMD_NODENAME": "gl001",
    "SLURM_GPUS_ON_NODE": "4",
}


def alone(monkeypatch) -> Launch:
    monkeypatch.setattr("convoy.topology._by_time", lambda: "20261125-120000")
    return Launch.from_environment({"CUDA_VISIBLE_DEVICES": "0,1"})


LAUNCHES = {
    "alone": (alone, "127.0.0.1"),
    "by-hand": (
        lambda _: Launch.by_hand({"CUDA_VISIBLE_DEVICES": "0"}, 3, 2, "node1:29400", "first"),
        "10.0.0.9",
    ),
    "srun": (lambda _: Launch.from_environment(STEP), "10.0.0.1"),
    "job": (
        lambda _: agreed_launch(
            STEP, Agreement("12-0", "[fd00::1]:61007", "/scratch/run", "[fd00::1]:61008", "/data")
        ),
        "fd00::1",
    ),
}


@pytest.mark.parametrize("kind", LAUNCHES)
def test_the_arguments_of_a_launch(kind: str, monkeypatch: pytest.MonkeyPatch):
    make, address = LAUNCHES[kind]
    arguments = torchrun_arguments(make(monkeypatch), address, Path("/scratch/run"))
    golden = GOLDEN / f"torchrun-{kind}.txt"
    text = "\n".join(arguments) + "\n"
    assert text == golden.read_text(), f"if this change is meant, write it to {golden}"


@pytest.mark.parametrize("kind", LAUNCHES)
def test_torchrun_takes_them(kind: str, monkeypatch: pytest.MonkeyPatch):
    from torch.distributed.run import parse_args

    make, address = LAUNCHES[kind]
    launch = make(monkeypatch)
    arguments = torchrun_arguments(launch, address, Path("/scratch/run"))
    parsed = parse_args([*arguments, "--", "agent=x", "+a.b='c d'"])
    assert parsed.training_script == "convoy.launch.rank" and parsed.module
    assert parsed.training_script_args[-2:] == ["agent=x", "+a.b='c d'"]
    assert parsed.rdzv_id == launch.start and parsed.local_addr == address
