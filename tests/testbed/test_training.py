"""The job files train on a real SLURM: as shipped, in every shape that a person starts them in."""

import json
import re
from concurrent.futures import ThreadPoolExecutor

import pytest

SHORT = (
    "agent=bev_fusion_agent",
    "cache_path=/scratch/cache",
    "data.val_fraction=0.25",
    "+trainer.params.max_steps=2",
    "trainer.params.log_every_n_steps=1",
    "dataloader.params.num_workers=0",
)
SMALL = ("--gpus-per-node=1", "--cpus-per-task=8", "--mem=20G")  # a part of a node


def run_directory(log: str) -> str:
    found = re.search(r"^launch: run directory (\S.*), rendezvous at", log, re.MULTILINE)
    assert found, log
    return found.group(1)


@pytest.mark.parametrize("nodes", [1, 2, 4])
def test_the_stock_job_file_trains_on_four_ranks_a_node(testbed, nodes):
    # Two nodes with no argument at all: the testbed's site file has a short training's.
    overrides = () if nodes == 2 else (*SHORT, "global_batch=16")
    job = testbed.sbatch(f"slurm/torchrun_{nodes}node.slurm", *overrides, timeout=600)
    assert job.code == 0, job.log
    run = run_directory(job.log)
    assert run == f"/scratch/exp/train/{job.id}"
    assert json.loads(testbed.read(f"{run}/results.json"))["world_size"] == 4 * nodes
    assert f"{nodes} node(s) x 4 process(es), global batch 16 = {4 * nodes} ranks" in job.log
    assert ("ADE " if nodes == 2 else "step 2/2") in job.log
    # Every rank of every node says where it stands; ranks of one node are neighbours.
    said = testbed.run("bash", "-c", f"cat {run}/logs/rank-*.log").out
    hosts = {}
    for rank in range(1, 4 * nodes):
        place = rf"node {rank // 4} of {nodes}, local rank {rank % 4} of 4"
        pattern = (
            rf"(\S+) \[{rank}\] convoy: rank {rank} of {4 * nodes} \({place}\) on (\S+), torchrun"
        )
        found = re.search(pattern, said)
        assert found and found.group(1) == found.group(2), said
        hosts.setdefault(rank // 4, set()).add(found.group(2))
    assert [len(names) for names in hosts.values()] == [1] * nodes
    assert len(set.union(*hosts.values())) == nodes
    launched = json.loads(testbed.read(f"{run}/launches.jsonl"))
    assert len(launched["nodes"]) == nodes and launched["processes_per_node"] == 4
    testbed.assert_nothing_left()


# A user's own NAVSIM fork, whose agent tells each rank's weights at the end and fails where it is
# asked to.
FORK = """
import torch, pytorch_lightning as pl


class Builder:
    def __init__(self, name):
        self.name = name

    def get_unique_name(self):
        return self.name


class Tell(pl.Callback):
    def on_train_end(self, trainer, module):
        total = sum(float(value.double().abs().sum()) for value in module.state_dict().values())
        print(f"weights {total!r}", flush=True)


class Agent(torch.nn.Module):
    def __init__(self, fail_rank=None):
        super().__init__()
        self.fail_rank, self.steps = fail_rank, 0
        self.mlp = torch.nn.Linear(8, 24)

    def get_feature_builders(self):
        return [Builder("ego_status_feature")]

    def get_target_builders(self):
        return [Builder("trajectory_target")]

    def forward(self, features):
        return {"trajectory": self.mlp(features["ego_status"].float()).reshape(-1, 8, 3)}

    def compute_loss(self, features, targets, predictions):
        self.steps += self.training
        fails = self.fail_rank is not None and self.steps == 2
        if fails and torch.distributed.get_rank() == self.fail_rank:
            raise RuntimeError("a wheel came off")
        return torch.nn.functional.l1_loss(predictions["trajectory"], targets["trajectory"].float())

    def get_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.01)

    def get_training_callbacks(self):
        return [Tell()]
"""

FORK_CACHE = """
import gzip, pickle, sys, torch
from pathlib import Path
for log in range(4):
    for token in range(16):
        folder = Path(sys.argv[1]) / f"log-{log}" / f"{log:04x}{token:012x}"
        folder.mkdir(parents=True)
        files = {
            "ego_status_feature": {"ego_status": torch.rand(8)},
            "trajectory_target": {"trajectory": torch.rand(8, 3) + token},
        }
        for name, value in files.items():
            with gzip.open(folder / f"{name}.gz", "wb") as file:
                pickle.dump(value, file)
"""


@pytest.fixture(scope="module")
def fork(testbed):
    """Settings of the fork's agent; NAVSIM_DEVKIT_ROOT names the fork."""
    files = {
        "/scratch/fork/navsim/__init__.py": "",
        "/scratch/fork/navsim/agents/__init__.py": "",
        "/scratch/fork/navsim/agents/telling.py": FORK,
        "/scratch/fork/navsim/planning/script/config/common/agent/telling_agent.yaml": (
            "_target_: navsim.agents.telling.Agent\n_convert_: all\nfail_rank: null\n"
        ),
        "/scratch/fork-cache.py": FORK_CACHE,
    }
    for path, text in files.items():
        done = testbed.run(
            "bash", "-c", 'mkdir -p "$(dirname "$1")" && printf %s "$2" > "$1"', "bash", path, text
        )
        assert done.code == 0, done.out
    made = testbed.run(
        "apptainer",
        "exec",
        "--bind=/scratch",
        str(testbed.image),
        "python",
        "/scratch/fork-cache.py",
        "/scratch/fork-cache",
    )
    assert made.code == 0, made.out
    return ("agent=telling_agent", "cache_path=/scratch/fork-cache", *SHORT[1:], "global_batch=8")


def test_a_fork_trains_where_the_nodes_names_mean_loopback_and_all_ranks_agree(testbed, fork):
    """Debian's installer writes the machine's own name beside 127.0.1.1; some sites write it beside
    ::1 too."""
    loopback = (
        "cp /etc/hosts /tmp/before; "
        "(echo -e '127.0.1.1 {0}\\n::1 {0}'; grep -v {0} /tmp/before) > /etc/hosts"
    )
    pair = testbed.nodes[:2]
    for node in pair:
        assert testbed.run("bash", "-c", loopback.format(node), host=node, root=True).code == 0
    try:
        assert testbed.run("getent", "hosts", "gl001", host="gl001").out.split()[0] in {
            "127.0.1.1",
            "::1",
        }
        job = testbed.sbatch(
            f"--nodelist={','.join(pair)}",
            "--gpus-per-node=2",
            *SMALL[1:],
            "slurm/torchrun_2node.slurm",
            *fork,
            environment={"NAVSIM_DEVKIT_ROOT": "/scratch/fork"},
        )
    finally:
        for node in pair:
            testbed.run("bash", "-c", "cat /tmp/before > /etc/hosts", host=node, root=True)
    assert job.code == 0, job.log
    assert re.search(r"launch: interface eth0: \S+ on eth0 is the route to gl006", job.log)
    run = run_directory(job.log)
    told = re.findall(
        r"^weights (\S+)$",
        job.log + testbed.run("bash", "-c", f"cat {run}/logs/rank-*.log").out,
        re.MULTILINE,
    )
    assert len(told) == 4 and len(set(told)) == 1, told


def test_the_rank_that_failed_first_is_named_with_its_host_and_last_lines(testbed, fork):
    job = testbed.sbatch(
        "--nodelist=gl001,gl006",
        "--gpus-per-node=2",
        *SMALL[1:],
        "slurm/torchrun_2node.slurm",
        *fork,
        "agent.fail_rank=3",
        environment={"NAVSIM_DEVKIT_ROOT": "/scratch/fork"},
    )
    assert job.code == 1
    named = re.findall(r"^convoy: rank (\d+) on (\S+) failed first: (.*)$", job.log, re.MULTILINE)
    assert len(named) == 1, job.log
    rank, host, message = named[0]
    assert (rank, message) == ("3", "RuntimeError: a wheel came off")
    log = testbed.read(f"{run_directory(job.log)}/logs/rank-003.log")
    assert f" {host} [3] " in log and "a wheel came off" in log
    shown = [line for line in job.log.splitlines() if line.startswith("  | ")]
    assert any("RuntimeError: a wheel came off" in line for line in shown)
    assert "Connection closed by peer" not in job.log
    testbed.assert_nothing_left()


HOSTILE = 'it\'s "quoted" $HOME `id` [a,b] {c} \\ * ; & | #\nsecond line, ends here'


def test_two_jobs_of_an_array_on_the_same_nodes_and_hostile_overrides(testbed, fork):
    """Both tasks run at once on both nodes; every character of an override arrives."""
    import yaml

    # Hydra's own quoting; the shell's is not needed in a list of arguments.
    escaped = HOSTILE.replace('"', '\\"')
    value = f'+note="{escaped}"'
    job = testbed.sbatch(
        "--array=0-1",
        "--nodelist=gl001,gl006",
        *SMALL,
        "slurm/torchrun_2node.slurm",
        *fork,
        value,
        environment={"NAVSIM_DEVKIT_ROOT": "/scratch/fork"},
    )
    assert job.code == 0, job.log
    spans = []
    for task in range(2):
        run = f"/scratch/exp/train/{job.id}_{task}"
        assert yaml.safe_load(testbed.read(f"{run}/config.yaml"))["note"] == HOSTILE
        assert json.loads(testbed.read(f"{run}/results.json"))["world_size"] == 2
    times = testbed.run("sacct", "-nXP", "-j", job.id, "-o", "Start,End,NodeList").out.split()
    spans = sorted(line.split("|") for line in times)
    assert len(spans) == 2 and spans[0][2] == spans[1][2] == "gl[001,006]"
    assert spans[1][0] < spans[0][1], "the two ran one after the other"


def test_transfuser_takes_two_steps(testbed):
    weights = (
        "from convoy.navsim.importing import make_importable; from convoy.navsim.weights import "
        "write_random_backbone; from pathlib import Path; make_importable(); "
        "write_random_backbone('resnet34', Path('/scratch/resnet34'))"
    )
    made = testbed.run(
        "apptainer", "exec", "--bind=/scratch", str(testbed.image), "python", "-c", weights
    )
    assert made.code == 0, made.out
    job = testbed.sbatch(
        "--gpus-per-node=1",
        "slurm/torchrun_2node.slurm",
        *SHORT,
        "agent=transfuser_agent",
        "+agent.config.image_architecture='local-dir:/scratch/resnet34'",
        "global_batch=8",
        "trainer.params.limit_val_batches=0",
        timeout=600,
    )
    assert job.code == 0, job.log
    assert "step 2/2" in job.log


def test_salloc_and_the_launch(testbed, fork):
    image = f"CONVOY_IMAGE={testbed.image}"
    done = testbed.run(
        "env",
        image,
        "NAVSIM_DEVKIT_ROOT=/scratch/fork",
        "salloc",
        "--nodes=2",
        *SMALL,
        "slurm/launch.sh",
        *fork,
    )
    assert done.code == 0, done.out
    assert "finished: results in" in done.out
    assert re.search(
        r"^launch: SLURM job \d+: 2 node\(s\) x 1 rank\(s\)$", done.out, re.MULTILINE
    ), done.out


def test_any_number_of_nodes(testbed, fork):
    job = testbed.sbatch(
        "--nodes=3",
        *SMALL,
        "slurm/torchrun_1node.slurm",
        *fork[:-1],
        "global_batch=9",
        environment={"NAVSIM_DEVKIT_ROOT": "/scratch/fork"},
    )
    assert job.code == 0, job.log
    assert "3 node(s) x 1 process(es), global batch 9 = 3 ranks x 3 samples" in job.log


def test_a_terminal_on_a_node(testbed, fork):
    """`srun --pty` inside an allocation, on a real terminal: one node, and the entrypoint says
    so."""
    train = " ".join(
        [
            *fork,
            "trainer.params.accelerator=cpu",
            "trainer.params.precision=32-true",
            "run_dir=/scratch/pty",
        ]
    )
    binds = "--bind=/scratch --bind=/scratch/fork:/opt/navsim"
    inside = f"srun --nodes=1 --ntasks=1 --pty apptainer run {binds} {testbed.image} train {train}"
    done = testbed.run(
        "salloc",
        "--nodes=2",
        *SMALL,
        "script",
        "--quiet",
        "--return",
        "--command",
        inside,
        "/dev/null",
    )
    assert done.code == 0, done.out
    assert re.search(r"launch: SLURM job \d+, alone on gl\d+: 1 rank\(s\)", done.out), done.out


def test_srun_of_the_image_without_sbatch(testbed, fork):
    """Nothing of Convoy's on the host: the entrypoint reads what srun says."""
    command = [
        "apptainer",
        "run",
        "--bind=/scratch",
        "--bind=/scratch/fork:/opt/navsim",
        str(testbed.image),
        "train",
        *fork,
        *("trainer.params.accelerator=cpu", "trainer.params.precision=32-true"),
        "run_dir=/scratch/bare-srun",
    ]
    done = testbed.run("srun", "--nodes=2", "--ntasks-per-node=1", *SMALL, *command)
    assert done.code == 0, done.out
    assert re.search(
        r"^launch: srun in SLURM job \d+: 2 node\(s\) x 1 rank\(s\)$", done.out, re.MULTILINE
    ), done.out
    assert json.loads(testbed.read("/scratch/bare-srun/results.json"))["world_size"] == 2


def test_several_tasks_on_a_node(testbed, fork):
    """`sbatch --ntasks-per-node` with the launch is one container a node; srun of the image says
    what is wrong."""
    parts = (
        "--nodes=1",
        "--ntasks-per-node=2",
        "--cpus-per-task=4",
        "--gpus-per-node=2",
        "--mem=20G",
    )
    with ThreadPoolExecutor(2) as background:
        launched = background.submit(
            testbed.sbatch,
            *parts,
            "slurm/torchrun_1node.slurm",
            *fork,
            environment={"NAVSIM_DEVKIT_ROOT": "/scratch/fork"},
        )
        bare = background.submit(
            testbed.run,
            "srun",
            *parts,
            "apptainer",
            "run",
            "--bind=/scratch",
            str(testbed.image),
            "train",
            *fork,
        )
    assert launched.result().code == 0, launched.result().log
    assert "1 node(s) x 2 rank(s)" in launched.result().log
    assert bare.result().code != 0
    said = [line for line in bare.result().out.splitlines() if line.startswith("convoy")]
    assert len(said) == 1 and "2 tasks on 1 node(s)" in said[0] and "--ntasks-per-node=1" in said[0]


def test_apptainer_alone_says_so(testbed, fork):
    """On a login node or a laptop: `apptainer run`, and `apptainer exec` of a word of the image."""
    train = [
        "train",
        *fork,
        "trainer.params.accelerator=cpu",
        "trainer.params.precision=32-true",
        "run_dir=/scratch/alone",
    ]
    image = ["--bind=/scratch", "--bind=/scratch/fork:/opt/navsim", str(testbed.image)]
    done = testbed.run("apptainer", "run", *image, *train)
    assert done.code == 0, done.out
    assert "launch: alone on login: 1 rank(s)" in done.out
    checked = testbed.run("apptainer", "exec", *image, "convoy", "check", *fork)
    assert checked.code == 0 and "8 = 1 ranks" in checked.out, checked.out
