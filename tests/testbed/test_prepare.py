"""slurm/prepare.slurm on a real SLURM: raw logs to shards on 1, 2 and 4 nodes."""

import json
import re
from contextlib import contextmanager

import pytest

# One process a node: each starts NAVSIM, and all nodes are containers of one machine.
SMALL = ("--cpus-per-task=2", "--mem=20G")
RAW = (
    "agent=ego_status_mlp_agent",
    "train_test_split=mini",
    "train_test_split.scene_filter.frame_interval=1",
)
SAMPLES, LOGS = 32, 8


@pytest.fixture(scope="module")
def raw(testbed):
    """Synthetic raw data on the cluster's shared file system."""
    arguments = [
        "--raw",
        "/scratch/raw",
        "--samples",
        str(SAMPLES),
        "--logs",
        str(LOGS),
        "--cameras",
        "front",
    ]
    made = testbed.run(
        "apptainer", "run", "--bind=/scratch", str(testbed.image), "synth", *arguments, timeout=600
    )
    assert made.code == 0, made.out
    return {"OPENSCENE_DATA_ROOT": "/scratch/raw", "NUPLAN_MAPS_ROOT": "/scratch/raw/maps"}


def prepare(testbed, raw, nodes, out, *arguments):
    job = [f"--nodes={nodes}", *SMALL, "slurm/prepare.slurm", out, "--workers=1", *arguments]
    return testbed.sbatch(*job, environment=raw, timeout=900)


def prepared(testbed, raw, nodes):
    """Shards of an earlier test, or made now."""
    out = f"/scratch/shards-{nodes}"
    if testbed.run("test", "-e", f"{out}/manifest.json").code:
        assert prepare(testbed, raw, nodes, out, "--samples-per-shard=4", *RAW).code == 0
    return out


@pytest.mark.parametrize("nodes", [1, 2, 4])
def test_nodes_do_equal_shares(testbed, raw, nodes):
    out = f"/scratch/shards-{nodes}"
    job = prepare(testbed, raw, nodes, out, "--samples-per-shard=4", *RAW)
    assert job.code == 0, job.log
    shares = {
        int(task): int(count)
        for task, count in re.findall(rf"task (\d) of {nodes}: (\d+) samples", job.log)
    }
    assert sorted(shares) == list(range(nodes)) and sum(shares.values()) == SAMPLES
    assert max(shares.values()) <= 1.1 * min(shares.values())
    assert (
        f"{SAMPLES} samples of {LOGS} logs" in job.log
        and "verified: every shard has its checksum" in job.log
    )
    if nodes > 1:  # the same shards, whatever the number of nodes
        sums = "cd $1/shards && sha256sum *.safetensors"
        one, other = (
            testbed.run("bash", "-c", sums, "bash", f"/scratch/shards-{n}").out for n in (1, nodes)
        )
        assert one == other and one.count(".safetensors") == LOGS
    testbed.assert_nothing_left()


def test_what_two_nodes_prepared_trains_on_two_nodes_with_four_ranks(testbed, raw):
    out = prepared(testbed, raw, 2)
    job = testbed.sbatch(
        "slurm/torchrun_2node.slurm",
        "agent=ego_status_mlp_agent",
        f"cache_path={out}",
        "data.val_fraction=0.25",
        "global_batch=16",
        "trainer.params.max_epochs=2",
        "dataloader.params.num_workers=1",
        "data.stage=/tmp/stage",
        timeout=600,
    )
    assert job.code == 0, job.log
    (run,) = re.findall(r"^launch: run directory (\S.*), rendezvous at", job.log, re.MULTILINE)
    results = json.loads(testbed.read(f"{run}/results.json"))
    assert results["world_size"] == 8 and results["ade"] > 0
    assert "24 training samples of 6 logs, 8 validation samples of 2 logs" in job.log
    testbed.assert_nothing_left()


@contextmanager
def last_log_held(testbed, raw):
    """Whoever reads the last log waits: a preparation gets there and no further, however fast the
    machine is."""
    logs = f"{raw['OPENSCENE_DATA_ROOT']}/navsim_logs/mini"
    hold = 'cd "$1" && last=$(ls *.pkl | tail -n 1) && mv "$last" "$last.whole" && mkfifo "$last"'
    give_back = 'cd "$1" && for whole in *.whole; do mv "$whole" "${whole%.whole}"; done'
    assert testbed.run("bash", "-c", hold, "bash", logs).code == 0
    try:
        yield
    finally:
        assert testbed.run("bash", "-c", give_back, "bash", logs).code == 0


def test_a_killed_preparation_is_completed_on_another_number_of_nodes(testbed, raw):
    out = "/scratch/shards-killed"
    begun = (
        'mkdir "$2" "$2/shards" && cp "$1/preparation.json" "$2"'  # listed, and nothing packed yet
    )
    assert testbed.run("bash", "-c", begun, "bash", prepared(testbed, raw, 1), out).code == 0
    arguments = ["--samples-per-shard=4", *RAW]
    submit = [
        "env",
        f"CONVOY_IMAGE={testbed.image}",
        *(f"{name}={value}" for name, value in raw.items()),
    ]
    submit += [
        "sbatch",
        "--parsable",
        "--output=/scratch/job-%j.log",
        "--nodes=2",
        *SMALL,
        "slurm/prepare.slurm",
        out,
    ]
    count = "ls $1/shards/*.json 2>/dev/null | wc -l"
    some = f"for i in $(seq 1500); do [[ $({count}) -ge 3 ]] && exit; sleep 0.2; done; exit 1"
    with last_log_held(testbed, raw):
        job = testbed.run(*submit, "--workers=1", *arguments).out.strip()
        assert testbed.run("bash", "-c", some, "bash", out).code == 0
        testbed.run("scancel", "--signal=KILL", "--full", job)
        testbed.run("scancel", job)
        testbed.wait(job)
    assert testbed.run("test", "-e", f"{out}/manifest.json").code != 0
    done = int(testbed.run("bash", "-c", count, "bash", out).out)
    assert 3 <= done < LOGS
    # Another job, so the signs of life of the killed one have to fall silent first; here they are
    # made old.
    testbed.run(
        "bash", "-c", "find $1/.starts -type f -exec touch -d '10 minutes ago' {} +", "bash", out
    )
    finished = prepare(testbed, raw, 1, out, *arguments)
    assert finished.code == 0, finished.log
    assert f"task 0 of 1: {SAMPLES - done * SAMPLES // LOGS} samples" in finished.log
    testbed.assert_nothing_left()
