"""What goes wrong on a cluster: one clear line, a non-zero exit, no process left."""

import json
import re
import time

import pytest

SHORT = (
    "agent=bev_fusion_agent",
    "cache_path=/scratch/cache",
    "+trainer.params.max_steps=2",
    "dataloader.params.num_workers=0",
    "global_batch=16",
)
TWO = "slurm/torchrun_2node.slurm"
ONE_GPU = ("--gpus-per-node=1", "--cpus-per-task=8", "--mem=20G")


def told(job) -> str:
    """The one line that is the user's, without srun's own about exit codes."""
    lines = [
        line
        for line in job.log.splitlines()
        if not re.match(r"srun: error: .*Exited with exit code|launch: ", line)
    ]
    assert len(lines) == 1, job.log
    assert "Traceback" not in job.log
    return lines[0]


@pytest.mark.parametrize(
    ("options", "overrides", "environment", "message"),
    [
        (
            (),
            (),
            {"CONVOY_IMAGE": "/scratch/gone.sif"},
            "convoy: there is no image /scratch/gone.sif: make image",
        ),
        (
            (),
            (),
            {"NAVSIM_EXP_ROOT": "/proc/exp"},
            "convoy: NAVSIM_EXP_ROOT=/proc/exp cannot be written",
        ),
        ((), ("run_dir=/proc/run",), {}, "convoy: The run directory /proc/run cannot be written"),
        (
            (),
            ("cache_path=/scratch/gone",),
            {},
            "convoy: cache_path=/scratch/gone is not a directory",
        ),
        (
            (),
            ("trainer.params.num_nodes=4",),
            {},
            "convoy: trainer.params.num_nodes=4 contradicts the launch, which has 2",
        ),
        ((), ("global_batch=7",), {}, "convoy: global_batch=7 cannot be split over world size 8"),
        ((), ("agent=nobody",), {}, "convoy: Unknown agent 'nobody'"),
    ],
    ids=[
        "no image",
        "unwritable experiments",
        "unwritable run",
        "no data",
        "node count",
        "global batch",
        "no agent",
    ],
)
def test_is_told_in_one_line(testbed, options, overrides, environment, message):
    job = testbed.sbatch(*options, TWO, *SHORT, *overrides, environment=environment)
    assert job.code == 1, job.log
    assert told(job).startswith(message)
    testbed.assert_nothing_left()


def test_a_busy_port(testbed):
    """One that was asked for is refused; else another is found, which the training tests show by
    running at once."""
    server = (
        "import socket, time; s = socket.socket(); s.bind(('', 61500)); s.listen(); time.sleep(600)"
    )
    pid = testbed.run(
        "bash", "-c", f'python3 -c "{server}" > /dev/null 2>&1 & echo $!', host="gl001", root=True
    ).out.strip()
    try:
        job = testbed.sbatch(
            "--nodelist=gl001,gl006", TWO, *SHORT, environment={"CONVOY_RDZV_PORT": "61500"}
        )
    finally:
        testbed.run("kill", pid, host="gl001", root=True)
    assert job.code == 1
    assert told(job).startswith("convoy: Port 61500 is taken on gl001")
    testbed.assert_nothing_left()


def test_a_greeting_of_the_site_does_no_harm(testbed):
    """A TaskProlog may print on the output of every task, that of the rendezvous step too."""
    greeting = "echo 'print Welcome; CONVOY_RUN_DIR=/tmp'; printf 'print no end of line'"
    made = "printf '#!/bin/sh\\n%s\\n' \"$1\" > /scratch/greet; chmod 755 /scratch/greet"
    assert testbed.run("bash", "-c", made, "bash", greeting).code == 0
    job = testbed.sbatch(TWO, *SHORT, environment={"SLURM_TASK_PROLOG": "/scratch/greet"})
    assert job.code == 0, job.log
    assert "Welcome" in job.log and f"run directory /scratch/exp/train/{job.id}" in job.log


def test_a_gpu_that_torch_does_not_see(testbed):
    """The testbed's site file says accelerator=cpu; a job that wants its GPUs all the same is not
    moved to the CPU."""
    job = testbed.sbatch(*ONE_GPU, TWO, *SHORT, "trainer.params.accelerator=gpu")
    assert job.code == 1
    said = [line for line in job.log.splitlines() if line.startswith("convoy")]
    assert (
        len(said) == 1
        and "failed first" in said[0]
        and "need a GPU each, and torch sees 0" in said[0]
    ), job.log
    testbed.assert_nothing_left()


def test_a_job_without_gpus(testbed):
    job = testbed.sbatch("--gpus-per-node=0", TWO, *SHORT)
    assert job.code == 1
    assert re.match(r"convoy: SLURM job \d+ has no GPUs: give --gpus-per-node=4", told(job))


def test_a_wrong_partition_is_refused_by_sbatch(testbed):
    job = testbed.sbatch("--partition=nowhere", TWO, *SHORT)
    assert job.code == 1
    assert "invalid partition specified: nowhere" in job.log


def test_from_another_folder(testbed):
    submit = 'cd /scratch && sbatch --wait --output=away.log "$script"; cat away.log'
    done = testbed.run("bash", "-c", f"script=$PWD/{TWO}; {submit}")
    assert done.code == 0
    assert (
        "convoy: /scratch/slurm/launch.sh is not there: submit from Convoy's checkout, or set "
        "CONVOY_ROOT" in done.out
    )


def test_outside_an_allocation(testbed):
    done = testbed.run("slurm/launch.sh", *SHORT)
    assert done.code == 1
    assert done.out.startswith(
        "convoy: this is not a SLURM allocation: sbatch slurm/torchrun_2node.slurm"
    )


def test_a_warned_requeued_and_cancelled_job(testbed):
    """SIGUSR1 of --signal: the ranks save, and the launch requeues the job, once. A cancelled job
    is not requeued, and leaves no process."""

    def wait_for(text: str) -> None:
        deadline = time.monotonic() + 300
        while text not in (log := testbed.run("bash", "-c", f"cat /scratch/job-{job}.log").out):
            assert time.monotonic() < deadline, log
            time.sleep(1)

    endless = (
        "agent=bev_fusion_agent",
        "cache_path=/scratch/cache",
        "trainer.params.max_epochs=100000",
        "dataloader.params.num_workers=1",
    )
    often = ("checkpoint.every_minutes=0", "trainer.params.log_every_n_steps=1", "global_batch=16")
    submit = [
        "env",
        f"CONVOY_IMAGE={testbed.image}",
        "sbatch",
        "--parsable",
        "--output=/scratch/job-%j.log",
    ]
    job = testbed.run(*submit, *ONE_GPU, TWO, *endless, *often).out.strip()
    wait_for("epoch 1 ")
    for _ in range(2):  # a second one changes nothing
        assert testbed.run("scancel", "--signal=USR1", "--batch", job).code == 0
    wait_for("launch: SIGUSR1: the ranks were asked to save and stop")
    wait_for("convoy: Stopped by SIGUSR1 after step ")
    wait_for("launch: requeueing the job")
    # SLURM begins a requeued job two minutes after it is done with its end, not before; then, that
    # may be moved.
    ended = "until [[ $(squeue --noheader --format=%T --jobs=$1) == PENDING ]]; do sleep 0.3; done"
    assert testbed.run("bash", "-c", ended, "bash", job).code == 0
    testbed.assert_nothing_left()
    assert testbed.run("scontrol", "update", f"JobId={job}", "StartTime=now").code == 0
    wait_for(f"going on from /scratch/exp/train/{job}/checkpoints/step-")
    launches = [
        json.loads(line)
        for line in testbed.read(f"/scratch/exp/train/{job}/launches.jsonl").splitlines()
    ]
    assert [launch["start"] for launch in launches] == [f"{job}-0", f"{job}-1"]
    assert testbed.processes()
    assert testbed.run("scancel", job).code == 0
    testbed.assert_nothing_left()
    settled = (
        "until shown=$(scontrol show job $1) && [[ $shown != *=COMPLETING* ]]; do sleep 0.3; done"
    )
    shown = testbed.run("bash", "-c", f'{settled}; echo "$shown"', "bash", job).out
    assert "JobState=CANCELLED" in shown and "Restarts=1 " in shown
