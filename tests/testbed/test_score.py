"""slurm/score.slurm on a real SLURM: two nodes with NAVSIM's figures, and a node that is killed."""

import csv
import io
import json
import re

import pytest

SMALL = ("--nodes=2", "--cpus-per-task=2", "--mem=20G")
SPLIT = "train_test_split.scene_filter.frame_interval=1"
EXP = "/scratch/scores"
SCENES, LOGS = 8, 4
# Checkpoints of TransFuser and of the demo's agent with fixed weights, and TransFuser's backbone.
WEIGHTS = """
import sys, torch
from convoy.config import compose
from convoy.navsim import tree
from convoy.navsim.agents import build_agent
from convoy.navsim.weights import write_random_backbone

torch.manual_seed(0)
write_random_backbone("resnet34", f"{sys.argv[1]}/backbone")
backbone = f'+agent.config.image_architecture="local-dir:{sys.argv[1]}/backbone"'
for name, words in (("transfuser_agent", [backbone]), ("bev_fusion_agent", [])):
    agent = build_agent(
        compose([f"agent={name}", "cache_path=x", *words], tree.config_directory()).agent
    )
    if name == "bev_fusion_agent":
        torch.nn.init.normal_(agent.head.weight, std=0.02)
    state = {f"agent.{key}": value for key, value in agent.state_dict().items()}
    torch.save({"state_dict": state}, f"{sys.argv[1]}/{name}.ckpt")
"""
TRANSFUSER = (
    "agent=transfuser_agent",
    f"+agent.config.image_architecture='local-dir:{EXP}/backbone'",
)
IN_IMAGE = ("apptainer", "run", "--bind=/scratch")


@pytest.fixture(scope="module")
def raw(testbed):
    """Synthetic raw data on the cluster's shared file system, and checkpoints beside it."""
    arguments = ["--samples", str(SCENES), "--logs", str(LOGS), "--cameras", "front"]
    synth = ["synth", "--raw", "/scratch/raw-scores", *arguments]
    made = testbed.run(
        "apptainer", "run", "--bind=/scratch", str(testbed.image), *synth, timeout=600
    )
    assert made.code == 0, made.out
    testbed.run("mkdir", "-p", EXP)
    weights = [*IN_IMAGE, str(testbed.image), "python", "-c", WEIGHTS, EXP]
    made = testbed.run(*weights, timeout=600)
    assert made.code == 0, made.out
    return {
        "OPENSCENE_DATA_ROOT": "/scratch/raw-scores",
        "NUPLAN_MAPS_ROOT": "/scratch/raw-scores/maps",
        "NAVSIM_EXP_ROOT": EXP,
        "CONVOY_BIND": "/scratch",
    }


def words(name, *agent):
    checkpoint = f"{EXP}/{name}.ckpt"
    return [checkpoint, *agent, "--split=mini", f"--out={EXP}/{name}", "--workers=1", SPLIT]


def rows(text):
    """The columns of each scene by token, without the header and the average."""
    _, *found = csv.reader(io.StringIO(text))
    return {row[1]: row[2:] for row in found if row[1] != "average_all_frames"}


def test_two_nodes_score_transfuser_as_navsims_script_does(testbed, raw):
    job = testbed.sbatch(
        *SMALL,
        "slurm/score.slurm",
        *words("transfuser_agent", *TRANSFUSER),
        environment=raw,
        timeout=900,
    )
    assert job.code == 0, job.log
    shares = dict(re.findall(r"task (\d) of 2: (\d+) scenes scored", job.log))
    assert shares == {"0": str(SCENES // 2), "1": str(SCENES // 2)}
    assert "EPDMS" in job.log and "constant velocity" in job.log
    summary = json.loads(testbed.read(f"{EXP}/transfuser_agent/summary.json"))
    assert summary["tokens"] == SCENES and summary["failed"] == []
    # NAVSIM's script, on one node, from the metric cache that the two nodes made.
    script = (
        "cd $(python -c 'from convoy.navsim import tree; print(tree.find())') && "
        "python -m convoy.navsim.torchvision_cpu "
        "navsim/planning/script/run_pdm_score_one_stage.py "
        'train_test_split=mini worker=sequential experiment_name=x "$@"'
    )
    theirs = testbed.run(
        "env",
        *(f"APPTAINERENV_{name}={value}" for name, value in raw.items()),
        "APPTAINERENV_OMP_NUM_THREADS=1",
        *IN_IMAGE,
        str(testbed.image),
        "bash",
        "-c",
        script,
        "bash",
        SPLIT,
        *TRANSFUSER,
        f"agent.checkpoint_path={EXP}/transfuser_agent.ckpt",
        f"output_dir={EXP}/navsim",
        timeout=600,
    )
    assert theirs.code == 0, theirs.out[-3000:]
    ours = rows(testbed.read(f"{EXP}/transfuser_agent/scores.csv"))
    assert len(ours) == SCENES
    assert ours == rows(testbed.run("bash", "-c", f"cat {EXP}/navsim/*.csv").out)
    testbed.assert_nothing_left()


@pytest.mark.parametrize("nodes", [1, 4])
def test_nodes_do_equal_shares(testbed, raw, nodes):
    options = [*SMALL, f"--nodes={nodes}", "slurm/score.slurm", "agent=human_agent"]
    where = ["--split=mini", f"--out={EXP}/human-{nodes}", "--workers=1", "--no-baselines", SPLIT]
    job = testbed.sbatch(*options, *where, environment=raw, timeout=600)
    assert job.code == 0, job.log
    shares = dict(re.findall(rf"task (\d) of {nodes}: (\d+) scenes scored", job.log))
    assert shares == {str(task): str(SCENES // nodes) for task in range(nodes)}
    ours = rows(testbed.read(f"{EXP}/human-{nodes}/scores.csv"))
    assert len(ours) == SCENES and all(row[0] == "True" for row in ours.values())


def test_a_killed_node_loses_nothing_that_was_finished(testbed, raw):
    """A node's container is killed in the middle of its share; SLURM requeues the job, and it
    continues on other nodes. The agent is the demo's."""
    out = f"{EXP}/bev_fusion_agent"
    caches = f"{EXP}/metric_cache"
    # Whoever reads this metric cache waits: the first of the last log's.
    hold = (
        'file=$(ls $1/*/unknown/*/metric_cache.pkl | tail -n 1) && mv "$file" "$file.whole" && '
        'mkfifo "$file" && echo "$file"'
    )
    held = testbed.run("bash", "-c", hold, "bash", caches)
    assert held.code == 0, held.out
    fifo = held.out.strip()
    give_back = ["mv", f"{fifo}.whole", fifo]
    submit = ["env", f"CONVOY_IMAGE={testbed.image}"]
    submit += [f"{name}={value}" for name, value in raw.items()]
    submit += ["sbatch", "--parsable", "--output=/scratch/job-%j.log", *SMALL, "slurm/score.slurm"]
    try:
        arguments = words("bev_fusion_agent", "agent=bev_fusion_agent", "--no-baselines")
        job = testbed.run(*submit, *arguments).out.strip()
        count = f"ls {out}/rows/*.npz 2>/dev/null | wc -l"
        all_but_one = (
            f"for i in $(seq 900); do [[ $({count}) -ge {LOGS - 1} ]] && exit; sleep 0.2; done; "
            f"cat /scratch/job-{job}.log; exit 1"
        )
        waited = testbed.run("bash", "-c", all_but_one)
        assert waited.code == 0, waited.out
        finished = testbed.run("bash", "-c", f"stat -c '%n %y' {out}/rows/*.npz").out
        names = testbed.run("squeue", "-h", "-j", job, "-o", "%N").out.strip()
        *_, second = testbed.run("scontrol", "show", "hostnames", names).out.split()
        with testbed.killed(second):
            # SLURM notices by itself after SlurmdTimeout, five minutes here.
            testbed.set_state(second, "down")
            requeued = f"until squeue -h -j {job} -t PENDING | grep -q .; do sleep 0.3; done"
            assert testbed.run("bash", "-c", requeued, timeout=120).code == 0
            assert testbed.run(*give_back).code == 0
            # It lets a requeued job wait for two minutes.
            testbed.run("scontrol", "update", f"jobid={job}", "starttime=now", root=True)
            done = testbed.wait(job, timeout=600)
        assert done.code == 0, done.log
    finally:
        testbed.run(*give_back)
    summary = json.loads(testbed.read(f"{out}/summary.json"))
    assert summary["tokens"] == SCENES and summary["failed"] == []
    after = testbed.run("bash", "-c", f"stat -c '%n %y' {out}/rows/*.npz").out
    assert set(finished.splitlines()) < set(after.splitlines()), "what was finished stays"
    assert f"{SCENES // LOGS} scenes scored" in done.log
    testbed.assert_nothing_left()


def test_a_training_is_scored_by_a_job_beside_it(testbed, raw):
    """convoy submit starts both; the second scores while the first trains, without its GPU, and
    ends with it."""
    run = f"{EXP}/train/beside"
    named = {"CONVOY_IMAGE": str(testbed.image), "CONVOY_SCORE_EVERY": "2", "PYTHONPATH": "src"}
    environment = [f"{name}={value}" for name, value in (raw | named).items()]
    arguments = ["--workers=1", SPLIT, f"metric_cache_path={EXP}/metric_cache"]
    submitted = testbed.run(
        "env",
        *environment,
        *("python3", "-m", "convoy.commands", "submit", "--gpus-per-node=1"),
        *("--sbatch=cpus-per-task=8", "--sbatch=mem=20G", "--sbatch=output=/scratch/job-%j.log"),
        "--",
        *("agent=bev_fusion_agent", "cache_path=/scratch/cache", f"run_dir={run}"),
        *("trainer.params.max_epochs=60", "global_batch=16", "dataloader.params.num_workers=0"),
        *("checkpoint.keep=1", "score.every_epochs=20", "score.split=mini"),
        f"score.arguments={arguments}",
    )
    assert submitted.code == 0, submitted.out
    training, beside = re.findall(r"Submitted batch job (\d+)", submitted.out)
    assert f"--dependency=after:{training}" in submitted.out
    node = testbed.wait(training, timeout=600)
    assert node.code == 0, node.log
    asked = testbed.run("scontrol", "show", "job", beside).out
    assert "gres/gpu" not in asked, asked
    ended = testbed.wait(beside, timeout=600)
    log = testbed.run("bash", "-c", f"cat convoy-score-{beside}.log").out
    assert ended.code == 0, log
    history = testbed.read(f"{run}/scores/history.jsonl").splitlines()
    scored = [json.loads(line) for line in history]
    assert len(scored) == 3 and all(line["tokens"] == SCENES for line in scored), log
    kept = testbed.run("ls", f"{run}/checkpoints").out.split()
    assert "best-score.ckpt" in kept and "best.ckpt" in kept
    assert not [name for name in kept if name.startswith("to-score")], kept
    testbed.assert_nothing_left()
